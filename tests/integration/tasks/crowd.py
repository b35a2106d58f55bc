"""Workers that share a search, each a process: some are killed, some come late or come back.

As a program, it is the process that all workers are forked from, so that PyTorch is imported once:
``python crowd.py CONTEXT SEARCH_DATA LOG PLAN``, with the plan as JSON.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from taylorglo.evaluation import fitness
from taylorglo.results import Training
from taylorglo.services.memo import ShortTrainings
from taylorglo.tasks import search
from taylorglo.tasks.context import Sweep


@dataclass(frozen=True)
class Plan:
    """What becomes of the workers.

    Attributes:
        workers: their number.
        killed: workers that are killed.
        event: the number of lines in the log after which they are killed.
        back: whether those that were killed come back, as Kubeflow brings them back.
        late: workers that begin only then.
    """

    workers: int
    killed: Sequence[int] = ()
    event: int = 0
    back: bool = False
    late: Sequence[int] = ()


@dataclass(frozen=True)
class Line:
    """A line of the log: a training of a worker ``begins``, or is ``recorded``."""

    kind: str
    worker: int
    key: str


def run_crowd(context: Path, search_data: str, log: Path, plan: Plan) -> list[Line]:
    """Let the workers search to the end; return what they trained, in this order."""
    log.touch()
    words = [str(context), search_data, str(log), json.dumps(asdict(plan))]
    subprocess.run([sys.executable, __file__, *words], check=True, timeout=200)
    lines = [line.split() for line in log.read_text().splitlines()]
    return [Line(kind, int(worker), key) for kind, worker, key in lines]


def trained_again(trainings: Sequence[Line]) -> list[str]:
    """Return the keys of the trainings that began after their results were recorded."""
    recorded: Counter[str] = Counter()
    again = []
    for training in trainings:
        recorded[training.key] += training.kind == "recorded"
        if training.kind == "begins" and recorded[training.key]:
            again.append(training.key)
    return again + [key for key, times in recorded.items() if times > 1]


def _work(context: str, search_data: str, log: str, worker: int) -> None:
    """Be a worker, and write each training to the log as it begins and as it is recorded."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND)

    def write(kind: str, key: str) -> None:
        os.write(output, f"{kind} {worker} {key}\n".encode())

    recall, record = ShortTrainings.recall, ShortTrainings.record

    def recalled(memo: ShortTrainings, key: str) -> Training | None:
        found = recall(memo, key)
        if found is None:
            write("begins", key)
        return found

    def recorded(memo: ShortTrainings, key: str, training: Training) -> None:
        record(memo, key, training)
        write("recorded", key)

    ShortTrainings.recall, ShortTrainings.record = recalled, recorded  # type: ignore[method-assign]
    search.search(Sweep.read(context), search_data, worker)


def _main(context: str, search_data: str, log: str, text: str) -> None:
    plan = Plan(**json.loads(text))

    def start(worker: int) -> int:
        process = os.fork()
        if process == 0:
            status = 1
            try:
                _work(context, search_data, log, worker)
                status = 0
            finally:
                os._exit(status)
        return process

    running = {worker: start(worker) for worker in range(plan.workers) if worker not in plan.late}
    if plan.event:
        while Path(log).read_bytes().count(b"\n") < plan.event:
            time.sleep(0.002)
    for worker in plan.killed:
        os.kill(running[worker], signal.SIGKILL)
        os.waitpid(running.pop(worker), 0)
    for worker in [*plan.late, *(plan.killed if plan.back else ())]:
        running[worker] = start(worker)
    ends = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in running.values()]
    sys.exit(any(ends))


if __name__ == "__main__":
    # PyTorch, and what is imported at the first proposal and the first step, for all workers.
    assert fitness
    for module in ("taylorglo.search.optimizers", "torch._dynamo"):
        importlib.import_module(module)
    _main(*sys.argv[1:])
