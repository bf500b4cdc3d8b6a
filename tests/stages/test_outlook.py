from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import standard_density

from liftmap.diffusion.denoiser import Parametrisation
from liftmap.diffusion.process import VE, VP
from liftmap.errors import CalibrationError, SettingsError
from liftmap.images.store import HoldOut
from liftmap.stages.judge import Judge, learn_density
from liftmap.stages.masks import MaskSettings
from liftmap.stages.method import METHODS, Method
from liftmap.stages.outlook import DENSE, Outlook, calibration_scores, rehearse
from liftmap.stages.redraw import Measured

SHAPES = [(3, 32, 32), (1, 31, 40), (1, 64, 48)]


def measured(method: Method, images: int) -> Measured:
    """Distances and norms as a network would give them."""
    kinds = len(method.distance.split("+"))
    norms = torch.randn(images, 10 if method.norms else 0)
    return Measured.whole(torch.rand(images, method.attempts, kinds) + 0.1, norms)


def accepted(judge: Judge, rate: float) -> bool:
    try:
        judge.decides_by.limit(rate)
    except CalibrationError:
        return False
    return True


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(METHODS)),
    images=st.integers(3, 3000),
    share=st.floats(0.01, 0.6),
    least=st.integers(0, 200),
    rate=st.sampled_from([0.002, 0.01, 0.05, 0.1, 0.3, 0.5]),
)
def test_what_is_announced_is_what_the_calibration_accepts(
    name: str, images: int, share: float, least: int, rate: float
) -> None:
    method, hold_out = METHODS[name], HoldOut(share, 2000, least)
    outlook = Outlook(method, hold_out, images, hold_out.count(images))
    if not outlook.scores:
        assert not outlook.supports(rate)
        return
    found = measured(method, outlook.held_out)
    density = standard_density() if method.norms else None
    judge = Judge.learn(method, found, density, precision="float32")
    assert len(judge.decides_by.scores) == outlook.scores
    assert outlook.supports(rate) == accepted(judge, rate)
    lowest = -(-1000 // (outlook.scores + 1)) / 1000
    assert accepted(judge, lowest) and f"from {100 * lowest:g}% on" in outlook.words


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(METHODS)),
    hold_out=st.builds(HoldOut, st.floats(0, 0.6), st.integers(0, 300), st.integers(0, 200)),
    rate=st.sampled_from([0.01, 0.05, 0.2]),
)
def test_so_many_normal_images_and_no_fewer_support_a_rate(
    name: str, hold_out: HoldOut, rate: float
) -> None:
    def supports(images: int) -> bool:
        return Outlook(METHODS[name], hold_out, images, hold_out.count(images)).supports(rate)

    needed = Outlook(METHODS[name], hold_out, 5, 1).needed(rate)
    if needed is None:
        assert not any(supports(images) for images in (100, 10_000, 10**8))
        return
    assert supports(needed) and not supports(needed - 1)
    assert all(supports(needed + more) for more in range(0, 400, 7))


def test_the_numbers_that_the_pages_state() -> None:
    outlook = Outlook(METHODS["fast"], HoldOut(), 100, 20)
    assert (outlook.needed(0.01), outlook.needed(0.05)) == (615, 115)
    assert outlook.words == (
        "warning: 16 held-out images will calibrate: false-alarm rates from 5.9% on, not 5%, which "
        "score takes by default; 5% takes 115 normal images; 1% takes 615 normal images"
    )
    assert "decide nothing until `liftmap calibrate`" in replace(outlook, held_out=2).words
    assert replace(outlook, images=615, held_out=123).words == (
        "99 held-out images will calibrate: false-alarm rates from 1% on"
    )
    none = Outlook(METHODS["fast"], HoldOut(most=10), 100, 10)
    assert "5% can't be had with this hold-out" in none.words


def test_a_density_needs_so_many_images_and_no_more() -> None:
    norms = torch.randn(DENSE, 10)
    learn_density(norms)
    with pytest.raises(CalibrationError, match="noise norms"):
        learn_density(norms[1:])
    assert calibration_scores(METHODS["fast"], DENSE - 1, 50) == 0
    assert calibration_scores(METHODS["redraws"], DENSE - 1, 50) == 40


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_methods_that_work_are_let_pass(name: str, shape: tuple[int, int, int]) -> None:
    rehearse(METHODS[name], VP(), Parametrisation(), shape)
    rehearse(METHODS[name], VE(0.01, 50.0), Parametrisation("score", "sigma"), shape)


@pytest.mark.parametrize(
    ("method", "side", "message"),
    [
        (METHODS["fast"], 16, "at 16x16 pixels: LPIPS of 16x16 pixels: need at least 31 a side"),
        (Method(distance="mse+ssim"), 8, "SSIM of images of 8 pixels a side: need at least 11"),
        (Method(mask=MaskSettings(cells=8), distance="mse"), 4, "cells=8 on 4x4 pixels"),
        (Method(distance="mse", aggregate="most"), 16, "most"),
        (Method(distance="nearness"), 16, "distance 'nearness': need one of"),
    ],
)
def test_what_a_method_can_not_do_is_refused(method: Method, side: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        rehearse(method, VP(), Parametrisation(), (3, side, side))


def test_small_images_have_distances_that_work() -> None:
    for distance in ("mse", "ssim", "mse+ssim"):
        method = replace(METHODS["fast"], distance=distance)
        rehearse(method, VP(), Parametrisation(), (3, 16, 16))
