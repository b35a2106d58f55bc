"""The pipeline's components, one file each: typed and thin, every body calls what the packages below offer.

They share one image, which holds this package and kfp; nothing is installed at run time. kfp takes each function's
source alone, so all imports are inside, and annotations are what kfp understands (no ``X | None``).
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl

IMAGE = "taylorglo:0.1.0"


def component(function: Callable[..., Any]) -> Any:
    """A kfp component from a function, in the project's image."""
    return dsl.component(function, base_image=IMAGE, install_kfp_package=False)
