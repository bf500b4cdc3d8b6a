"""From a score to a p-value and a decision, by split-conformal calibration."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from liftmap.errors import CalibrationError, SettingsError


@dataclass(frozen=True)
class Calibration:
    """Scores of n in-domain images that were not trained on, and what they say of a new score.

    The guarantee: if a new image and the n calibration images are exchangeable (independent draws
    from one distribution are), its p-value p = (1 + #{calibration scores >= score}) / (n + 1) is
    conservative, P(p <= a) <= a for each a, over the draw of image and calibration set together
    (Vovk, Gammerman & Shafer 2005, "Algorithmic Learning in a Random World"; Bates et al. 2023,
    "Testing for outliers with conformal p-values", eq. 3). Ties only make it more careful. So
    flagging p <= a has a false-alarm rate of at most a.

    For one fixed calibration set the rate is itself random: Beta(k, n + 1 - k) with
    k = floor(a (n + 1)) when scores have no ties (Bates et al. 2023, section 3.1); see
    `false_alarm_interval`. Nothing is promised about images that are not in-domain, nor once the
    in-domain images have changed since the calibration.

    scores: sorted ascending, finite.
    """

    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.scores:
            raise CalibrationError("0 calibration scores: need at least 1, and 19 for a rate of 5%")
        if not all(map(math.isfinite, self.scores)):
            raise CalibrationError("calibration scores hold NaN or infinity: need finite numbers")
        if any(a > b for a, b in zip(self.scores, self.scores[1:], strict=False)):
            raise CalibrationError("calibration scores are not sorted: use Calibration.from_scores")

    @classmethod
    def from_scores(cls, scores: Iterable[float]) -> "Calibration":
        """A calibration from scores in any order.

        Raises:
            CalibrationError: none, or one that is not finite.
        """
        return cls(tuple(sorted(float(s) for s in scores)))

    @property
    def key(self) -> str:
        """A short hash of the scores: which calibration a p-value came from."""
        return hashlib.sha256(repr(self.scores).encode()).hexdigest()[:16]

    @staticmethod
    def needed(false_alarms: float) -> int:
        """How many calibration scores a false-alarm rate needs at least.

        >>> Calibration.needed(0.05), Calibration.needed(0.01)
        (19, 99)
        """
        _check_rate(false_alarms)
        return math.ceil(round(1 / false_alarms, 9)) - 1

    def p_values(self, scores: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Conformal p-values in (0, 1], float64: small = unlike the calibration images."""
        known = torch.tensor(self.scores, dtype=torch.float64)
        below = torch.searchsorted(known, scores.double().cpu().contiguous())
        return (1 + len(known) - below).double() / (len(known) + 1)

    def threshold(self, false_alarms: float) -> float:
        """The score above which p <= false_alarms: exactly those images are flagged.

        Raises:
            SettingsError: the rate is not in (0, 1).
            CalibrationError: too few scores for it; the message says how many are needed.
        """
        return self.scores[len(self.scores) - self._allowed(false_alarms)]

    def is_ood(self, scores: Float[Tensor, "b"], false_alarms: float) -> Bool[Tensor, "b"]:
        """Decisions at a false-alarm rate; raises as `threshold` does."""
        return scores.double().cpu() > self.threshold(false_alarms)

    def false_alarm_interval(
        self, false_alarms: float, confidence: float = 0.95
    ) -> tuple[float, float]:
        """Where the false-alarm rate of this very calibration set lies, with the given confidence.

        Raises as `threshold` does.
        """
        from scipy.stats import beta

        k, tail = self._allowed(false_alarms), (1 - confidence) / 2
        low, high = beta.ppf([tail, 1 - tail], k, len(self.scores) + 1 - k)
        return float(low), float(high)

    def _allowed(self, false_alarms: float) -> int:
        """k = floor(rate (n + 1)): the largest rank whose p-value is within the rate."""
        _check_rate(false_alarms)
        count = len(self.scores)
        # rounded first: 0.05 * 20 must count as 1 whatever the last bit of the product
        allowed = math.floor(round(false_alarms * (count + 1), 9))
        if allowed < 1:
            raise CalibrationError(
                f"a false-alarm rate of {false_alarms:g} needs at least {self.needed(false_alarms)}"
                f" calibration images, there are {count}: calibrate on more, or ask for "
                f"{1 / (count + 1):.2g} or more"
            )
        return allowed


def _check_rate(false_alarms: float) -> None:
    if not 0 < false_alarms < 1:
        raise SettingsError(f"false-alarm rate {false_alarms}: need more than 0 and less than 1")
