import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liftmap.errors import CalibrationError, SettingsError
from liftmap.stages.calibrate import Calibration
from liftmap.stages.judge import Judge
from liftmap.stages.method import Method
from liftmap.stages.redraw import Measured

METHOD = Method(attempts=6, distance="mse", early_stop=0.5)

some_scores = st.lists(st.integers(0, 20).map(lambda v: v / 4), min_size=1, max_size=60)


def test_p_values_count_the_scores_at_least_as_high() -> None:
    calibration = Calibration.from_scores([3.0, 1.0, 2.0, 2.0])
    got = calibration.p_values(torch.tensor([0.0, 2.0, 2.5, 3.0, 9.0]))
    assert got.tolist() == [1.0, 4 / 5, 2 / 5, 2 / 5, 1 / 5]


@given(some_scores, some_scores, st.floats(0.01, 0.99))
def test_flagging_above_the_threshold_is_flagging_small_p_values(
    known: list[float], new: list[float], rate: float
) -> None:
    calibration = Calibration.from_scores(known)
    if len(known) < Calibration.needed(rate):
        with pytest.raises(CalibrationError):
            calibration.threshold(rate)
        return
    p_values = calibration.p_values(torch.tensor(new))
    flagged = calibration.flagged(p_values, rate)
    assert flagged.tolist() == [score > calibration.threshold(rate) for score in new]


@pytest.mark.parametrize(
    ("rate", "count", "limit"),
    [
        (0.1 * 0.7, 99, 7 / 100),  # a float just below 0.07
        (0.07, 99, 7 / 100),
        (0.7 / 100, 999, 7 / 1000),
        (1 / 3, 2, 1 / 3),
        (0.29999, 9, 2 / 10),
        (0.999, 9, 9 / 10),
    ],
)
def test_a_rate_flags_p_values_up_to_the_one_it_means(
    rate: float, count: int, limit: float
) -> None:
    calibration = Calibration.from_scores(map(float, range(count)))
    p_values = torch.arange(1, count + 2).double() / (count + 1)
    assert p_values[calibration.flagged(p_values, rate)].max() == limit
    assert calibration.allowed(rate) == round(limit * (count + 1))


@pytest.mark.parametrize(
    ("rate", "count"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.3, 3), (1 / 3, 2)]
)
def test_the_smallest_supported_rate_is_exact(rate: float, count: int) -> None:
    assert Calibration.needed(rate) == count
    enough = Calibration.from_scores(map(float, range(count)))
    assert enough.threshold(rate) == count - 1
    with pytest.raises(CalibrationError, match=f"at least {count} calibration images, there are"):
        Calibration.from_scores(map(float, range(count - 1))).threshold(rate)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (40, 0.05), (199, 0.01), (30, 0.2)])
def test_the_false_alarm_rate_holds_over_many_calibrations(
    count: int, rate: float, ties: bool
) -> None:
    draw = np.random.default_rng(count)
    rounds, fresh = 4000, 20
    scores = draw.gamma(2.0, size=(rounds, count + fresh))
    if ties:
        scores = np.round(scores * 2) / 2
    flagged = [
        (row[count:] > Calibration.from_scores(row[:count].tolist()).threshold(rate)).mean()
        for row in scores
    ]
    observed, error = np.mean(flagged), np.std(flagged) / rounds**0.5
    assert observed <= rate + 3 * error
    if not ties:
        exact = np.floor(round(rate * (count + 1), 9)) / (count + 1)
        assert observed == pytest.approx(exact, abs=4 * error)


@pytest.mark.parametrize("quantile", [0.3, 0.7, 0.99])
def test_the_false_alarm_rate_holds_when_images_stop_early(quantile: float) -> None:
    """The calibration images go by the same rule; also when it often cuts above the threshold."""
    draw = torch.Generator().manual_seed(2)
    count, fresh, rounds, rate = 39, 40, 600, 0.05
    flagged = []
    for _ in range(rounds):
        images = torch.randn(count + fresh + 20, 1, generator=draw)
        evidence = images + torch.randn(len(images), 6, generator=draw)
        settled = evidence[:20].quantile(0.5, dim=1).quantile(quantile).item()
        judge = Judge(METHOD, settled=settled)
        rest = Measured.whole(evidence[20:, :, None], torch.empty(count + fresh, 0))
        stopped = judge.stopped(rest)
        assert set(stopped.attempts.tolist()) <= {2, 4, 6}
        scores = judge.scores(stopped)
        judge = judge.calibrated(Calibration.from_scores(scores[:count].tolist()))
        flagged.append(judge.decide(scores[count:], rate).is_ood.double().mean().item())
    error = np.std(flagged) / rounds**0.5
    assert np.mean(flagged) == pytest.approx(2 / 40, abs=4 * error)


def test_the_rate_of_one_calibration_lies_in_its_stated_interval() -> None:
    draw = np.random.default_rng(1)
    inside = 0
    for _ in range(1500):
        calibration = Calibration.from_scores(draw.uniform(size=200).tolist())
        low, high = calibration.false_alarm_interval(0.05)
        inside += low <= 1 - calibration.threshold(0.05) <= high
    assert inside / 1500 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(SettingsError, match=f"rate {rate}"):
        Calibration.from_scores([1.0]).threshold(rate)


def test_bad_scores_are_refused() -> None:
    with pytest.raises(CalibrationError, match="0 calibration scores"):
        Calibration.from_scores([])
    with pytest.raises(CalibrationError, match="NaN"):
        Calibration.from_scores([1.0, float("nan")])
    with pytest.raises(CalibrationError, match="not sorted"):
        Calibration((2.0, 1.0))
