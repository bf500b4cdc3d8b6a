"""The service as a client sees it."""

import base64
import io
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from tiny import decide_by, pixels, small_detector, small_method

from liftmap.detector import Detector
from liftmap.errors import CalibrationError, SettingsError
from liftmap.serve.app import create_app
from liftmap.serve.batcher import Batcher, OneScore
from liftmap.serve.schema import ServiceSettings


def png(seed: int = 0) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(pixels(1, seed=seed)[0, 0].numpy()).save(file, "PNG")
        return file.getvalue()


@pytest.fixture(scope="module")
def detector() -> Detector:
    made = small_detector(small_method(attempts=2, steps=1))
    decide_by(made, [i / 40 for i in range(1, 41)])
    return made


@pytest.fixture
def client(detector: Detector) -> Iterator[TestClient]:
    with TestClient(create_app(detector)) as made:
        yield made


def form(*images: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (f"{i}.png", image, "image/png")) for i, image in enumerate(images)]


def test_files_get_the_detectors_scores_and_decisions(
    client: TestClient, detector: Detector
) -> None:
    answer = client.post("/v1/score", files=form(png(0), png(1)))
    assert answer.status_code == 200
    found = answer.json()
    expected = detector.predict([Image.open(io.BytesIO(png(i))) for i in range(2)])
    assert found["false_alarms"] == 0.05
    assert [r["id"] for r in found["results"]] == ["0.png", "1.png"]
    assert [r["score"] for r in found["results"]] == pytest.approx(expected.scores.tolist())
    assert [r["p_value"] for r in found["results"]] == pytest.approx(expected.p_values.tolist())
    assert [r["is_ood"] for r in found["results"]] == expected.is_ood.tolist()


def test_json_says_the_same_as_a_form(client: TestClient) -> None:
    asked = {"images": [base64.b64encode(png()).decode()], "false_alarms": 0.2}
    by_json = client.post("/v1/score", json=asked).json()
    by_form = client.post("/v1/score", files=form(png()), data={"false_alarms": "0.2"}).json()
    assert by_json["false_alarms"] == by_form["false_alarms"] == 0.2
    assert by_json["results"][0]["score"] == pytest.approx(by_form["results"][0]["score"])


def test_a_bad_image_costs_itself_alone(client: TestClient) -> None:
    found = client.post("/v1/score", files=form(b"", png(), b"text")).json()["results"]
    assert "empty" in found[0]["error"] and "not an image" in found[2]["error"]
    assert found[1]["score"] is not None and found[0]["score"] is None


def test_a_request_without_any_usable_image_is_refused_with_the_reasons(
    client: TestClient,
) -> None:
    answer = client.post("/v1/score", json={"images": ["not base64!", "aGVsbG8=", "\u00e4"]})
    assert answer.status_code == 422
    first, second, third = answer.json()["results"]
    assert "not base64" in third["error"]
    assert "not base64" in first["error"] and "not an image" in second["error"]
    assert answer.json()["detail"].startswith(f"0: {first['error']}; 1: {second['error']}; 2: ")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"json": {"images": []}}, "images"),
        ({"json": {"images": ["aa"], "false_alarms": 2}}, "less than 1"),
        ({"json": {"images": ["aa"], "false_alarms": 0.001}}, "needs at least 999"),
        ({"data": {"x": "y"}, "files": {"other": b"x"}}, "need at least one file"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, "JSON"),
    ],
)
def test_bad_requests_say_what_is_wrong(
    client: TestClient, asked: dict[str, Any], message: str
) -> None:
    answer = client.post("/v1/score", **asked)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


def test_explain_gives_a_picture_or_numbers(client: TestClient) -> None:
    picture = client.post("/v1/explain", files={"image": ("a.png", png(), "image/png")})
    assert picture.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(picture.content)) as shown:
        assert shown.width > 300
    asked = {"files": {"image": ("a.png", png(), "image/png")}, "data": {"format": "json"}}
    numbers = client.post("/v1/explain", **asked).json()
    assert np.array(numbers["distance_map"]).shape == (32, 32)
    assert 0 < numbers["p_value"] <= 1
    bad = client.post("/v1/explain", files={"image": ("a.png", b"x", "image/png")})
    assert bad.status_code == 422 and "a.png: not an image" in bad.json()["detail"]


def test_too_much_at_once_is_refused(detector: Detector) -> None:
    settings = ServiceSettings(most_bytes=5000, most_images=2, most_waiting=2)
    with TestClient(create_app(detector, settings)) as client:
        assert client.post("/v1/score", files=form(b"x" * 6000)).status_code == 413
        many = client.post("/v1/score", files=form(b"a", b"b", b"c"))
        assert many.status_code == 413 and "at most 2" in many.json()["detail"]


def test_a_full_queue_says_when_to_come_back(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(detector, ServiceSettings(most_images=1, most_waiting=1))
    with TestClient(app) as client:
        monkeypatch.setattr(Batcher, "running", property(lambda self: False))
        answer = client.post("/v1/score", files=form(png()))
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/readyz").status_code == 503


def test_slow_answers_are_given_up(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(batcher: Batcher, images: list[Any]) -> list[Any]:
        time.sleep(0.5)
        return [OneScore(0.0, 1.0, 2)] * len(images)

    monkeypatch.setattr(Batcher, "_score", slow)
    with TestClient(create_app(detector, ServiceSettings(seconds=0.1))) as client:
        answer = client.post("/v1/score", files=form(png()))
    assert answer.status_code == 503 and "not done after 0.1 s" in answer.json()["detail"]


def test_with_a_key_only_those_who_have_it_are_served(detector: Detector) -> None:
    with TestClient(create_app(detector, ServiceSettings(api_key="sesame"))) as client:
        assert client.post("/v1/score", files=form(png())).status_code == 401
        wrong = {"X-API-Key": "sesamf"}
        assert client.post("/v1/score", files=form(png()), headers=wrong).status_code == 401
        right = {"X-API-Key": "sesame"}
        assert client.post("/v1/score", files=form(png()), headers=right).status_code == 200
        assert client.get("/v1/model").status_code == 401
        assert client.get("/healthz").text == "ok", "probes need no key"


def test_it_tells_of_itself_and_counts(client: TestClient) -> None:
    client.post("/v1/score", files=form(png(), b""))
    about = client.get("/v1/model").json()
    assert (about["height"], about["channels"], about["calibrated_on"]) == (32, 1, 40)
    assert client.get("/readyz").text == "ready"
    metrics = client.get("/metrics").text
    assert 'liftmap_images_total{outcome="unusable"} 1.0' in metrics
    assert 'liftmap_requests_total{path="/v1/score",status="200"} 1.0' in metrics
    assert "liftmap_waiting_images 0.0" in metrics
    schema = client.get("/openapi.json").json()
    for path in ("/v1/score", "/v1/explain"):
        body = schema["paths"][path]["post"]["requestBody"]["content"]
        bare = {"application/octet-stream", "image/*", "image/png", "image/jpeg"}
        assert set(body) == {"multipart/form-data", "application/json"} | bare
    page = client.get("/").text
    assert page.startswith("<!doctype html>") and "http" not in page.replace("<!doctype html>", "")


def test_the_log_holds_no_names_and_no_pixels(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "liftmap.serve"):
        client.post("/v1/score", files=form(png()))
        client.get("/secret/../path?token=1")
    lines = [json.loads(r.message) for r in caplog.records if r.name == "liftmap.serve"]
    assert [line["path"] for line in lines] == ["/v1/score", "other"]
    assert all(set(line) == {"path", "status", "bytes", "ms"} for line in lines)


def test_settings_and_models_that_can_not_serve_are_refused() -> None:
    with pytest.raises(SettingsError, match="would never fit the queue"):
        ServiceSettings(most_images=10, most_waiting=5)
    with pytest.raises(SettingsError, match=r"seconds=0\.0"):
        ServiceSettings(seconds=0.0)
    with pytest.raises(CalibrationError, match="no calibration"):
        create_app(small_detector())


def test_an_empty_key_is_no_key_and_refused() -> None:
    with pytest.raises(SettingsError, match="API key is empty"):
        ServiceSettings(api_key="")
