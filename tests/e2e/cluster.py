"""The cluster of KUBECONFIG, through kubectl."""

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import kubectl
import yaml

Object = dict[str, Any]


class Cluster:
    """A few verbs of kubectl; each waits a bounded time and fails with kubectl's message."""

    def kubectl(self, *args: str, text: str = "", seconds: float = 120) -> str:
        """Return the output of kubectl."""
        process = self.attempt(*args, text=text, seconds=seconds)
        if process.returncode:
            raise AssertionError(f"kubectl {' '.join(args[:6])}: {process.stderr.strip()}")
        return process.stdout

    def attempt(
        self, *args: str, text: str = "", seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Call kubectl, which may fail."""
        return subprocess.run(
            [program(), *args],
            input=text,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def get(self, *args: str) -> Object:
        """Return an object, or a list of objects."""
        content: Object = json.loads(self.kubectl("get", *args, "-o", "json"))
        return content

    def exists(self, *args: str) -> bool:
        """Return whether there is an object of this kind and name."""
        return self.attempt("get", *args).returncode == 0

    def apply(self, objects: Sequence[Object]) -> None:
        """Apply objects."""
        self.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(objects))

    def rolled_out(self, namespace: str, name: str, seconds: int = 240) -> None:
        """Wait for a Deployment or StatefulSet, as ``kind/name``."""
        try:
            words = ("-n", namespace, "rollout", "status", name, f"--timeout={seconds}s")
            self.kubectl(*words, seconds=seconds + 10)
        except AssertionError as error:
            state = self.attempt("-n", namespace, "get", "pods,events").stdout
            logs = self.attempt("-n", namespace, "logs", name, "--tail=40").stdout
            raise AssertionError(f"{error}\n{state}\n{logs}") from None

    def finished(self, namespace: str, job: str, seconds: float = 240) -> str:
        """Wait for a Job to complete, and return its log; fail with the log if the Job fails."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            status = self.get("-n", namespace, "job", job)["status"]
            conditions = status.get("conditions", [])
            states = {c["type"] for c in conditions if c["status"] == "True"}
            if "Complete" in states:
                return self.log(namespace, f"job/{job}")
            if "Failed" in states or self._cannot_start(namespace, job):
                break
            time.sleep(0.5)
        pods = self.attempt("-n", namespace, "describe", "pods", "-l", f"job-name={job}").stdout
        log = self.log(namespace, f"job/{job}")
        raise AssertionError(f"job {job}: {status}\n{log[-4000:]}\n{pods[-2500:]}")

    def _cannot_start(self, namespace: str, job: str) -> bool:
        pods = self.get("-n", namespace, "pods", "-l", f"job-name={job}")["items"]
        containers = [
            status
            for pod in pods
            for kind in ("initContainerStatuses", "containerStatuses")
            for status in pod["status"].get(kind, [])
        ]
        reasons = {status["state"].get("waiting", {}).get("reason") for status in containers}
        return bool(
            reasons & {"ImagePullBackOff", "ErrImageNeverPull", "CreateContainerConfigError"}
        )

    def log(self, namespace: str, name: str) -> str:
        """Return the output of all containers of a pod."""
        return self.attempt("-n", namespace, "logs", name, "--all-containers", "--tail=-1").stdout

    def pod(self, namespace: str, name: str) -> str:
        """Return the name of the running pod with this ``app.kubernetes.io/name``."""
        pods = self.get("-n", namespace, "pods", "-l", f"app.kubernetes.io/name={name}")["items"]
        (running,) = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return str(running["metadata"]["name"])

    @contextlib.contextmanager
    def forwarded(self, namespace: str, service: str, port: int) -> Iterator[str]:
        """Forward a port of a service to this machine; yield its address as host:port."""
        command = [program(), "-n", namespace, "port-forward", f"svc/{service}", f":{port}"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            address = re.search(r"127\.0\.0\.1:\d+", line)
            assert address, line + process.stdout.read()
            yield address[0]
        finally:
            process.terminate()
            process.wait(timeout=10)
            process.stdout.close()


def program() -> str:
    """Return the path of kubectl."""
    path = kubectl.find()
    assert path
    return path


def reason_for_none() -> str | None:
    """Return why there is no cluster to test on, or None if there is one."""
    if not os.environ.get("KUBECONFIG"):
        return "needs a Kubernetes cluster: KUBECONFIG is not set"
    if kubectl.find() is None:
        return "needs kubectl 1.27 or newer"
    try:
        answer = Cluster().attempt("get", "--raw", "/readyz", seconds=20)
    except subprocess.TimeoutExpired:
        return "needs a Kubernetes cluster: that of KUBECONFIG does not answer"
    if answer.returncode:
        return f"needs a Kubernetes cluster: {answer.stderr.strip()}"
    return None
