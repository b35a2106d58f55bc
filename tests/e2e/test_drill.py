"""The fault drill: whatever happens to a sweep, nothing is lost, and nothing is trained twice.

``make drill`` prints the seed of its points; with ``DRILL_SEED`` it repeats them.
"""

import os
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from drill import (
    COMMAND_SECONDS,
    PROCESSES,
    SETTINGS,
    SWEEP,
    WAYS,
    Drill,
    Life,
    Place,
    complaint,
    life,
    seed,
)
from journals import BucketJournal, FolderJournal
from outages import Filler, Outage, PostgreSQL, Services, running, services, small_disk
from servers import SeaweedFS, new_database
from sweeps import Sweeps, final_table

from taylorglo.variables import SERVICE_TIMEOUT

MOST_LIVES = 30  # of one sweep
MOST_SECONDS_LATER = 2.0  # than the start of a process, for which a kill had to wait
OUTAGE_SECONDS = 20
PATIENCE = {SERVICE_TIMEOUT: "600"}
FAKETIME = [
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    *Path("/usr/local/lib").glob("faketime/libfaketimeMT.so.1"),
]
GONE = ("PostgreSQL gone", "S3 gone", "MLflow gone")
HANGS = ("PostgreSQL hangs", "S3 hangs", "MLflow hangs")


@dataclass(frozen=True)
class Size:
    """How many disturbances there are of each kind.

    Attributes:
        kills: signals that kill.
        patient: outages that the command waits for, as tasks on a cluster do.
        impatient: outages that end the command with an error.
        fills: times at which the disk is full.
        days: how far the clock is set back, each once between two runs and once in a run.
    """

    kills: int
    patient: tuple[str, ...]
    impatient: tuple[str, ...]
    fills: int
    days: tuple[int, ...]


SHORT = Size(kills=10, patient=GONE, impatient=("S3 gone",), fills=2, days=(1,))
FULL = Size(kills=50, patient=GONE + HANGS, impatient=GONE, fills=5, days=(1, 365))

pytestmark = pytest.mark.timeout(4 * 3600)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SHORT, marks=pytest.mark.long, id="short"),
        pytest.param(FULL, marks=pytest.mark.drill, id="full"),
    ],
)
def size(request: pytest.FixtureRequest) -> Size:
    asked: Size = request.param
    return replace(asked, kills=int(os.environ.get("DRILL_KILLS") or asked.kills))


@pytest.fixture(scope="module")
def drill(size: Size, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    """An undisturbed sweep, and the account of the others."""
    with local(tmp_path_factory.mktemp("undisturbed") / "work") as place:
        begun = time.monotonic()
        completed = place.sweep.run(seconds=COMMAND_SECONDS)
        seconds = time.monotonic() - begun
        assert completed.returncode == 0, completed.stderr
    drill = Drill(seed(), place.outcome(completed.stdout), seconds)
    print(f"\nDRILL_SEED={drill.seed}; an undisturbed sweep takes {seconds:.0f} s", flush=True)
    yield drill
    print(f"\n{drill.table()}", flush=True)


@contextmanager
def local(work: Path, *overrides: str, env: dict[str, str] | None = None) -> Iterator[Place]:
    """Yield a sweep whose study, store and MLflow are in its folder, with its journal kept."""
    sweep = Sweeps(work, (*SETTINGS, *WAYS[0], *overrides), env or {})
    store = work / "store"
    with FolderJournal(store).kept() as journal:
        study, tracking = f"sqlite:///{work}/study.db", f"sqlite:///{work}/mlruns.db"
        yield Place(sweep, study, str(store), tracking, journal)


def test_kills(drill: Drill, size: Size, tmp_path: Path) -> None:
    kinds = ("command", "task", "training process", "all processes")
    chance = drill.chance("kills")
    left = [kinds[number % len(kinds)] for number in range(size.kills)]
    chance.shuffle(left)
    number = 0
    while left:
        number += 1
        with local(tmp_path / str(number)) as place:
            output, known = killed_until_done(drill, chance, left, place)
            drill.judge("kill -9", place, known, output)
    drill.check()


def killed_until_done(
    drill: Drill, chance: random.Random, left: list[str], place: Place
) -> tuple[str, dict[int, str]]:
    """Run a sweep, and again after each kill, until it comes to its end.

    Args:
        drill: the account.
        chance: decides the points.
        left: whom to kill; those that were killed are removed.
        place: the sweep.

    Returns:
        The output of the last run, and the results that the study had before it.
    """
    known: dict[int, str] = {}
    for number in range(MOST_LIVES):
        way = chance.choice(WAYS)
        moment = chance.uniform(0, drill.seconds)
        kind = left[-1] if left else ""
        if kind == "training process":
            way = PROCESSES
        with life(place.sweep, *way) as run:
            hit = bool(kind) and killed(run, kind, moment, chance)
            completed = run.end()
        if hit:
            left.pop()
            drill.disturbed("kill -9", f"{kind} at {moment:.1f} s or later; {', '.join(way)}")
        wrong = problem(completed, kind if hit else "")
        if wrong:
            drill.fault("kill -9", wrong)
        if completed.returncode == 0:
            if not (hit or number):
                drill.missed(run)
            return completed.stdout, known
        known = {**place.results(), **known}
    raise AssertionError(f"not done after {MOST_LIVES} runs: {completed.stderr}")


def killed(run: Life, kind: str, moment: float, chance: random.Random) -> bool:
    """Kill a process of this kind at a moment, or a while after there is one.

    Returns:
        Whether there was one before the command ended.
    """
    if run.ends_within(moment):
        return False
    if not victims(kind, run):
        while not victims(kind, run):
            if run.ends_within(0.02):
                return False
        run.ends_within(chance.uniform(0, MOST_SECONDS_LATER))
    if kind == "all processes":
        run.kill()
        return True
    found = victims(kind, run)
    for process in chance.sample(found, min(len(found), 1)):
        os.kill(process, signal.SIGKILL)
    return bool(found)


def victims(kind: str, run: Life) -> list[int]:
    """Return the processes of this kind: the command, its tasks, or those that a task trains in."""
    parents = run.processes()
    if kind not in ("task", "training process"):
        return [process for process in parents if process == run.process.pid]
    tasks = [process for process, parent in parents.items() if parent == run.process.pid]
    if kind == "task":
        return tasks
    # They are forked by a server, which the task started.
    return [process for process, parent in parents.items() if parents.get(parent) in tasks]


def problem(completed: subprocess.CompletedProcess[str], killed: str = "") -> str:
    """Return what is wrong with the end of a command; empty if it is as it should be.

    Args:
        completed: the command.
        killed: the kind of the process that was killed, if one was.
    """
    if killed in ("command", "all processes"):
        return "" if completed.returncode == -signal.SIGKILL else "the command was not killed"
    # A training process is replaced if it is lost. A task may be killed at its very end.
    if killed == "task" and completed.returncode:
        return complaint(completed)
    if completed.returncode:
        return f"exit status {completed.returncode}: {completed.stderr}"
    return ""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[PostgreSQL, SeaweedFS]]:
    """PostgreSQL and S3, which a test may stop."""
    with running() as pair:
        yield pair


@contextmanager
def shared(
    servers: tuple[PostgreSQL, SeaweedFS], folder: Path, env: Mapping[str, str]
) -> Iterator[tuple[Services, Place]]:
    """Yield services, and a sweep that has everything there; ``env`` is for the command."""
    postgresql, s3 = servers
    with services(postgresql, s3, folder / "mlflow") as its:
        study, bucket = new_database(postgresql.url), f"drill-{secrets.token_hex(4)}"
        journal, store, tracking = BucketJournal(bucket), f"s3://{bucket}", its.mlflow.uri
        overrides = (
            f"services.study_url={study}",
            f"services.store_uri={store}",
            f"services.tracking_uri={tracking}",
        )
        sweep = Sweeps(
            folder / "work", (*SETTINGS, *WAYS[0], *overrides), {**s3.address.env(), **env}
        )
        yield its, Place(sweep, study, store, tracking, journal)


def test_outages_that_tasks_wait_for(
    drill: Drill, size: Size, servers: tuple[PostgreSQL, SeaweedFS], tmp_path: Path
) -> None:
    for name in size.patient:

        def attempt(moment: float, folder: Path, name: str = name) -> bool:
            with shared(servers, folder, PATIENCE) as (its, place):
                return lacks_service(drill, name, its.outages()[name], place, moment)

        until_disturbed(drill, name, attempt, tmp_path / name.replace(" ", "-"))
    drill.check()


def test_outages_that_end_a_run(
    drill: Drill, size: Size, servers: tuple[PostgreSQL, SeaweedFS], tmp_path: Path
) -> None:
    for name in size.impatient:
        kind = f"{name}, no waiting"

        def attempt(moment: float, folder: Path, name: str = name, kind: str = kind) -> bool:
            with shared(servers, folder, {}) as (its, place):
                return lacks_service(drill, kind, its.outages()[name], place, moment)

        until_disturbed(drill, kind, attempt, tmp_path / name.replace(" ", "-"))
    drill.check()


def until_disturbed(
    drill: Drill, kind: str, attempt: Callable[[float, Path], bool], folder: Path
) -> None:
    """Try to disturb a sweep at a random moment, until one has not ended before its moment.

    Args:
        drill: the account.
        kind: of the disturbance.
        attempt: disturbs a sweep at a moment, in a new folder; returns whether it came to that.
        folder: for the folders.
    """
    chance = drill.chance(kind)
    for number in range(MOST_LIVES):
        if attempt(chance.uniform(0, drill.seconds), folder / str(number)):
            return
    raise AssertionError(f"{kind}: no sweep took as long as the undisturbed one")


def lacks_service(drill: Drill, kind: str, outage: Outage, place: Place, moment: float) -> bool:
    """Take a service away for a while, and run the command until the sweep is done.

    Returns:
        Whether the sweep lasted until that moment.
    """
    waits = SERVICE_TIMEOUT in place.sweep.env
    with life(place.sweep) as run:
        if run.ends_within(moment):
            return drill.missed(run)
        known = place.results()
        drill.disturbed(kind, f"at {moment:.1f} s")
        take_away(outage, run)
        completed = run.end()
    if completed.returncode and (wrong := problem(completed) if waits else complaint(completed)):
        drill.fault(kind, wrong)
    # Claims end with PostgreSQL, as taylorglo.search.locks says.
    excused = "evaluations/" if outage.name == "PostgreSQL gone" else "-"
    finish(drill, kind, place, completed, known, excused)
    return True


def finish(
    drill: Drill,
    kind: str,
    place: Place,
    completed: subprocess.CompletedProcess[str],
    known: Mapping[int, str],
    excused: str = "-",
) -> None:
    """Run the command again if it did not come to its end, and judge the sweep.

    Args:
        drill: the account.
        kind: of the disturbance.
        place: the sweep.
        completed: the run that was disturbed.
        known: the results that the study had before.
        excused: how the keys begin of trainings that two processes may do at a time.
    """
    if completed.returncode:
        known = {**place.results(), **known}
        completed = place.sweep.run(seconds=COMMAND_SECONDS)
    assert completed.returncode == 0, completed.stderr
    drill.judge(kind, place, known, completed.stdout, excused)


def take_away(outage: Outage, run: Life) -> None:
    """Let a service be away for a while, whatever becomes of the command."""
    end = time.monotonic() + OUTAGE_SECONDS
    outage.begin()
    try:
        run.ends_within(OUTAGE_SECONDS)
        time.sleep(max(0.0, end - time.monotonic()))
    finally:
        outage.end()


def test_full_disks(drill: Drill, size: Size, tmp_path: Path) -> None:
    for number in range(size.fills):

        def attempt(moment: float, folder: Path) -> bool:
            with small_disk(folder) as disk, local(disk / "work", *PROCESSES) as place:
                return lacks_room(drill, place, moment)

        until_disturbed(drill, f"disk full {number}", attempt, tmp_path / str(number))
    drill.check()


def lacks_room(drill: Drill, place: Place, moment: float) -> bool:
    """Fill the disk of a sweep until the command ends, and run it again.

    Returns:
        Whether the sweep lasted until that moment.
    """
    kind = "disk full"
    with life(place.sweep) as run:
        if run.ends_within(moment):
            return drill.missed(run)
        known = place.results()
        drill.disturbed(kind, f"at {moment:.1f} s")
        with Filler(place.sweep.work.parent / "filler").full():
            completed = run.end()
    if completed.returncode and (wrong := complaint(completed)):
        drill.fault(kind, wrong)
    finish(drill, kind, place, completed, known)
    return True


def test_a_second_run_in_one_folder(drill: Drill, tmp_path: Path) -> None:
    kind = "two runs, one folder"
    with local(tmp_path / "work") as place:
        with life(place.sweep) as run:
            moment = drill.chance(kind).uniform(5, drill.seconds / 2)
            run.ends_within(moment)
            drill.disturbed(kind, f"at {moment:.1f} s")
            refused = place.sweep.run()
            completed = run.end()
        wrong = complaint(refused) or problem(completed)
        if wrong or "another run of sweep 'digits' is going on" not in refused.stderr:
            drill.fault(kind, wrong or refused.stderr)
        drill.judge(kind, place, {}, completed.stdout)
    drill.check()


def test_two_runs_that_share_all_services(
    drill: Drill, servers: tuple[PostgreSQL, SeaweedFS], tmp_path: Path
) -> None:
    kind = "two runs, shared services"
    with shared(servers, tmp_path, {}) as (_, place):
        second = replace(place.sweep, work=tmp_path / "second")
        moment = drill.chance(kind).uniform(0, drill.seconds / 2)
        with life(place.sweep) as run, ExitStack() as stack:
            run.ends_within(moment)
            drill.disturbed(kind, f"{moment:.1f} s apart")
            other = stack.enter_context(life(second))
            ended = [run.end(), other.end()]
        for completed in ended:
            if wrong := problem(completed):
                drill.fault(kind, wrong)
            elif final_table(completed.stdout) != drill.undisturbed.table:
                drill.fault(kind, "another table")
        # Nobody claims a training in full.
        drill.judge(kind, place, {}, ended[0].stdout, f"{SWEEP}/trainings/")
    drill.check()


def test_a_clock_that_is_set_back(drill: Drill, size: Size, tmp_path: Path) -> None:
    if not FAKETIME:
        pytest.skip("needs libfaketime (apt-get install faketime)")
    for days in size.days:
        for where in ("between two runs", "in a run"):

            def attempt(moment: float, folder: Path, days: int = days, where: str = where) -> bool:
                return set_back(drill, days, where, folder, moment)

            until_disturbed(
                drill, f"clock {days} {where}", attempt, tmp_path / f"{days}-{where[:2]}"
            )
    drill.check()


def set_back(drill: Drill, days: int, where: str, folder: Path, moment: float) -> bool:
    """Set the clock of a sweep back, and run the command until the sweep is done.

    Returns:
        Whether the sweep lasted until that moment.
    """
    kind = f"clock set back {where}"
    folder.mkdir(parents=True)
    offset = folder / "offset"
    offset.write_text("+0")
    env = {
        "LD_PRELOAD": str(FAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_CACHE_DURATION": "1",
        # Neither the clock of timeouts nor the times of files are set back with a clock.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    with local(folder / "work", env=env) as place:
        with life(place.sweep) as run:
            if run.ends_within(moment):
                return drill.missed(run)
            known = place.results()
            drill.disturbed(kind, f"by {days} days, at {moment:.1f} s")
            offset.write_text(f"-{days}d")
            if where == "between two runs":
                run.kill()
            completed = run.end()
            # A killed process leaves what it shares of libfaketime behind.
            for name in ("faketime_shm", "sem.faketime_sem"):
                Path("/dev/shm", f"{name}_{run.process.pid}").unlink(missing_ok=True)
        if where == "in a run" and (wrong := problem(completed)):
            drill.fault(kind, wrong)
        finish(drill, kind, place, completed, known)
    return True
