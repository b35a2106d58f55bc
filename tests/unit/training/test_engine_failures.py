"""Failures of trainings, of workers and of the machine, and how the engine answers them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
import user_networks
from engine_faults import (
    Broken,
    Crowded,
    Fatal,
    Holding,
    Hungry,
    Late,
    Strange,
    Wrong,
    read_or_die,
)
from engine_runs import assert_same, recipe, recipes, results, settings_of
from pids import is_running
from trainings import steps_counted

from taylorglo.data.dataset import Dataset
from taylorglo.errors import InputError, TaylorgloError
from taylorglo.loss.classic import CrossEntropy
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe

SECONDS = 60  # for what should take a few


def with_a_bad_one(sound: dict[str, Recipe], bad: Recipe) -> dict[str, Recipe]:
    """Return the recipes with a bad one after the first two."""
    first, second, *others = sound.items()
    return dict([first, second, ("bad", bad), *others])


def test_a_worker_that_is_killed(saved_digits: Path, networks: Path) -> None:
    killed = networks / "killed"
    killed.touch()
    expected = results(settings_of("engine_networks:mortal"), saved_digits, recipes(9, steps=10))
    killed.unlink()
    settings = settings_of("engine_networks:mortal", engine="parallel", workers=4)
    with Engine.open(settings, saved_digits) as engine:
        assert engine.plan.workers == 4
        assert not killed.exists()
        trained = dict(engine.run(recipes(9, steps=10).items()))
        # Half as many are left, however many were at work when it happened.
        assert engine.plan.workers == 2
    assert killed.exists()
    assert_same(trained, expected)


@pytest.mark.parametrize("kind", ["fused", "parallel"])
def test_a_training_that_kills_its_process_fails_alone(saved_digits: Path, kind: str) -> None:
    sound = recipes(4)
    settings = settings_of(engine=kind, workers=2)
    with Engine.open(settings, saved_digits) as engine:
        trained = dict(engine.run(with_a_bad_one(sound, recipe(Fatal())).items()))
        assert engine.plan.workers == 1
    bad = trained.pop("bad").training
    assert (bad.status, bad.accuracy) == ("failed", 0.0)
    assert bad.reason == "the process that trained it was killed"
    assert_same(trained, results(settings_of(engine=kind), saved_digits, sound))


def test_an_error_that_no_other_process_can_read(saved_digits: Path) -> None:
    settings = settings_of(engine="parallel", workers=2)
    with Engine.open(settings, saved_digits) as engine:
        trained = dict(engine.run({"bad": recipe(Strange()), **recipes(2)}.items()))
        assert engine.plan.workers == 2
    bad = trained.pop("bad").training
    assert (bad.status, bad.reason) == ("failed", "one and other")
    assert [result.training.status for result in trained.values()] == ["ok", "ok"]


def test_processes_that_are_out_of_memory_together_are_halved_once(
    saved_digits: Path, tmp_path: Path
) -> None:
    crowded = {seed: recipe(Crowded(tmp_path), seed) for seed in range(6)}
    sound = {seed: recipe(CrossEntropy(), seed) for seed in range(6)}
    settings = settings_of(engine="parallel", workers=4)
    with Engine.open(settings, saved_digits) as engine:
        trained = dict(engine.run(crowded.items()))
        assert engine.plan.workers == 2
    assert len(list(tmp_path.glob("crowded-*"))) == 4
    assert_same(trained, results(settings_of(), saved_digits, sound))


def test_after_an_error_no_training_is_waited_for(saved_digits: Path, networks: Path) -> None:
    long = recipe(CrossEntropy(), steps=30_000, validations=1)
    settings = settings_of("engine_networks:visible", engine="parallel", workers=2)
    with (
        pytest.raises(InputError, match="this loss cannot be computed"),
        Engine.open(settings, saved_digits) as engine,
    ):
        dict(engine.run({"long": long, "wrong": recipe(Wrong())}.items()))
    wait_until(lambda: not any(map(is_running, pids_in(networks) - {os.getpid()})))
    assert not (networks / "validated").exists()


def test_a_machine_that_kills_every_process_is_no_fault_of_the_trainings(
    saved_digits: Path,
) -> None:
    read = partial(read_or_die, saved_digits, os.getpid())
    with (
        Engine(settings_of(engine="parallel", workers=2), read) as engine,
        pytest.raises(TaylorgloError, match="no process can be started to train in"),
    ):
        list(engine.run(recipes(4).items()))


def test_a_worker_that_dies_while_another_one_starts_keeps_nobody_waiting(
    saved_digits: Path, tmp_path: Path
) -> None:
    """Python's pool then waits for the other one, which waits for work, without end."""
    program = f"""
        import os, signal, threading, time
        from concurrent.futures import process as pool
        from multiprocessing.queues import Queue
        from taylorglo.loss.classic import CrossEntropy
        from taylorglo.settings import SweepSettings
        from taylorglo.training.engine import Engine
        from taylorglo.training.loop import Recipe

        join_thread = Queue.join_thread

        def spawn(self):
            # As Python's own, with a kill before the new process is noted.
            process = self._mp_context.Process(
                target=pool._process_worker,
                args=(
                    self._call_queue,
                    self._result_queue,
                    self._initializer,
                    self._initargs,
                    self._max_tasks_per_child,
                ),
            )
            process.start()
            if len(self._processes) == 1 and self._max_workers == 2:
                os.kill(next(iter(self._processes)), signal.SIGKILL)
                time.sleep(0.5)
            self._processes[process.pid] = process

        def join_late(self):
            if isinstance(threading.current_thread(), pool._ExecutorManagerThread):
                time.sleep(1.0)
            join_thread(self)

        if __name__ == "__main__":
            pool.ProcessPoolExecutor._spawn_process = spawn
            Queue.join_thread = join_late
            training = {{"engine": "parallel", "workers": 2}}
            settings = SweepSettings.model_validate({{"training": training}})
            recipe = Recipe(CrossEntropy(), 0.1, 1, steps=2, horizon=2, validations=1)
            with Engine.open(settings, {str(saved_digits)!r}) as engine:
                print(len(list(engine.run([(number, recipe) for number in range(4)]))))
    """
    (tmp_path / "main.py").write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


def test_workers_end_with_the_process_that_they_work_for(
    saved_digits: Path, networks: Path
) -> None:
    program = f"""
        from taylorglo.loss.classic import CrossEntropy
        from taylorglo.settings import SweepSettings
        from taylorglo.training.engine import Engine
        from taylorglo.training.loop import Recipe

        if __name__ == "__main__":
            training = {{"engine": "parallel", "workers": 2, "steps": 10**7}}
            settings = SweepSettings.model_validate(
                {{"model": {{"name": "engine_networks:visible"}}, "training": training}}
            )
            recipe = Recipe(CrossEntropy(), 0.1, 1, steps=10**7, horizon=10**7, validations=1)
            with Engine.open(settings, {str(saved_digits)!r}) as engine:
                list(engine.run([(1, recipe), (2, recipe)]))
    """
    (networks / "main.py").write_text(textwrap.dedent(program))
    parent = subprocess.Popen(
        [sys.executable, "main.py"], cwd=networks, env=environment_with(networks)
    )
    try:
        wait_until(lambda: len(pids_in(networks) - {parent.pid}) == 2)
        workers = pids_in(networks) - {parent.pid}
        assert all(map(is_running, workers))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not any(map(is_running, workers)))


def pids_in(folder: Path) -> set[int]:
    """Return the ids of the processes that computed the visible network."""
    return {int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def environment_with(folder: Path) -> dict[str, str]:
    """Return the environment of a process that can import the modules of a folder."""
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths}


def test_a_machine_without_the_memory_for_all_trains_fewer_at_a_time(saved_digits: Path) -> None:
    """A process has a real limit: 50 MB for 16 networks of 7 MB with gradients and momentum."""
    program = f"""
        import resource
        from pathlib import Path

        from taylorglo.loss.classic import CrossEntropy
        from taylorglo.settings import SweepSettings
        from taylorglo.training.engine import Engine
        from taylorglo.training.loop import Recipe

        training = {{"engine": "fused", "workers": 1, "batch_size": 8}}
        settings = SweepSettings.model_validate(
            {{"model": {{"name": "user_networks:wide"}}, "training": training}}
        )
        recipe = Recipe(CrossEntropy(), 0.1, 1, steps=2, horizon=2, validations=1)
        with Engine.open(settings, {str(saved_digits)!r}) as engine:
            # The first training loads everything that is loaded once.
            list(engine.run([(0, recipe)]))
            planned = engine.plan.chunk
            status = Path("/proc/self/status").read_text()
            used = int(status.partition("VmData:")[2].split()[0]) * 1024
            resource.setrlimit(resource.RLIMIT_DATA, (used + 50 * 2**20, -1))
            results = engine.run((key, recipe) for key in range(16))
            trained = [(key, r.training.status, r.training.reason) for key, r in results]
            assert sorted(trained) == [(key, "ok", "") for key in range(16)], trained
            print(planned, engine.plan.chunk)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment_with(Path(user_networks.__file__).parent),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    planned, chunk = map(int, done.stdout.split())
    assert planned >= 16
    assert 1 <= chunk <= 4


@pytest.mark.parametrize("kind", ["fused", "sequential"])
@pytest.mark.parametrize(
    ("loss", "reason"),
    [(Hungry, "out of memory: CUDA out of memory. Tried to allocate 20.00 GiB"), (Late, "broken")],
)
def test_a_training_that_fails_does_not_take_others_with_it(
    digits: Dataset, kind: str, loss: type[CrossEntropy], reason: str
) -> None:
    sound = recipes(6)
    with Engine(settings_of(engine=kind), lambda: digits) as engine:
        trained = dict(engine.run(with_a_bad_one(sound, recipe(loss())).items()))
        bad = trained.pop("bad").training
        assert_same(trained, dict(engine.run(sound.items())))
    assert (bad.status, bad.accuracy, bad.curve, bad.reason) == ("failed", 0.0, [], reason)
    assert bad.method == f"{kind}, float32, cpu"


@pytest.mark.parametrize("kind", ["fused", "sequential"])
def test_a_gpu_that_failed_ends_the_task(digits: Dataset, kind: str) -> None:
    """Everything else would fail in this process too."""
    message = "^the GPU failed, start this task again: CUDA error: unspecified launch failure$"
    with (
        Engine(settings_of(engine=kind), lambda: digits) as engine,
        pytest.raises(TaylorgloError, match=message),
    ):
        run_all(engine, [*recipes(3).items(), ("bad", recipe(Broken()))])


def run_all(engine: Engine, items: Iterable[tuple[str, Recipe]]) -> None:
    for _ in engine.run(items):
        pass


def test_tensors_of_a_failed_training_are_freed_before_it_is_tried_again(digits: Dataset) -> None:
    loss = Holding()
    with Engine(settings_of(engine="sequential"), lambda: digits) as engine:
        ((_, result),) = engine.run([(1, recipe(loss))])
    assert result.training.status == "failed"
    assert loss.alive == [False, False]


def test_a_single_training_that_fails_is_tried_twice(digits: Dataset) -> None:
    with Engine(settings_of(), lambda: digits) as engine, steps_counted() as steps:
        ((_, result),) = engine.run([(1, recipe(Late()))])
    assert result.training.status == "failed"
    assert len(steps) == 4


@pytest.mark.parametrize("kind", ["fused", "sequential"])
def test_bad_input_ends_the_engine(digits: Dataset, kind: str) -> None:
    with (
        Engine(settings_of(engine=kind), lambda: digits) as engine,
        pytest.raises(InputError, match="this loss"),
    ):
        run_all(engine, [*recipes(3).items(), ("wrong", recipe(Wrong()))])
