"""The task that checks the settings of a sweep."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from small_sweeps import Work, small_settings

from taylorglo.addresses import sqlite_url
from taylorglo.errors import InputError, TaylorgloError
from taylorglo.results import read_json
from taylorglo.search.study import Search
from taylorglo.settings import Identity, SearchSettings, SweepSettings
from taylorglo.tasks import check
from taylorglo.variables import STORE_URI, STUDY_URL, TRACKING_URI

IDENTITY = Identity(candidates={"seed": 3}, fitness={}, precision="auto")


def tables_of(path: Path) -> set[str]:
    """Return the names of the tables of an SQLite file."""
    with closing(sqlite3.connect(path)) as database:
        return {row[0] for row in database.execute("SELECT name FROM sqlite_master")}


def test_the_checked_settings_are_written_and_the_version_of_the_data_is_returned(
    tmp_path: Path,
) -> None:
    sections = small_settings().model_dump()
    # Kubeflow passes the numbers of a section as doubles.
    sections["training"]["steps"] = 3.0
    version = check.run(sections, str(tmp_path / "settings"))
    assert version.startswith("scikit-learn ")
    assert read_json(tmp_path / "settings", SweepSettings) == small_settings()


@pytest.mark.parametrize(
    ("rate", "grid", "message"),
    [
        (0.1, [0.001], "training.learning_rate: the default is for sgd; adamw needs another value"),
        (
            0.001,
            [0.01, 0.03, 0.1, 0.3],
            "baselines.learning_rates: the default is for sgd; adamw needs another value, such as ",
        ),
        (0.001, [0.001], ""),
    ],
)
def test_the_default_learning_rates_are_refused_with_adam(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rate: float,
    grid: list[float],
    message: str,
) -> None:
    settings = small_settings(
        training={"optimizer": "adamw", "learning_rate": rate},
        baselines={"learning_rates": grid},
    )
    if not message:
        check.run(settings.model_dump(), str(tmp_path / "settings"))
        return
    with pytest.raises(SystemExit):
        check.run(settings.model_dump(), str(tmp_path / "settings"))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"taylorglo: error: {message}")


@pytest.fixture(autouse=True)
def _services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Work(tmp_path).name_services(monkeypatch)


@pytest.mark.parametrize(
    ("variable", "address", "message"),
    [
        (STUDY_URL, "sqlite://", "should be sqlite:///PATH, with the path of a file"),
        (STUDY_URL, "sqlite:///:memory:", "should be sqlite:///PATH, with the path of a file"),
        (STUDY_URL, "sqlite:///study.db?x=1", r"a \? in the path is written %3F"),
        (STUDY_URL, "mysql://host/db", "a study is kept in sqlite:///PATH or postgresql://"),
        (STUDY_URL, "sqlite:////no/such/study.db", "/no/such should be a folder that this user"),
        (STORE_URI, "gs://bucket", "unknown scheme"),
        (STORE_URI, "/proc/store", "/proc/store: "),
        (TRACKING_URI, "http://", "has no host"),
        (TRACKING_URI, "sqlite:////no/such/mlruns.db", "there is no folder '/no/such'"),
    ],
)
def test_a_service_that_cannot_be_used_is_refused_before_anything_else(
    variable: str, address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, address)
    with pytest.raises(InputError, match=message):
        check.check_services()


def test_a_study_gets_no_table_in_the_database_of_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = tmp_path / "other.db"
    MlflowClient(tracking_uri=sqlite_url(mlflow)).search_experiments()
    before = tables_of(mlflow)
    monkeypatch.setenv(STUDY_URL, sqlite_url(mlflow))
    with pytest.raises(InputError, match="is a database of another program, such as MLflow"):
        check.check_services()
    with pytest.raises(InputError, match="is a database of another program, such as MLflow"):
        Search(sqlite_url(mlflow), "digits", SearchSettings(), 0, IDENTITY, num_classes=10)
    assert tables_of(mlflow) == before


def test_study_and_mlflow_have_a_file_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (STUDY_URL, TRACKING_URI):
        monkeypatch.setenv(variable, sqlite_url(tmp_path / "one.db"))
    with pytest.raises(InputError, match=r"one\.db: is named for the study and for MLflow"):
        check.check_services()


def test_locks_that_cannot_be_kept_are_found_out_first(tmp_path: Path) -> None:
    (tmp_path / "study.db.claims").mkdir()
    with pytest.raises(InputError, match=r"study\.db\.claims: cannot be opened \(Is a directory"):
        check.check_services()


def test_a_check_of_new_places_makes_no_database(tmp_path: Path) -> None:
    check.check_services()
    assert not list(tmp_path.glob("*.db*"))


def test_a_schema_of_another_version_is_refused_with_its_remedy(tmp_path: Path) -> None:
    Work(tmp_path).prepare()
    Work(tmp_path).open()
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'v99.0.0'")
    with pytest.raises(InputError, match=r"study\.db: .* updating optuna to the latest version"):
        check.check_services()


@pytest.mark.parametrize("name", ["study.db", "mlruns.db"])
def test_a_damaged_database_is_named(name: str, tmp_path: Path) -> None:
    Work(tmp_path).prepare()
    Work(tmp_path).open()
    path = tmp_path / name
    with closing(sqlite3.connect(path)) as database:
        # What is still in the log would mend the file.
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=rf"{name}.* (malformed|damaged)"):
        check.check_services()


class _WebPage(BaseHTTPRequestHandler):
    """A server that answers everything with a web page."""

    def do_GET(self) -> None:
        page = b"<html><body>Please log in</body></html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)


@pytest.fixture
def web_page() -> Iterator[str]:
    """Run the server; return its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _WebPage) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_web_page_is_no_service(web_page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(TRACKING_URI, web_page)
        with pytest.raises(TaylorgloError, match="MLflow at http://127"):
            check.check_services()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", web_page)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv(STORE_URI, "s3://bucket/prefix")
    with pytest.raises(InputError, match="answers, but not as S3 does, perhaps with a web page"):
        check.check_services()


def test_the_version_changes_with_the_files_of_the_data(tmp_path: Path) -> None:
    images = tmp_path / "images.safetensors"
    data = {"name": "safetensors", "root": str(images)}
    sections = {**small_settings().model_dump(), "data": data}
    versions = []
    for content in (b"one", b"three"):
        images.write_bytes(content)
        versions.append(check.run(sections, str(tmp_path / "settings")))
    assert versions[0] != versions[1]
