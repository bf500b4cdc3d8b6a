import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liftmap.errors import SettingsError
from liftmap.stages.aggregate import AGGREGATES, aggregate

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
