"""Programs in processes of their own, with the names of the module searches."""

import os
import subprocess
import sys
from pathlib import Path


def run_program(code: str) -> str:
    """Run a program with Python's usual warnings; return its output. It must not complain."""
    folder = str(Path(__file__).parent)
    paths = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path\nfrom searches import *\n{code}"],
        env={**inherited, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
