"""A command killed at random moments; `make faults` does so 50 times with each command."""

import random
from pathlib import Path

import pytest
from faults import jobs, run, write_images
from tiny import calibrated_model, decide_by

from liftmap.detector import Detector


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = calibrated_model(tmp_path / "model")
    detector = Detector.from_pretrained(folder, method="quick", device="cpu")
    decide_by(detector, map(float, range(40)), scales=detector.judge.scales)
    detector.save(folder)
    return folder


@pytest.mark.parametrize("name", ["score", "watch"])
def test_nothing_is_lost_or_doubled(name: str, model: Path, tmp_path: Path) -> None:
    job = jobs(*write_images(2000, tmp_path / "images"), str(model))[name]
    run(job, tmp_path / "undisturbed", 0, 0.0, random.Random(0))
    killed, errors = run(job, tmp_path / "disturbed", 2, 3.0, random.Random(1))
    assert killed >= 1  # all that a quick machine leaves time for
    assert errors == 0
    assert job.differs(tmp_path / "disturbed", tmp_path / "undisturbed") == ""


def test_a_difference_would_be_seen(model: Path, tmp_path: Path) -> None:
    job = jobs(*write_images(20, tmp_path / "images"), str(model))["score"]
    few = jobs(*write_images(15, tmp_path / "fewer"), str(model))["score"]
    run(job, tmp_path / "a", 0, 0.0, random.Random(0))
    run(few, tmp_path / "b", 0, 0.0, random.Random(0))
    assert job.differs(tmp_path / "b", tmp_path / "a") == "5 lost, 0 doubled"
