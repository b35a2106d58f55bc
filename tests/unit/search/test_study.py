"""The study: what is refused, results, and two processes at once."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import RDBStorage
from searches import evaluation, open_search, url_of

from taylorglo.errors import InputError, ServiceError
from taylorglo.search.study import Search
from taylorglo.settings import Identity, Scalar, SearchSettings


def test_a_generation_waits_for_the_one_before_it(tmp_path: Path) -> None:
    search = open_search(tmp_path / "db")
    first = search.propose(1)
    for c in first[:3]:
        search.tell(c.trial, evaluation(0.5))
    message = r"^generation 2 cannot be proposed: generation 1 has 3 of 4 results$"
    with pytest.raises(InputError, match=message):
        search.propose(2)
    search.tell(first[3].trial, evaluation(0.5))
    assert len(search.propose(2)) == 4
    with pytest.raises(InputError, match="generation 2 has 0 of 4"):
        search.propose(3)


def identity(fitness: dict[str, Scalar] | None = None, **candidates: Scalar) -> Identity:
    """Return an identity; the settings that decide a fitness are ``model`` if not given."""
    decides_fitness: dict[str, Scalar] = {"model": "mlp"} if fitness is None else fitness
    return Identity(candidates=candidates, fitness=decides_fitness, precision="auto")


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Search]:
    """A function that opens a study of given settings."""

    def open_study(identity: Identity | None, name: str = "s") -> Search:
        return Search(url_of(tmp_path / "db"), name, SearchSettings(), 0, identity, num_classes=10)

    return open_study


def test_a_study_of_other_settings_is_refused(opened: Callable[..., Search]) -> None:
    opened(identity(seed=1, data="digits abc"))
    opened(identity(data="digits abc", seed=1))
    opened(None)
    with pytest.raises(InputError) as caught:
        opened(identity({"model": "cnn"}, seed=2, data="digits abc"))
    assert "sweep 's' was begun with model 'mlp', now 'cnn', seed 1, now 2" in str(caught.value)
    with pytest.raises(InputError, match="with data 'digits abc', now None"):
        opened(identity(seed=1))
    with pytest.raises(InputError, match="with data 'digits', now 'mnist': its candidates"):
        opened(identity(seed=1, data="mnist abc"))
    with pytest.raises(InputError, match="with other samples, labels or splits of the data 'digit"):
        opened(identity(seed=1, data="digits def"))
    opened(identity({}, seed=2), name="another")


def test_settings_that_nothing_was_trained_with_can_be_corrected(
    opened: Callable[..., Search],
) -> None:
    """They may have been a mistake; the candidates are kept."""
    three_steps = identity({"model": "mlp", "steps": 3}, seed=1, data="digits abc")
    four_steps = identity({"model": "mlp", "steps": 4}, seed=1, data="digits abc")
    search = opened(three_steps)
    candidates = search.propose(1)
    assert opened(four_steps).propose(1) == candidates
    search.note(candidates[0].trial, evaluation(0.5))
    with pytest.raises(InputError, match="with steps 4, now 3"):
        opened(three_steps)
    opened(four_steps)


def test_telling_twice_changes_nothing(tmp_path: Path) -> None:
    search = open_search(tmp_path / "db")
    trial = search.propose(1)[0].trial
    first = evaluation(0.25, curve=[(1, 0.5, 2.0)])
    search.tell(trial, first)
    before = search.candidates()
    search.tell(trial, evaluation(0.75, status="diverged"))
    open_search(tmp_path / "db").tell(trial, evaluation(0.75, status="failed"))
    # The time of telling is among the values.
    assert search.candidates() == before
    assert (before[0].fitness, before[0].result) == (0.25, first)


@pytest.mark.parametrize("write", ["set_trial_user_attr", "set_trial_state_values"])
def test_a_process_that_loses_the_race_to_tell_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """The fast process tells its result just before the slow one writes a result or a state."""
    slow, fast = open_search(tmp_path / "db"), open_search(tmp_path / "db")
    trial = slow.propose(1)[0].trial
    with monkeypatch.context() as patch:
        original = getattr(RDBStorage, write)

        def overtaken(storage: RDBStorage, *args: Any, **kwargs: Any) -> Any:
            patch.undo()
            fast.tell(trial, evaluation(0.25, reason="fast"))
            return original(storage, *args, **kwargs)

        patch.setattr(RDBStorage, write, overtaken)
        slow.tell(trial, evaluation(0.5, reason="slow"))
        assert getattr(RDBStorage, write) is original
    candidate = fast.candidates()[0]
    assert (candidate.fitness, candidate.result) == (0.25, evaluation(0.25, reason="fast"))


def test_the_best_candidates(tmp_path: Path) -> None:
    search = open_search(tmp_path / "db")
    drawn = search.propose(1)
    for candidate, value in zip(drawn, [0.5, 0.75, 0.25, 0.75], strict=True):
        search.tell(candidate.trial, evaluation(value))
    assert [c.trial for c in search.best(3)] == [1, 3, 0]
    assert len(search.best(9)) == 4
    assert search.best(1)[0].to_json()["theta"] == drawn[1].theta


def test_a_candidate_is_claimed_by_one_process_at_a_time(tmp_path: Path) -> None:
    mine, theirs = open_search(tmp_path / "db"), open_search(tmp_path / "db")
    trial = mine.propose(1)[0].trial
    with mine.claimed(trial) as first:
        assert first is not None
        assert first.trial == trial
        with mine.claimed(trial) as twice:
            assert twice is None
        with mine.claimed(trial + 1) as other:
            assert other is not None
            assert claimed_elsewhere(tmp_path / "db", trial + 1)
        assert not claimed_elsewhere(tmp_path / "db", trial + 1)
        assert claimed_elsewhere(tmp_path / "db", trial)
    assert not claimed_elsewhere(tmp_path / "db", trial)
    with pytest.raises(ZeroDivisionError), theirs.claimed(trial):
        raise ZeroDivisionError
    assert not claimed_elsewhere(tmp_path / "db", trial)


def claimed_elsewhere(path: Path, trial: int) -> bool:
    """Return whether another process finds the candidate claimed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(_is_claimed, path, trial).result()


def _is_claimed(path: Path, trial: int) -> bool:
    with open_search(path).claimed(trial) as candidate:
        return candidate is None


def test_a_part_of_the_study_that_another_run_keeps_is_waited_for_but_not_for_ever(
    tmp_path: Path,
) -> None:
    search = open_search(tmp_path / "db", patience=0.3)
    message = r"^another run has kept study 's' to itself for 0\.3 s"
    with search.exclusively(), pytest.raises(ServiceError, match=message), search.exclusively():
        pass
    with search.exclusively():
        pass
