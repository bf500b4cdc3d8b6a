"""One image, asked for in every way that clients send images."""

import base64
import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image
from tiny import decide_by, pixels, small_detector, small_method

from liftmap.detector import Detector
from liftmap.errors import ImageError
from liftmap.serve.app import create_app
from liftmap.serve.asked import decoded
from liftmap.serve.schema import ServiceSettings


def png(seed: int = 0) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(pixels(1, seed=seed)[0, 0].numpy()).save(file, "PNG")
        return file.getvalue()


PLAIN = base64.b64encode(png()).decode()
LINES = base64.encodebytes(png()).decode()  # RFC 2045: lines of 76
URL_SAFE = base64.urlsafe_b64encode(png()).decode()
KINDS = "multipart/form-data, application/json, application/octet-stream or image/*"


@pytest.fixture(scope="module")
def detector() -> Detector:
    made = small_detector(small_method(attempts=2, steps=1))
    decide_by(made, [i / 40 for i in range(1, 41)])
    return made


def form(*images: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (f"{i}.png", image, "image/png")) for i, image in enumerate(images)]


@pytest.fixture(scope="module")
def client(detector: Detector) -> Iterator[TestClient]:
    with TestClient(create_app(detector)) as made:
        yield made


def sent(kind: str | None, content: bytes = png()) -> dict[str, Any]:
    return {"content": content, "headers": {} if kind is None else {"Content-Type": kind}}


@pytest.fixture(scope="module")
def score(client: TestClient) -> float:
    found = client.post("/v1/score", files=form(png())).json()["results"][0]["score"]
    assert isinstance(found, float)
    return found


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        LINES,
        LINES.replace("\n", "\r\n"),
        f"  {PLAIN[:10]}\t{PLAIN[10:]} ",
        URL_SAFE,
        PLAIN.rstrip("="),
        URL_SAFE.rstrip("="),
        f"data:image/png;base64,{PLAIN}",
        f"DATA:image/png;name=a.png;charset=utf-8; Base64,{LINES}",
        f"data:;base64,{quote(URL_SAFE.rstrip('='))}",
        f"data:image/png;base64,{quote(PLAIN)}",
    ],
    ids=range(11),
)
def test_base64_is_taken_as_clients_write_it(client: TestClient, text: str, score: float) -> None:
    found = client.post("/v1/score", json={"images": [text]}).json()["results"]
    assert found[0]["score"] == pytest.approx(score)
    in_form = client.post("/v1/score", files={"images": (None, text)}).json()["results"]
    assert (in_form[0]["id"], in_form[0]["score"]) == ("0", pytest.approx(score))
    picture = client.post("/v1/explain", json={"image": text})
    assert picture.headers["content-type"] == "image/png"


@given(some.binary(max_size=40), some.sampled_from(["\n", "\r\n", " ", ""]), some.integers(1, 80))
def test_every_way_of_writing_base64_gives_the_bytes_back(
    data: bytes, between: str, width: int
) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(data).decode()
        for kept in (text, text.rstrip("=")):
            lines = between.join(kept[i : i + width] for i in range(0, len(kept), width))
            assert decoded(lines) == decoded(f"data:image/png;base64,{lines}") == data


@pytest.mark.parametrize(
    "text",
    ["no base64!", "aGVsb", "aGVs=bG8=", "QQ==QQ==", "QQ===", "ä", "a.png", "https://a/b.png",
     "data:image/png,aGVsbG8=", "data:image/png;base64", "data:image/png;base64,%%", "\ud83d"],
)  # fmt: skip
def test_what_is_no_base64_is_refused_by_name(client: TestClient, text: str) -> None:
    with pytest.raises(ImageError, match="not base64"):
        decoded(text)
    if text.isprintable():
        answer = client.post("/v1/score", json={"images": [PLAIN, text]})
        assert answer.status_code == 200, "the other image has its score"
        assert "not base64" in answer.json()["results"][1]["error"]


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "image/png", "IMAGE/JPEG; q=1", "image/x-unknown", None]
)
def test_a_body_may_be_an_image_alone(client: TestClient, kind: str | None, score: float) -> None:
    answer = client.post("/v1/score?false_alarms=0.2", **sent(kind)).json()
    assert answer["false_alarms"] == 0.2
    assert [(r["id"], r["score"]) for r in answer["results"]] == [("0", pytest.approx(score))]
    numbers = client.post("/v1/explain?format=json", **sent(kind)).json()
    assert numbers["score"] == pytest.approx(score, rel=1e-3)
    assert client.post("/v1/explain", **sent(kind)).headers["content-type"] == "image/png"
    bad = client.post("/v1/score", **sent(kind, b""))
    assert bad.status_code == 422 and "the file is empty" in bad.json()["detail"]


def test_content_types_have_parameters_and_capitals(client: TestClient, score: float) -> None:
    body = f'{{"images": ["{PLAIN}"], "false_alarms": 0.1}}'.encode()
    answer = client.post("/v1/score?false_alarms=0.2", **sent("Application/JSON ;v=1", body))
    assert answer.json()["false_alarms"] == 0.1, "the body goes before the address"
    request = client.build_request("POST", "/v1/score", files=form(png(), png(1)))
    kind = request.headers["content-type"].replace("multipart/form-data", "Multipart/Form-Data")
    found = client.post("/v1/score", **sent(kind, request.read())).json()["results"]
    assert [r["id"] for r in found] == ["0.png", "1.png"]
    assert found[0]["score"] == pytest.approx(score)


@pytest.mark.parametrize(
    "kind", ["text/plain; charset=utf-8", "application/x-www-form-urlencoded", "video/mp4", "x"]
)
def test_other_content_types_are_refused_with_those_that_are_taken(
    client: TestClient, kind: str
) -> None:
    for path in ("/v1/score", "/v1/explain"):
        answer = client.post(path, **sent(kind))
        assert answer.status_code == 415
        assert answer.json()["detail"] == f"content type {kind}: need {KINDS}"


def test_explain_says_what_is_wrong(client: TestClient) -> None:
    for asked, message in (
        ({"files": {"other": b"x"}}, "image: need one file in the form, got 0"),
        ({"files": [("image", b"a"), ("image", b"b")]}, "got 2"),
        ({"files": {"image": png()}, "data": {"format": "bmp"}}, "format: Input should be 'png'"),
        ({"json": {"image": "!"}}, "image: not base64"),
        ({"json": {"image": PLAIN, "format": 3}}, "format"),
        (sent("application/json", b"{"), "JSON"),
    ):
        answer = client.post("/v1/explain", **asked)  # type: ignore[arg-type]
        assert answer.status_code == 422 and message in answer.json()["detail"]
    assert client.post("/v1/explain?format=bmp", **sent(None)).status_code == 422
    assert client.post("/v1/score?false_alarms=1", **sent(None)).status_code == 422


def test_bodies_and_fields_are_limited_alike(detector: Detector) -> None:
    with TestClient(create_app(detector, ServiceSettings(most_bytes=2**21 + 500))) as client:
        long = "A" * 2**21  # more than a form's field may hold by default
        for asked in (sent(None, long.encode()), {"files": {"images": (None, long)}}):
            assert client.post("/v1/score", **asked).status_code == 422, "no image, but taken"
        for asked in (sent("image/png", b"A" * 2**22), {"files": {"images": (None, long * 2)}}):
            assert client.post("/v1/score", **asked).status_code == 413
