"""The report as a reader meets it: a file opened in Chromium, without a network."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accessible import serious_findings
from tiny import decide_by, save_images, small_detector

from liftmap.images.sources import open_source
from liftmap.report.collect import collect
from liftmap.report.page import write_report


def table(count: int) -> list[dict[str, Any]]:
    """Rows whose p-values rise with their number, so that the first are the oddest."""
    scores = np.linspace(1, 0, count)
    made = [
        {"id": f"{i:03}.png", "score": float(s), "p_value": (i + 1) / count, "attempts": 2}
        for i, s in enumerate(scores)
    ]
    return [row | {"reason": None} for row in made]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    detector = small_detector()
    decide_by(detector, [i / 40 for i in range(1, 41)])
    source = open_source(save_images(folder / "images", 12))
    bad = {"id": "bad.png", "score": None, "p_value": None, "attempts": None, "reason": "empty"}
    page = collect(
        [*table(120), bad], detector, source, title="a report", rate=0.1, shown=6, ood_ids="00?.png"
    )
    write_report(page, folder / "report.html")
    return folder / "report.html"


def test_it_is_read_filtered_and_explained(report: Path, tab: Any) -> None:
    tab.goto(report.as_uri())
    assert tab.locator("#flagged").text_content() == "12"
    assert tab.locator(".gallery li").count() == 6
    assert tab.locator("#histogram svg rect").count() == 60
    assert tab.locator("#drift svg circle").count() == 2
    assert tab.locator("#roc svg polyline").count() == 1
    tab.locator("[data-explain]").first.click()
    assert tab.locator("#e-title").text_content() == "000.png"
    assert (
        tab.locator("#e-picture").evaluate(
            "picture => picture.decode().then(() => picture.naturalWidth)"
        )
        > 500
    )
    tab.keyboard.press("Escape")
    tab.locator("#which").select_option("flagged")
    assert tab.locator("#found").text_content() == "12 images"
    tab.locator("#rate").fill("5")
    assert tab.locator("#flagged").text_content() == "6"
    assert tab.locator("#found").text_content() == "6 images"
    tab.locator("#which").select_option("skipped")
    assert tab.locator("#table-body").text_content() == "bad.pngempty"
    tab.locator("#which").select_option("all")
    tab.locator("#next").click()
    assert tab.locator("#table-body tr").count() == 20
    tab.locator("#find").fill("003")
    assert tab.locator("#table-body tr").count() == 1


def test_the_keyboard_alone_opens_and_closes_an_explanation(report: Path, tab: Any) -> None:
    tab.goto(report.as_uri())
    for _ in range(3):  # past the rate and the curves' table
        tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.dataset.explain") == "0"
    tab.keyboard.press("Enter")
    assert tab.locator("#explanation").is_visible()
    assert tab.evaluate("document.activeElement.textContent") == "Close"
    tab.keyboard.press("Enter")
    assert not tab.locator("#explanation").is_visible()
    assert tab.evaluate("document.activeElement.dataset.explain") == "0", "where it was opened"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_and_nobody_is_shut_out(report: Path, tab: Any, scheme: str, width: int) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 800})
    tab.goto(report.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    rows = tab.locator("#table-body tr").evaluate_all("rows => rows.map(r => r.offsetHeight)")
    assert max(rows) < 60, "ids don't break letter by letter"
    assert serious_findings(tab) == []
    tab.locator("[data-explain]").first.click()
    assert serious_findings(tab) == []


def test_sixty_thousand_rows_open_and_filter_quickly(tab: Any, tmp_path: Path) -> None:
    detector = small_detector()
    decide_by(detector, [i / 2000 for i in range(1, 2001)])
    write_report(collect(table(60_000), detector, None, title="many"), tmp_path / "many.html")
    assert (tmp_path / "many.html").stat().st_size < 8_000_000
    begun = time.monotonic()
    tab.goto((tmp_path / "many.html").as_uri())
    assert tab.locator("#flagged").text_content() == "3000"
    opened = time.monotonic() - begun
    tab.locator("#find").fill("59999")
    assert tab.locator("#found").text_content() == "1 image"
    filtered = time.monotonic() - begun - opened
    assert opened < 4 and filtered < 2, "seconds; twice what is allowed, for slow machines"
