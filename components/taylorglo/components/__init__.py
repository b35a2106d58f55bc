"""The pipeline's components, one file each: a signature whose body is one call of its task.

All components share one image, which has this package and kfp; nothing is installed at run time.
kfp takes the source of each function alone, so its imports are inside, and its annotations are
those that kfp understands (no ``X | None``).
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from kfp import dsl

IMAGE = f"taylorglo:{version('taylorglo')}"


def component(function: Callable[..., Any]) -> Any:
    """Return a kfp component from a function, in the project's image."""
    return dsl.component(function, base_image=IMAGE, install_kfp_package=False)
