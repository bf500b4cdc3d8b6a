"""A picture is what it shows, not what holds it: one score, to the last bit, through every form."""

from pathlib import Path

import numpy as np
import pytest
import torch
from forms import FORMS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny import small_detector

from liftmap.images.prepare import Preparation
from liftmap.images.sources import open_source

PICTURES = arrays.arrays(
    np.uint8, st.tuples(st.integers(5, 12), st.integers(5, 12)), elements=st.integers(0, 255)
)


def prepared(name: str, grey: np.ndarray, folder: Path, prepare: Preparation) -> torch.Tensor:
    [entry] = open_source(FORMS[name](grey, folder))  # type: ignore[arg-type]
    return prepare(entry.load())


@pytest.mark.parametrize("name", FORMS)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(grey=PICTURES)
def test_every_form_gives_the_picture_itself(name: str, grey: np.ndarray, tmp_path: Path) -> None:
    height, width = grey.shape
    assert (
        prepared(name, grey, tmp_path, Preparation(height, width, 1))[0].tolist() == grey.tolist()
    )


def test_every_form_has_one_score(tmp_path: Path) -> None:
    detector = small_detector()
    grey = np.random.default_rng(3).integers(0, 256, (40, 50), dtype=np.uint8)
    scores = {}
    for name in FORMS:
        (tmp_path / name).mkdir()
        pixels = prepared(name, grey, tmp_path / name, detector.preparation)
        scores[name] = detector.scores(pixels[None]).item()
    assert len(FORMS) >= 30
    assert set(scores.values()) == {scores["PNG"]}, scores
