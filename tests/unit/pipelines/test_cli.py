"""The command line: its help, its usage errors, and the losses that it inspects."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import taylorglo
from taylorglo import __version__
from taylorglo.loss.functions import TaylorLoss
from taylorglo_pipelines.cli import COMMANDS, main

# TaylorGLO paper, evolved on MNIST
PUBLISHED = "-10.9408, 7.5216, 8.2896, 0.2415, 7.8726, 8.9666, 2.0184, 7.0513"
HEAVY = (
    "boto3",
    "docker",
    "jinja2",
    "kfp",
    "kfp_server_api",
    "kubernetes",
    "matplotlib",
    "mlflow",
    "numpy",
    "optuna",
    "pydantic",
    "sklearn",
    "sqlalchemy",
    "torch",
    "urllib3",
    "yaml",
)
SCHEDULE = ("create", "delete", "list", "pause", "resume", "run-now", "show")
HELPS = [[], *([name] for name in COMMANDS), *(["schedule", verb] for verb in SCHEDULE)]
CONFIG = str(Path(__file__).parents[3] / "pipelines" / "configs" / "digits.yaml")


def numbers(output: str) -> dict[str, float]:
    """Return the numbers that inspect printed, by name."""
    return {
        name.strip(): float(value)
        for name, value in re.findall(r"^  ([\w*+ ]+?)  +(-?[\d.e+-]+)\b", output, re.M)
    }


def inspected(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["inspect", *words]) == 0
    return capsys.readouterr().out


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy() -> None:
    process = python(
        "import sys\n"
        "from taylorglo_pipelines.cli import main\n"
        f"for words in {HELPS}:\n"
        "    assert main([*words, '--help']) == 0, words\n"
        f"    heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "    assert not heavy, (words, heavy)"
    )
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help(words: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, option]) == 0
    usage = " ".join(["Usage: taylorglo", *words, "[OPTIONS]"])
    assert capsys.readouterr().out.startswith(usage)


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    commands = capsys.readouterr().out.partition("Commands:\n")[2]
    lines = re.findall(r"^  (\w+)  +([A-Z][^\n]+\.)$", commands, re.MULTILINE)
    assert [name for name, _ in lines] == list(COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"taylorglo {__version__}\n"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], r"missing command \(see taylorglo --help\)"),
        (["search"], r"no such command 'search' \(see taylorglo --help\)"),
        (["rnu"], r"no such command 'rnu'; did you mean 'run'\? \(see taylorglo --help\)"),
        (["--sett", "a=1"], "no such option:? '?--sett"),
        (["run"], r"missing argument 'CONFIG' \(see taylorglo run --help\)"),
        (
            ["compile", "x.yaml"],
            r"missing option '-o' / '--output' \(see taylorglo compile --help\)",
        ),
        (["run", "x.yaml", "--sett", "a=1"], "no such option:? '?--sett"),
        (["run", "x.yaml", "y.yaml"], r"got unexpected extra argument \(y.yaml\)"),
        (["run", "x.yaml", "--runner", "pod"], "invalid value for '--runner': 'pod' is not one of"),
        (["run", "x.yaml", "--set"], "option '--set' requires an argument"),
        (["schedule"], r"missing command \(see taylorglo schedule --help\)"),
        (["schedule", "start"], r"no such command 'start' \(see taylorglo schedule --help\)"),
        (["schedule", "pause"], r"missing argument 'NAME' \(see taylorglo schedule pause --help\)"),
        (["schedule", "create", "x.yaml"], "either --cron or --every is needed, and not both"),
        (["inspect"], r"missing argument 'LOSS...' \(see taylorglo inspect --help\)"),
        (["inspect", "baikal", "--classes", "ten"], "invalid value for '--classes': 'ten' is not"),
        (["inspect", "baikal", "--clases", "3"], "no such option:? '?--clases"),
        (["inspect", "baikal", "--clases=3"], "no such option:? '?--clases"),
        (["inspect", *PUBLISHED.split(), "-x"], "no such option:? '?-x"),
        (["attack"], r"missing argument 'MODEL' \(see taylorglo attack --help\)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_usage_error_is_one_line(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert re.match(f"taylorglo: error: {problem}", line)
    assert re.search(r" \(see taylorglo( [a-z-]+){0,2} --help\)$", line)
    assert output.out == ""


def test_ctrl_c_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("taylorglo_pipelines.commands.inspect.inspect", interrupted)
    assert main(["inspect", "baikal"]) == 130
    assert capsys.readouterr().err == "taylorglo: interrupted\n"


def test_a_reader_of_the_output_that_has_ended_is_no_traceback() -> None:
    command = [sys.executable, "-m", "taylorglo_pipelines.cli", "inspect", "baikal"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("click", ["--help"]),
        ("yaml", ["run", CONFIG]),
        ("pydantic", ["compare", "one", "two"]),
        ("kfp", ["compile", CONFIG, "-o", "pipeline.yaml"]),
        ("kfp_server_api", ["schedule", "list", "--host", "http://localhost:8888"]),
        ("cronsim", ["schedule", "create", CONFIG, "--every", "1d"]),
    ],
)
def test_a_missing_package_of_the_extra_is_named_in_one_line(
    package: str, words: list[str]
) -> None:
    process = python(
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from taylorglo_pipelines.cli import main; sys.exit(main({words}))"
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == (
        f"taylorglo: error: the command line needs the package {package}, which is not installed: "
        "pip install 'taylorglo[pipeline]'\n"
    )


@pytest.mark.parametrize("name", ["networks_of_a_user", "taylorglo.nowhere", "torch_geometric"])
def test_another_missing_package_is_not_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*_: object) -> str:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("taylorglo_pipelines.commands.inspect.inspect", failed)
    with pytest.raises(ModuleNotFoundError, match=name):
        main(["inspect", "baikal"])


class TestInspect:
    def test_the_published_theta(self, capsys: pytest.CaptureFixture[str]) -> None:
        output = inspected(capsys, PUBLISHED)
        printed = numbers(output)
        th = [float(word) for word in PUBLISHED.split(",")]
        # Regularization paper, the derivative of f, expanded by hand.
        expected = {
            "c1": th[2]
            - 2 * th[1] * th[3]
            + 3 * th[1] ** 2 * th[4]
            - th[0] * th[5]
            + 2 * th[0] * th[1] * th[6]
            + th[0] ** 2 * th[7],
            "ch": 2 * th[3] - 6 * th[1] * th[4] - 2 * th[0] * th[6],
            "chh": 3 * th[4],
            "chy": 2 * th[6],
            "cy": th[5] - 2 * th[1] * th[6] - 2 * th[0] * th[7],
            "cyy": th[7],
        }
        expected["cy + cyy"] = expected["cy"] + expected["cyy"]
        expected["A"] = expected["cy + cyy"] + expected["chy"] / 10
        expected["B"] = expected["ch"] + 2 * expected["chh"] / 10 + expected["chy"] / 10
        for name, value in expected.items():
            assert printed[name] == pytest.approx(value, rel=1e-5), name
        assert output.startswith("Taylor loss of order 3, 10 classes\n")
        # At rest the pull on the target is that on the others (section "pull and push").
        p = printed["p*"]
        rest = (1 - p) / 9
        target = (
            expected["ch"] * p + expected["chh"] * p**2 + expected["chy"] * p + expected["cy + cyy"]
        )
        others = expected["ch"] * rest + expected["chh"] * rest**2
        assert target - others == pytest.approx(0, abs=1e-2)
        verdicts = re.findall(
            r"^  (published|learnable|stable) +(accepted|rejected) by \1: ", output, re.M
        )
        assert verdicts == [
            ("published", "rejected"),
            ("learnable", "accepted"),
            ("stable", "accepted"),
        ]

    @pytest.mark.parametrize(
        "words", [[PUBLISHED], PUBLISHED.split(), PUBLISHED.replace(",", "").split()]
    )
    def test_a_theta_with_or_without_commas(
        self, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert inspected(capsys, *words) == inspected(capsys, PUBLISHED)

    @pytest.mark.parametrize(
        "words",
        [
            ["-.5", "-1e0", "-2", "--classes", "4", "-3.5,", "-4"],
            ["--classes", "4", "-.5,-1,-2,-3.5,-4"],
            ["--classes=4", "--", "-0.5", "-1", "-2", "-3.5", "-4"],
        ],
    )
    def test_numbers_that_begin_with_a_minus(
        self, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = inspected(capsys, *words)
        assert output.startswith("Taylor loss of order 2, 4 classes\n")
        assert "  theta        -0.5, -1, -2, -3.5, -4\n" in output

    def test_the_number_of_classes_changes_the_null_epoch(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ten, two = (numbers(inspected(capsys, PUBLISHED, "--classes", n)) for n in ("10", "2"))
        assert ten["cy"] == two["cy"]
        assert two["A"] == pytest.approx(two["cy + cyy"] + two["chy"] / 2, rel=1e-5)
        assert two["A"] != ten["A"]

    # gamma is t/h, 2(t - h), 1/h + t/h^2, t h^-0.3, 0.1 t/h + log t (log 0 is -4) and +-1;
    # h = 1/10 in the null epoch.
    @pytest.mark.parametrize(
        ("name", "drive", "rate"),
        [
            ("cross-entropy", 10, -10),
            ("squared-error", 2, -2),
            ("baikal", 100, -300),
            ("generalised-cross-entropy", 10**0.3, -0.3 * 10**0.3),
            ("symmetric-cross-entropy", 5, -1),
            ("mean-absolute-error", 2, 0),
        ],
    )
    def test_classic_losses(
        self, name: str, drive: float, rate: float, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = inspected(capsys, name)
        assert output.startswith(f"{name}, 10 classes\n")
        # Six digits are printed.
        assert numbers(output)["A"] == pytest.approx(drive, rel=1e-5)
        assert numbers(output)["B"] == pytest.approx(rate, rel=1e-5)

    def test_a_saved_loss_knows_its_classes(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        theta = [float(word) for word in PUBLISHED.split(",")]
        TaylorLoss(theta, classes=4).save(tmp_path / "loss.json")
        output = inspected(capsys, str(tmp_path / "loss.json"))
        assert output == inspected(capsys, PUBLISHED, "--classes=4")

    def test_a_loss_of_the_zoo_is_the_file_that_comes_with_the_package(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = Path(taylorglo.__file__).parent / "zoo" / "digits.json"
        output = inspected(capsys, "zoo:digits")
        assert output.startswith("Taylor loss of order 3")
        assert output == inspected(capsys, str(path))

    @pytest.mark.parametrize(
        ("kind", "head"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")]
    )
    def test_plot(
        self, kind: str, head: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / f"loss.{kind}"
        output = inspected(capsys, PUBLISHED, "--plot", str(path))
        assert output.endswith(f"plot: {path}\n")
        assert path.read_bytes().startswith(head)
        assert path.stat().st_size > 5_000


@pytest.mark.parametrize("name", ["cross-entropy", "squared-error", "mean-absolute-error"])
def test_inspect_draws_a_classic_loss(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "loss.svg"
    assert main(["inspect", name, "--plot", str(plot)]) == 0
    assert f"plot: {plot}" in capsys.readouterr().out
    assert plot.read_text().count("<svg") == 1


def test_inspect_has_no_plot_of_baikal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "baikal", "--plot", str(tmp_path / "loss.svg")]) == 2
    drawn = "there are plots of thetas, cross-entropy, squared-error, mean-absolute-error"
    assert drawn in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
