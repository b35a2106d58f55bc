"""Kubeflow's scheduler for the test server, and what Kubernetes has of schedules and runs.

It behaves as that of Kubeflow Pipelines 2.17: a recurring run that is enabled starts a run at once
if it has missed a time, and its running workflow is deleted with it, unless the workflow is
orphaned. A run whose workflow is gone stays RUNNING for ever.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zlib import crc32

from cronsim import CronSim

Thing = dict[str, Any]
_PATH = re.compile(
    r"/apis/(?P<group>[\w.]+/\w+)/namespaces/(?P<namespace>[\w-]+)/(?P<plural>\w+)(/(?P<name>[\w-]+))?"
)
_METADATA_ONLY = "PartialObjectMetadataList"
_NEVER = "1970-01-01T00:00:00Z"


@dataclass
class Scheduler:
    """The scheduler and the objects of Kubernetes.

    Attributes:
        zone: in which cron expressions are read.
        forbidden: plurals of the resources that nobody may read.
        workflows: the ids of the runs whose workflow exists.
        notes: the scheduler's status by the recurring run's id, once it has looked at it.
        now: the time.
    """

    zone: tzinfo = UTC
    forbidden: tuple[str, ...] = ()
    workflows: set[str] = field(default_factory=set)
    notes: dict[str, Thing] = field(default_factory=dict)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def fire(self, server: Any, schedule: Thing, state: str = "RUNNING", minutes: int = 0) -> Thing:
        """Start a run of a recurring run, as if its time had come some minutes ago.

        Args:
            server: the test server.
            schedule: the recurring run.
            state: of the run; one that has ended took a minute.
            minutes: since the firing.
        """
        identity = schedule["recurring_run_id"]
        time = self.now().replace(microsecond=0) - timedelta(minutes=minutes)
        number = 1 + sum(run.get("recurring_run_id") == identity for run in server.runs.values())
        name = f"{object_name(schedule)}-{number}"
        has_ended = state in ("SUCCEEDED", "FAILED")
        run = {
            **{key: schedule[key] for key in ("experiment_id", "pipeline_version_reference")},
            "run_id": f"{name}-id",
            "recurring_run_id": identity,
            "display_name": f"{name}-{crc32(name.encode())}",
            "state": state,
            "created_at": time.isoformat(),
            "scheduled_at": time.isoformat(),
            "finished_at": (time + timedelta(minutes=1)).isoformat() if has_ended else _NEVER,
        }
        server.runs[run["run_id"]] = run
        self.workflows.add(run["run_id"])
        self.notes.setdefault(identity, {})["lastTriggeredTime"] = _stamp(time)
        return run

    def look(self, server: Any) -> None:
        """Note the next time of each recurring run, as the scheduler does every few seconds."""
        for identity, schedule in server.recurring_runs.items():
            note = self.notes.setdefault(identity, {})
            note["nextTriggeredTime"] = _stamp(self._next(schedule))

    def enable(self, server: Any, schedule: Thing) -> None:
        """Start a run if a time was missed."""
        if self._next(schedule) <= self.now():
            self.fire(server, schedule)

    def delete(self, server: Any, identity: str, policy: str) -> None:
        """Delete the workflows of a recurring run's runs, unless the policy is to orphan them."""
        if policy != "ORPHAN":
            self.workflows -= {
                run["run_id"]
                for run in server.runs.values()
                if run.get("recurring_run_id") == identity
            }

    def knows(self, path: str, accept: str) -> bool:
        """Return whether it answers a request to the Kubernetes API."""
        return "/scheduledworkflows" in path or _METADATA_ONLY in accept

    def objects(self, server: Any, path: str, query: dict[str, str], accept: str) -> Thing | int:
        """Return the answer of the Kubernetes API, or the status of a refusal."""
        match = _PATH.fullmatch(path)
        if not match:
            return 404
        if match["plural"] in self.forbidden:
            return 403
        found: list[Thing] = []
        if match["namespace"] == "kubeflow" and match["plural"] == "scheduledworkflows":
            found = [self._object(schedule) for schedule in server.recurring_runs.values()]
        elif match["namespace"] == "kubeflow" and match["plural"] == "workflows":
            found = [
                {"metadata": {"name": f"w-{run_id}", "labels": {"pipeline/runid": run_id}}}
                for run_id in self.workflows
            ]
        if match["name"]:
            return next((o for o in found if o["metadata"]["name"] == match["name"]), 404)
        assert _METADATA_ONLY in accept, "a list with everything in it is megabytes"
        key, _, value = query.get("labelSelector", "").partition("=")
        kept = [o for o in found if not key or o["metadata"]["labels"].get(key) == value]
        return {
            "kind": _METADATA_ONLY,
            "items": [{"metadata": thing["metadata"]} for thing in kept],
        }

    def _object(self, schedule: Thing) -> Thing:
        metadata = {
            "uid": schedule["recurring_run_id"],
            "name": object_name(schedule),
            "creationTimestamp": _stamp(datetime.fromisoformat(schedule["created_at"])),
            "labels": {},
        }
        note = self.notes.get(schedule["recurring_run_id"])
        return {"metadata": metadata, "spec": {}, "status": {"trigger": note} if note else {}}

    def _next(self, schedule: Thing) -> datetime:
        """Return the first time after the last firing, or after the creation."""
        note = self.notes.get(schedule["recurring_run_id"], {})
        last = datetime.fromisoformat(note.get("lastTriggeredTime") or schedule["created_at"])
        trigger = schedule["trigger"]
        if "cron_schedule" in trigger:
            local = last.astimezone(self.zone)
            return next(CronSim(trigger["cron_schedule"]["cron"], local)).astimezone(UTC)
        seconds = int(trigger["periodic_schedule"]["interval_second"])
        return last.replace(microsecond=0) + timedelta(seconds=seconds)


def object_name(schedule: Thing) -> str:
    """Return the name of a recurring run's object: part of its own, and five characters."""
    part = re.sub("[^a-z0-9-]", "", schedule["display_name"].lower())[:25]
    return f"{part}{schedule['recurring_run_id'][:5]}"


def _stamp(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
