"""Why a pod does not start, and why it failed, in words."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from taylorglo.errors import shortened
from taylorglo.tasks import console
from taylorglo_pipelines.kubeflow.pods import Object, containers_of, state_of

# The reasons of a container that waits for something that does not come by itself.
_UNSTARTABLE = (
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "RegistryUnavailable",
    "SignatureValidationFailed",
)
_MOUNT_FAILURES = ("FailedAttachVolume", "FailedMount")
# What an autoscaler notes about a pod that no node takes, and what ends the hope.
_SCALING = ("TriggeredScaleUp", "Nominated")
_NOT_SCALING = ("NotTriggerScaleUp", "FailedScaleUp")
_REFUSAL = re.compile(r"is invalid|is forbidden|denied the request|failed calling webhook")
# A fatal line of KFP's launcher and driver: F1126 15:27:04.123456  12 main.go:57] MESSAGE.
_FATAL = re.compile(r"\bF\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w./-]+:\d+\] (.+)")
_EXIT = re.compile(
    r"(main: )?(Error|failed to execute component:)?[ (]*exit (status|code):? \d+\)?"
)
_EXCEPTION = re.compile(r"([A-Za-z_][\w.]*)(: .+)?")
_TOO_LARGE = "longer than maximum allowed size"


class Hindrance(NamedTuple):
    """Why a pod does not start; ``may_pass``: it starts once other pods have ended."""

    text: str
    may_pass: bool = False


class Reason(NamedTuple):
    """Why a pod failed; ``is_telling``: it is more than an exit status."""

    text: str
    is_telling: bool = True


def hindrance(pod: Object) -> Hindrance | None:
    """Return why a pod that has not started may never do so, or None."""
    for container in containers_of(pod):
        state = state_of(container, "waiting")
        if state.get("reason") in _UNSTARTABLE:
            return Hindrance(_joined(state["reason"], state.get("message")))
    for condition in (pod.get("status") or {}).get("conditions") or ():
        is_unscheduled = condition.get("type") == "PodScheduled" and condition["status"] == "False"
        # A pod with a gate waits for its turn in a queue.
        if is_unscheduled and condition.get("reason") != "SchedulingGated":
            text = _joined(condition.get("reason"), condition.get("message"))
            return Hindrance(text, may_pass=True)
    return None


def volume_hindrance(events: Sequence[Object]) -> Hindrance | None:
    """Return why a volume of a pod cannot be mounted, or None if its last event is another one."""
    last = max(events, key=_event_time, default=None)
    if last is None or last.get("reason") not in _MOUNT_FAILURES:
        return None
    return Hindrance(_joined(last["reason"], last.get("message")))


def is_scaling(events: Sequence[Object]) -> bool:
    """Return whether the cluster is about to get a node for a pod that no node takes."""
    notes = [event for event in events if event.get("reason") in (*_SCALING, *_NOT_SCALING)]
    return bool(notes) and max(notes, key=_event_time)["reason"] in _SCALING


def node_hindrance(state: str, message: str) -> Hindrance | None:
    """Return why the pod of Argo's node does not start, as far as Argo's message tells, or None.

    Args:
        state: of the node.
        message: Argo's.
    """
    first = message.partition(":")[0]
    if state == "FAILED" and _REFUSAL.search(message):
        return Hindrance(f"Kubernetes refuses its pod: {shortened(message)}")
    if state == "PENDING" and first in _UNSTARTABLE:
        return Hindrance(shortened(message))
    if state == "PENDING" and (first == "Unschedulable" or _REFUSAL.search(message)):
        return Hindrance(shortened(message), may_pass=True)
    return None


def failure(pod: Object, log: str) -> Reason:
    """Return why a pod failed.

    Args:
        pod: the pod.
        log: last lines of its main container.
    """
    status = pod.get("status") or {}
    if status.get("reason"):
        # Kubernetes ended the pod: a deadline, an eviction, the end of the node.
        return Reason(_joined(status["reason"], status.get("message")))
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            # It had to make room for another pod, or for the end of its node.
            return Reason(_joined(condition.get("reason"), condition.get("message")))
    ends = [(c.get("name"), state_of(c, "terminated")) for c in containers_of(pod)]
    failed = [(name, end) for name, end in ends if end.get("exitCode")]
    for _, end in failed:
        if end.get("reason") == "OOMKilled":
            return Reason(_exit(end))
    if words := last_words(log):
        return Reason(words)
    # The main container is the one that a person knows of.
    for name, end in sorted(failed, key=lambda one: one[0] != "main"):
        prefix = "" if name == "main" else f"container {name}: "
        if end.get("message"):
            return Reason(shortened(f"{prefix}{end['message']}"))
        return Reason(f"{prefix}{_exit(end)}", is_telling=False)
    return Reason("the pod failed", is_telling=False)


def last_words(log: str) -> str:
    """Return why a task failed as its log tells it, or an empty string.

    That is the error line of the task; or what KFP's launcher could not do; or the last line of a
    traceback.
    """
    lines = log.splitlines()
    for printed in reversed(lines):
        # Kubernetes may put a time stamp before the line that the task printed.
        line = console.parse(printed[max(0, printed.find(console.PREFIX)) :])
        if line and line.is_error:
            return line.text
    for printed in reversed(lines):
        match = _FATAL.search(printed)
        if match and not _EXIT.fullmatch(match[1].strip()):
            return shortened(match[1])
    return _exception(lines)


def of_workflow(message: str) -> str:
    """Return why a run ended, from Argo's message about the whole of it."""
    text = shortened(message)
    if _TOO_LARGE in message:
        return (
            f"the run has become too large for Argo ({text}); "
            "set pipeline.layout=workers, or fewer generations and shards"
        )
    return text


def is_too_large(message: str) -> bool:
    """Return whether Argo gave up because the state of the run was over its limit."""
    return _TOO_LARGE in message


def is_telling(message: str) -> bool:
    """Return whether a message is more than an exit status."""
    return not _EXIT.fullmatch(message.strip())


def _joined(reason: str | None, message: str | None) -> str:
    return shortened(": ".join(filter(None, [reason, message])))


def _exit(end: Object) -> str:
    return f"{end.get('reason') or 'Error'} (exit status {end.get('exitCode')})"


def _exception(lines: Sequence[str]) -> str:
    """Return the last line of the last traceback in a log, or an empty string."""
    starts = [i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    if not starts:
        return ""
    # A time stamp or the like is before each line of the traceback alike.
    begin = lines[starts[-1]].index("Traceback")
    for line in lines[starts[-1] + 1 :]:
        text = line[begin:]
        if text and not text.startswith(" ") and _EXCEPTION.fullmatch(text.strip()):
            return shortened(text)
    return ""


def _event_time(event: Object) -> str:
    """Return when an event happened last, as a text that sorts by time."""
    series = event.get("series") or {}
    times = [
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event.get("firstTimestamp"),
        (event.get("metadata") or {}).get("creationTimestamp"),
    ]
    return next(filter(None, times), "")
