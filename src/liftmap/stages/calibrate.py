"""From a score to a p-value and a decision, by split-conformal calibration."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from liftmap.errors import CalibrationError, SettingsError


@dataclass(frozen=True)
class Calibration:
    """Split-conformal calibration: n scores of in-domain images that were not trained on.

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

    @property
    def key(self) -> str:
        """A name for exactly these scores: decisions made with others are not to be mixed."""
        return hashlib.sha256(repr(self.scores).encode()).hexdigest()[:16]

    @staticmethod
    def needed(false_alarms: float) -> int:
        """How many calibration scores a false-alarm rate needs at least: ceil(1 / rate) - 1.

        >>> Calibration.needed(0.05), Calibration.needed(0.01)
        (19, 99)

        Raises:
            SettingsError: the rate is not in (0, 1).
        """
        count = max(1, math.ceil(1 / _exact(false_alarms)) - 1)
        # as in `_allowed`: one fewer will do if its p-value rounds to the rate
        return count - 1 if count > 1 and 1 / count <= false_alarms else count

    def p_values(self, scores: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Conformal p-values in (0, 1], float64, on the CPU: small = unlike the calibration images.

        Raises:
            SettingsError: a score is NaN.
        """
        scores = scores.double().cpu().contiguous()
        if scores.isnan().any():
            raise SettingsError(f"{int(scores.isnan().sum())} scores are NaN: they have no p-value")
        known = torch.tensor(self.scores, dtype=torch.float64)
        below = torch.searchsorted(known, scores)
        return (1 + len(known) - below).double() / (len(known) + 1)

    def threshold(self, false_alarms: float) -> float:
        """The k-th largest calibration score: p <= false_alarms exactly for the scores above it.

        Raises:
            SettingsError: the rate is not in (0, 1).
            CalibrationError: too few scores for it; the message says how many are needed.
        """
        return self.scores[len(self.scores) - self._allowed(false_alarms)]

    def is_ood(self, scores: Float[Tensor, " b"], false_alarms: float) -> Bool[Tensor, " b"]:
        """Whether p <= false_alarms, on the CPU; raises as `threshold` and `p_values` do.

        >>> calibration = Calibration.from_scores(map(float, range(19)))
        >>> calibration.is_ood(torch.tensor([18.0, 18.5]), false_alarms=0.05).tolist()
        [False, True]
        """
        self._allowed(false_alarms)
        return self.p_values(scores) <= false_alarms

    def false_alarm_interval(
        self, false_alarms: float, confidence: float = 0.95
    ) -> tuple[float, float]:
        """Where the false-alarm rate given this very calibration set lies, with that confidence.

        The central quantiles of Beta(k, n + 1 - k), k = floor(false_alarms (n + 1)): exact for
        independent images and scores without ties; with ties the upper end still holds.

        Raises:
            SettingsError: the confidence is not in (0, 1), and as `threshold` does.
        """
        from scipy.stats import beta

        if not 0 < confidence < 1:
            raise SettingsError(f"confidence {confidence}: need more than 0 and less than 1")
        k, tail = self._allowed(false_alarms), (1 - confidence) / 2
        low, high = beta.ppf([tail, 1 - tail], k, len(self.scores) + 1 - k)
        return float(low), float(high)

    def _allowed(self, false_alarms: float) -> int:
        """The largest k whose p-value k / (n + 1), as computed in float64, is within the rate."""
        count = len(self.scores)
        k = math.floor(_exact(false_alarms) * (count + 1))
        if (k + 1) / (count + 1) <= false_alarms:  # k + 1 over n + 1 rounds to the rate: 1/3 of 3
            k += 1
        if k < 1:
            raise CalibrationError(
                f"a false-alarm rate of {false_alarms:g} needs at least {self.needed(false_alarms)}"
                f" calibration images, there are {count}: calibrate on more, or ask for "
                f"1/{count + 1} ({1 / (count + 1):.4g}) or more"
            )
        return k


def _exact(false_alarms: float) -> Fraction:
    """The rate as the fraction that its float stands for, so that products don't round."""
    if not 0 < false_alarms < 1:
        raise SettingsError(f"false-alarm rate {false_alarms}: need more than 0 and less than 1")
    return Fraction(float(false_alarms))
