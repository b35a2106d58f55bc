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
    """A few verbs; each of them waits a bounded time, and fails with what kubectl said."""

    def kubectl(self, *args: str, text: str = "", seconds: float = 120) -> str:
        """What kubectl prints."""
        process = self.attempt(*args, text=text, seconds=seconds)
        if process.returncode:
            raise AssertionError(f"kubectl {' '.join(args[:6])}: {process.stderr.strip()}")
        return process.stdout

    def attempt(
        self, *args: str, text: str = "", seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """The same, where it may fail."""
        return subprocess.run(
            [program(), *args],
            input=text,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def get(self, *args: str) -> Object:
        """An object, or a list of them."""
        found: Object = json.loads(self.kubectl("get", *args, "-o", "json"))
        return found

    def exists(self, *args: str) -> bool:
        """Whether there is such an object."""
        return self.attempt("get", *args).returncode == 0

    def apply(self, objects: Sequence[Object]) -> None:
        """``kubectl apply``."""
        self.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(objects))

    def rolled_out(self, namespace: str, name: str, seconds: int = 240) -> None:
        """Wait for a Deployment or StatefulSet, as ``kind/name``."""
        try:
            self.kubectl(
                "-n",
                namespace,
                "rollout",
                "status",
                name,
                f"--timeout={seconds}s",
                seconds=seconds + 10,
            )
        except AssertionError as error:
            told = self.attempt("-n", namespace, "get", "pods,events").stdout
            logs = self.attempt("-n", namespace, "logs", name, "--tail=40").stdout
            raise AssertionError(f"{error}\n{told}\n{logs}") from None

    def finished(self, namespace: str, job: str, seconds: float = 240) -> str:
        """Wait for a Job to complete; returns its log, or fails with it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            status = self.get("-n", namespace, "job", job)["status"]
            conditions = {
                each["type"] for each in status.get("conditions", []) if each["status"] == "True"
            }
            if "Complete" in conditions:
                return self.log(namespace, f"job/{job}")
            if "Failed" in conditions or self._cannot_start(namespace, job):
                break
            time.sleep(0.5)
        told = self.attempt("-n", namespace, "describe", "pods", "-l", f"job-name={job}").stdout
        raise AssertionError(
            f"job {job}: {status}\n{self.log(namespace, f'job/{job}')[-4000:]}\n{told[-2500:]}"
        )

    def _cannot_start(self, namespace: str, job: str) -> bool:
        pods = self.get("-n", namespace, "pods", "-l", f"job-name={job}")["items"]
        containers = [
            status
            for pod in pods
            for kind in ("initContainerStatuses", "containerStatuses")
            for status in pod["status"].get(kind, [])
        ]
        reasons = {each["state"].get("waiting", {}).get("reason") for each in containers}
        return bool(
            reasons & {"ImagePullBackOff", "ErrImageNeverPull", "CreateContainerConfigError"}
        )

    def log(self, namespace: str, name: str) -> str:
        """What the containers of a pod printed."""
        return self.attempt("-n", namespace, "logs", name, "--all-containers", "--tail=-1").stdout

    def pod(self, namespace: str, name: str) -> str:
        """The running pod with this ``app.kubernetes.io/name``."""
        pods = self.get("-n", namespace, "pods", "-l", f"app.kubernetes.io/name={name}")["items"]
        (running,) = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return str(running["metadata"]["name"])

    @contextlib.contextmanager
    def forwarded(self, namespace: str, service: str, port: int) -> Iterator[str]:
        """A port of a service on this machine; yields its address as host:port."""
        command = [program(), "-n", namespace, "port-forward", f"svc/{service}", f":{port}"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            assert found, line + process.stdout.read()
            yield f"127.0.0.1:{found[1]}"
        finally:
            process.terminate()
            process.wait(timeout=10)
            process.stdout.close()


def program() -> str:
    """The path of kubectl."""
    found = kubectl.find()
    assert found
    return found


def reason_for_none() -> str | None:
    """Why there is no cluster to test on, or None."""
    if not os.environ.get("KUBECONFIG"):
        return "needs a Kubernetes cluster: KUBECONFIG is not set"
    if kubectl.find() is None:
        return "needs kubectl 1.27 or newer"
    try:
        answer = Cluster().attempt("get", "--raw", "/readyz", seconds=20)
    except subprocess.TimeoutExpired:
        return "needs a Kubernetes cluster: that of KUBECONFIG does not answer"
    return (
        None if answer.returncode == 0 else f"needs a Kubernetes cluster: {answer.stderr.strip()}"
    )
