"""How a task ends after an error, and what it prints."""

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


def test_an_error_of_the_program_is_a_traceback() -> None:
    @task
    def divide() -> float:
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        divide()
