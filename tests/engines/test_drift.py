import numpy as np
import pytest
from scipy.stats import kstest

from liftmap.engines.drift import DriftTest


def normals(count: int, seed: int, mean: float = 0.0) -> list[float]:
    return np.random.default_rng(seed).normal(mean, size=count).tolist()


def test_p_values_are_uniform_and_independent_while_nothing_changes() -> None:
    test = DriftTest(normals(50, 0), run=np.inf)
    p_values = []
    for score in normals(3000, 1):
        p_values.append(test.p_value(score))
        test.update(score)
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p_values[1:], p_values[:-1])[0, 1]) < 0.05


def test_ties_are_broken_at_random() -> None:
    """Scores that are all the same say nothing: p is uniform all the same."""
    test = DriftTest([1.0] * 10, run=np.inf)
    p_values = []
    for _ in range(1000):
        p_values.append(test.p_value(1.0))
        test.update(1.0)
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_every_bet_is_fair() -> None:
    """The mean over a fine grid of p-values is what was staked, for each of them."""
    test = DriftTest([0.0], run=10.0)
    grid = (np.arange(200_000) + 0.5) / 200_000
    paid = np.stack([test.bets(p) for p in grid[::10]]).mean(0)
    assert paid == pytest.approx(np.ones_like(paid), abs=1e-3)
    assert (test.bets(0.5) > 0).all(), "nobody goes bankrupt"


def test_false_alarms_are_as_rare_as_promised() -> None:
    """120 streams of 2,000 normal images, each with a calibration of its own; run = 1,000."""
    waits = []
    for seed in range(120):
        test = DriftTest(normals(60, 2 * seed), run=1e3, seed=seed)
        waits.append(next(test.alarms(normals(2000, 2 * seed + 1)), 2000))
    assert np.mean(waits) > 1000, "of waits cut at 2,000: the whole ones are longer"
    assert np.mean(np.array(waits) < 100) < 0.1, "reaching 1,000 in 100 images is 1 in 10 at most"


@pytest.mark.parametrize(("share", "within"), [(1.0, 30), (0.2, 200), (0.05, 1200)])
def test_strange_images_ring_the_alarm(share: float, within: int) -> None:
    """After 2,000 normal images, in which one stream of five may ring by mistake."""
    delays, mistaken = [], 0
    for seed in range(20):
        draw = np.random.default_rng(seed)
        test = DriftTest(draw.normal(size=1800).tolist(), run=1e4, seed=seed)
        mistaken += len(list(test.alarms(draw.normal(size=2000).tolist())))
        scores = draw.normal(size=4000) + 6 * (draw.random(4000) < share)
        delays.append(next(test.alarms(scores.tolist()), 4000))
    assert np.median(delays) < within
    assert mistaken <= 9, "of 4 on average; more in 1 of 100 cases"


def test_images_that_look_too_usual_ring_it_too() -> None:
    """A covered lens gives the same easy image again and again."""
    test = DriftTest(normals(500, 0), run=1e4)
    assert next(test.alarms([-4.0 - 1e-3 * i for i in range(200)]), None) is not None


def test_it_starts_anew_after_an_alarm() -> None:
    test = DriftTest(normals(500, 0), run=1e3)
    assert len(list(test.alarms([9.0] * 200))) > 3
    rung = test.seen
    assert rung == 200
    fresh = DriftTest(normals(500, 0), run=1e3)
    assert next(fresh.alarms([9.0] * 200)) < 30
    assert fresh.since == 0 and fresh.evidence == 0
