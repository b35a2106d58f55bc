"""Trainings that fail: a network of the user's own raises an error as often as the test asks."""

import importlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from small_sweeps import NO_DATA, Work, begin_generation
from trainings import steps_counted

from taylorglo.errors import TaylorgloError
from taylorglo.evaluation import fitness
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.evaluate import evaluate_shard

# The engine tries each training twice.
NETWORK = """
from torch import nn

failures = 0

class Failing(nn.Sequential):
    def forward(self, images):
        global failures
        if failures and self.training and images.device.type != "meta":
            failures -= 1
            raise RuntimeError("disk on fire")
        return super().forward(images)

def build(image_shape, num_classes):
    return Failing(nn.Flatten(), nn.Linear(64, num_classes))
"""
SECTIONS: dict[str, Any] = {
    "model": {"name": "failing_network:build"},
    "training": {"engine": "sequential"},
}


@pytest.fixture
def network(work: Work, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the network; its ``failures`` is the number of trainings still to fail."""
    (work.folder / "failing_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(work.folder)
    yield importlib.import_module("failing_network")
    del sys.modules["failing_network"]


@pytest.fixture
def sweep(work: Work, network: Any) -> Sweep:
    return work.open(name="failing", **SECTIONS)


def statuses(sweep: Sweep) -> list[str | None]:
    """Return the status of each accepted candidate's result, or None if it has no result."""
    accepted = [c for c in sweep.search.candidates(1) if not c.rejected]
    return [c.result.status if c.result else None for c in accepted]


def test_failed_candidates_are_the_worst_and_the_generation_names_the_reason(
    sweep: Sweep, work: Work, network: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = begin_generation(sweep, 1)
    network.failures = 4
    done = evaluate_shard(sweep, 1, trials, work.search_data)
    assert statuses(sweep) == ["failed", "failed", "ok", "ok"]
    assert all(c.finished for c in done)
    assert [c.fitness for c in done[:2]] == [0.0, 0.0]
    line, reason = capsys.readouterr().out.splitlines()
    assert re.search(r"  rejected \d+ of \d+  diverged 0  failed 2  \d+ s$", line)
    assert reason == "taylorglo: the first training that failed: disk on fire"
    with steps_counted() as steps:
        evaluate_shard(sweep, 1, trials, NO_DATA)
    assert steps == []


def test_if_all_fail_the_search_ends_and_goes_on_once_the_network_is_mended(
    sweep: Sweep, work: Work, network: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = begin_generation(sweep, 1)
    network.failures = 8
    with pytest.raises(
        TaylorgloError, match=r"^generation 1: every training failed, .*: disk on fire; none of"
    ):
        evaluate_shard(sweep, 1, trials, work.search_data)
    assert network.failures == 0
    assert statuses(sweep) == [None] * 4
    assert not any(c.finished for c in sweep.search.candidates(1) if not c.rejected)
    assert capsys.readouterr().out == ""
    evaluate_shard(sweep, 1, trials, work.search_data)
    assert statuses(sweep) == ["ok"] * 4
    (line,) = capsys.readouterr().out.splitlines()
    assert "failed" not in line


def test_a_shard_of_failures_counts_if_the_other_shard_has_trained(
    sweep: Sweep, work: Work, network: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = begin_generation(sweep, 1)
    network.failures = 4
    with pytest.raises(TaylorgloError, match="every training failed"):
        evaluate_shard(sweep, 1, trials[0::2], work.search_data)
    evaluate_shard(sweep, 1, trials[1::2], work.search_data)
    assert statuses(sweep) == [None, "ok", None, "ok"]
    network.failures = 4
    evaluate_shard(sweep, 1, trials[0::2], work.search_data)
    assert statuses(sweep) == ["failed", "ok", "failed", "ok"]
    assert "  failed 2  " in capsys.readouterr().out


def test_leaders_that_all_fail_when_they_are_trained_again_keep_their_results(
    work: Work, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = {"attempts": 2, "max_attempts": 3}
    sweep = work.open(name="noisy", evaluation=evaluation, **SECTIONS)
    trials = begin_generation(sweep, 1)
    network.failures = 8
    with pytest.raises(TaylorgloError, match="every training failed"):
        evaluate_shard(sweep, 1, trials, work.search_data)
    assert statuses(sweep) == [None] * 4

    def noise_before_failures(rows: object) -> bool:
        network.failures = 4
        return True

    monkeypatch.setattr(fitness, "is_noise", noise_before_failures)
    with pytest.raises(TaylorgloError, match="every training failed"):
        evaluate_shard(sweep, 1, trials, work.search_data)
    assert network.failures == 0
    assert statuses(sweep) == ["ok"] * 4
    assert not any(c.finished for c in sweep.search.candidates(1) if not c.rejected)
    monkeypatch.setattr(fitness, "is_noise", lambda rows: True)
    done = evaluate_shard(sweep, 1, trials, work.search_data)
    assert sorted(len(c.result.accuracies) for c in done if c.result) == [2, 2, 3, 3]
    assert all(c.finished for c in done)
