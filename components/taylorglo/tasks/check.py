"""The task that checks every setting before anything is computed."""

from collections.abc import Mapping
from importlib.metadata import version as release
from typing import Any

from taylorglo.results import write_json
from taylorglo.services.storage import version
from taylorglo.settings import SweepSettings, validated
from taylorglo.tasks.console import task


@task
def run(sections: Mapping[str, Any], settings_path: str) -> str:
    """Check the settings and write them; return the version of the data as they are now.

    Args:
        sections: the settings as the parameters of the pipeline, a group for each section.
        settings_path: where to write the checked settings.

    Raises:
        InputError: naming every setting that is wrong.
    """
    settings = validated(SweepSettings, sections, "parameters")
    write_json(settings_path, settings)
    if settings.data.name == "digits":
        return f"scikit-learn {release('scikit-learn')}"
    return version(settings.data.root)
