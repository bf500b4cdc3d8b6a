"""One rule decides, wherever a decision is shown: p = 7% is flagged at a rate of 0.1 * 0.7."""

import io
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from tiny import decide_by, pixels, small_detector, small_method

from liftmap.detector import Detector
from liftmap.engines.arrivals import from_folder
from liftmap.engines.local import score_source
from liftmap.engines.tables import read_rows
from liftmap.engines.watch import watch
from liftmap.images.sources import open_source
from liftmap.report.collect import collect
from liftmap.report.page import write_report
from liftmap.serve.app import create_app
from liftmap.serve.schema import ServiceSettings

RATE = 0.1 * 0.7  # 0.06999999999999999


@pytest.fixture
def detector() -> Detector:
    """Six of 99 held-out scores are above the image's: its p-value is 7%."""
    made = small_detector(small_method(attempts=2, steps=1), precision="float32")
    score = made.scores(pixels(1)).item()
    decide_by(made, [score - 1.0 + i / 1000 for i in range(93)] + [score + 1.0] * 6)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.asarray(pixels(1)[0, 0])).save(folder / "a.png")
    return folder


def table(detector: Detector, folder: Path) -> Path:
    path = folder.parent / "scores.parquet"
    score_source(detector, open_source(folder), path, false_alarms=RATE)
    return path


def test_python_and_tables_agree(detector: Detector, folder: Path) -> None:
    found = detector.predict(folder / "a.png", false_alarms=RATE)
    assert found.p_values.tolist() == [0.07] and found.is_ood.tolist() == [True]
    [row] = read_rows(table(detector, folder))
    assert row["p_value"] == 0.07 and row["is_ood"]


def test_a_watched_stream_agrees(detector: Detector, folder: Path) -> None:
    stop = Event()

    def seen_once(seen: Any) -> None:
        if seen.images:
            stop.set()

    arrivals = from_folder(folder, stop, every=0.01, settle=0.0)
    output = folder.parent / "watched"
    options: dict[str, Any] = {"false_alarms": RATE, "stop": stop, "on_batch": seen_once}
    assert watch(detector, arrivals, output, **options).flagged == 1
    stop.clear()
    assert watch(detector, iter(()), output, false_alarms=RATE).flagged == 1, "read back"


def test_the_report_and_its_page_agree(detector: Detector, folder: Path, tab: Any) -> None:
    rows = read_rows(table(detector, folder))
    page = collect(rows, detector, open_source(folder), title="a report", rate=RATE)
    assert page.flagged == 1 and [window[2] for window in page.windows] == [1]
    write_report(page, folder.parent / "report.html")
    tab.goto((folder.parent / "report.html").as_uri())
    assert tab.locator("#flagged").text_content() == "1"
    for rate, flagged in (("6.9", "0"), ("7", "1"), ("0.1", "0")):
        tab.locator("#rate").fill(rate)
        assert tab.locator("#flagged").text_content() == flagged


def test_the_service_and_what_its_page_decides_by_agree(detector: Detector, folder: Path) -> None:
    with TestClient(create_app(detector, ServiceSettings(RATE))) as client:
        picture = io.BytesIO((folder / "a.png").read_bytes())
        [found] = client.post("/v1/score", files=[("images", picture)]).json()["results"]
        assert found["p_value"] == 0.07 and found["is_ood"] is True
        limits = client.get("/v1/model").json()["limits"]
    assert [found["p_value"] <= limits[step - 1] for step in (69, 70)] == [False, True]
