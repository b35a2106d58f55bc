"""A small sweep with two objectives, from its settings to the front in report and MLflow."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import run_sweep
from sweeps import GENERATIONS, artifacts_of, mlflow_of, runs_of, study_of, trained

from taylorglo.pareto import fronts

TWO = ("evaluation.adversarial_weight=0.5", "evaluation.adversarial_steps=2")
BOTH = (*TWO, "search.objectives=accuracy-and-robustness")


class EndError(BaseException):
    """Ends a sweep in the middle of its tasks, which would report any other error."""


def end_after(generation: int) -> Callable[[str], None]:
    def see(line: str) -> None:
        if line.startswith(f"generation {generation}"):
            raise EndError

    return see


def test_the_front_of_all_candidates_is_in_report_and_mlflow(tmp_path: Path) -> None:
    begun = tmp_path / "killed"
    with pytest.raises(EndError):
        run_sweep(begun, *BOTH, see=end_after(1))
    (begun / "in-process").rename(begun / "first")
    with pytest.raises(EndError):
        run_sweep(begun, *BOTH, see=end_after(GENERATIONS))
    whole = tmp_path / "whole"
    run_sweep(whole, *BOTH)
    candidates = study_of(whole)
    assert [c.theta for c in study_of(begun)] == [c.theta for c in candidates]

    attacked = [c for c in trained(whole).values() if c.result and c.result.status == "ok"]
    results = [c.result for c in attacked if c.result is not None]
    assert len(results) >= 4
    for result in results:
        assert len(result.robust_accuracies) == len(result.accuracies) == 4
        mean = sum(result.objectives) / 2
        assert result.fitness == pytest.approx(mean)
    front = fronts([result.objectives for result in results])[0]
    client = mlflow_of(whole)
    (parent,), _ = runs_of(client)
    assert "pareto-front.csv" in artifacts_of(client, parent)
    table = Path(client.download_artifacts(parent.info.run_id, "pareto-front.csv", str(tmp_path)))
    header, *rows = table.read_text().splitlines()
    assert header == "trial,generation,accuracy,robust_accuracy,champion"
    assert [int(row.split(",")[0]) for row in rows] == [attacked[place].trial for place in front]
    for row, place in zip(rows, front, strict=True):
        shown = [float(value) for value in row.split(",")[2:4]]
        assert shown == pytest.approx(results[place].objectives, rel=1e-5)
    figures = [file.path for file in client.list_artifacts(parent.info.run_id, "figures")]
    assert "figures/3-trade-off.png" in figures
    page = (whole / "store" / "digits" / "report.html").read_text()
    assert f"under attack of {len(results)} candidates. On the Pareto front: " in page
    assert re.search(r"\(FGSM and PGD of 2 steps, ε = 0\.03\)", " ".join(page.split()))


def test_a_search_goes_on_with_the_objectives_that_it_was_begun_with(tmp_path: Path) -> None:
    with pytest.raises(EndError):
        run_sweep(tmp_path, *TWO, see=end_after(1))
    (tmp_path / "in-process").rename(tmp_path / "first")
    lines: list[str] = []
    with pytest.raises(SystemExit):
        run_sweep(tmp_path, *BOTH, see=lines.append)
    begun = "begun with search_objectives 'fitness', now 'accuracy-and-robustness'"
    assert begun in "\n".join(lines)
