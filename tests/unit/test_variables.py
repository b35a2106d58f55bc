"""The variables of a pod, and the names that the services' clients read."""

from taylorglo.variables import adopt

OURS = {
    "TAYLORGLO_STUDY_USER": "optuna",
    "TAYLORGLO_STUDY_PASSWORD": "a",
    "TAYLORGLO_S3_ENDPOINT_URL": "http://seaweedfs:8333",
    "TAYLORGLO_S3_ACCESS_KEY_ID": "b",
    "TAYLORGLO_S3_SECRET_ACCESS_KEY": "c",
    "TAYLORGLO_TRACKING_USERNAME": "d",
    "TAYLORGLO_TRACKING_PASSWORD": "e",
}
USUAL = {
    "PGUSER": "optuna",
    "PGPASSWORD": "a",
    "AWS_ENDPOINT_URL": "http://seaweedfs:8333",
    "AWS_ACCESS_KEY_ID": "b",
    "AWS_SECRET_ACCESS_KEY": "c",
    "MLFLOW_TRACKING_USERNAME": "d",
    "MLFLOW_TRACKING_PASSWORD": "e",
}


def adopted(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that are not our own, after the adoption."""
    adopt(environment)
    return {name: value for name, value in environment.items() if not name.startswith("TAYLORGLO_")}


def test_the_clients_get_our_values() -> None:
    assert adopted(dict(OURS)) == USUAL


def test_the_values_of_other_systems_in_the_pod_are_replaced_as_a_whole() -> None:
    """A session token of KFP's pipeline root does not fit our key."""
    foreign = {
        "AWS_ACCESS_KEY_ID": "KFP's",
        "AWS_SECRET_ACCESS_KEY": "KFP's",
        "AWS_SESSION_TOKEN": "KFP's",
        "AWS_DEFAULT_REGION": "KFP's",
        "PGUSER": "KFP's",
    }
    assert adopted({**foreign, **OURS}) == USUAL


def test_the_run_of_kubeflows_mlflow_plugin_is_not_ours() -> None:
    plugin = {
        "KFP_POD_NAME": "pod",
        "MLFLOW_TRACKING_URI": "http://kfp-mlflow:5000",
        "MLFLOW_RUN_ID": "another one for each task",
        "MLFLOW_EXPERIMENT_ID": "1",
        "MLFLOW_TRACKING_TOKEN": "token",
        "MLFLOW_WORKSPACE": "x",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    }
    kept = {"KFP_POD_NAME": "pod", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    assert adopted(dict(plugin)) == kept
    assert adopted({**plugin, **OURS}) == {**USUAL, **kept}


def test_a_workload_identity_stays_if_there_are_no_keys_of_ours() -> None:
    identity = {
        "KFP_POD_NAME": "pod",
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/sweeps",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }
    assert adopted(dict(identity)) == identity


def test_the_usual_names_count_on_a_laptop() -> None:
    usual = {**USUAL, "MLFLOW_TRACKING_URI": "http://localhost:5000", "MLFLOW_RUN_ID": "run"}
    assert adopted(dict(usual)) == usual
