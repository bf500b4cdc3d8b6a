"""How well scores separate: AUROC, AUPR and FPR@95TPR with bootstrap intervals.

Scores are (n,), higher = more out-of-distribution. OOD images are the positives, in-domain ones the
negatives, except in AUPR-in. Point values of AUROC and AUPR are scikit-learn's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from liftmap.errors import SettingsError

Scores = Float[np.ndarray, " _"]


@dataclass(frozen=True)
class Interval:
    """A value and its percentile bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Detection:
    """How well scores separate; each measure in [0, 1].

    auroc: the chance that an OOD image scores higher than an in-domain one, ties counting half.
    aupr_in: average precision with in-domain images as positives, by the negated score.
    aupr_out: average precision with OOD images as positives.
    fpr95: the share of in-domain images flagged at the threshold that catches at least 95% of the
        OOD images (OOD are the positives; papers that take in-domain as positives differ).
    """

    auroc: Interval
    aupr_in: Interval
    aupr_out: Interval
    fpr95: Interval
    n_in: int
    n_out: int


def auroc(scores_in: Scores, scores_out: Scores) -> float:
    """The chance that an OOD image scores higher than an in-domain one, ties counting half.

    >>> auroc(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    0.875

    Raises:
        SettingsError: a side is empty or holds a score that is not finite; so do all measures here.
    """
    return float(roc_auc_score(*_labelled(scores_in, scores_out)))


def aupr_out(scores_in: Scores, scores_out: Scores) -> float:
    """Average precision with OOD images as positives."""
    return float(average_precision_score(*_labelled(scores_in, scores_out)))


def aupr_in(scores_in: Scores, scores_out: Scores) -> float:
    """Average precision with in-domain images as positives, by the negated score."""
    return float(average_precision_score(*_labelled(-scores_out, -scores_in)))


def fpr_at_95_tpr(scores_in: Scores, scores_out: Scores) -> float:
    """The share of in-domain images flagged at the highest threshold that catches 95% of the OOD.

    >>> fpr_at_95_tpr(np.array([1.0, 2.0, 3.0, 4.0]), np.array([4.0, 5.0]))
    0.25
    """
    _check(scores_in, scores_out)
    missed = len(scores_out) - _needed_catches(len(scores_out))
    return float((scores_in >= np.sort(scores_out)[missed]).mean())


def roc_points(scores_in: Scores, scores_out: Scores) -> tuple[Scores, Scores]:
    """(false-alarm rates, shares of OOD images caught) along the ROC curve, both ascending."""
    fpr, tpr, _ = roc_curve(*_labelled(scores_in, scores_out))
    return fpr, tpr


def evaluate_scores(
    scores_in: Scores,
    scores_out: Scores,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Detection:
    """All measures with percentile bootstrap intervals; each side is resampled on its own.

    The intervals are over the draw of test images, for one trained model and one noise seed.

    Raises:
        SettingsError: a side is empty or holds a score that is not finite; no resamples; a
            confidence outside (0, 1).
    """
    values = (
        auroc(scores_in, scores_out),
        aupr_in(scores_in, scores_out),
        aupr_out(scores_in, scores_out),
        fpr_at_95_tpr(scores_in, scores_out),
    )
    n_in, n_out = len(scores_in), len(scores_out)
    places_in, places_out = _places(scores_in, scores_out)
    drawn = [
        _measures(places_in[i], places_out[o]) for i, o in _resampled(n_in, n_out, resamples, seed)
    ]
    tails = _tails(drawn, confidence)
    found = [Interval(v, *tail) for v, tail in zip(values, tails, strict=True)]
    return Detection(found[0], found[1], found[2], found[3], n_in=n_in, n_out=n_out)


def paired_auroc_difference(
    in_a: Scores,
    out_a: Scores,
    in_b: Scores,
    out_b: Scores,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """AUROC of method a minus that of b on the same images, which are resampled for both together.

    Raises:
        SettingsError: the two are not of the same images, and as `evaluate_scores` does.
    """
    if (len(in_a), len(out_a)) != (len(in_b), len(out_b)):
        raise SettingsError(
            f"{len(in_a)} + {len(out_a)} scores against {len(in_b)} + {len(out_b)}: "
            "need the same images in the same order"
        )
    value = auroc(in_a, out_a) - auroc(in_b, out_b)
    drawn = [
        (_auroc_by_ranks(in_a[i], out_a[o]) - _auroc_by_ranks(in_b[i], out_b[o]),)
        for i, o in _resampled(len(in_a), len(out_a), resamples, seed)
    ]
    [(low, high)] = _tails(drawn, confidence)
    return Interval(value, low, high)


Places = Int[np.ndarray, " _"]


def _places(scores_in: Scores, scores_out: Scores) -> tuple[Places, Places]:
    """Each score's place among the distinct values of both sides, 0 = the highest.

    Computed once: a resample of places is then measured by counting, without sorting again.
    """
    both = np.concatenate([scores_in, scores_out])
    values, places = np.unique(both, return_inverse=True)
    places = len(values) - 1 - places
    return places[: len(scores_in)], places[len(scores_in) :]


def _measures(places_in: Places, places_out: Places) -> tuple[float, float, float, float]:
    """(auroc, aupr_in, aupr_out, fpr95) from how many of each side lie at each place."""
    length = 1 + max(places_in.max(), places_out.max())
    at_in = np.bincount(places_in, minlength=length)
    at_out = np.bincount(places_out, minlength=length)
    flagged_in, caught = at_in.cumsum(), at_out.cumsum()
    n_in, n_out = flagged_in[-1], caught[-1]
    higher = at_in @ (caught - 0.5 * at_out)
    first = np.searchsorted(caught, _needed_catches(int(n_out)))
    return (
        float(higher / (n_in * n_out)),
        _average_precision(at_in[::-1], at_out[::-1]),
        _average_precision(at_out, at_in),
        float(flagged_in[first] / n_in),
    )


def _average_precision(positives: Places, negatives: Places) -> float:
    """Sum over thresholds of (recall gained) x precision, from counts at each place."""
    true = positives.cumsum()
    flagged = true + negatives.cumsum()
    return float((positives * true / np.maximum(flagged, 1)).sum() / true[-1])


def _auroc_by_ranks(scores_in: Scores, scores_out: Scores) -> float:
    """`auroc` from the ranks of the OOD scores among the in-domain ones."""
    known = np.sort(scores_in)
    below = np.searchsorted(known, scores_out, "left")
    up_to = np.searchsorted(known, scores_out, "right")
    return float((below + up_to).mean() / (2 * len(known)))


def _needed_catches(count: int) -> int:
    """95% of count, rounded up, in whole numbers: 0.95 is no exact float."""
    return (95 * count + 99) // 100


def _resampled(n_in: int, n_out: int, resamples: int, seed: int) -> Iterator[tuple[Places, Places]]:
    """Row numbers of each side, drawn with replacement, once for each resample."""
    if resamples < 1:
        raise SettingsError(f"resamples={resamples}: need at least 1")
    draw = np.random.default_rng(seed)
    for _ in range(resamples):
        yield draw.integers(0, n_in, n_in), draw.integers(0, n_out, n_out)


def _tails(drawn: Sequence[tuple[float, ...]], confidence: float) -> list[tuple[float, float]]:
    """The (low, high) percentiles of each measure over the resamples."""
    if not 0 < confidence < 1:
        raise SettingsError(f"confidence={confidence}: need more than 0 and less than 1")
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(np.array(drawn), [tail, 100 - tail], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _labelled(scores_in: Scores, scores_out: Scores) -> tuple[Places, Scores]:
    _check(scores_in, scores_out)
    labels = np.repeat([0, 1], [len(scores_in), len(scores_out)])
    return labels, np.concatenate([scores_in, scores_out])


def _check(scores_in: Scores, scores_out: Scores) -> None:
    for name, scores in (("in-domain", scores_in), ("out-of-distribution", scores_out)):
        if not len(scores):
            raise SettingsError(f"0 {name} scores: need at least 1")
        bad = int((~np.isfinite(scores)).sum())
        if bad:
            raise SettingsError(f"{bad} {name} scores are not finite: leave those images out")
