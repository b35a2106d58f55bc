"""The tags of a pipeline run in MLflow: what it searches, whose it is, and where it runs."""

import getpass
import os

from taylorglo.services.mlflow import NOTE
from taylorglo.services.tracking import KFP_PAGE
from taylorglo.settings import SweepSettings
from taylorglo.variables import IMAGE, KFP_PAGES, KFP_RUN, LOCAL_RUN, REVISION


def origin_tags(settings: SweepSettings, study: str, data: str) -> dict[str, str]:
    """Return what is known of a run from the start, as tags; those that are unknown are left out.

    Args:
        settings: of the sweep.
        study: name of the study.
        data: name of the data set.
    """
    variable = os.environ.get
    is_local = bool(variable(LOCAL_RUN))
    source = f"taylorglo run {settings.name}" if is_local else f"taylorglo-{settings.name}"
    kfp_run, pages = variable(KFP_RUN, ""), variable(KFP_PAGES, "").rstrip("/")
    network = settings.training.function or settings.model.name
    tags = {
        NOTE: f"The search of {study} is running. The verdict will be here.",
        "mlflow.user": _user(),
        "mlflow.source.name": source,
        "mlflow.source.type": "LOCAL" if is_local else "JOB",
        "mlflow.source.git.commit": variable(REVISION, ""),
        "taylorglo.stage": "sweep",
        "taylorglo.sweep": settings.name,
        "taylorglo.data": data,
        "taylorglo.network": network,
        # On a machine, the tasks are usually processes and not containers of the image.
        "taylorglo.image": "" if is_local else variable(IMAGE, ""),
        "taylorglo.kfp_run": kfp_run,
        KFP_PAGE: f"{pages}/#/runs/details/{kfp_run}" if kfp_run and pages else "",
    }
    return {name: value for name, value in tags.items() if value}


def _user() -> str:
    """Return who runs the sweep: the user of MLflow's login, else of the machine; or nothing."""
    if login := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return login
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run as a user without a name.
        return ""
