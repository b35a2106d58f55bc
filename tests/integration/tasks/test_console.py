"""How a task ends after an error, and what it prints."""

import errno
import os

import pytest

from taylorglo.errors import InputError
from taylorglo.tasks.console import Progress, parse, parse_progress, show, task
from taylorglo.variables import WATCHED


def test_an_error_for_the_user_is_printed_in_lines_and_gives_status_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @task
    def refuse() -> None:
        raise InputError("one\ntwo")

    with pytest.raises(SystemExit) as exit_:
        refuse()
    assert exit_.value.code == 2
    assert capsys.readouterr().out == "taylorglo: error: one\ntaylorglo: error: two\n"


def test_an_error_of_the_program_is_a_line_too_and_its_traceback_is_in_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @task
    def divide() -> float:
        return 1 / 0

    with pytest.raises(SystemExit) as exit_:
        divide()
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "taylorglo: error: unexpected ZeroDivisionError: division by zero\n"
    assert "Traceback" in captured.err


def test_a_full_disk_is_told_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    @task
    def write() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/work/runs/store/x.json")

    with pytest.raises(SystemExit):
        write()
    assert capsys.readouterr().out == (
        "taylorglo: error: unexpected OSError: [Errno 28] No space left on device: "
        "'/work/runs/store/x.json'; "
        "make room on the disk and run it again, which goes on from here\n"
    )


class TestProgress:
    @pytest.fixture
    def printed(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> list[str]:
        """Return what is printed while a thousand trainings end at once."""
        monkeypatch.setenv(WATCHED, "1")
        for done in range(1001):
            show(Progress("generation 1/2", done, 1000, best="99.63%"))
        show(Progress("generation 2/2", 0, 1000))
        return capsys.readouterr().out.splitlines()

    def test_the_first_the_last_and_few_between_are_printed(self, printed: list[str]) -> None:
        messages = [parse_progress(line) for line in printed]
        assert messages[0] == Progress("generation 1/2", 0, 1000, best="99.63%")
        assert messages[-2] == Progress("generation 1/2", 1000, 1000, best="99.63%")
        assert messages[-1] == Progress("generation 2/2", 0, 1000)
        assert len(messages) < 100

    def test_a_message_is_no_line_for_a_person(self, printed: list[str]) -> None:
        assert [parse(line) for line in printed] == [None] * len(printed)

    def test_nothing_is_printed_if_nobody_watches(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv(WATCHED, raising=False)
        show(Progress("generation 1/2", 0, 10))
        assert capsys.readouterr().out == ""
