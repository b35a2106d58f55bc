"""What Kubernetes knows of a run and Kubeflow's API does not tell: its pods and its Workflow."""

from collections.abc import Sequence

from taylorglo_pipelines.kubeflow.nodes import Attempt
from taylorglo_pipelines.kubeflow.objects import GoneError, Reader
from taylorglo_pipelines.kubeflow.pods import Object, attempt_of, name_of, phase_of, trimmed
from taylorglo_pipelines.kubeflow.workflow import Workflow

_PAGE = 200  # pods
_LOG_LINES = 100
_LIVE = ("Pending", "Running")


class Cluster:
    """The objects of a run in Kubernetes, as far as this process may read them.

    Without credentials of the Kubernetes API, or without the rights, nothing is seen. A kubeconfig
    may also be that of another cluster than the run's: then nothing of the run is in it.

    Attributes:
        pods: the pods that were seen, by name, each as it was seen last.
        live: names of the pods that have not ended.
        reads_pods: whether the pods could be listed the last time.
    """

    def __init__(self, namespace: str, run_id: str, kubeflow: str) -> None:
        """Prepare to ask; nothing is asked yet.

        Args:
            namespace: of the run's pods.
            run_id: id of the run.
            kubeflow: namespace of Kubeflow Pipelines.
        """
        self.pods: dict[str, Object] = {}
        self.live: set[str] = set()
        self.reads_pods = False
        self._run_id = run_id
        self._kubeflow = kubeflow
        self._reader = Reader()
        self._core = f"/api/v1/namespaces/{namespace}"
        self._workflows = f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows"
        self._has_run = False

    def look(self, ended: Sequence[str] = ()) -> None:
        """See how the pods are now.

        Args:
            ended: phases whose pods are listed besides those that have not ended, Failed and
                Succeeded: there may be many.
        """
        found: dict[str, Object] = {}
        for phase in (*_LIVE, *ended):
            pods = self._list(phase)
            if pods is None:
                self.reads_pods = False
                return
            found.update((name_of(pod), trimmed(pod)) for pod in pods)
        self.reads_pods = True
        for name in self.live - set(found):
            try:
                pod = self._reader.get(f"{self._core}/pods/{name}")
            except GoneError:
                continue
            # What cannot be read this time may be read the next time.
            found[name] = self.pods[name] if pod is None else trimmed(pod)
        self.pods.update(found)
        self.live = {name for name, pod in found.items() if phase_of(pod) in _LIVE}

    def attempts(self) -> list[Attempt]:
        """Return the attempts at tasks, and the drivers, whose pods were seen."""
        return [attempt for pod in self.pods.values() if (attempt := attempt_of(pod))]

    def has_any_pod(self) -> bool:
        """Return whether there is a pod of the run, ended or not; True if this is not known."""
        query = {"labelSelector": f"pipeline/runid={self._run_id}", "limit": 1}
        try:
            answer = self._reader.get(f"{self._core}/pods", query)
        except GoneError:
            return True
        return answer is None or bool(answer["items"])

    def has_run(self) -> bool:
        """Return whether the run is known to be of this cluster.

        It is if pods of it were seen here, or if the Kubeflow of this cluster knows it.
        """
        if not self.pods and not self._has_run:
            proxy = f"/api/v1/namespaces/{self._kubeflow}/services/ml-pipeline:http/proxy"
            try:
                answer = self._reader.get(f"{proxy}/apis/v2beta1/runs/{self._run_id}")
            except GoneError:
                answer = None
            self._has_run = isinstance(answer, dict) and answer.get("run_id") == self._run_id
        return bool(self.pods) or self._has_run

    def log(self, pod: Object) -> str:
        """Return the last lines that the main container of a pod printed, or an empty string."""
        query = {"container": "main", "tailLines": _LOG_LINES}
        try:
            log = self._reader.text(f"{self._core}/pods/{name_of(pod)}/log", query)
        except GoneError:
            return ""
        return log or ""

    def events(self, pod: Object) -> list[Object]:
        """Return what happened to a pod, as far as it can be read."""
        query = {"fieldSelector": f"involvedObject.name={name_of(pod)}"}
        try:
            answer = self._reader.get(f"{self._core}/events", query)
        except GoneError:
            return []
        return list(answer["items"]) if answer else []

    def workflow(self, name: str) -> Workflow | None:
        """Return the Workflow object of the run, or None if it cannot be read.

        Args:
            name: of the object, or empty if it is not known.

        Raises:
            GoneError: there is none.
        """
        if name:
            found = self._reader.get(f"{self._workflows}/{name}")
            return None if found is None else Workflow(found)
        query = {"labelSelector": f"pipeline/runid={self._run_id}"}
        try:
            answer = self._reader.get(self._workflows, query)
        except GoneError:
            # There is no list at all: this cluster has no Argo.
            return None
        if answer is None:
            return None
        if not answer["items"]:
            raise GoneError
        return Workflow(answer["items"][0])

    def _list(self, phase: str) -> list[Object] | None:
        """Return the run's pods in a phase, or None if they cannot be read."""
        query = {
            "labelSelector": f"pipeline/runid={self._run_id}",
            "fieldSelector": f"status.phase={phase}",
            "limit": _PAGE,
        }
        pods: list[Object] = []
        while True:
            try:
                page = self._reader.get(f"{self._core}/pods", query)
            except GoneError:
                return None
            if page is None:
                return None
            pods += page["items"]
            query["continue"] = (page.get("metadata") or {}).get("continue") or ""
            if not query["continue"]:
                return pods
