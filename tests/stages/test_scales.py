import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liftmap.errors import CalibrationError, SettingsError
from liftmap.stages.scales import Scale, Scales


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


def test_distances_that_no_scale_can_be_taken_from_are_refused() -> None:
    with pytest.raises(CalibrationError, match="3 in-domain images: spreads"):
        Scales.from_distances(torch.ones(3, 2, 2))
    with pytest.raises(CalibrationError, match="finite"):
        Scales.from_distances(torch.full((3, 2, 2), float("nan")))
    with pytest.raises(SettingsError, match="as many"):
        Scales((0.0,), (1.0, 2.0))
