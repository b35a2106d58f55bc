"""What came of a schedule, and what is to come: its runs, and the times at which it fires next."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from taylorglo_pipelines.kubeflow.client import Connection
from taylorglo_pipelines.kubeflow.cron import Cron, following_times, next_times
from taylorglo_pipelines.kubeflow.objects import Objects
from taylorglo_pipelines.kubeflow.recurring import MARK, is_enabled, is_schedule, trigger_of

# The description of a run that `run-now` started begins with it and the schedule's description.
RUN_NOW = "run-now of "
_NEWEST = 100  # runs of an experiment that are looked through
_PAGE = 20  # each of them has all its tasks in it
_ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
_LAG = timedelta(seconds=45)  # of the scheduler, which looks every half a minute
_DOUBTFUL = timedelta(days=1)  # of a run whose workflow cannot be looked for
_SCHEDULED_WORKFLOWS = "kubeflow.org/v1beta1/scheduledworkflows"
_WORKFLOWS = "argoproj.io/v1alpha1/workflows"
IF_UTC = "if the time zone of Kubeflow's scheduler, CRON_SCHEDULE_TIMEZONE, is UTC"
_NOT_UTC = "Kubeflow's scheduler reads the expression in another time zone than UTC"


class Upcoming(NamedTuple):
    """The next firings of a schedule.

    Attributes:
        times: in order; none if the schedule is paused, or if a firing is due.
        due: since when a firing waits, or None.
        remark: on the times, or empty.
    """

    times: Sequence[datetime]
    due: datetime | None = None
    remark: str = ""


class Firings:
    """The runs and the next firings of all schedules, each thing read when it is first needed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._runs: dict[str, _Runs] = {}
        self._kubernetes: dict[str, _Kubernetes] = {}

    def runs(self, schedule: Any) -> list[Any]:
        """Return the runs of a schedule, newest first, among the newest of its experiment.

        Those of the recurring runs that this schedule has replaced are among them.
        """
        experiment = schedule.experiment_id
        if experiment not in self._runs:
            self._runs[experiment] = _Runs(self._connection, experiment)
        return self._runs[experiment].of(schedule.display_name)

    def upcoming(self, schedule: Any, number: int) -> Upcoming:
        """Return up to ``number`` next firings.

        Kubeflow's scheduler notes the next one in an object of Kubernetes. If that cannot be read,
        the firings are computed, for the time zone UTC.
        """
        if not is_enabled(schedule):
            return Upcoming(())
        trigger = trigger_of(schedule)
        last = self._last_firing(schedule)
        times = self._noted_times(schedule, number, last)
        if not times:
            times = next_times(trigger, last, number)
            return Upcoming(times, remark=IF_UTC if isinstance(trigger, Cron) else "")
        now = datetime.now(UTC)
        if times[0] <= now:
            return Upcoming((), due=times[0])
        is_utc = not isinstance(trigger, Cron) or times[0] == next_times(trigger, last, 1, now)[0]
        return Upcoming(times, remark="" if is_utc else _NOT_UTC)

    def _noted_times(self, schedule: Any, number: int, last: datetime) -> list[datetime]:
        """Return the next firings by the scheduler's own note; none if it cannot be read.

        Args:
            schedule: the schedule.
            number: how many firings to return at most.
            last: when the schedule fired last, which the scheduler notes somewhat later.
        """
        noted = self._kubernetes_of(schedule).scheduled_workflow(schedule)
        status = (noted.get("status") or {}).get("trigger") or {}
        if not status.get("nextTriggeredTime"):
            return []
        first = datetime.fromisoformat(status["nextTriggeredTime"])
        trigger = trigger_of(schedule)
        if isinstance(trigger, Cron):
            base = status.get("lastTriggeredTime") or noted["metadata"]["creationTimestamp"]
            after = datetime.fromisoformat(base)
            times = following_times(trigger, after, first, number + (first <= last))
        else:
            times = [first + timedelta(seconds=trigger) * count for count in range(number + 1)]
        return [time for time in times if time > last][:number]

    def still_running(self, schedule: Any, remark: str = "") -> list[str]:
        """Return a line for each run that goes on, with a remark on it."""
        return [
            self._never_ends(run)
            if self._kubernetes_of(schedule).has_workflow(schedule, run) is False
            else f"run {run.display_name} is still running{remark}: {self._page(run)}"
            for run in filter(is_running, self.runs(schedule))
        ]

    def never_ending(self, schedule: Any) -> list[str]:
        """Return a line for each run that cannot end, or of which nobody here can say it."""
        lines = []
        for run in filter(is_running, self.runs(schedule)):
            has_workflow = self._kubernetes_of(schedule).has_workflow(schedule, run)
            if has_workflow is False:
                lines.append(self._never_ends(run))
            elif has_workflow is None and _age(run) > _DOUBTFUL:
                lines.append(
                    f"run {run.display_name} has been running for {_duration(_age(run))}; if its "
                    "workflow was deleted, it never ends: kubectl get workflows -n "
                    f"{self._namespace(schedule)} -l pipeline/runid={run.run_id} shows whether "
                    "there is one"
                )
        return lines

    def is_busy(self, schedule: Any) -> bool:
        """Return whether a run holds up the schedule's next firing.

        It does as long as its workflow runs, unless ``run-now`` or a recurring run that was
        replaced has started it.
        """
        own = [run for run in self.runs(schedule) if is_running(run) and _fired(schedule, run)]
        kubernetes = self._kubernetes_of(schedule)
        return any(kubernetes.has_workflow(schedule, run) is not False for run in own)

    def table(self, runs: Sequence[Any]) -> list[str]:
        """Return a line for each run: state, start, duration, name and page."""
        return [
            f"{(run.state or 'unknown').lower():9}  {_utc(run.created_at)}  "
            f"{_duration(_age(run)):>7}  {run.display_name}  {self._page(run)}"
            for run in runs
        ]

    def _never_ends(self, run: Any) -> str:
        return (
            f"run {run.display_name} never ends: its workflow was deleted, and Kubeflow goes on to "
            f"show it as running; delete the run: {self._page(run)}"
        )

    def _page(self, run: Any) -> str:
        # How to reach the user interface is said once, with the page of the schedule.
        return self._connection.link(f"runs/details/{run.run_id}").partition(" (")[0]

    def _last_firing(self, schedule: Any) -> datetime:
        """Return when the recurring run fired last, or was created: its intervals go on from it."""
        created: datetime = schedule.created_at
        own = [run.scheduled_at for run in self.runs(schedule) if _fired(schedule, run)]
        last: datetime = max([*filter(None, own), created])
        trigger = trigger_of(schedule)
        if isinstance(trigger, int):
            # Kubeflow may give the time at which the run was created instead, soon after.
            late = (last - created) % timedelta(seconds=trigger)
            return last - late if late <= _LAG else last
        return last

    def _namespace(self, schedule: Any) -> str:
        return str(schedule.namespace or self._connection.namespace)

    def _kubernetes_of(self, schedule: Any) -> "_Kubernetes":
        namespace = self._namespace(schedule)
        if namespace not in self._kubernetes:
            self._kubernetes[namespace] = _Kubernetes(namespace)
        return self._kubernetes[namespace]


class _Runs:
    """The newest runs of an experiment, by the schedule that has started them."""

    def __init__(self, connection: Connection, experiment_id: str) -> None:
        recurring_runs = connection.pages(
            connection.recurring_runs.recurring_run_service_list_recurring_runs,
            "recurring_runs",
            experiment_id=experiment_id,
        )
        self._schedules = {
            run.recurring_run_id: run.display_name if is_schedule(run) else ""
            for run in recurring_runs
        }
        self._runs = _newest(connection, experiment_id)

    def of(self, name: str) -> list[Any]:
        """Return the runs of the schedule of this name, newest first."""
        return [run for run in self._runs if self._is_of(run, name)]

    def _is_of(self, run: Any, name: str) -> bool:
        """Return whether a schedule has started a run.

        The recurring run of a run may be gone. Kubeflow has named the run after it: part of its
        name, five random characters, the number of the firing, and a checksum.
        """
        if run.recurring_run_id in self._schedules:
            return bool(self._schedules[run.recurring_run_id] == name)
        if (run.description or "").startswith(RUN_NOW + MARK):
            return bool(run.display_name.startswith(f"{name} "))
        part = re.sub("[^a-z0-9-]", "", name.lower())[:25] or "job-"
        return bool(re.fullmatch(rf"{part}[a-z0-9]{{5}}-\d+-\d+", run.display_name))


def _newest(connection: Connection, experiment_id: str) -> list[Any]:
    """Return the newest runs of an experiment, newest first."""
    runs: list[Any] = []
    token = ""
    while len(runs) < _NEWEST:
        page = connection.call(
            connection.runs.run_service_list_runs,
            experiment_id=experiment_id,
            page_token=token,
            page_size=_PAGE,
            sort_by="created_at desc",
        )
        runs += page.runs or ()
        token = page.next_page_token
        if not token:
            break
    return runs


class _Kubernetes:
    """What Kubernetes has in a namespace of Kubeflow's schedules and runs.

    The credentials that there are may be those of another cluster than Kubeflow's. So an answer
    about a schedule counts only if Kubernetes has the schedule's object, whose id is Kubeflow's.
    """

    def __init__(self, namespace: str) -> None:
        self._objects = Objects(namespace)
        listed = self._objects.metadata(_SCHEDULED_WORKFLOWS) or ()
        self._names = {metadata["uid"]: metadata["name"] for metadata in listed}
        self._found: dict[str, bool | None] = {}

    def scheduled_workflow(self, schedule: Any) -> dict[str, Any]:
        """Return the object of a schedule, or an empty one if it cannot be read."""
        name = self._names.get(schedule.recurring_run_id)
        return (name and self._objects.read(_SCHEDULED_WORKFLOWS, name)) or {}

    def has_workflow(self, schedule: Any, run: Any) -> bool | None:
        """Return whether the workflow of a schedule's run exists, or None if nobody can say it."""
        if schedule.recurring_run_id not in self._names:
            return None
        if run.run_id not in self._found:
            found = self._objects.metadata(_WORKFLOWS, f"pipeline/runid={run.run_id}")
            self._found[run.run_id] = None if found is None else bool(found)
        return self._found[run.run_id]


def is_running(run: Any) -> bool:
    """Return whether a run has not ended, as far as Kubeflow knows."""
    return run.state not in _ENDED


def _fired(schedule: Any, run: Any) -> bool:
    """Return whether a schedule's present recurring run has started a run."""
    return bool(run.recurring_run_id == schedule.recurring_run_id)


def _age(run: Any) -> timedelta:
    """Return how long a run took, or has taken so far."""
    end = datetime.now(UTC) if is_running(run) else run.finished_at or run.created_at
    age: timedelta = end - run.created_at
    return max(age, timedelta(0))


def _duration(span: timedelta) -> str:
    """Return a time span such as ``1d 2h``, ``3h 0m`` or ``45s``."""
    seconds = int(span.total_seconds())
    minutes, hours, days = (seconds // length for length in (60, 3600, 86400))
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m {seconds % 60}s" if minutes else f"{seconds}s"


def _utc(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
