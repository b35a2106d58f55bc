"""The store in a folder, and the store in a bucket of a real S3 server."""

import dataclasses
import os
import secrets
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorglo.errors import InputError, ServiceError
from taylorglo.extras import MissingExtraError
from taylorglo.files import replacing
from taylorglo.services.storage import FolderStore, Store, fetch, open_store, version


@pytest.fixture
def bucket(s3: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set the environment for the S3 server; return the URI of a new prefix in its bucket."""
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3.bucket}/{secrets.token_hex(8)}"


@pytest.fixture(params=["folder", "file-uri", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        return open_store(request.getfixturevalue("bucket"))
    folder = tmp_path / "a store"
    return open_store(str(folder) if request.param == "folder" else folder.as_uri())


def test_written_content_is_read(store: Store, tmp_path: Path) -> None:
    content = bytes(range(256))
    assert store.read("theta.bin") is None
    assert not store.exists("theta.bin")
    uri = store.write("theta.bin", content)
    assert store.read("theta.bin") == content
    assert store.exists("theta.bin")
    assert uri == f"{store.uri}/theta.bin"
    assert fetch(uri, tmp_path / "fetched").read_bytes() == content


def test_a_write_replaces_the_content(store: Store) -> None:
    store.write("a", b"first, and longer")
    store.write("a", b"second")
    assert store.read("a") == b"second"
    store.write("a", b"")
    assert store.read("a") == b""
    assert store.exists("a")


def test_nested_keys_do_not_interfere(store: Store) -> None:
    keys = ["run-1/a.json", "run-1/deep/er/a.json", "run-10/a.json", "run 2/ä+%20#?.json"]
    for key in keys:
        store.write(key, key.encode())
    assert [store.read(key) for key in keys] == [key.encode() for key in keys]
    assert store.read("run-1") is None
    assert not store.exists("run-1")
    assert store.read("run-1/a.json/b") is None


def test_files_are_uploaded_and_downloaded(store: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "folder" / "target"
    source.write_bytes(b"weights")
    assert store.upload(source, "nets/a.bin") == f"{store.uri}/nets/a.bin"
    store.download("nets/a.bin", target)
    assert target.read_bytes() == b"weights"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_download_of_an_absent_key_leaves_the_old_file(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    with pytest.raises(InputError, match=r"(?i)no such"):
        store.download("absent", target)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["target"]


def test_an_absent_file_to_upload_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        store.upload(tmp_path / "absent", "a")
    assert not store.exists("a")


def test_the_files_of_a_folder_are_listed_with_size_and_time(store: Store) -> None:
    started = datetime.now(UTC) - timedelta(seconds=2)  # S3 tells whole seconds
    for key in ("run-1/b", "run-1/a.json", "run-1/deep/er/ä 1.json", "run-10/c", "run-1.json"):
        store.write(key, key.encode())
    files = store.files("run-1")
    assert [(file.key, file.size) for file in files] == [
        (key, len(key.encode())) for key in ("run-1/a.json", "run-1/b", "run-1/deep/er/ä 1.json")
    ]
    assert all(started <= file.modified <= datetime.now(UTC) for file in files)
    assert [file.key for file in store.files("run-1/deep")] == ["run-1/deep/er/ä 1.json"]
    assert store.files("run") == store.files("absent/folder") == store.files("run-1/b") == []


def test_a_file_that_is_being_written_is_not_listed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write("run-1/a", b"")
    (tmp_path / "run-1/a-link").symlink_to(tmp_path / "nowhere")
    with replacing(tmp_path / "run-1/b") as file:
        file.write(b"half")
        assert len(list((tmp_path / "run-1").iterdir())) == 3
        assert [file.key for file in store.files("run-1")] == ["run-1/a"]
    assert [file.key for file in store.files("run-1")] == ["run-1/a", "run-1/b"]


def test_more_files_than_s3_lists_at_once(bucket: str) -> None:
    store = open_store(bucket)
    keys = [f"run/{number:04}" for number in range(1001)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: store.write(key, b""), keys))
    assert [file.key for file in store.files("run")] == keys


def test_a_deleted_file_is_gone_and_its_neighbours_are_not(store: Store) -> None:
    for key in ("run-1/a", "run-1/ab", "run-1/b/c"):
        store.write(key, b"x")
    for key in ("run-1/a", "run-1/a", "run-1/absent", "run-1/ab/c", "absent/a"):
        store.delete(key)
    assert store.read("run-1/a") is None
    assert [file.key for file in store.files("run-1")] == ["run-1/ab", "run-1/b/c"]


def test_a_folder_is_not_deleted(store: Store) -> None:
    store.write("run-1/a", b"x")
    with suppress(InputError):
        store.delete("run-1")
    assert store.read("run-1/a") == b"x"


@pytest.mark.parametrize(
    "key", ["", ".", "..", "/a", "a/../b", "../a", "a//b", "a/", "./a", "a/.", "a\0b", "//a"]
)
def test_a_key_that_is_no_relative_path_is_refused(store: Store, key: str, tmp_path: Path) -> None:
    for call in (store.read, store.exists):
        with pytest.raises(InputError, match="key"):
            call(key)
    for act in (store.files, store.delete):
        with pytest.raises(InputError, match="key"):
            act(key)
    with pytest.raises(InputError, match="key"):
        store.write(key, b"")
    with pytest.raises(InputError, match="key"):
        store.download(key, tmp_path / "target")
    (tmp_path / "source").write_bytes(b"")
    with pytest.raises(InputError, match="key"):
        store.upload(tmp_path / "source", key)


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    # The file system fails midway, because the child may write no more than 4 KiB to a file.
    FolderStore(tmp_path).write("a", b"old")
    script = """if True:
        import resource, signal, sys
        from pathlib import Path
        from taylorglo.errors import InputError
        from taylorglo.services.storage import FolderStore
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            FolderStore(Path(sys.argv[1])).write("a", b"new" * 100_000)
        except InputError as error:
            print(error)
    """
    command = [sys.executable, "-c", script, str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large" in child.stdout
    assert FolderStore(tmp_path).read("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_no_folder_is_created_before_the_first_write(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "new"))
    assert store.read("a") is None
    assert not (tmp_path / "new").exists()


def test_the_umask_decides_who_may_read_a_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    FolderStore(tmp_path).write("stored", b"")
    plain, stored = ((tmp_path / name).stat().st_mode for name in ("plain", "stored"))
    assert stat.S_IMODE(stored) == stat.S_IMODE(plain)


def test_a_key_below_a_file_is_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write("a", b"")
    with pytest.raises(InputError, match="a"):
        store.write("a/b", b"")
    store.write("folder/b", b"")
    with pytest.raises(InputError, match="/folder: Is a directory"):
        store.write("folder", b"")


PARTS = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
)


@settings(derandomize=True, deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=3))
def test_no_key_leads_out_of_the_folder(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("keys") / "store"
    store = FolderStore(folder)
    try:
        uri = store.write("/".join(parts), b"content")
    except InputError:
        assert not folder.exists() or set(parts) & {".", ".."}
        return
    assert store.read("/".join(parts)) == b"content"
    path = fetch(uri, folder)
    assert path.read_bytes() == b"content"
    assert path.resolve().is_relative_to(folder.resolve())


def test_a_large_object(bucket: str, tmp_path: Path) -> None:
    content = os.urandom(20 * 2**20)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    store = open_store(bucket)
    store.upload(source, "large/in-parts")
    store.write("large/at-once", content)
    store.download("large/at-once", target)
    assert target.read_bytes() == content
    assert store.read("large/in-parts") == content


def test_objects_below_a_prefix_are_fetched(bucket: str, tmp_path: Path) -> None:
    store = open_store(bucket)
    names = ["train/0/a.png", "train/1/b.png", "test/0/c.png", "labels.csv"]
    for name in names:
        store.write(f"data/{name}", name.encode())
    store.write("data-2/other", b"")
    for uri in (f"{bucket}/data", f"{bucket}/data/"):
        folder = fetch(uri, tmp_path / "local")
        assert folder == tmp_path / "local" / "data"
        files = [path for path in folder.rglob("*") if path.is_file()]
        contents = {str(path.relative_to(folder)): path.read_bytes() for path in files}
        assert contents == {name: name.encode() for name in names}


@pytest.mark.long
def test_more_objects_than_one_listing_has_are_fetched(bucket: str, tmp_path: Path) -> None:
    store = open_store(bucket)
    # A listing has at most 1000 objects.
    for number in range(1005):
        store.write(f"many/{number}", b"")
    assert len(list(fetch(f"{bucket}/many", tmp_path).iterdir())) == 1005


def test_an_empty_prefix_is_named(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing under it"):
        fetch(f"{bucket}/absent", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_version_of_a_prefix_changes_with_its_objects(bucket: str) -> None:
    store = open_store(bucket)
    store.write("data/1.png", b"one")
    versions = [version(f"{bucket}/data")]
    assert version(f"{bucket}/data/") == versions[0]
    store.write("data-2/1.png", b"of another set")
    assert version(f"{bucket}/data") == versions[0]
    for content in (b"two", b"TWO"):
        store.write("data/2.png", content)
        versions.append(version(f"{bucket}/data"))
    assert len(set(versions)) == 3
    assert version(f"{bucket}/data/2.png") != version(f"{bucket}/data/1.png")
    assert version(f"{bucket}/nothing") not in versions


@pytest.mark.usefixtures("bucket")
def test_a_bucket_without_a_prefix(s3: Any) -> None:
    store = open_store(f"s3://{s3.bucket}")
    assert store.write("root.txt", b"x") == f"s3://{s3.bucket}/root.txt"
    assert open_store(f"s3://{s3.bucket}/").read("root.txt") == b"x"


class Faulty(BaseHTTPRequestHandler):
    """A faulty service: it answers 503, or closes the connection after half of an object."""

    protocol_version = "HTTP/1.1"
    mode = "503"
    requests: ClassVar[list[str]] = []

    def answer(self) -> None:
        self.requests.append(self.command)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(503 if self.mode == "503" else 200)
        self.send_header("Content-Length", "0" if self.mode == "503" else "1000")
        self.end_headers()
        if self.mode == "half" and self.command == "GET":
            self.wfile.write(b"x" * 500)
        self.close_connection = True

    do_GET = do_HEAD = do_PUT = answer  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def faulty(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Faulty]]:
    """Run a faulty service, and set the environment for it."""
    handler = type("Handler", (Faulty,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    other = dataclasses.replace(s3, endpoint=f"http://127.0.0.1:{server.server_port}")
    for name, value in other.env().items():
        monkeypatch.setenv(name, value)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("method", ["read", "write"])
def test_the_number_of_tries_is_bounded(s3: Any, faulty: type[Faulty], method: str) -> None:
    store = open_store("s3://tests/x")
    calls = {"read": lambda: store.read("a"), "write": lambda: store.write("a", b"x")}
    with pytest.raises(ServiceError, match="3 tries") as caught:
        calls[method]()
    assert len(faulty.requests) == 3
    assert_plain(caught.value, s3.access_key, s3.secret_key)


def test_a_download_that_breaks_off_leaves_the_old_file(
    faulty: type[Faulty], tmp_path: Path
) -> None:
    faulty.mode = "half"
    target = tmp_path / "target"
    target.write_bytes(b"old")
    store = open_store("s3://tests/x")
    for call in (lambda: store.read("a"), lambda: store.download("a", target)):
        faulty.requests.clear()
        with pytest.raises(ServiceError, match="3 tries"):
            call()
        assert faulty.requests.count("GET") == 3
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def every_use(uri: str, tmp_path: Path) -> dict[str, Callable[[], object]]:
    """Return every use of a store by its name."""
    source = tmp_path / "source"
    source.write_bytes(b"x")
    store = open_store(uri)
    return {
        "read": lambda: store.read("a"),
        "write": lambda: store.write("a", b"x"),
        "exists": lambda: store.exists("a"),
        "download": lambda: store.download("a", tmp_path / "target"),
        "upload": lambda: store.upload(source, "a"),
        "files": lambda: store.files("a"),
        "delete": lambda: store.delete("a"),
        "fetch": lambda: fetch(f"{uri}/a", tmp_path),
    }


def assert_plain(error: BaseException, *secrets: str) -> None:
    """Check that the error is one line without a secret, and that it hides the original error."""
    assert "\n" not in str(error)
    assert error.__suppress_context__
    for secret in secrets:
        assert secret not in str(error)


def test_a_wrong_secret_is_refused(
    s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-1234")
    for call in every_use(bucket, tmp_path).values():
        with pytest.raises(InputError, match="AWS_SECRET_ACCESS_KEY") as caught:
            call()
        assert_plain(caught.value, "wrong-secret-1234", s3.access_key, s3.secret_key)
    assert not (tmp_path / "target").exists()


def test_an_unknown_key_is_refused(
    s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody-1234")
    for call in every_use(bucket, tmp_path).values():
        with pytest.raises(InputError, match="AWS_ACCESS_KEY_ID") as caught:
            call()
        assert_plain(caught.value, "nobody-1234", s3.secret_key)


def test_missing_credentials_are_named(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for call in every_use(bucket, tmp_path).values():
        with pytest.raises(InputError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            call()


def test_a_missing_secret_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        open_store(bucket).read("a")


@pytest.mark.usefixtures("bucket")
def test_an_unknown_bucket_is_named(s3: Any, tmp_path: Path) -> None:
    problem = r"no bucket 'no-such-bucket'.*create it"
    for name, call in every_use("s3://no-such-bucket/x", tmp_path).items():
        with pytest.raises(InputError, match=problem) as caught:
            pytest.fail(f"{name} returned {call()!r}")
        assert_plain(caught.value, s3.access_key, s3.secret_key)


def test_a_service_that_is_down_is_named(
    s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The port is bound, so that nobody else can take it, but nobody listens on it.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://someone:pass-1234@{address}")
        with pytest.raises(ServiceError, match="AWS_ENDPOINT_URL") as caught:
            open_store(bucket).read("a")
    assert_plain(caught.value, "pass-1234", s3.secret_key)


def test_a_malformed_endpoint_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not a url")
    with pytest.raises(InputError, match="AWS_ENDPOINT_URL"):
        open_store(bucket).read("a")


def test_an_unknown_profile_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputError, match="AWS_PROFILE"):
        open_store(bucket).read("a")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "s3://",
        "s3:///key",
        "s3:/bucket/key",
        "s3://ab/key",
        "s3://key:hunter2@bucket/a",
        "s3://bucket/a/../b",
        "s3://bucket//a",
        "gs://bucket/a",
        "https://hunter2@host/a",
        "file://host/a",
        "file:a",
        "a\0b",
    ],
)
def test_a_malformed_uri_is_refused(uri: str, tmp_path: Path) -> None:
    for call in (lambda: open_store(uri), lambda: fetch(uri, tmp_path)):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_fetch_leaves_a_local_path_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_bytes(b"x")
    for path in (file, tmp_path):
        assert fetch(str(path), tmp_path / "elsewhere") == path
        assert fetch(path.as_uri(), tmp_path / "elsewhere") == path
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(InputError, match="no such"):
        fetch(str(tmp_path / "absent"), tmp_path)


def test_the_version_of_a_folder_changes_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_bytes(b"one")
    second = tmp_path / "a/2.png"
    third = tmp_path / "a/3.png"
    versions = [version(str(tmp_path)), version(str(tmp_path / "a/1.png"))]
    assert version(tmp_path.as_uri()) == versions[0]
    second.write_bytes(b"two")
    versions.append(version(str(tmp_path)))
    second.rename(third)
    versions.append(version(str(tmp_path)))
    os.utime(third, ns=(1, 1))
    versions.append(version(str(tmp_path)))
    assert len(set(versions)) == 5
    third.unlink()
    assert version(str(tmp_path)) == versions[0]
    assert version(str(tmp_path / "nowhere")) not in versions


def test_a_file_name_that_is_no_unicode_counts_for_the_version(tmp_path: Path) -> None:
    before = version(str(tmp_path))
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    path.write_bytes(b"content")
    assert version(str(tmp_path)) != before


def test_boto3_is_imported_for_buckets_only(tmp_path: Path) -> None:
    script = """if True:
        import sys
        from taylorglo.services.storage import open_store
        open_store(sys.argv[1]).write("a", b"x")
        assert not {"boto3", "botocore", "torch"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_a_bucket_without_boto3_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    for call in (lambda: open_store("s3://bucket/x"), lambda: fetch("s3://bucket/x", tmp_path)):
        with pytest.raises(MissingExtraError) as caught:
            call()
        assert str(caught.value) == (
            "s3://bucket needs the package boto3, which is not installed: "
            "pip install 'taylorglo[pipeline]'"
        )
