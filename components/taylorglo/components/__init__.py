"""The pipeline's components, one file each: a signature whose body is one call of its task.

All components share one image, which has this package and kfp; nothing is installed at run time.
The compiled pipeline names a component's function, and the image has its source
(``python3 -m taylorglo.components`` runs it). Annotations are those that kfp understands (no
``X | None``). The bodies import their tasks, so that compiling a pipeline imports none.
"""

import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

IMAGE = f"taylorglo:{version('taylorglo')}"
# kfp's own program that runs a Python component. kfp's local runner refuses a command that does not
# name it.
EXECUTOR = "kfp.dsl.executor_main"


def component(function: Callable[..., Any]) -> Any:
    """Return a kfp component from a function, in the project's image.

    In a task, it is the function itself.
    """
    if os.environ.get("_KFP_RUNTIME") == "true":
        return function
    from kfp import dsl

    made = dsl.component(function, base_image=IMAGE, install_kfp_package=False)
    # kfp would put the source of the function into the specification. Argo keeps the specification
    # in the state of each task several times.
    container = made.component_spec.implementation.container
    container.command = ["python3", "-m", __name__, EXECUTOR]
    return made
