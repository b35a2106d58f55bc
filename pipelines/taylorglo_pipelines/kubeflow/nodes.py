"""Argo's nodes of a run: what they are called, and what Kubeflow tells of a task by them.

A task is a driver and a DAG with one pod, the executor. Argo wraps each node that it may try again
in another one, so that a pod is named by a path like ``WORKFLOW(0).root(0).TASK(0).executor(0)``,
in which the numbers count the attempts. Nested pipelines and loops make the path longer.

Kubeflow's answer has only the last part of a path, and the ids of a node's children. An id is a
hash of the whole path, so the paths can be found again.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

Path = tuple[str, ...]  # keys of the enclosing tasks and of the task, with the iterations of loops

_EPOCH_YEAR = 1970  # Kubeflow's times that are not set are in this year or in the year 1
_AS_LATE = timedelta(seconds=1)
_NUMBERED = re.compile(r"\((\d+)\)$")
# The workflow, the root, and what Kubeflow makes of loops and conditions.
_INTERNAL = re.compile(r"root|driver|executor|(taylorglo|iteration|for-loop|condition)(-.*)?")


class Place(NamedTuple):
    """Whose pod a node is: that of a task, or the driver before it."""

    path: Path
    is_driver: bool


@dataclass(frozen=True)
class Attempt:
    """The pod of a task or a driver, or Argo's try to make one.

    Attributes:
        name: of the node, with the whole path.
        place: whose pod it is.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or SKIPPED.
        start: when it began to be in this state or, if it has ended, to run.
        end: when it ended.
        message: Argo's, or empty.
    """

    name: str
    place: Place
    state: str
    start: datetime | None
    end: datetime | None
    message: str = ""


@dataclass(frozen=True)
class Task:
    """What Kubeflow tells of a task.

    Attributes:
        path: of the task.
        state: Kubeflow's.
        start: when it started.
        end: when it ended.
        attempts: nodes of its attempts, in the order of time, as far as they are known.
        tries: number of attempts so far, at least that of the known ones.
        is_cached: whether its outputs came from Kubeflow's cache.
    """

    path: Path
    state: str
    start: datetime | None
    end: datetime | None
    attempts: tuple[str, ...] = ()
    tries: int = 1
    is_cached: bool = False


def place_of(name: str) -> Place | None:
    """Return whose pod a node is, or None if it is one of Argo's that have no pod.

    Args:
        name: the whole path.
    """
    keys = [_key(part) for part in name.split(".")]
    keys = keys[keys.index("root") + 1 if "root" in keys else 1 :]
    if not keys:
        return None
    *around, last = keys
    if last == "executor":
        return Place(tuple(around), is_driver=False)
    if last.endswith("-driver"):
        task = last.removesuffix("-driver")
        return Place((*around, *([] if task == "root" else [task])), is_driver=True)
    return None


def order(name: str) -> tuple[int, ...]:
    """Return a key that sorts the attempts of one task by time."""
    return tuple(int(number) for number in re.findall(r"\((\d+)\)(?=\.|$)", name))


def moment(time: datetime | None) -> datetime | None:
    """Return a time of Kubeflow's answer, or None if it is not set."""
    return time if time and time.year > _EPOCH_YEAR else None


def tasks_of(run: Any) -> list[Task]:
    """Return the tasks of a run that Kubeflow shows, each once.

    Args:
        run: the run as Kubeflow describes it.
    """
    details = (run.run_details and run.run_details.task_details) or []
    records = [record for record in details if record.display_name]
    tasks: dict[Path, Task] = {}
    for task in [*_Tree(records).tasks()] or _by_name(records, workflow_of(run)):
        earlier = tasks.get(task.path)
        # What is around a task may be tried again, too.
        tasks[task.path] = _joined(earlier, task) if earlier else task
    counts = _counts(records)
    keys = [path[-1] for path in tasks]
    return [
        # The number of a key's nodes is that of one task's attempts if only one has the key.
        replace(task, tries=max(task.tries, counts.get(key, 0) if keys.count(key) == 1 else 1))
        for key, task in zip(keys, tasks.values(), strict=True)
        if task.state
    ]


def workflow_of(run: Any) -> str:
    """Return the name of a run's Workflow object, or an empty string if nothing tells it."""
    details = (run.run_details and run.run_details.task_details) or []
    children = (child for record in details for child in record.child_tasks or ())
    return next((child.pod_name.rpartition("-")[0] for child in children if child.pod_name), "")


def _key(part: str) -> str:
    return _NUMBERED.sub("", part)


def _joined(earlier: Task, later: Task) -> Task:
    attempts = earlier.attempts + later.attempts
    told = later if later.state else earlier
    return replace(told, attempts=attempts, tries=max(1, len(attempts)))


def _counts(records: Sequence[Any]) -> dict[str, int]:
    """Return how many numbered nodes there are of each key."""
    counts: dict[str, int] = {}
    for name in {record.display_name for record in records}:
        if _NUMBERED.search(name):
            counts[_key(name)] = counts.get(_key(name), 0) + 1
    return counts


def _by_name(records: Sequence[Any], workflow: str) -> Iterator[Task]:
    """Yield the tasks of an answer that does not tell the children of its nodes.

    A task is every node that is not known as one of Argo's.
    """
    for record in records:
        name = record.display_name
        numbered = _NUMBERED.search(name) or name.endswith("-driver")
        internal = name == workflow or _INTERNAL.fullmatch(name)
        if record.state and not numbered and not internal:
            yield Task((name,), record.state, moment(record.start_time), moment(record.end_time))


class _Tree:
    """The nodes of an answer, with their whole paths.

    Args:
        records: the nodes.
    """

    def __init__(self, records: Sequence[Any]) -> None:
        self._parents: dict[str, list[Any]] = {}
        for record in records:
            for child in record.child_tasks or ():
                self._parents.setdefault(child.pod_name or "", []).append(record)
        self._workflow = next(iter(self._parents), "").rpartition("-")[0]
        keys = sorted({_key(record.display_name) for record in records})
        self._keys = [key for key in keys if key != "executor" and not key.endswith("-driver")]
        # State and start of the nodes without children that have not ended, by their names.
        self._leaves: dict[str, set[tuple[str, datetime]]] = {}
        for record in records:
            start = moment(record.start_time)
            if start and not record.child_tasks and not moment(record.end_time):
                self._leaves.setdefault(record.display_name, set()).add((record.state, start))

    def tasks(self) -> Iterator[Task]:
        """Yield the tasks that have begun; one whose surroundings were tried again, repeatedly."""
        for workflow in self._attempts(self._workflow) if self._workflow else ():
            for root in self._attempts(f"{workflow}.root"):
                yield from self._tasks_in(root, ())

    def _tasks_in(self, dag: str, path: Path) -> Iterator[Task]:
        for key in self._keys:
            name = f"{dag}.{key}"
            if not self._exists(name):
                continue
            bodies = self._attempts(name)
            executors = [f"{body}.executor" for body in bodies]
            if any(map(self._exists, executors)):
                yield from self._task(name, (*path, key), bodies)
            else:
                for body in bodies:
                    yield from self._tasks_in(body, (*path, key))

    def _task(self, name: str, path: Path, bodies: Sequence[str]) -> Iterator[Task]:
        """Yield the task of a node, if Kubeflow tells its state.

        Args:
            name: of the node.
            path: of the task.
            bodies: the DAGs of its attempts.
        """
        record = self._parent_of(bodies[0] if bodies != [name] else f"{name}.executor")
        if record is None:
            return
        wraps = bodies != [name]
        attempts = [
            attempt
            for body in bodies
            for attempt in self._attempts(f"{body}.executor")
            # With retries in use, the executor itself is only the node around its attempts.
            if not wraps or attempt != f"{body}.executor"
        ]
        state = record.state
        if state == "RUNNING" and attempts and self._is_pending(attempts[-1]):
            state = "PENDING"
        yield Task(
            path,
            state,
            moment(record.start_time),
            moment(record.end_time),
            tuple(attempts),
            max(1, len(attempts)),
            is_cached=wraps and not attempts and state == "SUCCEEDED",
        )

    def _is_pending(self, attempt: str) -> bool:
        """Return whether the pod of an attempt has not started.

        A pod has no children, so its record is found by its name and the time of its start; those
        of tasks that started at once are taken together.
        """
        parent = self._parent_of(attempt)
        start = moment(parent.start_time) if parent else None
        name = attempt.rpartition(".")[2]
        states = {
            state
            for state, leaf_start in self._leaves.get(name, ())
            if start
            and leaf_start >= start
            and (leaf_start - start <= _AS_LATE or not name.endswith("(0)"))
        }
        return states == {"PENDING"}

    def _attempts(self, name: str) -> list[str]:
        """Return the nodes that a node wraps, or the node itself if it wraps none."""
        attempts: list[str] = []
        while self._exists(attempt := f"{name}({len(attempts)})"):
            attempts.append(attempt)
        return attempts or [name]

    def _exists(self, name: str) -> bool:
        return self._id(name) in self._parents

    def _parent_of(self, name: str) -> Any:
        """Return the record of the node that wraps or encloses a node, or None."""
        around = _key(name) if _NUMBERED.search(name) else name.rpartition(".")[0]
        last = around.rpartition(".")[2]
        parents = self._parents.get(self._id(name), [])
        return next((record for record in parents if record.display_name == last), None)

    def _id(self, name: str) -> str:
        """Return the id that Argo gives to the node of a name."""
        return f"{self._workflow}-{_hash(name)}"


@functools.lru_cache(maxsize=100_000)  # each look at a run asks for the same names
def _hash(name: str) -> int:
    """Return FNV-1a with 32 bits."""
    value = 0x811C9DC5
    for byte in name.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value
