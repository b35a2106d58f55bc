"""Whether a run can still go on by itself: what stops it, and what only makes it wait."""

from collections.abc import Sequence
from typing import NamedTuple

from taylorglo_pipelines.kubeflow import reasons
from taylorglo_pipelines.kubeflow.cluster import Cluster
from taylorglo_pipelines.kubeflow.names import Names
from taylorglo_pipelines.kubeflow.nodes import Attempt, Place, Task, order, place_of
from taylorglo_pipelines.kubeflow.objects import GoneError
from taylorglo_pipelines.kubeflow.pods import Object, node_of, phase_of
from taylorglo_pipelines.kubeflow.reasons import Hindrance
from taylorglo_pipelines.kubeflow.workflow import Workflow

_GOES_ON = (
    "no longer waiting, but the run goes on: it starts by itself once that is mended, or end it in "
    "the user interface"
)
_NEVER_ENDS = "although Kubeflow shows it as unfinished, and always will; no longer waiting"


class Finding(NamedTuple):
    """What is new about a run that does not go on.

    Attributes:
        notices: lines that were not told yet.
        stop: why nothing goes on by itself, or empty.
    """

    notices: Sequence[str] = ()
    stop: str = ""


class Stalls:
    """What stops a run, or keeps it waiting.

    Attributes:
        workflow: Argo's state of the run, or None. It may be large, so it is read only while
            Kubeflow and the pods show nothing new, or no pod of a task that has begun.
    """

    def __init__(self, cluster: Cluster, names: Names, *, start: float, quiet: float) -> None:
        """Prepare to look.

        Args:
            cluster: the run's objects in Kubernetes.
            names: of the tasks.
            start: seconds that a pod may wait for its image, its Secret or a node.
            quiet: seconds without any news after which that is told.
        """
        self.workflow: Workflow | None = None
        self._cluster = cluster
        self._names = names
        self._start = start
        self._quiet = quiet
        self._tasks: Sequence[Task] | None = None
        self._changed = 0.0  # when Kubeflow last showed something new
        self._moved = 0.0  # when it did, or a pod was there
        self._read = 0.0  # when the Workflow object was last asked for
        self._missing = 0  # how often in a row it was not there
        self._pending: dict[Place, float] = {}  # since when a pod has not started
        self._hindered: dict[Place, float] = {}  # since when there is a reason for that
        self._told: set[Place | str] = set()

    def look(self, tasks: Sequence[Task], workflow: str, now: float) -> Finding:
        """Look for what stops the run, after its pods were looked at.

        Args:
            tasks: of Kubeflow's answer.
            workflow: name of the Workflow object, or empty if it is not known.
            now: seconds on a clock that only goes forward.
        """
        if tasks != self._tasks:
            self._tasks, self._changed = tasks, now
        if self._cluster.live or self._changed == now:
            self._moved = now
        self._read_workflow(workflow, now)
        hindered = {**self._hindered_nodes(), **self._hindered_pods(now)}
        self._hindered = {place: self._hindered.get(place, now) for place in hindered}
        long = [p for p in sorted(hindered) if now - self._hindered[p] >= self._start]
        stopped = [place for place in long if not hindered[place].may_pass]
        if not stopped and long and not self._going(set(hindered)):
            stopped = long
        if stopped:
            line = f"{self._names.subject(stopped[0])} does not start: {hindered[stopped[0]].text}"
            return Finding(stop=f"{line}; {_GOES_ON}")
        if gone := self._gone(now):
            return Finding(stop=f"{gone}, {_NEVER_ENDS}")
        waiting = [place for place in long if self._is_new(place)]
        notices = [
            f"{self._names.subject(place)} does not start yet: {hindered[place].text}"
            for place in waiting
        ]
        return Finding([*notices, *self._silence(now)])

    def _live_pods(self) -> list[tuple[Place, Object]]:
        pods = (self._cluster.pods[name] for name in sorted(self._cluster.live))
        return [(place, pod) for pod in pods if (place := place_of(node_of(pod)))]

    def _hindered_pods(self, now: float) -> dict[Place, Hindrance]:
        """Return which pods do not start, and why."""
        pending = {place: pod for place, pod in self._live_pods() if phase_of(pod) == "Pending"}
        self._pending = {place: self._pending.get(place, now) for place in pending}
        hindered = {}
        for place, pod in pending.items():
            found = reasons.hindrance(pod)
            if not found and now - self._pending[place] >= self._start:
                # Only the events tell, and by then the pod has waited long enough.
                found = reasons.volume_hindrance(self._cluster.events(pod))
                self._hindered.setdefault(place, self._pending[place])
            if found:
                hindered[place] = found
        return hindered

    def _hindered_nodes(self) -> dict[Place, Hindrance]:
        """Return for which of Argo's nodes there is no pod, and why."""
        if self.workflow is None or self.workflow.is_backing_off:
            return {}
        attempts = sorted(self.workflow.attempts(), key=lambda attempt: order(attempt.name))
        latest: dict[Place, Attempt] = {attempt.place: attempt for attempt in attempts}
        seen = self._seen()
        hindered = {}
        for place, attempt in latest.items():
            found = reasons.node_hindrance(attempt.state, attempt.message)
            if found and attempt.name not in seen:
                hindered[place] = found
        return hindered

    def _going(self, hindered: set[Place]) -> bool:
        """Return whether any pod runs or starts, or the cluster is about to get a node for one."""
        pods = self._live_pods()
        going = {place for place, _ in pods}
        if not self._cluster.reads_pods and self.workflow:
            states = ("PENDING", "RUNNING")
            going |= {a.place for a in self.workflow.attempts() if a.state in states}
        if going - hindered:
            return True
        return any(reasons.is_scaling(self._cluster.events(pod)) for _, pod in pods)

    def _read_workflow(self, name: str, now: float) -> None:
        """Read Argo's state of the run if nothing else tells what it does."""
        pause = self._start / 4
        seen = self._seen()
        without_pod = self._cluster.reads_pods and any(
            task.state != "SUCCEEDED" and task.attempts and task.attempts[-1] not in seen
            for task in self._tasks or ()
        )
        if not without_pod and now - self._moved < pause:
            self.workflow, self._missing = None, 0
        elif now - self._read >= pause or self._missing == 1:
            self._read = now
            try:
                self.workflow, self._missing = self._cluster.workflow(name), 0
            except GoneError:
                self.workflow, self._missing = None, self._missing + 1

    def _seen(self) -> set[str]:
        return {node_of(pod) for pod in self._cluster.pods.values()}

    def _gone(self, now: float) -> str:
        """Return that the run's Workflow object was deleted, if it is so, or an empty string."""
        # Twice, because the run may have ended since Kubeflow was asked.
        is_missing = self._missing > 1 and self._read == now and not self._cluster.live
        if is_missing and self._cluster.has_run():
            return "the run's Workflow object was deleted, as with a schedule that is deleted"
        # A run that has not begun may be waiting for its turn.
        has_begun = bool(self._tasks or self._cluster.pods)
        is_quiet = has_begun and now - self._moved >= self._quiet
        is_unknown = is_quiet and self._cluster.reads_pods and not self.workflow
        if is_unknown and self._cluster.has_run() and not self._cluster.has_any_pod():
            return "no pod of the run is left: its Workflow object was probably deleted"
        return ""

    def _silence(self, now: float) -> list[str]:
        """Return a line to say that nothing can be seen of the run, once."""
        sees = (self._cluster.reads_pods and self._cluster.pods) or self.workflow
        if sees or now - self._changed < self._quiet or not self._is_new("silence"):
            return []
        minutes = max(1, round(self._quiet / 60))
        if not self._tasks:
            return [f"no task has begun for {minutes} min: Argo may be away, or the run in a queue"]
        return [
            f"Kubeflow has shown nothing new for {minutes} min: a task takes long, or the run has "
            "become too large for Kubeflow to show its tasks; its pods, which would tell, cannot "
            "be seen from here, so the next line may be about the end of the run"
        ]

    def _is_new(self, subject: Place | str) -> bool:
        is_new = subject not in self._told
        self._told.add(subject)
        return is_new
