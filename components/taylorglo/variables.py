"""The environment variables with the addresses of a task's services.

A laptop and a cluster differ in these variables and in nothing else. Credentials have variables of
their own (PGPASSWORD, AWS_ACCESS_KEY_ID, ...), which the clients of the services read themselves.
"""

import os

from taylorglo.errors import InputError

# The database of the studies.
STUDY_URL = "TAYLORGLO_STUDY_URL"
# The object store, or a folder.
STORE_URI = "TAYLORGLO_STORE_URI"
# MLflow.
TRACKING_URI = "MLFLOW_TRACKING_URI"
# Set if the tasks run on the machine of the command line.
LOCAL_RUN = "TAYLORGLO_LOCAL_RUN"
# The time at which the command line started the run, in seconds since the epoch.
STARTED = "TAYLORGLO_STARTED"
# The number of CPUs that a task may use, if tasks share a machine.
CPUS = "TAYLORGLO_CPUS"


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
