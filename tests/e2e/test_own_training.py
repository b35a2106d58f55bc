"""Sweeps in which a function of a user trains, from its settings to the report and MLflow."""

import html
import re
import shutil
from pathlib import Path

import pytest
from in_process import run_sweep
from safetensors.torch import load_file
from sweeps import LOSSES, final_table, mlflow_of, runs_of

OWN = Path(__file__).with_name("own_functions.py")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration of a sweep, beside the test's own copy of the module own_functions."""
    folder = tmp_path / "user"
    folder.mkdir()
    shutil.copy(OWN, folder)
    monkeypatch.syspath_prepend(folder)
    path = folder / "own.yaml"
    path.write_text(
        "name: own\n"
        "data: {name: own, classes: 3}\n"
        "training: {function: 'own_functions:train', learning_rate: 0.05}\n"
        "baselines: {learning_rates: [0.05, 0.1]}\n"
    )
    return path


def report_of(work: Path) -> str:
    text = (work / "store/own/report.html").read_text()
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", text)))


def test_a_sweep_goes_through_the_function_and_its_repetition_trains_nothing(
    tmp_path: Path, config: Path
) -> None:
    work, calls = tmp_path / "runs", config.parent / "calls"
    output = run_sweep(work, "evaluation.attempts=1", path=config)
    assert "data: own, 3 classes; training: own_functions:train, score: accuracy" in output
    assert "Nothing was attacked: the data are the training's own" in output
    table = final_table(output)
    assert "test accuracy (%)" in table[0]
    assert [row[:30].strip() for row in table[2:6]] == LOSSES
    splits = [line.split()[0] for line in calls.read_text().splitlines()]
    # Champion and three baselines from two seeds are tested, and nothing else is.
    assert splits.count("test") == 4 * 2
    assert splits.count("validation") == 2 * 4 + 3 * 2 + 2
    folds = {line.split()[2] for line in calls.read_text().splitlines() if "test" not in line}
    assert folds == {"5"}
    report = report_of(work)
    assert "own_functions:train trained, and every score is the one that it returned." in report
    assert "Nothing was attacked: the data are the training's own" in report
    weights = load_file(work / "store/own/champion/model.safetensors")
    assert set(weights) == {"weight", "bias"}
    shutil.rmtree(work / "in-process")
    again = run_sweep(work, "evaluation.attempts=1", path=config)
    assert final_table(again) == table
    assert len(calls.read_text().splitlines()) == len(splits)


def test_a_score_that_is_no_share_is_a_plain_number_everywhere(
    tmp_path: Path, config: Path
) -> None:
    work = tmp_path / "runs"
    output = run_sweep(
        work,
        "training.function=own_functions:likelihood",
        "evaluation.score=log likelihood",
        "evaluation.attempts=1",
        path=config,
    )
    assert re.search(r"^generation 1/2  best +-[\d.]+  median +-[\d.]+  rejected", output, re.M)
    assert re.search(
        r"^champion: trained in full 2 times, test log likelihood -0\.\d+$", output, re.M
    )
    table = final_table(output)
    assert re.search(r" test log likelihood +n  vs champion  ", table[0])
    without_interval = re.sub(r"95 % interval|\d+% of \d+ s", "", output)
    assert "%" not in without_interval
    report = report_of(work)
    assert "Champion, test log likelihood−0." in report
    client = mlflow_of(work)
    _, nested = runs_of(client, "own")
    of_stage: dict[str, list[dict[str, float]]] = {}
    for run in nested:
        of_stage.setdefault(run.data.tags["taylorglo.stage"], []).append(run.data.metrics)
    assert all(metrics["attempt_log_likelihood"] < 0 for metrics in of_stage["candidate"])
    assert len(of_stage["candidate"]) == 2 * 4
    (champion,) = of_stage["champion"]
    assert champion["test_log_likelihood"] < 0
    assert not any("accuracy" in name for run in nested for name in run.data.metrics)


def test_networks_are_attacked_if_there_are_images_and_it_returns_them(
    tmp_path: Path, config: Path
) -> None:
    config.write_text(
        "name: own\n"
        "model: {name: 'own_functions:factory'}\n"
        "training: {function: 'own_functions:digits'}\n"
    )
    output = run_sweep(tmp_path / "runs", "evaluation.attempts=1", path=config)
    attacked = re.search(
        r"left at epsilon 0\.05 \(pixels in \[0, 1\]\): champion ([\d.]+)%", output
    )
    assert attacked
    # The clean accuracy on the attacked images is that of a network on pixels in [0, 1].
    tested = re.search(r"^champion: trained in full .* test accuracy ([\d.]+)%", output, re.M)
    assert tested
    report = report_of(tmp_path / "runs")
    clean = re.search(r"worst of all ?champion ?([\d.]+)", report)
    assert clean
    assert abs(float(clean[1]) - float(tested[1])) < 15
    assert float(tested[1]) > 70
    assert float(attacked[1]) < float(clean[1])


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("none", r"failed(, the first with)?: training\.function '\S+': gave None as the score"),
        ("few", r"training\.function 'own_functions:few': should be callable as train\("),
        ("nothing", "training.function 'own_functions:nothing': cannot be imported"),
    ],
)
def test_a_function_of_no_use_ends_the_sweep_with_one_line(
    function: str, error: str, tmp_path: Path, config: Path
) -> None:
    lines: list[str] = []
    with pytest.raises(SystemExit):
        run_sweep(
            tmp_path / "runs",
            f"training.function=own_functions:{function}",
            "baselines.losses=[cross-entropy]",
            path=config,
            see=lines.append,
        )
    errors = [line for line in lines if re.search(error, line)]
    assert errors, lines
