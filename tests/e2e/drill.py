"""The fault drill: sweeps that are disturbed, and what study and store say of them at their end."""

import os
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from journals import Journal, repeated
from mlflow import MlflowClient
from sqlalchemy import create_engine, inspect, text
from sweeps import Sweeps, final_table, runs_of, wait_until

from taylorglo.search.study import Search
from taylorglo.services import layout
from taylorglo.services.storage import open_store
from taylorglo.settings import SearchSettings

SWEEP = "digits"
POPSIZE = 6
# More of the time is spent in trainings than in the small sweeps of the other tests.
SETTINGS = (
    f"search.popsize={POPSIZE}",
    "evaluation.attempts=2",
    "evaluation.steps=150",
    "training.steps=150",
)
PROCESSES = (
    "pipeline.layout=workers",
    "pipeline.shards=1",
    "training.engine=parallel",
    "training.workers=2",
)
# Ways to compute a sweep, which come to the same results.
WAYS = (
    ("pipeline.layout=workers", "pipeline.shards=2"),
    ("pipeline.layout=generations", "pipeline.shards=2"),
    PROCESSES,
)
COMMAND_SECONDS = 400  # for a sweep that takes 30 on an idle machine
_END_SECONDS = 30  # for the tasks of a run that was killed
_MARK = "DRILL_LIFE"  # a variable that all processes of a life have


class Life:
    """One start of the command, from its beginning to its end or its violent death."""

    def __init__(self, process: subprocess.Popen[str], mark: str) -> None:
        self.process = process
        self.seconds = 0.0
        self._mark = mark
        self._begun = time.monotonic()
        self._completed: subprocess.CompletedProcess[str] | None = None

    def ends_within(self, seconds: float) -> bool:
        """Wait for the end of the command, at most this long."""
        if self._completed is None:
            with suppress(subprocess.TimeoutExpired):
                output = self.process.communicate(timeout=seconds)
                self.seconds = time.monotonic() - self._begun
                status = self.process.returncode
                self._completed = subprocess.CompletedProcess(self.process.args, status, *output)
        return self._completed is not None

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end of the command and of all its processes.

        A command that does not end is killed, and its error says so.
        """
        hangs = not self.ends_within(COMMAND_SECONDS)
        if hangs:
            self.kill()
            assert self.ends_within(_END_SECONDS)
        assert self._completed is not None
        if hangs:
            self._completed.stderr += f"the command did not end within {COMMAND_SECONDS} s"
        wait_until(lambda: not self.processes(), _END_SECONDS, "no process without its runner")
        return self._completed

    def kill(self) -> None:
        """Kill all processes."""
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def processes(self) -> dict[int, int]:
        """Return all processes that have not ended, each with its parent."""
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    # The name of the program, in brackets, may have spaces.
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    parents[int(folder.name)] = int(fields[1])
        return parents


@contextmanager
def life(sweep: Sweeps, *overrides: str) -> Iterator[Life]:
    """Start the command; it is killed at the end of the block."""
    mark = secrets.token_hex(8)
    with replace(sweep, env={**sweep.env, _MARK: mark}).started(*overrides) as process:
        run = Life(process, f"{_MARK}={mark}")
        try:
            yield run
        finally:
            run.kill()


def complaint(completed: subprocess.CompletedProcess[str]) -> str:
    """Return what is wrong with how the command reported an error; empty if it was one clear line.

    There may be two if two tasks failed at a time.
    """
    lines = completed.stderr.splitlines()
    clear = 1 <= len(lines) <= 2 and all(line.startswith("taylorglo: error: ") for line in lines)
    if completed.returncode == 2 and clear and "Traceback" not in completed.stdout:
        return ""
    return f"exit status {completed.returncode}, and on standard error: {completed.stderr!r}"


@dataclass(frozen=True)
class Place:
    """A sweep with its study, its store and its MLflow.

    Attributes:
        sweep: the command.
        study: URL of the study.
        store: URI of the store.
        tracking: URI of MLflow.
        journal: of the store.
    """

    sweep: Sweeps
    study: str
    store: str
    tracking: str
    journal: Journal

    def results(self) -> dict[int, str]:
        """Return the result of every candidate that the study has a final result of, by trial.

        The study is read as it is; to open it would change it.
        """
        path = self.study.removeprefix("sqlite:///")
        if path != self.study and not Path(path).exists():
            return {}
        engine = create_engine(self.study.replace("postgresql:", "postgresql+psycopg:"))
        try:
            with engine.connect() as connection:
                if not inspect(connection).has_table("trial_user_attributes"):
                    return {}
                rows = connection.execute(text(_RESULTS))
                return {number: f"{value} {result}" for number, value, result in rows}
        finally:
            engine.dispose()

    def outcome(self, output: str) -> "Outcome":
        """Return what the sweep found; ``output`` is that of its last run."""
        search = Search(self.study, SWEEP, SearchSettings(popsize=POPSIZE), 0, num_classes=10)
        store = open_store(self.store)
        keys = self.journal.versions().keys()
        full = [Path(key).stem for key in keys if not key.startswith("evaluations/")]
        _, nested = runs_of(MlflowClient(tracking_uri=self.tracking))
        tags = [run.data.tags for run in nested]
        return Outcome(
            candidates=[(c.trial, c.generation, c.theta, c.fitness) for c in search.candidates()],
            table=final_table(output),
            loss=store.read(layout.champion(SWEEP)),
            trainings=set(keys),
            networks={key: store.read(layout.weights(SWEEP, key)) for key in full},
            runs=sorted(int(t["taylorglo.trial"]) for t in tags if "taylorglo.trial" in t),
        )


_RESULTS = """
SELECT trials.number, trial_values.value, trial_user_attributes.value_json
FROM trials
JOIN trial_values USING (trial_id)
JOIN trial_user_attributes USING (trial_id)
WHERE trials.state = 'COMPLETE' AND trial_user_attributes.key = 'result'
"""


@dataclass(frozen=True)
class Outcome:
    """What a sweep found, without anything that depends on time and place.

    Attributes:
        candidates: trial, generation, theta and fitness of each candidate.
        table: the lines of the final table.
        loss: the champion's file.
        trainings: the keys of all trainings.
        networks: the networks of the trainings in full, by key.
        runs: the trials with a run in MLflow, as often as they have one.
    """

    candidates: list[tuple[int, int, list[float], float | None]]
    table: list[str]
    loss: bytes | None
    trainings: set[str]
    networks: dict[str, bytes | None]
    runs: list[int]

    def differences(self, other: "Outcome") -> list[str]:
        """Return the names of the parts that differ."""
        names = ("candidates", "table", "loss", "trainings", "networks", "runs")
        return [name for name in names if getattr(self, name) != getattr(other, name)]


@dataclass
class Tally:
    """What became of the sweeps that were disturbed in one way.

    Attributes:
        disturbances: their number.
        sweeps: the number of sweeps that came to their end.
        candidates: the number of candidates that were evaluated.
        lost: results that the study had before a disturbance, and has not or not so at the end.
        again: trainings that began after a record of the same training was written.
        beside: trainings that were done by two processes at a time.
        other: sweeps with another outcome than the undisturbed one.
    """

    disturbances: int = 0
    sweeps: int = 0
    candidates: int = 0
    lost: int = 0
    again: int = 0
    beside: int = 0
    other: int = 0


_HEAD = ("disturbance", "n", "sweeps", "candidates", "lost", "trained again", "beside", "differ")


@dataclass
class Drill:
    """The disturbances so far, and what they did.

    Attributes:
        seed: decides the points of all disturbances.
        undisturbed: what an undisturbed sweep finds.
        seconds: how long it takes; less if the machine was busy when this was measured.
        faults: all that went wrong.
    """

    seed: int
    undisturbed: Outcome
    seconds: float
    faults: list[str] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)

    def chance(self, kind: str) -> random.Random:
        """Return the source of chance for one kind of disturbances."""
        return random.Random(f"{self.seed} {kind}")

    def missed(self, run: Life) -> bool:
        """Return False, for a run that ended before it could be disturbed, and note its length."""
        self.seconds = min(self.seconds, run.seconds)
        return False

    def disturbed(self, kind: str, event: str) -> None:
        """Count a disturbance, and print it."""
        tally = self._tally(kind)
        tally.disturbances += 1
        print(f"{kind} {tally.disturbances}: {event}", flush=True)

    def fault(self, kind: str, what: str) -> None:
        """Note what went wrong, and print it."""
        self.faults.append(f"{kind} {self._tally(kind).disturbances}: {what}")
        print(f"FAULT {self.faults[-1]}", flush=True)

    def judge(
        self, kind: str, place: Place, known: Mapping[int, str], output: str, excused: str = "-"
    ) -> None:
        """Compare a sweep that came to its end with the undisturbed one.

        Args:
            kind: of the disturbances.
            place: the sweep.
            known: the results that the study had before the disturbances, by trial.
            output: of the last run.
            excused: how the keys begin of trainings that two processes may do at a time.
        """
        tally, results = self._tally(kind), place.results()
        lost = [trial for trial, result in known.items() if results.get(trial) != result]
        again, beside = repeated(place.journal.versions())
        different = place.outcome(output).differences(self.undisturbed)
        tally.sweeps += 1
        tally.candidates += len(results)
        tally.lost += len(lost)
        tally.again += len(again)
        tally.beside += len(beside)
        tally.other += bool(different)
        wrong = {
            "lost": lost,
            "trained again": again,
            "trained by two processes at a time": [k for k in beside if not k.startswith(excused)],
            "not as undisturbed": different,
        }
        for what in filter(wrong.get, wrong):
            self.fault(kind, f"{what}: {wrong[what]}")

    def check(self) -> None:
        """Fail if anything went wrong since the last check."""
        faults, self.faults = self.faults, []
        assert not faults, "\n".join([f"with DRILL_SEED={self.seed}:", *faults])

    def table(self) -> str:
        """Return the tallies as a table."""
        rows = [
            (kind, t.disturbances, t.sweeps, t.candidates, t.lost, t.again, t.beside, t.other)
            for kind, t in self.tallies.items()
        ]
        cells = [[str(cell) for cell in row] for row in (_HEAD, *rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        )

    def _tally(self, kind: str) -> Tally:
        return self.tallies.setdefault(kind, Tally())


def seed() -> int:
    """Return the seed that the environment names, or a new one."""
    return int(os.environ.get("DRILL_SEED") or secrets.randbelow(1_000_000))
