"""The pages of MLflow that people look at after a sweep, in a real browser and a real server."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from logged_sweeps import LoggedSweep
from servers import mlflow_server

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def server(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a tracking server that has a whole sweep; return its URI."""
    folder = tmp_path_factory.mktemp("server")
    database = folder / "mlflow.db"
    database.write_bytes(template.read_bytes())
    log = folder / "server.log"
    with (
        mlflow_server(f"sqlite:///{database}", str(folder / "served"), log) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        sweep = LoggedSweep(running.uri, folder, patch)
        sweep.log_candidates()
        sweep.log_outcome()
        yield running.uri


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_the_champion_is_three_clicks_away(server: str, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1800})
    page.set_default_timeout(60_000)
    page.goto(f"{server}/#/experiments")
    page.get_by_text("Model training", exact=True).first.click()
    page.get_by_role("link", name="digits", exact=True).first.click()
    page.get_by_role("link", name="digits first").first.click()
    # The page of the run answers at once.
    page.get_by_text(re.compile("The champion is ahead of tuned cross-entropy")).wait_for()
    page.get_by_role("cell", name="97.30 ± 0.26").wait_for()
    page.get_by_text(re.compile("loss = −Σₖ")).wait_for()
    for name in ("digits-loss", "digits-network"):
        page.get_by_text(name).first.wait_for()
    # The links of the description lead on.
    for link, text in (("champion", "loss.json"), ("candidates by fitness", "g001-c00001")):
        links = page.locator("a[href*='workflowType=machine_learning']")
        address = links.get_by_text(link, exact=True).get_attribute("href")
        other = browser.new_page(viewport={"width": 1280, "height": 900})
        place = address[address.index("#") :]
        tab = place.replace("?", "/artifacts?", 1) if link == "champion" else place
        other.goto(f"{server}/{tab}")
        other.get_by_text(text).first.wait_for(timeout=60_000)
        if link != "champion":
            names = other.get_by_text(re.compile(r"g00\d-c000\d\d")).all_text_contents()
            # Candidate 8 has the highest fitness, because of sin(8), and candidate 5 the lowest.
            assert names[0] == "g003-c00008"
            assert names[-1] in ("g002-c00005", "g003-c00011")
        other.close()
    page.close()


def test_the_metrics_are_curves(server: str, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 2400})
    page.set_default_timeout(60_000)
    page.goto(f"{server}/#/experiments")
    page.get_by_text("Model training", exact=True).first.click()
    page.get_by_role("link", name="digits", exact=True).first.click()
    page.get_by_role("link", name="digits first").first.click()
    page.get_by_role("tab", name="Model metrics").click()
    for section in ("generation", "robust_accuracy/worst"):
        page.get_by_text(re.compile(rf"^{section} ?\(\d+\)")).first.wait_for()
    page.close()
