import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from liftmap.errors import SettingsError
from liftmap.evaluation.metrics import (
    _auroc_by_ranks,
    _measures,
    _places,
    aupr_in,
    aupr_out,
    auroc,
    evaluate_scores,
    fpr_at_95_tpr,
    paired_auroc_difference,
    roc_points,
)

side = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30).map(np.array)


@given(side, side)
def test_auroc_is_scikit_learns_on_ties_and_by_ranks(inside: np.ndarray, out: np.ndarray) -> None:
    labels = np.repeat([0, 1], [len(inside), len(out)])
    expected = roc_auc_score(labels, np.concatenate([inside, out]))
    assert auroc(inside, out) == pytest.approx(expected)


@given(side, side)
def test_bootstrap_measures_by_counting_are_scikit_learns(
    inside: np.ndarray, out: np.ndarray
) -> None:
    places = _places(inside, out)
    counted = _measures(*places)
    expected = (auroc, aupr_in, aupr_out, fpr_at_95_tpr)
    assert counted == pytest.approx([measure(inside, out) for measure in expected])
    assert _auroc_by_ranks(inside, out) == pytest.approx(auroc(inside, out))


@given(side, side)
def test_auroc_ignores_monotone_transforms_and_flips_with_the_sides(
    inside: np.ndarray, out: np.ndarray
) -> None:
    assert auroc(np.exp(inside), np.exp(out)) == pytest.approx(auroc(inside, out))
    assert auroc(out, inside) == pytest.approx(1 - auroc(inside, out))


def test_fpr95_on_a_known_case() -> None:
    out = np.arange(100.0, 200.0)  # 95 of them lie at 105 or above
    inside = np.array([1.0, 104.5, 105.0, 150.0])
    assert fpr_at_95_tpr(inside, out) == 0.5


def test_gaussians_one_deviation_apart_have_their_known_auroc() -> None:
    """AUROC of N(0, 1) against N(d, 1) is Phi(d / sqrt 2): 0.7602 for d = 1."""
    draw = np.random.default_rng(0)
    found = evaluate_scores(draw.normal(0, 1, 4000), draw.normal(1, 1, 4000), resamples=300)
    assert found.auroc.value == pytest.approx(0.7602, abs=0.015)
    assert found.auroc.low < 0.7602 < found.auroc.high
    assert found.auroc.high - found.auroc.low == pytest.approx(0.021, abs=0.004)


def test_perfect_separation() -> None:
    found = evaluate_scores(np.arange(10.0), np.arange(20.0, 30.0), resamples=20)
    assert found.auroc.value == 1
    assert found.aupr_in.value == pytest.approx(1)
    assert found.aupr_out.value == pytest.approx(1)
    assert found.fpr95.value == 0
    fpr, tpr = roc_points(np.arange(10.0), np.arange(20.0, 30.0))
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)


def test_aupr_of_random_scores_is_the_share_of_positives() -> None:
    draw = np.random.default_rng(0)
    found = evaluate_scores(draw.normal(size=3000), draw.normal(size=1000), resamples=2)
    assert found.aupr_out.value == pytest.approx(0.25, abs=0.03)
    assert found.aupr_in.value == pytest.approx(0.75, abs=0.03)


def test_pairing_shrinks_the_interval_of_a_difference() -> None:
    draw = np.random.default_rng(0)
    inside, out = draw.normal(0, 1, 500), draw.normal(1, 1, 500)
    close = (inside + draw.normal(0, 0.1, 500), out + draw.normal(0, 0.1, 500))
    found = paired_auroc_difference(inside, out, *close, resamples=300)
    alone = evaluate_scores(inside, out, resamples=300).auroc
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.5 * (alone.high - alone.low)


def test_bad_sides_are_named() -> None:
    with pytest.raises(SettingsError, match="0 in-domain scores"):
        auroc(np.array([]), np.array([1.0]))
    with pytest.raises(SettingsError, match="1 out-of-distribution scores are not finite"):
        auroc(np.array([1.0]), np.array([np.nan]))
    with pytest.raises(SettingsError, match="the same images"):
        paired_auroc_difference(np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(3))
