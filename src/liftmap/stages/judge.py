"""From what was measured of an image to its score, its p-value and the decision.

Everything that decides is fixed on held-out images before a new one is scored.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from liftmap.diffusion.denoiser import Precision
from liftmap.errors import CalibrationError, SettingsError
from liftmap.stages.aggregate import aggregate
from liftmap.stages.calibrate import Calibration
from liftmap.stages.method import Method
from liftmap.stages.mixture import COMPONENTS, Mixture
from liftmap.stages.redraw import Measured
from liftmap.stages.scales import Scale, Scales

SCALE_SHARE, SCALE_MOST = 5, 200  # one in so many held-out images gives the scales, and at most


class Scored(NamedTuple):
    """Scores of a batch, higher = more out-of-distribution, and what they come from."""

    scores: Float[Tensor, " b"]
    distances: Float[Tensor, "b attempts kinds"]  # NaN where an attempt was not needed
    norms: Float[Tensor, "b levels"]
    attempts: Int[Tensor, " b"]


class Verdict(NamedTuple):
    """Scores, the share of in-domain images at least as odd (p-value), and the decisions."""

    scores: Float[Tensor, " b"]
    p_values: Float[Tensor, " b"]
    is_ood: Bool[Tensor, " b"]


@dataclass(frozen=True)
class Judge:
    """Scores and decides by one method. All of it is fixed on held-out images beforehand.

    density: how usual noise norms are; None if the method doesn't ask for them.
    scales: puts several distances into one unit; None for a single distance.
    surprise: the scale of minus the log-density.
    settled: an image whose score so far is below takes no more attempts; None: all take all.
    calibration: held-out scores. Without them it can score and not decide.
    map_top: the distance that is drawn brightest, in every map of the method.
    precision: of the network at calibration; None if not recorded.
    runs_in: of the network that now measures, where known (`running_in`). In another precision than
        the calibration's it can score and not decide: p-values would be off.
    """

    method: Method
    density: Mixture | None = None
    scales: Scales | None = None
    surprise: Scale | None = None
    settled: float | None = None
    calibration: Calibration | None = None
    map_top: float | None = None
    precision: Precision | None = None
    runs_in: Precision | None = None

    def __post_init__(self) -> None:
        if self.precision not in (None, *get_args(Precision)):
            known = ", ".join(get_args(Precision))
            raise SettingsError(f"precision={self.precision!r}: need one of {known}")
        for name in ("settled", "map_top"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise SettingsError(f"{name}={value}: need a finite number")

    @classmethod
    def learn(
        cls,
        method: Method,
        found: Measured,
        density: Mixture | None,
        *,
        precision: Precision | None,
    ) -> "Judge":
        """Fix everything on held-out in-domain images whose every attempt was measured.

        With several distances, noise norms or an early stop, some of the images give the scales
        and take no further part. So these are fixed before the others are scored by them, as the
        conformal guarantee asks. Without a density it is learnt from every other image, which take
        no further part either.

        Raises:
            CalibrationError: too few images, or distances that no scale can be taken from.
        """
        if method.norms and density is None:
            density = learn_density(found.norms[::2])
            found = found.of(torch.arange(1, len(found.norms), 2))
        judge = cls(method, density if method.norms else None, precision=precision)
        if found.distances.shape[2] > 1 or method.norms or method.early_stop is not None:
            chosen = torch.zeros(len(found.distances), dtype=torch.bool)
            chosen[scale_images(len(chosen))] = True
            judge, found = judge._scaled(found.of(chosen)), found.of(~chosen)
        scores = judge.scores(judge.stopped(found))
        return judge.calibrated(Calibration.from_scores(scores.tolist()))

    def _scaled(self, found: Measured) -> "Judge":
        """With scales of those images, and their early stop."""
        distances, surprise = found.distances, self._surprise(found.norms)
        judge = replace(
            self,
            scales=Scales.from_distances(distances) if distances.shape[2] > 1 else None,
            surprise=None if surprise is None else Scale.from_values(surprise),
        )
        if self.method.early_stop is None:
            return judge
        settled = judge.scores(found).double().quantile(self.method.early_stop).item()
        return replace(judge, settled=settled)

    def calibrated(self, calibration: Calibration) -> "Judge":
        """With held-out scores, which this judge gave."""
        return replace(self, calibration=calibration)

    def lent_to(self, method: Method) -> "Judge":
        """The same scales for another method, which may score by them and not decide."""
        surprise = self.surprise if method.norms else None
        return Judge(method, self.density if method.norms else None, self.scales, surprise)

    def running_in(self, precision: Precision) -> "Judge":
        """For a network in that precision; the same judge unless it was calibrated in another."""
        same = self.precision in (None, precision)
        return self if same else replace(self, runs_in=precision)

    def check(self) -> None:
        """Refuse several distances, or noise norms, without scales.

        Raises:
            CalibrationError: the message says what to do.
        """
        method = self.method
        lacking = [method.distance] if "+" in method.distance and self.scales is None else []
        lacking += ["noise norms"] if method.norms and self.surprise is None else []
        if lacking:
            raise CalibrationError(
                f"the model has no scales for {' and '.join(lacking)}: run `liftmap calibrate` on "
                "in-domain images that were not trained on, or take one distance alone"
            )

    def _surprise(self, norms: Float[Tensor, "b levels"]) -> Float[Tensor, " b"] | None:
        """Minus the log-density of the noise norms, if the method asks for them."""
        if not self.method.norms:
            return None
        if self.density is None:
            raise CalibrationError(
                "the model has no density of noise norms: run `liftmap calibrate`"
            )
        return -self.density.log_density(norms)

    def unusual(self, norms: Float[Tensor, "b levels"]) -> Float[Tensor, " b"] | None:
        """The surprise in spreads above what is usual, which is its share of the score."""
        surprise = self._surprise(norms)
        if surprise is None or self.surprise is None:
            return None
        return self.surprise.standard(surprise)

    def evidence(self, found: Measured) -> Float[Tensor, "b attempts"]:
        """What each attempt says: the distance, or of several the strongest on their scales.

        How unusual the noise norms are is added to each attempt's.
        """
        distances = found.distances
        evidence = distances[..., 0] if self.scales is None else self.scales.strongest(distances)
        unusual = self.unusual(found.norms)
        return evidence if unusual is None else evidence + unusual[:, None].to(evidence)

    def scores(self, found: Measured) -> Float[Tensor, " b"]:
        """Scores of what was measured, over the attempts that each image took.

        Raises:
            CalibrationError: several distances or noise norms without scales.
        """
        self.check()
        evidence, scores = self.evidence(found), torch.empty(len(found.distances))
        for took in set(found.attempts.tolist()):
            images = found.attempts == took
            scores[images] = aggregate(evidence[images, :took], self.method.aggregate)
        return scores

    def looks_settled(self, found: Measured) -> Bool[Tensor, " b"]:
        """Whether an image needs no further attempt, by its score so far."""
        scores = self.scores(found)
        return scores < (-torch.inf if self.settled is None else self.settled)

    def stopped(self, found: Measured) -> Measured:
        """What would have been measured of images whose every attempt was: until they settled."""
        took = found.attempts.clone()
        for look in reversed(self.method.looks):
            took[self.looks_settled(found.first(look))] = look
        return found._replace(attempts=took)

    @property
    def decides_by(self) -> Calibration:
        """The calibration.

        Raises:
            CalibrationError: there is none for this method, or it was made in another precision.
        """
        if self.calibration is None:
            raise CalibrationError(
                "the model has no calibration for this method: run `liftmap calibrate` with it on "
                "in-domain images that were not trained on"
            )
        if self.runs_in is not None and self.runs_in != self.precision:
            raise CalibrationError(
                f"the model was calibrated for this method in {self.precision} and runs in "
                f"{self.runs_in}, so p-values would be off: take --precision {self.precision}, "
                f"redo it by `liftmap calibrate --precision {self.runs_in}`, or score with "
                "--uncalibrated"
            )
        return self.calibration

    def decide(self, scores: Float[Tensor, " b"], false_alarms: float) -> Verdict:
        """p-values and decisions at a false-alarm rate in (0, 1).

        Raises:
            CalibrationError: no calibration for this method, or on too few images for the rate.
        """
        calibration = self.decides_by
        p_values = calibration.p_values(scores)
        return Verdict(scores, p_values, calibration.flagged(p_values, false_alarms))


def scale_images(count: int) -> Int[Tensor, " n"]:
    """Which of so many held-out images give the scales: spread evenly, the first among them.

    A fifth, but two if another is left: a scale needs as many.

    >>> scale_images(11).tolist()
    [0, 5]
    """
    chosen = min(SCALE_MOST, max(1, min(2, count - 1), count // SCALE_SHARE))
    return torch.arange(chosen) * count // chosen


def learn_density(norms: Float[Tensor, "n levels"]) -> Mixture:
    """How usual noise norms are: a mixture fitted to those of in-domain images.

    Raises:
        CalibrationError: too few images.
    """
    try:
        return Mixture.fit(norms, COMPONENTS)
    except SettingsError as error:
        raise CalibrationError(f"noise norms: {error}") from error
