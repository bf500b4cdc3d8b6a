"""AUROC, AUPR and FPR@95TPR with bootstrap intervals. Out-of-distribution images are the positives."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from liftmap.errors import SettingsError

Scores = Float[np.ndarray, "_"]


@dataclass(frozen=True)
class Interval:
    """A value and its percentile bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Detection:
    """How well scores separate; each measure in [0, 1].

    aupr_in counts in-domain images as positives (with the negated score), aupr_out the others.
    fpr95: share of in-domain images above the threshold that catches at least 95% of the others.
    """

    auroc: Interval
    aupr_in: Interval
    aupr_out: Interval
    fpr95: Interval
    n_in: int
    n_out: int


def auroc(scores_in: Scores, scores_out: Scores) -> float:
    """Probability that an OOD image scores higher than an in-domain one, ties counting half.

    >>> auroc(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    0.875
    """
    return float(roc_auc_score(*_labelled(scores_in, scores_out)))


def aupr_out(scores_in: Scores, scores_out: Scores) -> float:
    """Average precision with OOD images as positives."""
    return float(average_precision_score(*_labelled(scores_in, scores_out)))


def aupr_in(scores_in: Scores, scores_out: Scores) -> float:
    """Average precision with in-domain images as positives, scores negated."""
    return float(average_precision_score(*_labelled(-scores_out, -scores_in)))


def fpr_at_95_tpr(scores_in: Scores, scores_out: Scores) -> float:
    """Share of in-domain images flagged at the highest threshold that flags 95% of the OOD ones."""
    _check(scores_in, scores_out)
    missed = len(scores_out) - int(np.ceil(0.95 * len(scores_out)))
    return float((scores_in >= np.sort(scores_out)[missed]).mean())


def roc_points(scores_in: Scores, scores_out: Scores) -> tuple[Scores, Scores]:
    """(false-alarm rates, shares of OOD images caught) along the ROC curve."""
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

    Raises:
        SettingsError: a side is empty or holds a NaN.
    """
    _check(scores_in, scores_out)
    draw = np.random.default_rng(seed)
    rows = [
        (_resample(draw, len(scores_in)), _resample(draw, len(scores_out)))
        for _ in range(resamples)
    ]

    def interval(measure: Callable[[Scores, Scores], float]) -> Interval:
        drawn = [measure(scores_in[i], scores_out[o]) for i, o in rows]
        return _interval(measure(scores_in, scores_out), drawn, confidence)

    return Detection(
        interval(_fast_auroc),
        interval(aupr_in),
        interval(aupr_out),
        interval(fpr_at_95_tpr),
        len(scores_in),
        len(scores_out),
    )


def paired_auroc_difference(
    a: tuple[Scores, Scores],
    b: tuple[Scores, Scores],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """AUROC of a minus that of b, both (in, out) on the same images, resampled together.

    Raises:
        SettingsError: the two are not of the same images, or hold a NaN.
    """
    if (len(a[0]), len(a[1])) != (len(b[0]), len(b[1])):
        raise SettingsError(
            f"{len(a[0])} + {len(a[1])} scores against {len(b[0])} + {len(b[1])}: "
            "need the same images in the same order"
        )
    _check(*a)
    _check(*b)
    draw = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        i, o = _resample(draw, len(a[0])), _resample(draw, len(a[1]))
        drawn.append(_fast_auroc(a[0][i], a[1][o]) - _fast_auroc(b[0][i], b[1][o]))
    return _interval(_fast_auroc(*a) - _fast_auroc(*b), drawn, confidence)


def _fast_auroc(scores_in: Scores, scores_out: Scores) -> float:
    """`auroc` by ranks: a thousand resamples take a second."""
    known = np.sort(scores_in)
    below = np.searchsorted(known, scores_out, "left")
    tied = np.searchsorted(known, scores_out, "right") - below
    return float((below + 0.5 * tied).mean() / len(known))


def _resample(draw: np.random.Generator, count: int) -> Int[np.ndarray, "n"]:
    return draw.integers(0, count, count)


def _interval(value: float, drawn: list[float], confidence: float) -> Interval:
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _labelled(scores_in: Scores, scores_out: Scores) -> tuple[np.ndarray, np.ndarray]:
    _check(scores_in, scores_out)
    labels = np.repeat([0, 1], [len(scores_in), len(scores_out)])
    return labels, np.concatenate([scores_in, scores_out])


def _check(scores_in: Scores, scores_out: Scores) -> None:
    for name, scores in (("in-domain", scores_in), ("out-of-distribution", scores_out)):
        if not len(scores):
            raise SettingsError(f"0 {name} scores: need at least 1")
        if not np.isfinite(scores).all():
            bad = int((~np.isfinite(scores)).sum())
            raise SettingsError(f"{bad} {name} scores are not finite: leave those images out")
