import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import standard_density

from liftmap.errors import CalibrationError, SettingsError
from liftmap.stages.aggregate import aggregate
from liftmap.stages.judge import Judge, scale_images
from liftmap.stages.method import Method
from liftmap.stages.redraw import Measured
from liftmap.stages.scales import Scale

MSE = Method(distance="mse", early_stop=0.7)


def measured(distances: torch.Tensor, norms: torch.Tensor | None = None) -> Measured:
    return Measured.whole(distances, torch.empty(len(distances), 0) if norms is None else norms)


@given(st.integers(1, 9), st.floats(-1, 1), st.integers(0, 2**20))
def test_an_image_stops_after_the_first_pair_that_looks_normal(
    attempts: int, settled: float, seed: int
) -> None:
    """Against the rule said image by image, whatever attempts and settled score."""
    evidence = torch.randn(20, attempts, generator=torch.Generator().manual_seed(seed))
    judge = Judge(replace(MSE, attempts=attempts), settled=settled)
    stopped = judge.stopped(measured(evidence[..., None]))
    scores = judge.scores(stopped)
    for row, score, count in zip(evidence, scores, stopped.attempts, strict=True):
        looks = [k for k in range(2, attempts, 2) if row[:k].quantile(0.5) < settled]
        assert count == (looks[0] if looks else attempts)
        assert score == row[:count].quantile(0.5)


def test_without_a_settled_score_or_with_a_failed_attempt_all_are_taken() -> None:
    evidence = torch.tensor([[0.0] * 5, [math.nan, 0, 0, 0, 0]])
    for settled, expected in ((None, [5, 5]), (1.0, [2, 5])):
        judge = Judge(replace(MSE, attempts=5), settled=settled)
        stopped = judge.stopped(measured(evidence[..., None]))
        assert stopped.attempts.tolist() == expected
        scores = judge.scores(stopped)
        assert scores[0] == 0 and scores[1].isnan()


def test_noise_norms_move_every_attempt_and_the_settled_score_alike() -> None:
    draw = torch.Generator().manual_seed(0)
    distances = torch.rand(500, 4, 2, generator=draw) + 0.1
    found = measured(distances, 5 + torch.randn(500, 10, generator=draw))
    method = Method(distance="mse+ssim", norms=True, early_stop=0.7)
    judge = Judge.learn(method, found, standard_density(), precision="float32")
    alone = replace(judge, method=replace(method, norms=False), surprise=None)
    unusual = judge.unusual(found.norms)
    assert unusual is not None and judge.settled is not None
    moved = judge.evidence(found) - alone.evidence(found)
    assert torch.allclose(moved, unusual[:, None].expand(-1, 4).float(), atol=1e-5)
    whole = aggregate(judge.evidence(found))
    assert (whole < judge.settled).double().mean() == pytest.approx(0.7, abs=0.05)
    assert len(judge.decides_by.scores) == 400, "a fifth gave the scales"
    assert judge.precision == "float32"


def test_what_is_lacking_is_named() -> None:
    with pytest.raises(CalibrationError, match=r"no scales for mse\+ssim and noise norms"):
        Judge(Method(distance="mse+ssim", norms=True)).check()
    with pytest.raises(CalibrationError, match="no calibration for this method"):
        Judge(MSE).decide(torch.zeros(1), 0.05)
    with pytest.raises(SettingsError, match="settled=nan"):
        Judge(MSE, settled=math.nan)


def test_scales_are_lent_without_decisions() -> None:
    judge = Judge(MSE, surprise=Scale(0.0, 1.0), settled=1.0, map_top=2.0, precision="bf16")
    other = replace(MSE, attempts=2)
    assert judge.lent_to(other) == Judge(other)
    both = replace(other, norms=True)
    assert judge.lent_to(both) == Judge(both, surprise=Scale(0.0, 1.0))


@given(st.integers(1, 5000))
def test_a_fifth_of_the_images_gives_the_scales_and_at_most_200(count: int) -> None:
    rows = scale_images(count).tolist()
    assert len(set(rows)) == min(200, max(1, min(2, count - 1), count // 5))
    assert rows[0] == 0
    assert max(rows) < count
