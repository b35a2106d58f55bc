"""A Kubeflow Pipelines that somebody has installed, and one thing that is tried on it: a case."""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from calls import Commands, Ended, See, StoppedError, say
from kubernetes.client.exceptions import ApiException
from removal import remove_rest, remove_runs, runs_in
from sweeps import CONFIG, SMALL, Sweeps, merged

from taylorglo.components import IMAGE as DEFAULT_IMAGE
from taylorglo.errors import TaylorgloError, one_line
from taylorglo_pipelines.kubeflow.client import Access, Connection
from taylorglo_pipelines.kubeflow.objects import api_client

IMAGE = os.environ.get("TAYLORGLO_E2E_IMAGE") or DEFAULT_IMAGE
NAMESPACE = os.environ.get("TAYLORGLO_E2E_NAMESPACE") or "kubeflow"
ACCOUNT = os.environ.get("TAYLORGLO_E2E_ACCOUNT") or "taylorglo-submitter"
KUBEFLOW = "kubeflow"  # the namespace of Kubeflow Pipelines, if its users have others
POLL = 5.0  # seconds
LOOKS = 12  # of the removal, at most
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

Object = dict[str, Any]


class Kubernetes:
    """The Kubernetes API, with the credentials that the command line would use."""

    def __init__(self) -> None:
        self._api = api_client()

    def ask(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        kind: str = "object",
        accept: str = "application/json",
        **query: str,
    ) -> tuple[int, Any]:
        """Return the status of an answer and its content, or 0 and why there is none.

        The content of an answer that is not 2xx is its message.

        Args:
            method: of HTTP.
            path: of the API, such as ``/api/v1/namespaces/kubeflow/pods``.
            body: an object to create.
            kind: of the content: ``object``, or ``str`` for a log.
            accept: the representation that is asked for.
            query: of the address.
        """
        if self._api is None:
            return 0, "there is no good kubeconfig"
        try:
            content = self._api.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": accept, "Content-Type": "application/json"},
                body=body,
                response_type=kind,
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=(10, 30),
            )
        except ApiException as error:
            return error.status or 0, _message(error)
        except Exception as error:
            # It is away, or the command of the kubeconfig's login fails.
            return 0, one_line(error)
        return 200, content


def _message(error: ApiException) -> str:
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(error.body)["message"])
    return str(error.reason)


@dataclass(frozen=True)
class Row:
    """What was seen of a case; ``seconds`` that it took."""

    case: str
    seconds: float
    outcome: str
    reason: str


@dataclass
class Installation:
    """Kubeflow Pipelines, its cluster as far as it can be read, and what was seen there.

    Attributes:
        work: folder for the sweeps on this machine.
        commands: calls of the command line.
        prefix: each name that the tests give begins with it.
        seed: of the sweeps, so that no earlier run has trained the same.
        rows: what was seen.
    """

    work: Path
    commands: Commands = field(default_factory=Commands)
    prefix: str = field(default_factory=lambda: f"e2e-{secrets.token_hex(3)}")
    seed: int = field(default_factory=lambda: secrets.randbelow(2**30))
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Look at what there is.

        Raises:
            TaylorgloError: no Kubeflow Pipelines answers.
        """
        connection = self.connection()
        self.tenant = connection.tenant
        self.mlflow = os.environ.get("MLFLOW_TRACKING_URI", "")
        self.is_in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
        self.version = _version(connection)
        self.kubernetes = Kubernetes()
        self.is_cluster_of_kubeflow = self._is_cluster_of_kubeflow(connection)
        self.reads_pods = self._reads_pods()

    def connection(self) -> Connection:
        """Return a new connection; a thread has its own."""
        return Connection.open(Access(namespace=NAMESPACE))

    def _is_cluster_of_kubeflow(self, connection: Connection) -> bool | None:
        """Return whether Kubeflow is in the cluster of the kubeconfig, or None if none can say it.

        It is if this cluster's Kubeflow has an experiment of the same id.
        """
        if not os.environ.get("KF_PIPELINES_ENDPOINT"):
            return True
        where = {"namespace": self.tenant} if self.tenant else {}
        experiments = connection.pages(
            connection.experiments.experiment_service_list_experiments, "experiments", **where
        )
        experiment = next(experiments, None)
        if experiment is None:
            return None
        service = f"{KUBEFLOW if self.tenant else NAMESPACE}/services/ml-pipeline:http/proxy"
        path = f"/apis/v2beta1/experiments/{experiment.experiment_id}"
        status, content = self.kubernetes.ask("GET", f"/api/v1/namespaces/{service}{path}")
        if status == 404:
            return False
        return True if status == 200 and isinstance(content, dict) else None

    def _reads_pods(self) -> bool:
        """Return whether pods and their logs can be read, with which the waiting tells reasons."""
        if self.is_cluster_of_kubeflow is False:
            return False
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        nobody = {"labelSelector": "pipeline/runid=none", "fieldSelector": "status.phase=Failed"}
        listed, _ = self.kubernetes.ask("GET", pods, **nobody)
        # The right is asked for before the pod.
        read, _ = self.kubernetes.ask("GET", f"{pods}/no-such-pod/log", kind="str", accept="*/*")
        return (listed, read) == (200, 404)

    def missing(self) -> str:
        """Return what the namespace of the runs lacks, or an empty text if nothing can be said."""
        if self.is_cluster_of_kubeflow is False:
            return ""
        for kind, plural in (("ConfigMap", "configmaps"), ("Secret", "secrets")):
            # The values are nobody's business here.
            path = f"/api/v1/namespaces/{NAMESPACE}/{plural}/taylorglo"
            if self.kubernetes.ask("GET", path, accept=METADATA_ONLY)[0] == 404:
                return (
                    f"namespace {NAMESPACE} has no {kind} taylorglo; see docs/cluster.md, "
                    "From nothing to a run"
                )
        return ""

    def described(self) -> list[str]:
        """Return lines about the installation."""
        cluster = {True: "is that", False: "is not that", None: "may not be that"}
        return [
            f"Kubeflow Pipelines {self.version or 'of an unknown version'}, namespace {NAMESPACE}"
            f"{', several users' if self.tenant else ''}, image {IMAGE}",
            f"the cluster of the kubeconfig {cluster[self.is_cluster_of_kubeflow]} of Kubeflow; "
            f"pods and logs {'can' if self.reads_pods else 'cannot'} be read from here",
            f"all that is created is called {self.prefix}-...",
        ]

    def attempt(self, name: str, body: Callable[["Case"], str], seconds: float) -> None:
        """Run a case, and note what was seen; its error is raised."""
        start = time.monotonic()
        outcome, reason = "FAILED", ""
        say(f"{name}: begins")
        try:
            reason = body(Case(self, name, seconds))
            outcome = "passed"
        except pytest.skip.Exception as skipped:
            outcome, reason = "skipped", str(skipped)
            raise
        except StoppedError:
            outcome, reason = "stopped", "the tests were interrupted"
            raise
        except BaseException as error:
            reason = one_line(error)
            raise
        finally:
            self.rows.append(Row(name, time.monotonic() - start, outcome, reason))
            say(f"{name}: {outcome}: {reason}")

    def remove(self, names: Iterable[str], pause: Callable[[float], None] = time.sleep) -> str:
        """Remove from Kubeflow all that belongs to cases of these names.

        Returns:
            Why something is left, or an empty text.
        """
        sweeps = [f"{self.prefix}-{name}" for name in names]
        for sweep in sweeps:
            self.remove_job(sweep)
        try:
            connection = self.connection()
            quiet = looks = 0
            # Kubeflow hears of a scheduled run some seconds after its start.
            while quiet < 2 and looks < LOOKS:
                had_runs = [remove_runs(connection, sweep) for sweep in sweeps]
                quiet, looks = 0 if any(had_runs) else quiet + 1, looks + 1
                pause(10)
            left = [remove_rest(connection, sweep) for sweep in sweeps]
        except TaylorgloError as error:
            return one_line(error)
        return "; ".join(filter(None, left))

    def remove_job(self, name: str) -> None:
        """Remove a Job and its pods."""
        if self.is_cluster_of_kubeflow is not False:
            path = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{name}"
            self.kubernetes.ask("DELETE", path, propagationPolicy="Background")

    def table(self) -> list[str]:
        """Return the lines of a table of what was seen."""
        width = max([len(row.case) for row in self.rows], default=4)
        lines = [f"{'case':{width}}  seconds  outcome  reason"]
        lines.append("-" * len(lines[0]))
        return lines + [
            f"{row.case:{width}}  {row.seconds:7.0f}  {row.outcome:7}  {row.reason}".rstrip()
            for row in self.rows
        ]


class Case:
    """One case: a name for all that it creates, and the time that it may take."""

    def __init__(self, installation: Installation, name: str, seconds: float) -> None:
        self.installation = installation
        self.sweep = f"{installation.prefix}-{name}"
        self.access = ("--namespace", NAMESPACE)
        self.seconds = seconds
        self._name = name
        self._deadline = time.monotonic() + seconds

    def settings(self, *overrides: str) -> list[str]:
        """Return settings in place of those of the file."""
        own = (f"name={self.sweep}", f"seed={self.installation.seed}", f"pipeline.image={IMAGE}")
        # This machine and a node may have other devices, and other arithmetic.
        device = ("training.device=cpu", "training.precision=float32")
        return merged(*SMALL, *own, *device, *overrides)

    def words(self, *overrides: str, config: str = str(CONFIG)) -> list[str]:
        """Return the words of a command line for the small sweep of this case."""
        given = [word for setting in self.settings(*overrides) for word in ("--set", setting)]
        return [config, *self.access, *given]

    def run(self, *words: str, see: See = lambda line: None, without: Iterable[str] = ()) -> Ended:
        """Run a command to its end, in the time that is left."""
        left = max(1.0, self._deadline - time.monotonic())
        return self.installation.commands.run(*words, seconds=left, see=see, without=without)

    def followed(self, *words: str, see: See = lambda line: None) -> tuple[Ended, list[Object]]:
        """Run ``submit --wait`` or ``wait``; return the command, and its events."""
        events: list[Object] = []

        def read(line: str) -> None:
            events.append(json.loads(line))
            event = events[-1]
            told = f"{event['state'].lower()} {event['task']}" if event["task"] else ""
            self.say(" ".join(filter(None, (told, event["message"]))))
            see(event["event"])

        return self.run(*words, "--json", see=read), events

    def local(self, *overrides: str) -> tuple[str, Path]:
        """Run the sweep on this machine; return what the command printed, and its folder."""
        work = self.installation.work / self.sweep
        self.say("the same sweep on this machine")
        with (
            Sweeps(work, tuple(self.settings(*overrides))).started() as process,
            self.installation.commands.tracked(lambda: process),
        ):
            output, errors = process.communicate(timeout=max(1, self._deadline - time.monotonic()))
        self.pause(0)
        assert process.returncode == 0, f"the sweep on this machine: {errors}"
        return output, work

    def until(self, condition: Callable[[], Any], event: str) -> Any:
        """Wait until the condition returns something true, and return that."""
        while not (answer := condition()):
            assert time.monotonic() < self._deadline, f"not within {self.seconds:.0f} s: {event}"
            self.pause(POLL)
        return answer

    def pause(self, seconds: float) -> None:
        """Wait."""
        self.installation.commands.pause(seconds)

    def say(self, text: str) -> None:
        """Print a line of progress."""
        say(f"{self._name}: {text}")

    def runs(self) -> list[Any]:
        """Return the runs of the sweep, the oldest first."""
        return sorted(
            runs_in(self.installation.connection(), self.sweep), key=lambda r: r.created_at
        )

    def terminate(self, run_id: str) -> None:
        """Cancel a run."""
        connection = self.installation.connection()
        connection.call(connection.runs.run_service_terminate_run, run_id)


def _version(connection: Connection) -> str:
    """Return the version of Kubeflow Pipelines, or an empty text if its old API does not say."""
    with suppress(Exception):
        health = connection.runs.api_client.call_api(
            "/apis/v1beta1/healthz",
            "GET",
            response_type="object",
            auth_settings=["Bearer"],
            _return_http_data_only=True,
            _request_timeout=(10, 30),
        )
        return str(health["tag_name"])
    return ""
