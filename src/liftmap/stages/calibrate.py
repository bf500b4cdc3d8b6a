"""From a score to a p-value and a decision, by split-conformal calibration."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from liftmap.errors import CalibrationError, SettingsError

# a rate so little below a p-value counts as it: 0.1 * 0.7 is a float just below 7%
ROUNDING = Fraction(1, 10**12)


@dataclass(frozen=True)
class Calibration:
    """Split-conformal calibration: n scores of in-domain images that were not trained on.

    An image is flagged when its p-value is at most the false-alarm rate. This class is the only
    place that compares the two: every table, page and answer takes its decisions from it.

    The guarantee: if a new image and the n calibration images are exchangeable (independent draws
    from one distribution are), then its p-value,
    p = (1 + #{calibration scores >= score}) / (n + 1), satisfies P(p <= a) <= a for every a in
    (0, 1), with any scoring function and any distribution of scores (Vovk, Gammerman & Shafer 2005,
    "Algorithmic Learning in a Random World"; Bates et al. 2023, "Testing for outliers with
    conformal p-values"). So flagging p <= a has a false-alarm rate of at most a. Without ties the
    rate is exactly k / (n + 1), k = floor(a (n + 1)); ties only lower it.

    This is marginal: P is over the draw of the image and of the calibration set together. Given one
    calibration set, the rate on further in-domain images is a random quantity fixed by that set.
    For independent images and scores without ties it follows Beta(k, n + 1 - k), with mean
    k / (n + 1) and variance k (n + 1 - k) / ((n + 1)^2 (n + 2)) (Vovk 2012, "Conditional validity
    of inductive conformal predictors"); ties only lower the rate. See `false_alarm_interval`.

    Nothing is promised about images that are not in-domain, nor once the in-domain images differ
    from those of the calibration.

    >>> calibration = Calibration.from_scores([0.3, 0.1, 0.2, 0.4])
    >>> calibration.p_values(torch.tensor([0.25, 0.9])).tolist()
    [0.6, 0.2]

    scores: sorted ascending, finite, at least 1.
    """

    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.scores:
            raise CalibrationError("0 calibration scores: need at least 1, and 19 for a rate of 5%")
        bad = sum(not math.isfinite(score) for score in self.scores)
        if bad:
            raise CalibrationError(
                f"{bad} calibration scores are NaN or infinite: need finite ones"
            )
        if any(a > b for a, b in zip(self.scores, self.scores[1:], strict=False)):
            raise CalibrationError("calibration scores are not sorted: use Calibration.from_scores")

    @classmethod
    def from_scores(cls, scores: Iterable[float]) -> "Calibration":
        """A calibration from scores in any order; drops none.

        Raises:
            CalibrationError: no scores, or one that is not finite.
        """
        return cls(tuple(sorted(float(score) for score in scores)))

    @cached_property
    def key(self) -> str:
        """A name for exactly these scores: decisions made with others are not to be mixed."""
        return hashlib.sha256(repr(self.scores).encode()).hexdigest()[:16]

    @cached_property
    def _sorted(self) -> Float[Tensor, " n"]:
        return torch.tensor(self.scores, dtype=torch.float64)

    @staticmethod
    def needed(false_alarms: float) -> int:
        """How many calibration scores a false-alarm rate needs at least: ceil(1 / rate) - 1.

        >>> Calibration.needed(0.05), Calibration.needed(0.01)
        (19, 99)

        Raises:
            SettingsError: the rate is not in (0, 1).
        """
        return max(1, math.ceil(1 / _exact(false_alarms)) - 1)

    def p_values(self, scores: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Conformal p-values in (0, 1], float64, on the CPU: small = unlike the calibration images.

        Raises:
            SettingsError: a score is NaN.
        """
        scores = scores.double().cpu().contiguous()
        if scores.isnan().any():
            raise SettingsError(f"{int(scores.isnan().sum())} scores are NaN: they have no p-value")
        below = torch.searchsorted(self._sorted, scores)
        return (1 + len(self.scores) - below).double() / (len(self.scores) + 1)

    def allowed(self, false_alarms: float) -> int:
        """k = floor(rate (n + 1)): an image is flagged if fewer than k scores are as high as its.

        Raises:
            SettingsError: the rate is not in (0, 1).
            CalibrationError: k is 0, too few scores; the message says how many are needed.
        """
        count = len(self.scores)
        k = math.floor(_exact(false_alarms) * (count + 1))
        if k < 1:
            raise CalibrationError(
                f"a false-alarm rate of {false_alarms:g} needs at least {self.needed(false_alarms)}"
                f" calibration images, there are {count}: calibrate on more, or ask for "
                f"1/{count + 1} ({1 / (count + 1):.4g}) or more"
            )
        return min(k, count)

    def limit(self, false_alarms: float) -> float:
        """The largest p-value that is flagged at this rate; raises as `allowed` does.

        >>> calibration = Calibration.from_scores(map(float, range(99)))
        >>> 7 / 100 <= calibration.limit(0.1 * 0.7) < 8 / 100
        True
        """
        self.allowed(false_alarms)
        return largest_flagged(false_alarms)

    def flagged(self, p_values: Float[Tensor, " b"], false_alarms: float) -> Bool[Tensor, " b"]:
        """Which p-values are at most the rate; raises as `allowed` does.

        >>> calibration = Calibration.from_scores(map(float, range(19)))
        >>> calibration.flagged(torch.tensor([1 / 20, 2 / 20], dtype=torch.float64), 0.05).tolist()
        [True, False]
        """
        return p_values <= self.limit(false_alarms)

    def threshold(self, false_alarms: float) -> float:
        """The k-th largest calibration score: flagged are the scores above it.

        Raises as `allowed` does.
        """
        return self.scores[len(self.scores) - self.allowed(false_alarms)]

    def false_alarm_interval(
        self, false_alarms: float, confidence: float = 0.95
    ) -> tuple[float, float]:
        """Where the false-alarm rate given this very calibration set lies, with that confidence.

        The central quantiles of Beta(k, n + 1 - k), k = floor(false_alarms (n + 1)): exact for
        independent images and scores without ties; with ties the upper end still holds.

        Raises:
            SettingsError: the confidence is not in (0, 1), and as `allowed` does.
        """
        from scipy.stats import beta

        if not 0 < confidence < 1:
            raise SettingsError(f"confidence {confidence}: need more than 0 and less than 1")
        k, tail = self.allowed(false_alarms), (1 - confidence) / 2
        low, high = beta.ppf([tail, 1 - tail], k, len(self.scores) + 1 - k)
        return float(low), float(high)


def largest_flagged(false_alarms: float) -> float:
    """The largest p-value that is flagged at a rate, whatever the calibration: the rate itself.

    Raises:
        SettingsError: the rate is not in (0, 1).
    """
    return float(_exact(false_alarms))


def _exact(false_alarms: float) -> Fraction:
    """The rate as a fraction, so that products don't round; raised by what floats lose."""
    if not 0 < false_alarms < 1:
        raise SettingsError(f"false-alarm rate {false_alarms}: need more than 0 and less than 1")
    return Fraction(float(false_alarms)) * (1 + ROUNDING)
