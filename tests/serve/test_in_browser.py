"""The service's page in a real Chromium, against a real server on a small model."""

import io
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from accessible import serious_findings
from PIL import Image
from tiny import decide_by, pixels, small_detector, small_method

from liftmap.serve.app import create_app
from liftmap.serve.schema import ServiceSettings

expect = pytest.importorskip("playwright.sync_api").expect


def png(seed: int = 0) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(pixels(1, seed=seed)[0, 0].numpy()).save(file, "PNG")
        return file.getvalue()


def upload(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": data}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    detector = small_detector(small_method(attempts=2, steps=1))
    scores = detector.score([image[0].numpy() for image in pixels(40, seed=9)])
    decide_by(detector, scores.tolist())
    normal = Image.open(io.BytesIO(png(3)))
    app = create_app(detector, ServiceSettings(false_alarms=0.1), [("normal.png", normal)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


def opened(tab: Any, address: str) -> Any:
    tab.goto(address)
    expect(tab.locator("#about")).not_to_be_empty()
    return tab


def test_an_uploaded_image_is_judged_and_explained(address: str, tab: Any) -> None:
    page = opened(tab, address)
    page.locator("#files").set_input_files([upload("a.png", png(1)), upload("b.png", png(2))])
    expect(page.locator("#results li")).to_have_count(2)
    names = page.locator("#results .name").all_text_contents()
    assert names == ["b.png", "a.png"], "the newest first"
    decision = page.locator("#results strong").first
    assert decision.text_content() in ("in-domain", "out-of-distribution")
    page.locator("#results button").first.click()
    picture = page.locator("#results .why")
    picture.wait_for()
    assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 500
    assert picture.get_attribute("alt").startswith("b.png: original")


def test_the_rate_starts_at_the_services_and_moves_decisions(address: str, tab: Any) -> None:
    page = opened(tab, address)
    expect(page.locator("#rate")).to_have_value("10")
    page.locator("#files").set_input_files([upload(f"{i}.png", png(20 + i)) for i in range(12)])
    expect(page.locator("#results li")).to_have_count(12)

    def flagged() -> int:
        return sum(
            text != "in-domain" for text in page.locator("#results strong").all_text_contents()
        )

    before = flagged()
    page.locator("#rate").fill("20")
    more = flagged()
    page.locator("#rate").fill(page.locator("#rate").get_attribute("min"))
    assert flagged() <= before <= more
    assert page.locator("#rate-shown").text_content().endswith("%")


def test_a_bad_file_is_named_with_its_reason(address: str, tab: Any) -> None:
    page = opened(tab, address)
    page.locator("#files").set_input_files(upload("bad.png", b"no image at all"))
    expect(page.locator("#results li")).to_have_count(1)
    assert "can't be used" in page.locator("#results").text_content()
    assert "not an image" in page.locator("#results").text_content()


def test_normal_images_are_there_to_compare_with(address: str, tab: Any) -> None:
    page = opened(tab, address)
    page.locator("#typical button").click()
    page.locator("#typical-why").wait_for()
    assert page.locator("#typical-why").get_attribute("alt").startswith("normal.png: original")


def test_the_camera_takes_a_picture(address: str, tab: Any) -> None:
    page = opened(tab, address)
    page.locator("#camera").click()
    page.locator("#shoot").wait_for()
    page.locator("#shoot").click()
    expect(page.locator("#results li")).to_have_count(1)
    assert "camera.png" in page.locator("#results").text_content()
    assert "score" in page.locator("#results").text_content()


def test_the_keyboard_is_enough(address: str, tab: Any) -> None:
    page = opened(tab, address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(upload("a.png", png(1)))
    expect(page.locator("#results li")).to_have_count(1)
    for _ in range(4):  # the camera, the rate, the key, the result
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Why?"
    page.keyboard.press("Enter")
    page.locator("#results .why").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_and_nobody_is_shut_out(address: str, tab: Any, scheme: str, width: int) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 800})
    page = opened(tab, address)
    page.locator("#files").set_input_files([upload("a.png", png(1)), upload("b.png", b"no")])
    expect(page.locator("#results li")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious_findings(page) == []
