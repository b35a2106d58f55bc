"""The memory of a sweep in the store: trainings, and the state of the pipeline run."""

import json
from pathlib import Path

import pytest

from taylorglo.errors import InputError
from taylorglo.results import Contender, FullTraining, Training
from taylorglo.services import layout
from taylorglo.services.memo import FullTrainings, RunState, ShortTrainings
from taylorglo.services.storage import FolderStore

SWEEP = "digits"
TRAINING = Training(
    status="ok",
    curve=[(100, 0.5, 1.5), (200, 0.75, 0.9)],
    started=1_700_000_000.25,
    ended=1_700_000_002.75,
    seconds=2.0,
    engine="fused",
    precision="float32",
    device="cpu",
    accuracy=0.75,
    test_accuracy=0.7,
)
FULL_TRAINING = FullTraining(
    contender=Contender(name="champion", loss="taylor", learning_rate=0.1, theta=[0.5, 1.0]),
    seed=3,
    key="0123abcd",
    training=TRAINING,
)


class RecordingStore(FolderStore):
    """A store that remembers the keys of its writes, and fails for one of them if asked."""

    def __init__(self, folder: Path, fail_at: str = "") -> None:
        super().__init__(folder)
        self.writes: list[str] = []
        self._fail_at = fail_at

    def write(self, key: str, content: bytes) -> str:
        if key == self._fail_at:
            raise InputError(f"{key}: the disk is full")
        self.writes.append(key)
        return super().write(key, content)


@pytest.fixture
def store(tmp_path: Path) -> RecordingStore:
    return RecordingStore(tmp_path)


def test_a_training_in_full_is_recalled_with_its_weights(store: RecordingStore) -> None:
    trainings = FullTrainings(store, SWEEP)
    assert trainings.recall(FULL_TRAINING.key) is None
    trainings.record(FULL_TRAINING, b"weights")
    assert trainings.recall(FULL_TRAINING.key) == FULL_TRAINING
    assert trainings.weights(FULL_TRAINING.key) == b"weights"
    assert trainings.recall("another key") is None


def test_sweeps_do_not_share_their_trainings_in_full(store: RecordingStore) -> None:
    FullTrainings(store, SWEEP).record(FULL_TRAINING, b"weights")
    assert FullTrainings(store, "another-sweep").recall(FULL_TRAINING.key) is None


def test_the_weights_are_written_first(store: RecordingStore) -> None:
    FullTrainings(store, SWEEP).record(FULL_TRAINING, b"weights")
    key = FULL_TRAINING.key
    assert store.writes == [layout.weights(SWEEP, key), layout.training(SWEEP, key)]


def test_a_training_whose_weights_cannot_be_written_is_not_recorded(tmp_path: Path) -> None:
    key = FULL_TRAINING.key
    trainings = FullTrainings(RecordingStore(tmp_path, layout.weights(SWEEP, key)), SWEEP)
    with pytest.raises(InputError, match="the disk is full"):
        trainings.record(FULL_TRAINING, b"weights")
    assert trainings.recall(key) is None


def test_weights_that_were_deleted_are_named(store: RecordingStore, tmp_path: Path) -> None:
    trainings = FullTrainings(store, SWEEP)
    trainings.record(FULL_TRAINING, b"weights")
    key = layout.weights(SWEEP, FULL_TRAINING.key)
    (tmp_path / key).unlink()
    with pytest.raises(InputError) as caught:
        trainings.weights(FULL_TRAINING.key)
    assert str(caught.value) == (
        f"{store.uri}: {key} is gone; remove the .json beside it to train it again"
    )


def test_weights_that_were_damaged_are_named(store: RecordingStore, tmp_path: Path) -> None:
    trainings = FullTrainings(store, SWEEP)
    trainings.record(FULL_TRAINING, b"weights")
    key = layout.weights(SWEEP, FULL_TRAINING.key)
    (tmp_path / key).write_bytes(b"veights")
    with pytest.raises(InputError, match=rf"{key} is damaged; remove the \.json beside it"):
        trainings.weights(FULL_TRAINING.key)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"null"])
def test_what_is_damaged_is_told_and_made_again(
    content: bytes, store: RecordingStore, caplog: pytest.LogCaptureFixture
) -> None:
    key = FULL_TRAINING.key
    paths = (layout.training(SWEEP, key), layout.evaluation(key))
    for path in (*paths, layout.run_state(SWEEP)):
        store.write(path, content)
    assert FullTrainings(store, SWEEP).recall(key) is None
    assert ShortTrainings(store).recall(key) is None
    for path in paths:
        assert f"{store.uri}/{path} is damaged, and is made again" in caplog.text
    assert RunState.read(store, SWEEP) == RunState()


def test_the_file_of_another_training_is_not_recalled(store: RecordingStore) -> None:
    FullTrainings(store, SWEEP).record(FULL_TRAINING, b"weights")
    content = store.read(layout.training(SWEEP, FULL_TRAINING.key))
    assert content is not None
    store.write(layout.training(SWEEP, "4567"), content)
    assert FullTrainings(store, SWEEP).recall("4567") is None


def test_a_training_in_full_of_version_0_1_0_is_recalled(store: RecordingStore) -> None:
    key = FULL_TRAINING.key
    old = {
        "contender": FULL_TRAINING.contender.to_json(),
        "seed": 3,
        "key": key,
        "status": "ok",
        "reason": "",
        "accuracy": 0.75,
        "robust_accuracy": None,
        "test_accuracy": 0.7,
        "curve": [[100, 0.5, 1.5], [200, 0.75, 0.9]],
        "started": 1_700_000_000.25,
        "ended": 1_700_000_002.75,
        "seconds": 2.0,
        "method": "fused, float32, cpu",
    }
    store.write(layout.training(SWEEP, key), json.dumps(old).encode())
    assert FullTrainings(store, SWEEP).recall(key) == FULL_TRAINING


def test_all_sweeps_of_a_store_share_their_short_trainings(tmp_path: Path) -> None:
    ShortTrainings(FolderStore(tmp_path)).record("0123abcd", TRAINING)
    others = ShortTrainings(FolderStore(tmp_path))
    assert others.recall("0123abcd") == TRAINING
    assert others.recall("another key") is None


def test_a_sweep_that_never_ran_has_no_unfinished_run(store: RecordingStore) -> None:
    assert RunState.read(store, SWEEP) == RunState(unfinished="", study="", tracked=0)


def test_the_state_of_a_run_is_read_as_it_was_written(store: RecordingStore) -> None:
    state = RunState(unfinished="run-1", study="digits.2", tracked=3)
    state.write(store, SWEEP)
    assert RunState.read(store, SWEEP) == state
    assert RunState.read(store, "another-sweep") == RunState()


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (b"{}", RunState()),
        (
            b'{"unfinished": "run-1", "study": "digits.2", "tracked": 3}',
            RunState(unfinished="run-1", study="digits.2", tracked=3),
        ),
        (b'{"unfinished": "run-1"}', RunState(unfinished="run-1")),
    ],
)
def test_a_state_of_version_0_1_0_is_read(
    store: RecordingStore, content: bytes, state: RunState
) -> None:
    store.write(layout.run_state(SWEEP), content)
    assert RunState.read(store, SWEEP) == state


def test_the_keys_of_the_layout_are_those_of_version_0_1_0() -> None:
    assert layout.run_state(SWEEP) == "digits/run.json"
    assert layout.training(SWEEP, "key") == "digits/trainings/key.json"
    assert layout.weights(SWEEP, "key") == "digits/trainings/key.safetensors"
    assert layout.evaluation("key") == "evaluations/key.json"
    assert layout.champion(SWEEP) == "digits/champion/loss.json"
    assert layout.champion(SWEEP, layout.PROGRAM) == "digits/champion/loss.py"
    assert layout.champion(SWEEP, layout.NETWORK) == "digits/champion/model.safetensors"
    assert layout.attacked_images(SWEEP) == "digits/attacked-images.parquet"
    assert layout.report(SWEEP) == "digits/report.html"
    assert layout.dataset(SWEEP) == "digits/data.safetensors"
    assert layout.registered_loss(SWEEP) == "digits-loss"
