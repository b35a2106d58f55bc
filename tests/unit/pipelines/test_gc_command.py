"""The command ``taylorglo gc``: its ages, and places that are not there."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from taylorglo.errors import InputError
from taylorglo.variables import STORE_URI, STUDY_URL, TRACKING_URI
from taylorglo_pipelines.cli import main
from taylorglo_pipelines.commands.gc import threshold

NOW = datetime(2026, 3, 31, 12, 0, tzinfo=UTC)
CONFIG = str(Path(__file__).parents[3] / "pipelines" / "configs" / "digits.yaml")


@pytest.fixture(autouse=True)
def _no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (STUDY_URL, STORE_URI, TRACKING_URI, "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        ("30d", datetime(2026, 3, 1, 12, 0, tzinfo=UTC)),
        ("36h", datetime(2026, 3, 30, 0, 0, tzinfo=UTC)),
        ("0d", NOW),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T03:00", datetime(2026, 1, 31, 3, tzinfo=UTC)),
        ("2026-01-31T03:00:00Z", datetime(2026, 1, 31, 3, tzinfo=UTC)),
        ("2026-01-31T03:00+02:00", datetime(2026, 1, 31, 1, tzinfo=UTC)),
    ],
)
def test_an_age(age: str, expected: datetime) -> None:
    assert threshold(age, NOW) == expected


@pytest.mark.parametrize(
    "age",
    [
        *(
            "",
            "30",
            "d",
            "-1d",
            "1.5d",
            "30 d",
            "30m",
            "P30D",
            "99999999999999999999d",
            "yesterday",
        ),
        *("2026-13-01", "2026-04-01", "2026-03-31T13:00Z"),
    ],
)
def test_what_is_no_age_is_refused(age: str) -> None:
    with pytest.raises(InputError, match=r"--older-than .*: should be an age such as 30d or 12h"):
        threshold(age, NOW)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["gc", CONFIG, "--older-than", "soon"], "--older-than soon: should be an age"),
        (["gc", "--set", "services.work_dir=x"], "--set needs a CONFIG (see taylorglo gc --help)"),
        (["gc", "absent.yaml"], "absent.yaml: cannot be read"),
        (["gc", CONFIG, "--set", "services.store=x"], "services.store"),
        (["gc", CONFIG, "--set", "services.study_url=mysql://x/y"], "mysql://x/y"),
        (["gc", CONFIG, "more.yaml"], "unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert problem in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--delete"]])
def test_nothing_is_created_where_no_sweep_ever_ran(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["gc", *words]) == 2
    assert f"{tmp_path}/runs/study.db: there is no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
