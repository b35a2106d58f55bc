"""The progress of a run: each change of a task's state once, from all that tells of it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from taylorglo.report.text import duration
from taylorglo_pipelines.kubeflow.names import Names
from taylorglo_pipelines.kubeflow.nodes import Attempt, Path, Task, order

ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
_WAITING = ("PENDING",)


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Attributes:
        time: when.
        event: ``task`` for a new state of a task, ``notice`` for something else to know,
            ``submitted`` and ``outcome`` for the run, ``error`` for an error of this program.
        task: display name of the task, or None if the event is not about one.
        state: new state of the task, or the run's last state.
        attempt: which attempt at the task this is, from 1.
        seconds: how long the attempt or the run took, if it has ended.
        message: in words, or empty.
        run: id of the run, or None if there is none.
    """

    time: datetime
    event: str
    task: str | None = None
    state: str | None = None
    attempt: int | None = None
    seconds: float | None = None
    message: str = ""
    run: str | None = None


def as_text(event: Event) -> str:
    """Return the line of an event for a person; times are UTC."""
    clock = f"{event.time.astimezone(UTC):%H:%M:%S}"
    if event.event != "task":
        return f"{clock}  {event.message}"
    details = [
        f"attempt {event.attempt}" if (event.attempt or 1) > 1 else "",
        "" if event.seconds is None else _duration(event.seconds),
        event.message,
    ]
    more = ", ".join(filter(None, details))
    line = f"{clock}  {(event.state or '').lower():<10} {event.task}"
    return f"{line} ({more})" if more else line


def as_json(event: Event) -> str:
    """Return the line of an event for a program: a JSON object."""
    time = event.time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return json.dumps({**asdict(event), "time": time})


class Progress:
    """The changes of the tasks' states, each of which is told once.

    Kubeflow and Kubernetes tell of the same tasks, at different times. A state that is behind one
    that was told is not told.

    Args:
        names: of the tasks.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._attempts: dict[Path, set[str]] = {}
        self._seen: set[str] = set()
        self._told: dict[Path, tuple[int, str]] = {}

    def news(self, tasks: Sequence[Task], attempts: Sequence[Attempt]) -> list[Event]:
        """Return what is new, in the order of time.

        Args:
            tasks: of Kubeflow's answer.
            attempts: pods of the run, or Argo's nodes that have one.
        """
        attempts = [attempt for attempt in attempts if not attempt.place.is_driver]
        for task in tasks:
            self._attempts.setdefault(task.path, set()).update(task.attempts)
        for attempt in attempts:
            self._attempts.setdefault(attempt.place.path, set()).add(attempt.name)
        self._seen |= {attempt.name for attempt in attempts}
        events = [*self._of_attempts(attempts), *self._of_tasks(tasks)]
        return sorted(events, key=lambda event: event.time)

    def has_succeeded(self, path: Path) -> bool:
        """Return whether a task ended well, in the end."""
        return self._told.get(path, (0, ""))[1] in ("SUCCEEDED", "SKIPPED")

    def _of_attempts(self, attempts: Iterable[Attempt]) -> Iterable[Event]:
        for attempt in sorted(attempts, key=lambda attempt: order(attempt.name)):
            path = attempt.place.path
            number = sorted(self._attempts[path], key=order).index(attempt.name) + 1
            if self._is_ahead(path, number, attempt.state):
                yield self._event(path, number, attempt)

    def _of_tasks(self, tasks: Iterable[Task]) -> Iterable[Event]:
        for task in tasks:
            known = sorted(self._attempts[task.path], key=order)
            number = max(task.tries, len(known))
            has_ended = task.state in ENDED
            if not has_ended and known and known[-1] in self._seen:
                # The pod itself tells more, and earlier.
                continue
            told = self._told.get(task.path)
            overruled = (
                has_ended and told is not None and told[1] in ENDED and told[1] != task.state
            )
            if overruled or self._is_ahead(task.path, number, task.state):
                message = "from the cache" if task.is_cached else ""
                yield self._event(task.path, number, task, message)

    def _is_ahead(self, path: Path, number: int, state: str) -> bool:
        told = self._told.get(path)
        return told is None or (number, _rank(state)) > (told[0], _rank(told[1]))

    def _event(self, path: Path, number: int, told: Task | Attempt, message: str = "") -> Event:
        """Note that a state is told, and return the event."""
        self._told[path] = (number, told.state)
        has_ended = told.state in ENDED
        took = (told.end - told.start) if has_ended and told.end and told.start else None
        return Event(
            time=(told.end if has_ended else told.start) or datetime.now(UTC),
            event="task",
            task=self._names.of(path),
            state=told.state,
            attempt=number,
            seconds=None if took is None else took.total_seconds(),
            message=message,
        )


def _rank(state: str) -> int:
    if state in ENDED:
        return 2
    return 0 if state == "PENDING" else 1


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else duration(seconds)
