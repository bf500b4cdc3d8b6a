import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liftmap.errors import CalibrationError, SettingsError
from liftmap.stages.aggregate import (
    AGGREGATES,
    Rule,
    Scale,
    Scales,
    aggregate,
    rule_rows,
    until_settled,
)

rows = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12)


@given(rows)
def test_median_and_mean_are_numpys(row: list[float]) -> None:
    distances = torch.tensor([row])
    assert aggregate(distances, "median").item() == pytest.approx(np.median(row), abs=1e-6)
    assert aggregate(distances, "mean").item() == pytest.approx(np.mean(row), abs=1e-6)


@given(rows)
def test_no_aggregate_cares_for_the_order_of_the_attempts(row: list[float]) -> None:
    for how in AGGREGATES:
        one, other = torch.tensor([row]), torch.tensor([row[::-1]])
        assert aggregate(one, how).item() == pytest.approx(aggregate(other, how).item(), abs=1e-6)


def test_the_trimmed_mean_ignores_a_fifth_at_each_end() -> None:
    row = torch.tensor([[-100.0, -50.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 99.0, 500.0]])
    assert aggregate(row, "trimmed").item() == pytest.approx(3.5)


def test_an_unknown_name_lists_what_would_work() -> None:
    with pytest.raises(SettingsError, match="median, mean, trimmed"):
        aggregate(torch.zeros(1, 1), "max")


@given(st.integers(1, 9), st.floats(-1, 1), st.integers(0, 2**20))
def test_an_image_stops_after_the_first_pair_that_looks_normal(
    attempts: int, settled: float, seed: int
) -> None:
    """Against the rule said image by image, whatever attempts and settled score."""
    evidence = torch.randn(20, attempts, generator=torch.Generator().manual_seed(seed))
    asked = torch.zeros(20, dtype=torch.long)

    def take(rows: torch.Tensor, first: int, last: int) -> torch.Tensor:
        assert (asked[rows] == first).all(), "attempts come in order, none twice"
        asked[rows] = last
        return evidence[rows, first:last]

    scores, took = until_settled(take, 20, attempts, settled)
    assert torch.equal(took, asked)
    for row, score, count in zip(evidence, scores, took, strict=True):
        looks = [k for k in range(2, attempts, 2) if row[:k].quantile(0.5) < settled]
        assert count == (looks[0] if looks else attempts)
        assert score == row[:count].quantile(0.5)


def test_without_a_settled_score_or_with_a_failed_attempt_all_are_taken() -> None:
    evidence = torch.tensor([[0.0] * 5, [math.nan, 0, 0, 0, 0]])
    for settled, expected in ((None, [5, 5]), (1.0, [2, 5])):
        scores, took = until_settled(lambda i, a, b: evidence[i, a:b], 2, 5, settled)
        assert took.tolist() == expected
        assert scores[0] == 0 and scores[1].isnan()


def test_scales_of_log_normal_distances_are_their_parameters() -> None:
    """ln d ~ N(m, s): the centre is m, the spread s, and the standardised distances N(0, 1)."""
    draw = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, 5, 2, generator=draw)
    distances = (torch.tensor([-3.0, 1.0]) + torch.tensor([0.5, 2.0]) * normal).exp()
    scales = Scales.from_distances(distances)
    assert scales.centres == pytest.approx((-3.0, 1.0), abs=0.06)
    assert scales.spreads == pytest.approx((0.5, 2.0), rel=0.02)
    assert torch.allclose(scales.strongest(distances), normal.amax(2), atol=0.1, rtol=0.05)


@given(st.floats(0.01, 100), st.integers(0, 1))
def test_the_unit_of_a_distance_does_not_matter(unit: float, kind: int) -> None:
    draw = torch.Generator().manual_seed(0)
    distances = torch.rand(50, 3, 2, generator=draw) + 0.1
    in_unit = distances.clone()
    in_unit[..., kind] *= unit
    one = Scales.from_distances(distances).strongest(distances)
    other = Scales.from_distances(in_unit).strongest(in_unit)
    assert torch.allclose(one, other, atol=1e-4)


def test_a_kind_that_sees_nothing_can_not_hide_what_another_sees() -> None:
    scales = Scales((0.0, 0.0), (1.0, 1.0))
    seen = scales.strongest(torch.tensor([[[20.0, 1.0], [20.0, 0.0]]]))
    assert seen.tolist() == [pytest.approx([math.log(20)] * 2)]


def test_the_scale_of_normal_values_is_their_mean_and_deviation() -> None:
    values = 3.0 + 2.0 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    scale = Scale.from_values(values)
    assert (scale.centre, scale.spread) == pytest.approx((3.0, 2.0), abs=0.05)
    assert scale.standard(torch.tensor([3.0, 7.0])).tolist() == pytest.approx([0, 2], abs=0.05)
    with pytest.raises(CalibrationError, match="2 in-domain images"):
        Scale.from_values(torch.ones(2))


def test_a_surprise_moves_every_attempt_and_the_settled_score_alike() -> None:
    draw = torch.Generator().manual_seed(0)
    distances = torch.rand(100, 4, 2, generator=draw) + 0.1
    surprise = 5 + torch.randn(100, generator=draw)
    rule = Rule.from_distances(distances, 0.7, surprise=surprise)
    assert rule.surprise is not None and rule.settled is not None
    moved = rule.evidence(distances, surprise) - rule.evidence(distances)
    assert torch.allclose(moved, rule.surprise.standard(surprise)[:, None].expand(-1, 4), atol=1e-5)
    whole = aggregate(rule.evidence(distances, surprise))
    assert (whole < rule.settled).double().mean() == pytest.approx(0.7, abs=0.01)
    assert Rule.from_json(json.loads(json.dumps(asdict(rule)))) == rule


def test_distances_that_no_scale_can_be_taken_from_are_refused() -> None:
    with pytest.raises(CalibrationError, match="3 in-domain images: spreads"):
        Scales.from_distances(torch.ones(3, 2, 2))
    with pytest.raises(CalibrationError, match="finite"):
        Scales.from_distances(torch.full((3, 2, 2), float("nan")))
    with pytest.raises(SettingsError, match="as many"):
        Scales((0.0,), (1.0, 2.0))


@given(st.integers(1, 5000))
def test_a_fifth_of_the_images_gives_the_scales_and_at_most_200(count: int) -> None:
    rows = rule_rows(count).tolist()
    assert len(set(rows)) == min(200, max(1, min(2, count - 1), count // 5))
    assert rows[0] == 0
    assert max(rows) < count
