"""Kills: a search goes on after its process is killed at any write."""

import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from programs import run_program
from searches import REDUCED, facts, in_memory, open_search, run_generation, url_of
from sqlalchemy import event
from sqlalchemy.engine import Engine

from taylorglo.search.study import Search
from taylorglo.settings import SearchSettings


def die_before_write(number: int) -> None:
    """End this process with SIGKILL before it commits its ``number``-th transaction that writes."""
    left = number

    @event.listens_for(Engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        writes = statement.startswith(("INSERT", "UPDATE"))
        connection.info["writes"] = connection.info.get("writes", False) or writes

    @event.listens_for(Engine, "rollback")
    def forget(connection: Any) -> None:
        connection.info["writes"] = False

    @event.listens_for(Engine, "commit")
    def count(connection: Any) -> None:
        nonlocal left
        if connection.info.pop("writes", False):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def live_short_lives(path: Path, settings: dict[str, Any], generations: int, writes: int) -> int:
    """Run generations in processes that are killed before their ``writes``-th write.

    Returns:
        How many were killed before one came to the end.
    """
    # The processes inherit the modules that are imported here.
    run_generation(in_memory(**settings), 1)
    for killed in range(500):
        if (process := os.fork()) == 0:
            die_before_write(writes)
            search = Search(
                url_of(path), "s", SearchSettings(**{**REDUCED, **settings}), seed=6, num_classes=10
            )
            for generation in range(1, generations + 1):
                run_generation(search, generation)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status == 0:
            return killed
        assert status == -signal.SIGKILL
    raise AssertionError("no process came to the end")


@pytest.mark.parametrize(("on_reject", "generations"), [("resample", 2), ("penalize", 1)])
def test_processes_killed_at_every_write(tmp_path: Path, on_reject: str, generations: int) -> None:
    """Each process lives for two writes, of which one may be a repetition.

    Together they do what one process does.
    """
    settings: dict[str, Any] = {
        "popsize": 2,
        "mean": [0.0] * 4,
        "filters": ["learnable"],
        "on_reject": on_reject,
    }
    undisturbed = open_search(tmp_path / "undisturbed", seed=6, **settings)
    for generation in range(1, generations + 1):
        run_generation(undisturbed, generation)
    expected = facts(undisturbed.candidates())
    assert any(candidate.rejected for candidate in expected)
    path = tmp_path / "killed"
    open_search(path, seed=6, **settings)
    arguments = f"Path({str(path)!r}), {settings!r}, {generations}, 3"
    killed = run_program(
        f"from test_kills import live_short_lives\nprint(live_short_lives({arguments}))"
    )
    assert int(killed) >= 2 * len(expected)
    assert facts(open_search(path, **settings).candidates()) == expected


def test_a_trial_left_behind_is_the_next_draw(tmp_path: Path) -> None:
    expected = open_search(tmp_path / "a").propose(1)
    search = open_search(tmp_path / "b")
    study = optuna.load_study(study_name="s", storage=url_of(tmp_path / "b"))
    study.ask()
    assert search.candidates() == []
    assert search.propose(1) == expected
    assert len(study.trials) == 4
