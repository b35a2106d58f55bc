"""How a task ends after an error, and what it prints."""

import errno
import os

import pytest

from taylorglo.errors import InputError
from taylorglo.tasks.console import task


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
