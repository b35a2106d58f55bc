"""The engine: the same results however it trains, what it chooses, and what it survives."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor
from trainings import BACKWARDS, GOOD, OTHER, steps_counted, sweep, synthetic

from taylorglo.data import dataset as data
from taylorglo.data.dataset import Dataset, Split
from taylorglo.errors import InputError, TaylorgloError
from taylorglo.loss.functions import CrossEntropy, TaylorLoss
from taylorglo.networks.factory import skeleton
from taylorglo.settings import CPUS, DataSettings, SweepSettings
from taylorglo.training import devices, engine, memory
from taylorglo.training.engine import Engine, plan
from taylorglo.training.loop import Recipe, Result, read_resident

LOSSES = [
    TaylorLoss(GOOD),
    CrossEntropy(),
    TaylorLoss(OTHER),
    CrossEntropy(0.1),
    TaylorLoss(BACKWARDS),
]
COLOUR = synthetic((3, 32, 32))
SECONDS = 60  # for what should take a few

NETWORKS = """
import os
import signal
from pathlib import Path

import torch
from taylorglo.data.dataset import read
from taylorglo.errors import InputError
from taylorglo.loss.functions import CrossEntropy
from torch import nn

FOLDER = Path(__file__).parent


class Fatal(CrossEntropy):
    def per_sample(self, logits, targets):
        os.kill(os.getpid(), signal.SIGKILL)


class StrangeError(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


class Strange(CrossEntropy):
    def per_sample(self, logits, targets):
        raise StrangeError("one", "other")


class Crowded(CrossEntropy):
    def per_sample(self, logits, targets):
        # Four times in all.
        for number in range(4):
            try:
                (FOLDER / f"crowded-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            raise MemoryError("too many")
        return super().per_sample(logits, targets)


class Wrong(CrossEntropy):
    def per_sample(self, logits, targets):
        raise InputError("this loss cannot be computed")


def read_or_die(path, survivor):
    if os.getpid() != survivor:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(Path(path))


class Linear(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))


class Mortal(Linear):
    def forward(self, images):
        # Once: whoever makes the file first.
        if self.training and not torch.is_grad_enabled():
            return super().forward(images)
        if self.training and images.device.type != "meta":
            try:
                (FOLDER / "killed").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


class Telling(Linear):
    def forward(self, images):
        (FOLDER / f"pid-{os.getpid()}").touch()
        if not self.training:
            (FOLDER / "validated").touch()
        return super().forward(images)


class Huge(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.features = nn.Linear(64, 2**28 + 2**27)
        self.head = nn.Linear(2**28 + 2**27, num_classes)

    def forward(self, images):
        return self.head(self.features(images.flatten(1)))


def mortal(image_shape, num_classes):
    return Mortal(num_classes)


def telling(image_shape, num_classes):
    return Telling(num_classes)


def wide(image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8000), nn.ReLU(), nn.Linear(8000, num_classes))


def huge(image_shape, num_classes):
    return Huge(num_classes)


class Peeking(Linear):
    def forward(self, images):
        return super().forward(images if images.sum() > 0 else -images)


def peeking(image_shape, num_classes):
    return Peeking(num_classes)
"""


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load(DataSettings(), 0)


@pytest.fixture(scope="module")
def saved(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "digits.safetensors"
    data.save(digits, path)
    return str(path)


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a user's module."""
    (tmp_path / "engine_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("engine_networks", None)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def settings_of(model: str = "mlp", **training: Any) -> SweepSettings:
    return sweep(model=model, training={"batch_size": 32, "precision": "float32", **training})


def recipe(
    loss: CrossEntropy | TaylorLoss, seed: int = 1, steps: int = 20, **options: Any
) -> Recipe:
    return Recipe(
        loss,
        0.1,
        seed,
        **{"steps": steps, "horizon": steps, "validations": 2, "kept": True, **options},
    )


def recipes(number: int = 6, **options: Any) -> dict[str, Recipe]:
    losses = [TaylorLoss([x * (1 + 0.01 * i) for x in GOOD]) for i in range(number)]
    return {f"training {i}": recipe(loss, **options) for i, loss in enumerate(losses)}


def results(settings: SweepSettings, path: str, wanted: dict[Any, Recipe]) -> dict[Any, Result]:
    with Engine(settings, partial(read_resident, path, settings.training)) as engine:
        return dict(engine.train(wanted.items()))


def untimed(result: Result) -> tuple[Any, bytes]:
    return replace(result.training, started=0.0, ended=0.0, seconds=0.0, method=""), result.weights


def assert_same(found: dict[Any, Result], expected: dict[Any, Result]) -> None:
    assert found.keys() == expected.keys()
    assert [key for key in expected if untimed(found[key]) != untimed(expected[key])] == []


# The same results


def test_parallel_is_the_same_as_one_after_another(saved, networks):
    wanted = {(seed, i): recipe(loss, seed) for seed in (1, 2) for i, loss in enumerate(LOSSES)}
    wanted["given up"] = recipe(TaylorLoss(BACKWARDS), give_up=(5, 0.15))
    expected = results(settings_of("cnn"), saved, wanted)
    assert_same(results(settings_of("cnn", engine="parallel", workers=2), saved, wanted), expected)
    assert expected["given up"].training.status == "diverged"
    assert len({result.weights for result in expected.values()}) == len(wanted)


def test_parallel_is_done_by_other_processes(saved, networks):
    settings = settings_of("engine_networks:telling", engine="parallel", workers=2)
    with Engine(settings, partial(read_resident, saved, settings.training)) as engine:
        assert engine.plan.workers == 2
        for path in networks.glob("pid-*"):  # of the plan
            path.unlink()
        with steps_counted() as steps:
            trained = dict(engine.train(recipes().items()))
    assert steps == []
    assert {path.name for path in networks.glob("pid-*")}.isdisjoint({f"pid-{os.getpid()}"})
    assert {result.training.method for result in trained.values()} == {"parallel, float32, cpu"}


def test_fused_is_the_same_in_two_processes_as_in_one(saved):
    wanted = recipes(12)
    one = results(settings_of(engine="fused", workers=1), saved, wanted)
    assert_same(results(settings_of(engine="fused", workers=2), saved, wanted), one)
    assert {result.training.method for result in one.values()} == {"fused, float32, cpu"}
    alone = results(settings_of(), saved, wanted)
    for key, result in one.items():
        assert result.training.accuracy == alone[key].training.accuracy
        for name, value in load(result.weights).items():
            torch.testing.assert_close(value, load(alone[key].weights)[name], rtol=1e-4, atol=1e-5)


def test_what_is_not_alike_is_not_one_program(digits):
    """Recipes of other rates, lengths, ...

    in one call: each comes out as it would alone.
    """
    wanted = {
        "plain": recipe(LOSSES[0]),
        "longer": recipe(LOSSES[0], steps=30),
        "horizon": recipe(LOSSES[0], horizon=50),
        "rate": replace(recipe(LOSSES[0]), learning_rate=0.05),
        "given up": recipe(LOSSES[4], give_up=(5, 0.15)),
        "validated": recipe(LOSSES[0], validations=4),
        "seed": recipe(LOSSES[0], seed=2),
        "attacked": recipe(LOSSES[0], epsilon=0.1, kept=False),
        "kept": recipe(LOSSES[0]),
    }
    settings = settings_of(engine="fused")
    with Engine(settings, lambda: digits) as engine:
        together = dict(engine.train(wanted.items()))
        apart = {key: next(iter(engine.train([(key, each)])))[1] for key, each in wanted.items()}
    assert_same(together, apart)
    assert together["longer"].training.curve[-1][0] == 30
    assert together["attacked"].training.robust_accuracy is not None
    assert together["plain"].training.robust_accuracy is None
    assert together["attacked"].weights == b""


def test_dropout_is_drawn_as_alone(digits):
    wanted = {
        (seed, i): recipe(loss, seed, steps=3)
        for i, loss in enumerate(LOSSES[:2])
        for seed in (1, 2)
    }
    settings = settings_of("mnist-cnn", engine="fused")
    with Engine(settings, lambda: digits) as engine:
        assert engine.plan.alone
        together = dict(engine.train(wanted.items()))
    with Engine(settings_of("mnist-cnn"), lambda: digits) as engine:
        for key, result in engine.train(wanted.items()):
            found = load(together[key].weights)
            for name, value in load(result.weights).items():
                torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "workers", "chunk"), [("sequential", 1, 1), ("fused", 1, 3), ("fused", 2, 3)]
)
def test_recipes_are_taken_when_there_is_room(digits, saved, kind, workers, chunk):
    settings = settings_of(engine=kind, workers=workers)
    taken, given, ahead = 0, 0, []

    def source() -> Iterator[tuple[str, Recipe]]:
        nonlocal taken
        for key, each in recipes(14, steps=2).items():
            taken += 1
            ahead.append(taken - given)
            yield key, each

    with Engine(settings, partial(read_resident, saved, settings.training)) as engine:
        engine.plan = replace(engine.plan, chunk=chunk)
        assert engine.plan.workers == workers
        for _ in engine.train(source()):
            given += 1
    assert given == 14
    assert max(ahead) == workers * chunk


def test_an_engine_that_has_nothing_to_do_reads_no_data():
    def read() -> Dataset:
        raise AssertionError("the data were read")

    with Engine(settings_of(), read) as engine:
        assert list(engine.train([])) == []


# What it survives


def test_a_worker_that_is_killed(saved, networks):
    settings = settings_of("engine_networks:mortal", engine="parallel", workers=4)
    wanted = recipes(9, steps=10)
    (networks / "killed").touch()
    expected = results(settings_of("engine_networks:mortal"), saved, wanted)
    (networks / "killed").unlink()
    with Engine(settings, partial(read_resident, saved, settings.training)) as engine:
        assert engine.plan.workers == 4
        (networks / "killed").unlink(missing_ok=True)
        found = dict(engine.train(wanted.items()))
        assert engine.plan.workers == 2  # half as many, however many were at work when it happened
    assert (networks / "killed").exists()
    assert_same(found, expected)


@pytest.mark.parametrize("kind", ["fused", "parallel"])
def test_a_training_that_kills_its_process_fails_alone(saved, networks, kind):
    fatal = importlib.import_module("engine_networks").Fatal
    sound = recipes(4)
    wanted = {**{key: sound[key] for key in list(sound)[:2]}, "bad": recipe(fatal()), **sound}
    settings = settings_of(engine=kind, workers=2)
    with Engine(settings, partial(read_resident, saved, settings.training)) as engine:
        found = dict(engine.train(wanted.items()))
        assert engine.plan.workers == 1
    bad = found.pop("bad").training
    assert (bad.status, bad.accuracy, bad.reason) == (
        "failed",
        0.0,
        "the process that trained it was killed",
    )
    assert_same(found, results(settings_of(engine=kind), saved, sound))


def test_an_error_that_no_other_process_can_read(saved, networks):
    strange = importlib.import_module("engine_networks").Strange
    wanted = {"bad": recipe(strange()), **recipes(2)}
    settings = settings_of(engine="parallel", workers=2)
    with Engine(settings, partial(read_resident, saved, settings.training)) as engine:
        found = dict(engine.train(wanted.items()))
        assert engine.plan.workers == 2
    assert (found["bad"].training.status, found["bad"].training.reason) == (
        "failed",
        "one and other",
    )
    assert [found[key].training.status for key in recipes(2)] == ["ok", "ok"]


def test_processes_that_are_out_of_memory_together_are_halved_once(saved, networks):
    crowded = importlib.import_module("engine_networks").Crowded
    wanted = {number: recipe(crowded(), seed=number) for number in range(6)}
    settings = settings_of(engine="parallel", workers=4)
    with Engine(settings, partial(read_resident, saved, settings.training)) as engine:
        found = dict(engine.train(wanted.items()))
        assert engine.plan.workers == 2
    assert len(list(networks.glob("crowded-*"))) == 4
    assert_same(
        found,
        results(
            settings, saved, {number: recipe(CrossEntropy(), seed=number) for number in range(6)}
        ),
    )


def test_after_an_error_nothing_is_waited_for(saved, networks):
    wrong = importlib.import_module("engine_networks").Wrong
    wanted = {"long": recipe(CrossEntropy(), steps=30_000, validations=1), "wrong": recipe(wrong())}
    settings = settings_of("engine_networks:telling", engine="parallel", workers=2)
    with (
        pytest.raises(InputError, match="this loss cannot be computed"),
        Engine(settings, partial(read_resident, saved, settings.training)) as engine,
    ):
        dict(engine.train(wanted.items()))
    until(lambda: not any(map(runs, set(pids_of(networks)) - {os.getpid()})) or None)
    assert not (networks / "validated").exists()


def test_a_machine_on_which_no_process_lives_is_no_fault_of_the_trainings(saved, networks):
    read = partial(importlib.import_module("engine_networks").read_or_die, saved, os.getpid())
    with (
        Engine(settings_of(engine="parallel", workers=2), read) as engine,
        pytest.raises(TaylorgloError, match="no process can be started to train in"),
    ):
        list(engine.train(recipes(4).items()))


def test_workers_end_with_the_process_that_they_work_for(saved, networks):
    code = f"""
        from functools import partial
        from taylorglo.training.engine import Engine
        from taylorglo.loss.functions import CrossEntropy
        from taylorglo.settings import SweepSettings
        from taylorglo.training.loop import Recipe, read_resident

        if __name__ == "__main__":
            training = {{"engine": "parallel", "workers": 2, "steps": 10**7}}
            settings = SweepSettings.model_validate(
                {{"model": {{"name": "engine_networks:telling"}}, "training": training}}
            )
            recipe = Recipe(CrossEntropy(), 0.1, 1, steps=10**7, horizon=10**7, validations=1)
            with Engine(settings, partial(read_resident, {saved!r}, settings.training)) as engine:
                list(engine.train([(1, recipe), (2, recipe)]))
    """
    (networks / "main.py").write_text(textwrap.dedent(code))
    folders = (
        f"{networks}{os.pathsep}{os.environ['PYTHONPATH']}"
        if "PYTHONPATH" in os.environ
        else str(networks)
    )
    parent = subprocess.Popen(
        [sys.executable, "main.py"], cwd=networks, env={**os.environ, "PYTHONPATH": folders}
    )
    try:
        workers = until(
            lambda: pids if len(pids := set(pids_of(networks)) - {parent.pid}) == 2 else None
        )
        assert all(map(runs, workers))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    until(lambda: not any(map(runs, workers)) or None)


def pids_of(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]


def runs(pid: int) -> bool:
    """Whether a process is there, and is more than an entry that nobody has looked at since it
    ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Any) -> Any:
    """What a condition gives as soon as it is not None."""
    deadline = time.monotonic() + SECONDS
    while (found := condition()) is None:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def test_a_machine_without_the_memory_for_all_trains_fewer_at_a_time(saved, networks):
    """A real limit, in a process of its own: 32 networks of 7 MB with gradients and momentum, and
    100 MB for them."""
    code = f"""
        import resource
        from functools import partial
        from pathlib import Path
        from taylorglo.training.engine import Engine
        from taylorglo.loss.functions import CrossEntropy
        from taylorglo.settings import SweepSettings
        from taylorglo.training.loop import Recipe, read_resident

        training = {{"engine": "fused", "workers": 1, "batch_size": 8}}
        settings = SweepSettings.model_validate({{"model": {{"name": "engine_networks:wide"}}, "training": training}})
        recipe = Recipe(CrossEntropy(), 0.1, 1, steps=2, horizon=2, validations=1)
        with Engine(settings, partial(read_resident, {saved!r}, settings.training)) as engine:
            list(engine.train([(0, recipe)]))  # whatever is loaded once
            planned = engine.plan.chunk
            status = Path("/proc/self/status").read_text()
            used = int(status.partition("VmData:")[2].split()[0]) * 1024
            resource.setrlimit(resource.RLIMIT_DATA, (used + 100 * 2**20, -1))
            trained = [(key, r.training.status, r.training.reason) for key, r in engine.train(
                (key, recipe) for key in range(32)
            )]
            assert sorted(trained) == [(key, "ok", "") for key in range(32)], trained
            print(planned, engine.plan.chunk)
    """
    path = os.pathsep.join(filter(None, [str(networks), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    planned, left = map(int, done.stdout.split())
    assert planned >= 32
    assert 1 <= left <= 8


class Hungry(CrossEntropy):
    """A loss that needs more memory than there is."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB\nand much more"
        )


class Late(CrossEntropy):
    """A loss that fails at the third step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % 3 == 0:
            raise RuntimeError("broken\nin two")
        return super().per_sample(logits, targets)


class Wrong(CrossEntropy):
    """A loss that says that the input is wrong."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise InputError("this loss cannot be computed")


@pytest.mark.parametrize("kind", ["fused", "sequential"])
@pytest.mark.parametrize(
    ("loss", "reason"),
    [(Hungry, "out of memory: CUDA out of memory. Tried to allocate 20.00 GiB"), (Late, "broken")],
)
def test_one_that_fails_does_not_take_others_with_it(digits, kind, loss, reason):
    sound = recipes(6)
    wanted = {**{key: sound[key] for key in list(sound)[:2]}, "bad": recipe(loss()), **sound}
    settings = settings_of(engine=kind)
    with Engine(settings, lambda: digits) as engine:
        found = dict(engine.train(wanted.items()))
        bad = found.pop("bad").training
        assert_same(found, dict(engine.train(sound.items())))
    assert (bad.status, bad.accuracy, bad.curve, bad.reason) == ("failed", 0.0, [], reason)
    assert bad.method == f"{kind}, float32, cpu"


class Broken(CrossEntropy):
    """A loss that finds the GPU broken."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise torch.AcceleratorError(
            "CUDA error: unspecified launch failure\nCUDA kernel errors might be ..."
        )


@pytest.mark.parametrize("kind", ["fused", "sequential"])
def test_a_gpu_that_failed_ends_the_task(digits, kind):
    """In this process everything else would fail on it too."""
    wanted = [*recipes(3).items(), ("bad", recipe(Broken()))]
    match = "^the GPU failed, start this task again: CUDA error: unspecified launch failure$"
    with (
        Engine(settings_of(engine=kind), lambda: digits) as engine,
        pytest.raises(TaylorgloError, match=match),
    ):
        dict(engine.train(wanted))


class Holding(CrossEntropy):
    """A loss that fails, and looks whether what it was given before is still in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[weakref.ref[Tensor]] = []
        self.alive: list[bool] = []

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.alive.append(any(given() is not None for given in self.given))
        self.given.append(weakref.ref(logits))
        raise ValueError("broken")


def test_what_failed_is_not_kept_in_memory_while_it_is_tried_again(digits):
    loss = Holding()
    with Engine(settings_of(engine="sequential"), lambda: digits) as engine:
        ((_, result),) = engine.train([(1, recipe(loss))])
    assert result.training.status == "failed"
    assert loss.alive == [False, False]


def test_a_single_training_that_does_not_fit_is_tried_twice(digits):
    with Engine(settings_of(), lambda: digits) as engine, steps_counted() as steps:
        ((_, result),) = engine.train([(1, recipe(Late()))])
    assert result.training.status == "failed"
    assert len(steps) == 4


@pytest.mark.parametrize("kind", ["fused", "sequential"])
def test_bad_input_ends_it(digits, kind):
    wanted = [*recipes(3).items(), ("wrong", recipe(Wrong()))]
    with (
        Engine(settings_of(engine=kind), lambda: digits) as engine,
        pytest.raises(InputError, match="this loss"),
    ):
        dict(engine.train(wanted))


# What it chooses


def planned(dataset: Dataset, model: str, cpus: int = 4, **training: Any) -> engine.Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CPUS, str(cpus))
        patch.setattr(memory, "available_memory", lambda device: 2**36)
        return plan(
            sweep(
                model=model, training={"batch_size": 32, "engine": "auto", "workers": 0, **training}
            ),
            dataset,
        )


@pytest.mark.parametrize(
    ("model", "chosen"),
    [
        ("mlp", "fused"),
        ("cnn", "parallel"),
        ("mnist-cnn", "parallel"),
        ("preresnet-20", "parallel"),
    ],
)
def test_the_choice_on_a_cpu(model, chosen):
    found = planned(COLOUR, model)
    assert (found.engine, found.workers, found.device) == (chosen, 4, "cpu")
    assert found.chunk == (256 if chosen == "fused" else 1)
    assert str(found) == f"{chosen} engine, 4 processes of 1 thread, {found.precision}, cpu"


def test_how_many_processes(digits):
    assert planned(digits, "cnn", cpus=7, threads=2).workers == 3
    assert planned(digits, "cnn", cpus=7, workers=5).workers == 5
    alone = planned(digits, "cnn", cpus=1)
    assert (alone.engine, alone.workers) == ("sequential", 1)
    assert str(alone).startswith("sequential engine, 1 process of 1 thread, ")
    assert (
        planned(digits, "cnn", cpus=1, threads=2).workers == 1
    )  # more threads than CPUs is no reason for none
    assert planned(digits, "cnn", engine="sequential").workers == 1
    assert planned(digits, "mlp", cpus=3, engine="fused").workers == 3
    assert planned(digits, "mlp", engine="parallel").engine == "parallel"


def test_as_many_as_there_is_memory_for(digits, monkeypatch):
    needed = memory.footprint(
        skeleton("mlp", digits.image_shape, 10), digits.image_shape, 32
    ).training
    monkeypatch.setenv(CPUS, "8")
    kept = sum(
        each.nbytes for s in (digits.train, digits.validation) for each in (s.images, s.labels)
    )
    process = memory.PROCESS + kept  # of which there is none beside this one where one is all
    cases = (
        (2.5 * needed, (1, 2)),
        (40.5 * needed, (1, 40)),
        (3 * (process + 2.5 * needed), (3, 2)),
        (8 * (process + 6.5 * needed), (8, 6)),
        (10**6 * needed, (8, 256)),
    )
    for free, expected in cases:
        monkeypatch.setattr(memory, "available_memory", lambda device, free=free: int(free / 0.9))
        found = plan(settings_of(engine="fused", workers=0), digits)
        assert (found.workers, found.chunk) == expected
    monkeypatch.setattr(memory, "available_memory", lambda device: int(1.5 * needed / 0.9))
    assert plan(settings_of(engine="auto", workers=0), digits).engine == "sequential"
    with pytest.raises(
        InputError,
        match=r"^training\.engine is fused, and there is no memory for 2 networks like 'mlp'",
    ):
        plan(settings_of(engine="fused", workers=0), digits)
    monkeypatch.setattr(memory, "available_memory", lambda device: int(needed * 0.99 / 0.9))
    with pytest.raises(
        InputError, match=r"^model 'mlp': training it in batches of 32 takes about 0\.0 GiB, and"
    ):
        plan(settings_of(engine="fused", workers=0), digits)


@pytest.mark.usefixtures("networks")
def test_a_network_that_no_memory_is_enough_for_is_refused_and_not_built(digits, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: 2**36)
    monkeypatch.setattr(engine, "build_network", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(InputError) as caught:
        plan(settings_of("engine_networks:huge"), digits)
    # (64 + 1 + 10) x 1.5 x 2^28 weights, three times, and the activations of 32 images
    assert str(caught.value).startswith(
        "model 'engine_networks:huge': training it in batches of 32 takes about 409.5 GiB, and 57.6 GiB of memory can "
    )
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize(
    ("model", "dataset"), [("preresnet-20", COLOUR), ("engine_networks:peeking", None)]
)
def test_a_network_that_cannot_be_stacked(digits, model, dataset):
    with pytest.raises(InputError) as caught:
        planned(dataset or digits, model, engine="fused")
    assert str(caught.value).startswith(
        f"training.engine is fused, and networks like {model!r} cannot be stacked: "
    )
    assert "\n" not in str(caught.value)
    assert planned(dataset or digits, model).engine == "parallel"


def test_a_batch_that_is_larger_than_the_data(digits):
    few = replace(digits, train=Split(digits.train.images[:31], digits.train.labels[:31]))
    with pytest.raises(
        InputError, match=r"^training\.batch_size: 32 is more than the 31 training images$"
    ):
        planned(few, "mlp")
    assert planned(few, "mlp", batch_size=31).engine == "fused"


@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_a_precision_that_is_not_there(digits, monkeypatch, precision):
    monkeypatch.setattr(devices, "_has_bfloat16", lambda device: False)
    line = f"training.precision is {precision}, and the CPU here has no arithmetic for it; use auto or float32"
    with pytest.raises(InputError) as caught:
        planned(digits, "mlp", precision=precision)
    assert str(caught.value) == line
    assert planned(digits, "cnn").precision == "float32"


# Compiled


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.long,
                pytest.mark.skipif(
                    not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler"
                ),
            ],
        ),
    ],
)
def test_one_graph_for_all_candidates(digits, tmp_path, monkeypatch, backend):
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, mode: compiled(function, mode=None, backend=backend)
    )
    wanted = {i: recipe(loss, seed=i) for i, loss in enumerate(LOSSES[0::2])}
    with Engine(settings_of(), lambda: digits) as engine:
        eager = dict(engine.train(wanted.items()))
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    with Engine(settings_of(compile=True), lambda: digits) as engine:
        for key, result in engine.train(wanted.items()):
            graphs.append(counters["stats"]["unique_graphs"])
            assert result.training.accuracy == pytest.approx(eager[key].training.accuracy, abs=0.01)
            for name, value in load(eager[key].weights).items():
                torch.testing.assert_close(load(result.weights)[name], value, rtol=1e-3, atol=1e-4)
    assert graphs == [1, 1, 1]
    torch._dynamo.reset()
