"""Runs a component in its task: ``python3 -m taylorglo.components kfp.dsl.executor_main ARGS``.

This is kfp's own program for Python components, after it was told in which file the component is,
and after the services' variables got the names that their clients read.
"""

import atexit
import os
import runpy
import sys
from pathlib import Path
from threading import Event

from taylorglo.components import EXECUTOR
from taylorglo.errors import InputError
from taylorglo.tasks.console import say_warnings, task
from taylorglo.training import server
from taylorglo.variables import adopt

# The components that train or attack in processes of their own.
WITH_WORKERS = {
    "attack",
    "evaluate_baselines",
    "evaluate_candidates",
    "search_candidates",
    "train_champion",
}


@task
def main() -> None:
    """Run the component that ``--function_to_execute`` names."""
    program, *arguments = sys.argv[1:] or [""]
    names = dict(zip(arguments[::2], arguments[1::2], strict=False))
    name = names.get("--function_to_execute", "")
    path = Path(__file__).parent / f"{name}.py"
    is_component = name.isidentifier() and not name.startswith("_") and path.is_file()
    if program != EXECUTOR or not is_component:
        raise InputError(
            f"{name or 'no component'}: this image has no such component; it should have the "
            "version of taylorglo that compiled the pipeline"
        )
    # kfp then imports the part of itself that tasks need.
    os.environ["_KFP_RUNTIME"] = "true"
    adopt()
    say_warnings()
    if name in WITH_WORKERS:
        server.start()
    # The user's own networks, after everything else: a random.py there is not Python's.
    sys.path.append("")
    sys.argv = [program, "--component_module_path", str(path), *arguments]
    runpy.run_module(program, run_name="__main__")


def run() -> None:
    """Run the component, and note that it succeeded."""
    main()
    _succeeded.set()


def _end() -> None:
    """End a process whose task succeeded; to free its memory piece by piece takes seconds."""
    if _succeeded.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


_succeeded = Event()
# Python calls last what was registered first: the task's libraries end in order before.
atexit.register(_end)

if __name__ == "__main__":
    run()
