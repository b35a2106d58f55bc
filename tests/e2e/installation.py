"""A Kubeflow that somebody has installed: sweeps on it by the command line, and their removal."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from sweeps import CONFIG, SMALL

from taylorglo.errors import TaylorgloError
from taylorglo.tasks import console
from taylorglo_pipelines.kubeflow.client import Access, Connection
from taylorglo_pipelines.kubeflow.objects import api_client

NAMESPACE = os.environ.get("TAYLORGLO_E2E_NAMESPACE", "")
IMAGE = os.environ.get("TAYLORGLO_E2E_IMAGE", "")
ACCOUNT = os.environ.get("TAYLORGLO_E2E_ACCOUNT", "taylorglo-submitter")
# Each name of this session begins so, and so does each thing that it leaves in Kubeflow.
PREFIX = f"e2e-{secrets.token_hex(3)}"

Event = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a command came to.

    Attributes:
        status: its exit status.
        events: what it printed with ``--json``.
        errors: its standard error.
        seconds: how long it took.
    """

    status: int
    events: list[Event]
    errors: str
    seconds: float

    @property
    def run(self) -> str:
        """Id of the run."""
        return next((str(event["run"]) for event in self.events if event.get("run")), "")

    @property
    def reason(self) -> str:
        """The last line about the run, or the last line of the errors."""
        told = [event["message"] for event in self.events if event["event"] in ("outcome", "error")]
        lines = self.errors.strip().splitlines()
        return str(told[-1] if told else lines[-1] if lines else "nothing was printed")

    def states(self) -> dict[str, str]:
        """Return the last state of each task by its display name."""
        return {e["task"]: e["state"] for e in self.events if e["event"] == "task"}


@dataclass
class Installation:
    """Kubeflow, and what was seen on it, as (case, seconds, outcome, reason)."""

    connection: Connection
    seen: list[tuple[str, float, str, str]] = field(default_factory=list)

    @classmethod
    def find(cls) -> "Installation":
        """Connect to the Kubeflow that the environment leads to.

        Raises:
            TaylorgloError: there is none.
        """
        return cls(Connection.open(Access(namespace=NAMESPACE), delays=(1.0, 2.0)))

    def sweep(self, case: str, *settings: str) -> list[str]:
        """Return the words of a command line for the small sweep of a case."""
        given = [*SMALL, f"name={PREFIX}-{case}", *settings]
        if IMAGE:
            given.append(f"pipeline.image={IMAGE}")
        options = ["--namespace", NAMESPACE] if NAMESPACE else []
        return [str(CONFIG), *options, *(w for setting in given for w in ("--set", setting))]

    def command(self, *words: str, seconds: float) -> Outcome:
        """Run ``taylorglo`` to its end; it is killed when the time is up."""
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "taylorglo_pipelines.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            errors += f"\nkilled after {seconds} s"
        lines = [line for line in output.splitlines() if line.startswith("{")]
        events = [json.loads(line) for line in lines]
        return Outcome(process.returncode, events, errors, time.monotonic() - started)

    def submitted(self, case: str, *settings: str, seconds: float = 1800) -> Outcome:
        """Submit the small sweep of a case and wait for its end; note what was seen."""
        words = ("submit", *self.sweep(case, *settings), "--wait", "--json")
        return self.noted(case, self.command(*words, seconds=seconds))

    def noted(self, case: str, outcome: Outcome) -> Outcome:
        """Note what was seen of a case."""
        self.seen.append((case, outcome.seconds, f"status {outcome.status}", outcome.reason))
        return outcome

    def runs(self) -> Iterator[Any]:
        """Yield the runs of this session, the newest first."""
        where = {"namespace": self.connection.tenant} if self.connection.tenant else {}
        runs = self.connection.pages(
            self.connection.runs.run_service_list_runs,
            "runs",
            sort_by="created_at desc",
            **where,
        )
        for number, run in enumerate(runs):
            if number >= 1000:
                return
            if (run.display_name or "").startswith(PREFIX):
                yield run

    def run(self, run_id: str) -> Any:
        """Return a run as Kubeflow has it."""
        return self.connection.call(self.connection.runs.run_service_get_run, run_id)

    def printed(self, run_id: str) -> str:
        """Return what the tasks of a run printed for a person, as far as the pods can be read."""
        api = api_client()
        if api is None:
            return ""
        core, lines = client.CoreV1Api(api), []
        with suppress(ApiException):
            pods = core.list_namespaced_pod(
                self.connection.namespace, label_selector=f"pipeline/runid={run_id}"
            )
            for pod in sorted(pods.items, key=lambda pod: pod.metadata.creation_timestamp):
                with suppress(ApiException):
                    log = core.read_namespaced_pod_log(
                        pod.metadata.name, self.connection.namespace, container="main"
                    )
                    parsed = (
                        console.parse(line[max(0, line.find(console.PREFIX)) :])
                        for line in str(log).splitlines()
                    )
                    lines += [line.text for line in parsed if line and not line.is_error]
        return "\n".join(lines)

    def table(self) -> list[str]:
        """Return the lines of a table of all that was seen."""
        head = f"{'case':<24}{'seconds':>8}  {'outcome':<10}reason"
        return [
            head,
            "-" * len(head),
            *(f"{c:<24}{s:>8.0f}  {outcome:<10}{why[:200]}" for c, s, outcome, why in self.seen),
        ]

    def remove_everything(self) -> None:
        """Remove from Kubeflow what this session created there; what is gone already is fine."""
        api, call = self.connection, self.connection.call
        where = {"namespace": api.tenant} if api.tenant else {}
        list_schedules = api.recurring_runs.recurring_run_service_list_recurring_runs
        for schedule in list(api.pages(list_schedules, "recurring_runs", **where)):
            if (schedule.display_name or "").startswith(PREFIX):
                delete = api.recurring_runs.recurring_run_service_delete_recurring_run
                self._quietly(call, delete, schedule.recurring_run_id)
        for run in list(self.runs()):
            if run.state in ("PENDING", "RUNNING", "PAUSED"):
                self._quietly(call, api.runs.run_service_terminate_run, run.run_id)
        wait_for(lambda: not any(run.state == "RUNNING" for run in self.runs()), 180)
        for run in list(self.runs()):
            self._quietly(call, api.runs.run_service_archive_run, run.run_id)
            self._quietly(call, api.runs.run_service_delete_run, run.run_id)
        list_pipelines = api.pipelines.pipeline_service_list_pipelines
        for pipeline in list(api.pages(list_pipelines, "pipelines", **where)):
            if (pipeline.display_name or "").startswith(f"taylorglo-{PREFIX}"):
                self._remove_pipeline(pipeline.pipeline_id)
        list_experiments = api.experiments.experiment_service_list_experiments
        for experiment in list(api.pages(list_experiments, "experiments", **where)):
            if (experiment.display_name or "").startswith(PREFIX):
                delete = api.experiments.experiment_service_delete_experiment
                self._quietly(call, delete, experiment.experiment_id)

    def _remove_pipeline(self, pipeline_id: str) -> None:
        api, call = self.connection.pipelines, self.connection.call
        versions = self.connection.pages(
            api.pipeline_service_list_pipeline_versions,
            "pipeline_versions",
            pipeline_id=pipeline_id,
        )
        for version in list(versions):
            delete = api.pipeline_service_delete_pipeline_version
            self._quietly(call, delete, pipeline_id, version.pipeline_version_id)
        self._quietly(call, api.pipeline_service_delete_pipeline, pipeline_id)

    @staticmethod
    def _quietly(call: Callable[..., Any], *arguments: Any) -> None:
        with suppress(TaylorgloError):
            call(*arguments)


def wait_for(condition: Callable[[], Any], seconds: float, pause: float = 3) -> Any:
    """Return what the condition returns as soon as it is true, or its last answer."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < deadline:
        time.sleep(pause)
    return answer


@contextmanager
def job_in_cluster(namespace: str, name: str, words: Sequence[str]) -> Iterator[Any]:
    """Run ``taylorglo`` in a pod of the cluster; yield the function that returns its Job's status.

    Raises:
        ApiException: the Job may not be created.
    """
    api = api_client()
    batch = client.BatchV1Api(api)
    container = {
        "name": "taylorglo",
        "image": IMAGE,
        "command": ["taylorglo", *words],
        "volumeMounts": [{"name": "configs", "mountPath": "/configs"}],
        "securityContext": {"allowPrivilegeEscalation": False, "runAsNonRoot": True},
    }
    config_map = {"metadata": {"name": name}, "data": {"digits.yaml": Path(CONFIG).read_text()}}
    spec = {
        "restartPolicy": "Never",
        "serviceAccountName": ACCOUNT,
        "containers": [container],
        "volumes": [{"name": "configs", "configMap": {"name": name}}],
    }
    job = {
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": spec}},
    }
    core = client.CoreV1Api(api)
    core.create_namespaced_config_map(namespace, config_map)
    try:
        batch.create_namespaced_job(namespace, job)
        yield lambda: batch.read_namespaced_job_status(name, namespace).status
    finally:
        for delete in (batch.delete_namespaced_job, core.delete_namespaced_config_map):
            with suppress(ApiException):
                delete(name, namespace, propagation_policy="Background")
