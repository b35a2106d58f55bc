"""The environment variables with the addresses of a task's services, and their credentials.

A laptop and a cluster differ in these variables and in nothing else. In a pod, the variables that
come from the ConfigMap and the Secret of the sweeps have names of their own. Other systems set the
usual names there: KFP's launcher reads ``AWS_ACCESS_KEY_ID`` for the pipeline root in the same
container, KFP's MLflow plugin sets ``MLFLOW_TRACKING_URI``, and a cloud's workload identity sets
variables for its own clients.
"""

import os
from collections.abc import Mapping, MutableMapping

from taylorglo.errors import InputError

# The database of the studies.
STUDY_URL = "TAYLORGLO_STUDY_URL"
# The object store, or a folder.
STORE_URI = "TAYLORGLO_STORE_URI"
# MLflow.
TRACKING_URI = "TAYLORGLO_TRACKING_URI"
# Set if the tasks run on the machine of the command line.
LOCAL_RUN = "TAYLORGLO_LOCAL_RUN"
# The time at which the command line started the run, in seconds since the epoch.
STARTED = "TAYLORGLO_STARTED"
# The number of CPUs that a task may use, if something else shares the machine.
CPUS = "TAYLORGLO_CPUS"
# The revision of the code in git, which the image or the command line sets.
REVISION = "TAYLORGLO_REVISION"
# The image of the task, by tag or digest.
IMAGE = "TAYLORGLO_IMAGE"
# The id of the run in Kubeflow, and the address of Kubeflow's pages.
KFP_RUN = "TAYLORGLO_KFP_RUN"
KFP_PAGES = "TAYLORGLO_KFP_PAGES"
# Set if somebody watches the run: tasks print how far they are (tasks.console.Progress).
WATCHED = "TAYLORGLO_WATCHED"
# How long a task waits for a service that fails, in seconds.
SERVICE_TIMEOUT = "TAYLORGLO_SERVICE_TIMEOUT"

# Each of our own names in a pod, with the usual name that the client of the service reads.
STUDY_CREDENTIALS: Mapping[str, str] = {
    "TAYLORGLO_STUDY_USER": "PGUSER",
    "TAYLORGLO_STUDY_PASSWORD": "PGPASSWORD",
}
STORE_PLACE: Mapping[str, str] = {
    "TAYLORGLO_S3_ENDPOINT_URL": "AWS_ENDPOINT_URL",
    "TAYLORGLO_S3_REGION": "AWS_DEFAULT_REGION",
}
STORE_CREDENTIALS: Mapping[str, str] = {
    "TAYLORGLO_S3_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID",
    "TAYLORGLO_S3_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY",
    "TAYLORGLO_S3_SESSION_TOKEN": "AWS_SESSION_TOKEN",
}
TRACKING_CREDENTIALS: Mapping[str, str] = {
    "TAYLORGLO_TRACKING_USERNAME": "MLFLOW_TRACKING_USERNAME",
    "TAYLORGLO_TRACKING_PASSWORD": "MLFLOW_TRACKING_PASSWORD",
}
# KFP sets this variable in its pods.
_POD = "KFP_POD_NAME"
# What KFP's MLflow plugin sets there: the run differs from task to task, and none of them is the
# run of a sweep.
_FOREIGN = ("MLFLOW_TRACKING_", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_", "MLFLOW_WORKSPACE")


def required(name: str) -> str:
    """Return the value of a variable that every task needs.

    Raises:
        InputError: the variable is not set.
    """
    value = os.environ.get(name)
    if not value:
        raise InputError(
            f"the environment variable {name} is not set; every task of a sweep needs it"
        )
    return value


def service_timeout() -> float:
    """Return how long a task waits for a service that fails, in seconds; 0 outside of a cluster."""
    return float(os.environ.get(SERVICE_TIMEOUT) or 0)


def adopt(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give the services' variables of a pod the names that the services' clients read.

    The variables of a group replace those of another system as a whole: a session token of another
    system does not fit an access key of ours.

    Args:
        environment: the variables of this process, which are changed.
    """
    if _POD in environment:
        for name in [name for name in environment if name.startswith(_FOREIGN)]:
            del environment[name]
    for group in (STUDY_CREDENTIALS, STORE_PLACE, STORE_CREDENTIALS, TRACKING_CREDENTIALS):
        if any(environment.get(own) for own in group):
            for own, usual in group.items():
                environment.pop(usual, None)
                if environment.get(own):
                    environment[usual] = environment[own]
