import json
import re
from dataclasses import replace
from html.parser import HTMLParser

from liftmap.report.collect import Curve, Page, Pictured
from liftmap.report.page import render

PAGE = Page(
    title="photos/<new>",
    rate=0.05,
    rows=[("a.png", 1.0, 0.01, 4), ("</script><b>.png", 0.1, 0.8, 2)],
    skipped=[("c.png", "the file is empty")],
    calibration=[0.0, 0.5, 2.0],
    limit=0.05,
    limits=[0.05] * 200,
    expected=(0.0, 1.0),
    chance=0.4,
    windows=[],
    gallery=[Pictured("a.png", 1.0, 0.01, "1 in 100", "data:image/webp;base64,AA", "data:x")],
    curves=[Curve("b/*", 9, 3, (0.9, 0.8, 1.0), (0.2, 0.1, 0.3), [(0.0, 0.0), (1.0, 1.0)])],
    settings={"distance": "lpips"},
)


class Tags(HTMLParser):
    """Collects tags and the data of the JSON script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == ("script", {"type": "application/json", "id": "data"}):
            self.data += data


def parsed(page: Page) -> Tags:
    tags = Tags()
    tags.feed(render(page))
    return tags


def test_the_data_survive_whatever_an_id_holds() -> None:
    page = parsed(PAGE)
    assert json.loads(page.data) == json.loads(json.dumps(PAGE.as_json()))
    assert sum(tag == "b" for tag, _ in page.tags) == 0, "no id becomes markup"
    assert "photos/&lt;new&gt;" in render(PAGE)


def test_nothing_is_fetched_from_anywhere() -> None:
    for tag, attributes in parsed(PAGE).tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert not re.search(r"url\(|@import|fetch\(", render(PAGE))


def test_every_control_has_a_label_and_pictures_have_words() -> None:
    page = parsed(PAGE)
    assert sum(tag == "label" for tag, _ in page.tags) == sum(
        tag in ("input", "select") for tag, _ in page.tags
    )
    assert all("alt" in attributes for tag, attributes in page.tags if tag == "img")
    assert ("html", {"lang": "en"}) in page.tags


def test_known_images_show_their_curve_and_interval() -> None:
    assert "0.9000 (0.8000 to 1.0000)" in render(PAGE)
    assert "Known out-of-distribution images" not in render(replace(PAGE, curves=[]))


def test_the_batch_as_a_whole_is_spoken_of() -> None:
    assert "and so many or more in 40 of 100." in render(PAGE)
    assert "the batch as a whole is not in-domain" in render(replace(PAGE, chance=1e-6))
