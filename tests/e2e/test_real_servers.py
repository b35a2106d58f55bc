"""Sweeps on real servers: PostgreSQL for the study, S3 for the store, and an MLflow server."""

import json
import secrets
import shutil
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save
from servers import at_once, mlflow_server, new_database
from sklearn.datasets import load_digits
from sweeps import LOSSES, POPSIZE, Sweeps, artifacts_of, final_table, runs_of

from taylorglo.search.study import Search
from taylorglo.settings import SearchSettings


def digits_in_one_file() -> bytes:
    """Return scikit-learn's digits as a data set of the user's own."""
    digits = load_digits()
    images = torch.from_numpy(digits.images * 15).to(torch.uint8)
    return save({"images": images, "labels": torch.from_numpy(digits.target)})


def test_a_sweep_leaves_everything_on_the_servers_and_no_secret_anywhere(
    s3: Any, postgres: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    secret = {
        "PGPASSWORD": secrets.token_hex(12),
        "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(12),
    }
    bucket = boto3.session.Session().resource("s3").Bucket(s3.bucket)
    prefix = secrets.token_hex(6)
    bucket.put_object(Key=f"{prefix}/digits.safetensors", Body=digits_in_one_file())

    # MLflow's default driver is psycopg2.
    backend = new_database(postgres).replace("postgresql:", "postgresql+psycopg:")
    with mlflow_server(backend, f"s3://{s3.bucket}/m", tmp_path / "mlflow.log", s3.env()) as server:
        uri = server.uri
        client = MlflowClient(tracking_uri=uri)
        injected = client.create_run(
            client.create_experiment("somebody-elses"), run_name="by the scheduler"
        )
        password = secret["MLFLOW_TRACKING_PASSWORD"]
        services = {
            "TAYLORGLO_STUDY_URL": postgres_url,
            "TAYLORGLO_STORE_URI": f"s3://{s3.bucket}/{prefix}/store",
            "MLFLOW_TRACKING_URI": uri.replace("//", f"//somebody:{password}@"),
            "MLFLOW_RUN_ID": injected.info.run_id,
        }
        sweep = Sweeps(
            tmp_path / "work",
            (
                "name=servers",
                "data.name=safetensors",
                f"data.root=s3://{s3.bucket}/{prefix}/digits.safetensors",
                "pipeline.generations=1",
                "training.engine=auto",
                "search.popsize=2",
                "evaluation.attempts=1",
                "baselines.learning_rates=0.3",
                "champion.finalists=1",
            ),
            {**s3.env(), **services, **secret},
            ("--json",),
        )
        process = sweep.run()
        assert process.returncode == 0, process.stderr
        # Lines for a person are on the other stream.
        document = json.loads(process.stdout)
        assert [loss["loss"] for loss in document["losses"]] == LOSSES
        assert all(len(loss["scores"]) == 2 for loss in document["losses"])
        assert process.stderr.startswith("taylorglo 0.")
        assert document["verdict"] in process.stderr
        assert document["places"]["runs"] == uri
        assert Path(document["places"]["log"]).is_file()

        # Nothing but logs and kfp's own artifacts is on this disk.
        visible = [path.name for path in sweep.work.iterdir() if not path.name.startswith(".")]
        assert sorted(visible) == ["logs", "pipeline"]
        keys = [stored.key for stored in bucket.objects.filter(Prefix=f"{prefix}/store/servers/")]
        assert {
            "report.html",
            "champion/loss.json",
            "champion/loss.py",
            "champion/model.safetensors",
            "data.safetensors",
        } <= {key.removeprefix(f"{prefix}/store/servers/") for key in keys}
        study = Search(postgres_url, "servers", SearchSettings(popsize=2), 0, num_classes=10)
        assert [c.result is not None and c.finished for c in study.candidates()] == [True, True]

        # The injected run is the parent, in its own experiment, and its status is for the
        # scheduler to set.
        (parent,), nested = runs_of(client, "somebody-elses")
        assert (parent.info.run_id, parent.info.status) == (injected.info.run_id, "RUNNING")
        assert parent.data.params["search_popsize"] == "2"
        others = [run.info.run_name for run in nested if "taylorglo.trial" not in run.data.tags]
        assert sorted(others) == sorted(LOSSES)
        assert sum("taylorglo.trial" in run.data.tags for run in nested) == 2
        assert artifacts_of(client, parent) == ["attacked-images.parquet", "figures", "report.html"]
        (champion,) = [run for run in nested if run.info.run_name == "champion"]
        assert artifacts_of(client, champion) == ["loss.json", "loss.py", "model.safetensors"]

        logged = str(
            [
                (run.data.to_dictionary(), run.inputs.to_dictionary() if run.inputs else "")
                for run in (parent, *nested)
            ]
        )
    texts = {
        path: path.read_text(errors="replace") for path in sweep.work.rglob("*") if path.is_file()
    }
    for value in (*secret.values(), s3.secret_key):
        assert value not in process.stdout + process.stderr + logged
        assert not [path for path, text in texts.items() if value in text]
    shutil.rmtree(sweep.work)


@pytest.mark.long
def test_two_sweeps_at_once_end_as_one(postgres_url: str, tmp_path: Path) -> None:
    settings = (
        "name=shared",
        "pipeline.generations=1",
        "training.engine=auto",
        "training.workers=1",
        f"services.study_url={postgres_url}",
        f"services.store_uri={tmp_path / 'store'}",
    )
    code = """
import os
from pathlib import Path
from in_process import run_sweep

wait()
folder, *settings = sys.argv[1:]
print(run_sweep(Path(folder) / str(os.getpid()), *settings))
"""
    outputs = at_once(code, str(tmp_path), *settings, path=Path(__file__).parent)
    assert final_table(outputs[0][0]) == final_table(outputs[1][0])
    study = Search(postgres_url, "shared", SearchSettings(popsize=POPSIZE), 0, num_classes=10)
    candidates = study.candidates()
    assert [c.generation for c in candidates if not c.rejected] == [1] * POPSIZE
    assert all(c.finished for c in candidates)
