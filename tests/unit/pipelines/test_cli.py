"""The command line: what it imports, what it says, and what inspect finds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from taylorglo import __version__
from taylorglo.loss.functions import TaylorLoss
from taylorglo_pipelines.cli import main

# TaylorGLO paper, evolved on MNIST
PUBLISHED = "-10.9408, 7.5216, 8.2896, 0.2415, 7.8726, 8.9666, 2.0184, 7.0513"
HEAVY = (
    "torch",
    "kfp",
    "kubernetes",
    "mlflow",
    "optuna",
    "pydantic",
    "numpy",
    "boto3",
    "matplotlib",
    "sklearn",
    "yaml",
)


def numbers(output: str) -> dict[str, float]:
    """What inspect printed, by name."""
    return {
        name.strip(): float(value)
        for name, value in re.findall(r"^  ([\w*+ ]+?)  +(-?[\d.e+-]+)\b", output, re.M)
    }


def inspected(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["inspect", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "code",
    [
        "import taylorglo_pipelines.cli",
        "import taylorglo_pipelines.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_help_imports_nothing_heavy(code: str) -> None:
    code += (
        f"\nimport sys; print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (0, "[]\n")


@pytest.mark.parametrize(
    "words",
    [[], ["run"], ["compile"], ["submit"], ["schedule", "create"], ["inspect"], ["attack"]],
    ids=" ".join,
)
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*words, "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: taylorglo {' '.join(words)}".rstrip())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"taylorglo {__version__}\n"


@pytest.mark.parametrize(
    "words", [[], ["search"], ["run"], ["compile", "x.yaml"], ["run", "x.yaml", "--sett", "a=1"]]
)
def test_wrong_words_are_a_usage_error(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("usage: taylorglo")


def test_ctrl_c_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("taylorglo_pipelines.commands.inspect.inspect", interrupted)
    assert main(["inspect", "baikal"]) == 130
    assert capsys.readouterr().err == "taylorglo: interrupted\n"


class TestInspect:
    def test_the_published_theta(self, capsys: pytest.CaptureFixture[str]) -> None:
        output = inspected(capsys, PUBLISHED)
        found = numbers(output)
        th = [float(word) for word in PUBLISHED.split(",")]
        # Regularization paper, the derivative of f, expanded by hand.
        expected = {
            "c1": th[2] - 2 * th[1] * th[3] + 3 * th[1] ** 2 * th[4] - th[0] * th[5] + 2 * th[0] * th[1] * th[6]
            + th[0] ** 2 * th[7],
            "ch": 2 * th[3] - 6 * th[1] * th[4] - 2 * th[0] * th[6],
            "chh": 3 * th[4],
            "chy": 2 * th[6],
            "cy": th[5] - 2 * th[1] * th[6] - 2 * th[0] * th[7],
            "cyy": th[7],
        }  # fmt: skip
        expected["cy + cyy"] = expected["cy"] + expected["cyy"]
        expected["A"] = expected["cy + cyy"] + expected["chy"] / 10
        expected["B"] = expected["ch"] + 2 * expected["chh"] / 10 + expected["chy"] / 10
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-5), name
        assert output.startswith("Taylor loss of order 3, 10 classes\n")
        # At rest the pull on the target is that on the others (section "pull and push").
        p, rest = found["p*"], (1 - found["p*"]) / 9
        target = (
            expected["ch"] * p + expected["chh"] * p**2 + expected["chy"] * p + expected["cy + cyy"]
        )
        assert target - (expected["ch"] * rest + expected["chh"] * rest**2) == pytest.approx(
            0, abs=1e-2
        )
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

    def test_the_number_of_classes_changes_the_null_epoch(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ten, two = (numbers(inspected(capsys, PUBLISHED, "--classes", n)) for n in ("10", "2"))
        assert ten["cy"] == two["cy"]
        assert two["A"] == pytest.approx(two["cy + cyy"] + two["chy"] / 2, rel=1e-5)
        assert two["A"] != ten["A"]

    # gamma is t/h, 2(t - h) and 1/h + t/h^2; h = 1/10 in the null epoch.
    @pytest.mark.parametrize(
        ("name", "drive", "rate"),
        [("cross-entropy", 10, -10), ("squared-error", 2, -2), ("baikal", 100, -300)],
    )
    def test_classic_losses(
        self, name: str, drive: float, rate: float, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = inspected(capsys, name)
        assert output.startswith(f"{name}, 10 classes\n")
        assert numbers(output)["A"] == pytest.approx(drive)
        assert numbers(output)["B"] == pytest.approx(rate)

    def test_a_saved_loss_knows_its_classes(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        theta = [float(word) for word in PUBLISHED.split(",")]
        TaylorLoss(theta, classes=4).save(tmp_path / "loss.json")
        output = inspected(capsys, str(tmp_path / "loss.json"))
        assert output == inspected(capsys, PUBLISHED, "--classes=4")

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


@pytest.mark.parametrize("name", ["cross-entropy", "squared-error"])
def test_inspect_draws_a_classic_loss(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "loss.svg"
    assert main(["inspect", name, "--plot", str(plot)]) == 0
    assert f"plot: {plot}" in capsys.readouterr().out
    assert plot.read_text().count("<svg") == 1


def test_inspect_has_no_plot_of_baikal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "baikal", "--plot", str(tmp_path / "loss.svg")]) == 2
    assert "there are plots of thetas, cross-entropy and squared-error" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
