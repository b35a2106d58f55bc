"""The environment variables that tell a task where its services are.

A laptop and a cluster differ in these variables and in nothing else. Credentials have variables of
their own (PGPASSWORD, AWS_ACCESS_KEY_ID, ...), which the clients of the services read themselves.
"""

import os

from taylorglo.errors import InputError

STUDY_URL = "TAYLORGLO_STUDY_URL"  # the database of the studies
STORE_URI = "TAYLORGLO_STORE_URI"  # the object store, or a folder
TRACKING_URI = "MLFLOW_TRACKING_URI"  # MLflow
LOCAL_RUN = "TAYLORGLO_LOCAL_RUN"  # set if the tasks run on the machine of the command line
STARTED = "TAYLORGLO_STARTED"  # when the command line started the run, in seconds since the epoch
CPUS = "TAYLORGLO_CPUS"  # how many CPUs a task may use, if tasks share a machine


def required(name: str) -> str:
    """Return the value of a variable that a task cannot do without.

    Raises:
        InputError: the variable is not set.
    """
    value = os.environ.get(name)
    if not value:
        raise InputError(
            f"the environment variable {name} is not set; every task of a sweep needs it"
        )
    return value
