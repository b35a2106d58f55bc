"""The page of the report in a real browser: widths, themes, and an empty console."""

from pathlib import Path
from typing import Any

import pytest
from sample_records import attacked_record

from taylorglo.report.page import render
from taylorglo.report.record import CandidateRecord, Savings


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    candidates = [
        CandidateRecord(1.0, 0.5, "champion"),
        CandidateRecord(0.5, 0.1, "stopped"),
        CandidateRecord(-2.0, 3.0, "rejected"),
    ]
    values = attacked_record(candidates=candidates, savings=Savings(9.0, 4.0, 2.0))
    path.write_text(render(values))
    return path.as_uri()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 500, 1200])
def test_the_page_fits_its_window_and_logs_nothing(
    browser: Any, address: str, width: int, theme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=theme)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # A label of a figure is as large as it is drawn, whatever the width of the window.
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')].map(label => "
        "parseFloat(getComputedStyle(label).fontSize) "
        "* Math.hypot(label.getScreenCTM().a, label.getScreenCTM().b)))"
    )
    assert smallest >= 7
    # The columns that the verdict goes by are inside the window.
    cells = page.locator(".cards tbody td")
    assert all(
        box["x"] + box["width"] <= width for cell in cells.all() if (box := cell.bounding_box())
    )
    # Two images, and their perturbed forms for two losses, are there, and large enough to see.
    pictures = page.locator(".pictures img")
    widths = pictures.evaluate_all("all => all.map(img => [img.naturalWidth, img.width])")
    assert len(widths) == 10
    assert all(pixels == 2 and shown >= 48 for pixels, shown in widths)
    assert not messages
    page.close()
