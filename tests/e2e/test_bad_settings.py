"""Bad input that the command sees before anything runs.

The command ends with status 2 and a line per problem that a person can act on, and nothing else.
"""

from pathlib import Path

import pytest
import torch
from error_lines import problems
from safetensors.torch import save_file

from taylorglo.data import dataset as datasets
from taylorglo.loss.functions import TaylorLoss
from taylorglo.settings import DataSettings
from taylorglo_pipelines.cli import main


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: digits\n")
    return path


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["nonsense=1"], ["nonsense: unknown key (got 1)"]),
        (["search.popsise=3"], ["search.popsise: unknown key (got 3); did you mean 'popsize'?"]),
        (["services.bucket=x"], ["services.bucket: unknown key (got 'x')"]),
        (["training.steps=many"], ["training.steps: should be a whole number"]),
        (["training.nesterov=perhaps"], ["training.nesterov: should be true or false"]),
        (["search=3"], ["search: should be a group of settings (got 3)"]),
        (
            ["search.popsize=1"],
            ["search.popsize: should be greater than or equal to 2 (got 1)"],
        ),
        (["search.sigma=0"], ["search.sigma: should be greater than 0 (got 0)"]),
        (["search.sigma=.nan"], ["search.sigma: should be a finite number"]),
        (["search.filters=astrology"], ["search.filters: unknown filter 'astrology'"]),
        (["search.mean=[1, 2]"], ["search.mean: should have 5 numbers, has 2"]),
        (["search.max_draws=3"], ["search.max_draws: should be at least popsize"]),
        (
            ["attack.epsilons=[0.1, 2]"],
            ["attack.epsilons.1: should be less than or equal to 1 (got 2)"],
        ),
        (["evaluation.steps=5000"], ["evaluation.steps: should be at most training.steps"]),
        (["attack.seeds=11"], ["attack.seeds: should be at most champion.seeds (10)"]),
        (
            ["baselines.learning_rates=[]"],
            ["baselines.learning_rates: should be one or more positive numbers"],
        ),
        (["data.name=imagenet"], ["data.name: should be 'digits', 'mnist'"]),
        (
            ["data.name=mnist"],
            ["data.root: data set 'mnist' needs a folder, a file or an s3:// URI"],
        ),
        (["data.sha256=abc"], ["data.sha256: "]),
        (
            ["pipeline.generations=0"],
            ["pipeline.generations: should be greater than or equal to 1 (got 0)"],
        ),
        (["pipeline.shards=13"], ["pipeline.shards: should be at most search.popsize (8)"]),
        (
            ["pipeline.accelerator=tpu"],
            ["pipeline.accelerator: should be '', 'nvidia.com/gpu' or 'amd.com/gpu'"],
        ),
        (["pipeline.memory=lots"], ["pipeline.memory: "]),
        (["name=My Sweep"], ["name: "]),
        (
            ["seed=-1", "name=null"],
            ["name: should be a text", "seed: should be greater than or equal to 0"],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
@pytest.mark.parametrize("command", ["run", "compile"])
def test_settings(
    command: str,
    settings: list[str],
    expected: list[str],
    sweep_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    if command == "run":
        words += ["--set", f"services.work_dir={tmp_path / 'runs'}"]
    else:
        words += ["-o", f"{tmp_path}/p.yaml"]
    assert main([command, str(sweep_file), *words]) == 2
    output = capsys.readouterr()
    lines = problems(output.err)
    assert len(lines) == len(expected), output.err
    for line, beginning in zip(lines, expected, strict=True):
        # A problem of a key that --set did not give is one of the file.
        given = [s for s in settings if beginning.startswith(s.partition("=")[0])]
        source = f"--set {given[0]}" if given else str(sweep_file)
        assert line.startswith(f"{source}: {beginning}")
    assert output.out == ""
    assert list(tmp_path.iterdir()) == [sweep_file]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("nonsense", "--set nonsense: should be section.key=value"),
        ("=3", "--set =3: should be section.key=value"),
        ("search.=3", "--set search.=3: should be section.key=value"),
        (
            "search.popsize={",
            "--set search.popsize={: the value is not YAML: line 1, column 2: expected the node "
            "content, but found '<stream end>'",
        ),
        ("name.popsize=3", "--set name.popsize=3: name is not a section"),
        (
            "trainig.steps=3",
            "--set trainig.steps=3: trainig: unknown key; did you mean 'training'?",
        ),
    ],
)
def test_set(
    override: str, expected: str, sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(sweep_file), "--set", override]) == 2
    assert problems(capsys.readouterr().err) == [expected]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1\nb: 2", "is not YAML: line 2, column 2: expected ',' or ']', but got ':'"),
        (
            b"search: {popsize: 4}\nsearch: {sigma: 1}",
            "is not YAML: line 2, column 1: the key 'search' is there twice",
        ),
        (
            b"a: !!python/object/apply:os.getcwd []",
            "is not YAML: line 1, column 4: could not determine a constructor",
        ),
        (b"\xff\xfe\x00", "cannot be read: 'utf-8' codec can't decode"),
        (b"- digits", "should be a mapping of sections, is a list"),
        (b"1: 2", "1: should have texts as keys (got 1)"),
    ],
)
def test_file(
    content: bytes, expected: str, sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_file.write_bytes(content)
    assert main(["run", str(sweep_file)]) == 2
    (line,) = problems(capsys.readouterr().err)
    assert line.startswith(f"{sweep_file}: {expected}")


@pytest.mark.parametrize("name", ["missing.yaml", ""])
def test_no_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path / name)]) == 2
    (line,) = problems(capsys.readouterr().err)
    assert line.startswith(f"{tmp_path / name}: cannot be read: ")


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ("sweep.yaml", "sweep.yaml: cannot be made: File exists"),
        ("here", ".digits.lock: cannot be written: Is a dir"),
    ],
)
def test_work_folder(
    work: str,
    expected: str,
    sweep_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "here" / ".digits.lock").mkdir(parents=True)
    assert main(["run", str(sweep_file), "--set", f"services.work_dir={tmp_path / work}"]) == 2
    (line,) = problems(capsys.readouterr().err)
    assert expected in line


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("p.json", "a compiled pipeline should be a .yaml file"),
        ("no/p.yaml", "cannot be written: No such file or directory"),
        ("folder.yaml", "cannot be written: Is a directory"),
    ],
)
def test_compile_output(
    output: str,
    expected: str,
    sweep_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder.yaml").mkdir()
    assert main(["compile", str(sweep_file), "-o", str(tmp_path / output)]) == 2
    assert problems(capsys.readouterr().err) == [f"{tmp_path / output}: {expected}"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder.yaml", "sweep.yaml"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "1 2 3 4 5 6 7",
            "theta has 7 numbers; there should be 5, 8, 12, 17, ... for order 2, 3, 4, 5, ...",
        ),
        ("1 2 3 4 5 6 7 nan", "theta[7] is nan; it should be a number between"),
        ("1,2,3,4,5,6,7,-inf", "theta[7] is -inf; it should be a number between"),
        ("1 2 3 4 5 6 7 eight", "theta[7] is 'eight', which is not a number"),
        (
            "hinge",
            "unknown loss 'hinge'; there are cross-entropy, squared-error, baikal, "
            "generalised-cross-entropy, symmetric-cross-entropy, mean-absolute-error, saved losses",
        ),
        ("missing.json", "missing.json: is not a saved loss: "),
        ("zoo:hinge", "unknown loss 'zoo:hinge'; the zoo has zoo:"),
        ("baikal --classes 1", "number of classes should be at least 2, is 1"),
        ("1 2 3 4 5 --plot loss.gif", "loss.gif: a plot should be a .svg, .png or .pdf file"),
        (
            "1 2 3 4 5 --plot no/loss.svg",
            "no/loss.svg: cannot be written: No such file or directory",
        ),
    ],
)
def test_inspect(
    words: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *words.split()]) == 2
    output = capsys.readouterr()
    (line,) = problems(output.err)
    assert line.startswith(expected)
    assert (output.out, list(tmp_path.iterdir())) == ("", [])


@pytest.mark.parametrize(
    "content",
    ["{", '{"format": "other"}', '{"format": "taylorglo.loss/1", "theta": [1, 2], "order": 3}'],
)
def test_inspect_damaged_loss(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loss.json").write_text(content)
    assert main(["inspect", str(tmp_path / "loss.json")]) == 2
    (line,) = problems(capsys.readouterr().err)
    assert line.startswith(f"{tmp_path / 'loss.json'}: ")


def test_attack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, dataset = tmp_path / "a" / "model.safetensors", tmp_path / "data.safetensors"
    weights.parent.mkdir()

    def problem(*words: str) -> str:
        assert main(["attack", str(weights.parent), *words]) == 2
        (line,) = problems(capsys.readouterr().err)
        return line

    assert problem() == f"{weights}: no such file or folder"
    weights.write_bytes(b"\x10")
    assert problem().startswith(f"{weights}: ")
    save_file({"network.1.weight": torch.zeros(2, 3)}, weights)
    assert problem() == f"{weights}: do not name their network; give it with --model-name"
    assert problem("--model-name=mlp") == f"{dataset}: no such file or folder"
    save_file({"images": torch.zeros(2, 2)}, dataset)
    assert problem("--model-name=mlp").startswith(
        f"{dataset}: should be a data set as prepared for a sweep"
    )
    datasets.save(datasets.load(DataSettings(), seed=0), dataset)
    assert problem("--model-name=mlp").startswith(
        "these weights do not fit model 'mlp' and data set 'digits': "
    )
    assert problem("--model-name=mlp", "--set", "epsilons=[2]").startswith(
        "--set epsilons=[2]: epsilons.0: should be less than"
    )
    assert problem("--model-name=mlp", "--set", "images=0").startswith(
        "--set images=0: images: should be greater than"
    )


def test_a_good_loss_is_not_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    # Without this test, the others would pass too if the command refused everything.
    TaylorLoss([1.0] * 8).save(tmp_path / "loss.json")
    assert main(["inspect", str(tmp_path / "loss.json")]) == 0
    assert capsys.readouterr().err == ""
