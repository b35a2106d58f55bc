"""Create a user of MLflow, or change the password of one; the password is read from standard input.

kubectl -n taylorglo exec -i deploy/mlflow -- python /login/user.py NAME
"""

import os
import sys

from mlflow import MlflowException
from mlflow.server import get_app_client

SERVER = "http://127.0.0.1:5000"


def main() -> int:
    """Return 0 if the user has the password; 1 after the reason why not; 2 without a name."""
    if len(sys.argv) != 2:
        print("user.py: the one argument should be the name of a user", file=sys.stderr)
        return 2
    (name,) = sys.argv[1:]
    password = sys.stdin.readline().rstrip("\r\n")
    os.environ["MLFLOW_TRACKING_USERNAME"] = os.environ["MLFLOW_AUTH_ADMIN_USERNAME"]
    os.environ["MLFLOW_TRACKING_PASSWORD"] = os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]
    client = get_app_client("basic-auth", tracking_uri=SERVER)
    try:
        try:
            client.create_user(name, password)
            print(f"user {name}: created")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            client.update_user_password(name, password)
            print(f"user {name}: has another password now")
    except MlflowException as error:
        print(f"user {name}: {str(error).replace(password, '...')}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
