"""The task that checks every setting and every service before anything is computed."""

from collections.abc import Mapping
from importlib.metadata import version as release
from typing import Any

from taylorglo.addresses import is_sqlite, sqlite_file
from taylorglo.errors import InputError
from taylorglo.results import write_json
from taylorglo.search import database
from taylorglo.services.mlflow import Connection, check_uri
from taylorglo.services.storage import open_store, version
from taylorglo.settings import SweepSettings, validated
from taylorglo.tasks.console import task
from taylorglo.variables import STORE_URI, STUDY_URL, TRACKING_URI, required


@task
def run(sections: Mapping[str, Any], settings_path: str) -> str:
    """Check settings and services; write the settings, and return the version of the data.

    Args:
        sections: the settings as the parameters of the pipeline, a group for each section.
        settings_path: where to write the checked settings.

    Raises:
        InputError: naming every setting that is wrong, or a service that cannot be used.
        ServiceError: a service does not answer.
    """
    settings = validated(SweepSettings, sections, "parameters")
    settings.check_rates()
    check_services()
    if settings.training.function:
        # A training of a user mostly imports PyTorch, which takes seconds.
        from taylorglo.training import function

        function.check(settings.training.function)
    write_json(settings_path, settings)
    if settings.data.name == "own":
        return "own"
    if settings.data.name == "digits":
        return f"scikit-learn {release('scikit-learn')}"
    return version(settings.data.root)


def check_services() -> None:
    """Refuse services that the later tasks could not use.

    All addresses are read before any service is asked, because that takes longer.

    Raises:
        InputError: an address is malformed, or what is there is not the service, or refuses.
        ServiceError: a service does not answer.
    """
    study, store, tracking = required(STUDY_URL), required(STORE_URI), required(TRACKING_URI)
    database.shown(study)
    opened = open_store(store)
    file = check_uri(tracking)
    if file is not None and is_sqlite(study) and sqlite_file(study) == file:
        raise InputError(
            f"{file}: is named for the study and for MLflow; each should have a file of its own"
        )
    database.check(study)
    opened.check()
    # MLflow takes seconds to import, and a file of it was checked without.
    if file is None:
        connection = Connection(tracking)
        connection.call(connection.client.search_experiments, max_results=1)
