"""From the attempts' distances, of one kind or several, to one score an image."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from liftmap.errors import CalibrationError, SettingsError

PAIR = 2  # attempts between two looks at a score: the alternating mask then hid every pixel
SMALLEST = 1e-6  # distances below are taken as this one, so that a perfect redraw has a logarithm
RULE_SHARE, RULE_MOST = 5, 200  # one in so many calibration images gives the rule, and at most
BULK = (0.1587, 0.5, 0.8413)  # half the way from the first to the last: a normal deviation
TRIM = 5  # the trimmed mean drops one in five attempts at each end, rounded down


def _trimmed(distances: Tensor) -> Tensor:
    attempts = distances.shape[1]
    drop = attempts // TRIM
    kept = distances.sort(dim=1).values[:, drop : attempts - drop].mean(1)
    # sorting puts a NaN last, where it would be dropped: a failed attempt must stay visible
    return kept.masked_fill(distances.isnan().any(1), float("nan"))


AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    # of an even number, the mean of the two in the middle; torch.median takes the lower one
    "median": lambda distances: distances.quantile(0.5, dim=1),
    "mean": lambda distances: distances.mean(1),
    "trimmed": _trimmed,
}


def aggregate(distances: Float[Tensor, "b attempts"], how: str = "median") -> Float[Tensor, " b"]:
    """One score an image from the distances of its attempts, higher = more OOD; NaN stays NaN.

    The paper's is the median (Liu et al. 2024, Alg. 1), which few bad redraws can't move.

    >>> import torch
    >>> aggregate(torch.tensor([[1.0, 2.0, 4.0, 9.0]])).item()
    3.0

    Raises:
        SettingsError: no such aggregate (the message lists them), or no attempts.
    """
    if how not in AGGREGATES:
        raise SettingsError(f"aggregate {how!r}: need one of {', '.join(AGGREGATES)}")
    if not distances.shape[1]:
        raise SettingsError("0 attempts: need at least 1 to aggregate")
    return AGGREGATES[how](distances)


def until_settled(
    take: Callable[[Int[Tensor, " rows"], int, int], Float[Tensor, "rows new"]],
    images: int,
    attempts: int,
    settled: float | None,
    how: str = "median",
) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"]]:
    """Scores of images that take no more attempts once they look normal, and how many each took.

    After each pair of attempts, an image whose score so far is below `settled` keeps that score.
    One that looks odd takes every attempt: nothing is flagged on less evidence than before, and an
    image is let go only after each of its pixels was hidden once (with the alternating mask).

    Args:
        take: gives the evidence of those images' attempts, from the first number to before the
            second.
        settled: None for all attempts of all images.

    >>> import torch
    >>> evidence = torch.tensor([[1.0, 2.0, 9.0, 9.0], [5.0, 6.0, 7.0, 8.0]])
    >>> scores, took = until_settled(lambda i, a, b: evidence[i, a:b], 2, 4, settled=3.0)
    >>> scores.tolist(), took.tolist()
    ([1.5, 6.5], [2, 4])
    """
    evidence = torch.full((images, attempts), float("nan"))
    scores, took = torch.empty(images), torch.full((images,), attempts)
    going = torch.arange(images)
    looks = [] if settled is None else range(PAIR, attempts, PAIR)
    first = 0
    for last in [*looks, attempts]:
        if not len(going):
            break
        evidence[going, first:last] = take(going, first, last)
        scores[going] = aggregate(evidence[going, :last], how)
        first = last
        if settled is not None and last < attempts:
            calm = scores[going] < settled
            took[going[calm]] = last
            going = going[~calm]
    return scores, took


@dataclass(frozen=True)
class Scales:
    """Where the logarithms of each kind of distance lie on in-domain images.

    LPIPS and SSIM, say, come in units of their own, and what they see differs: counted in spreads
    above the in-domain centre they can be compared.

    centres: medians, one a kind of distance.
    spreads: half the way from the 16% to the 84% quantile, a normal distribution's deviation.
    """

    centres: tuple[float, ...]
    spreads: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = (*self.centres, *self.spreads)
        if len(self.centres) != len(self.spreads) or not all(map(math.isfinite, numbers)):
            raise SettingsError(f"scales {self}: need as many finite centres as finite spreads")
        if not all(spread > 0 for spread in self.spreads):
            raise SettingsError(f"spreads {self.spreads}: need more than 0 each")

    @classmethod
    def from_distances(cls, distances: Float[Tensor, "n attempts kinds"]) -> "Scales":
        """Scales of in-domain images.

        Raises:
            CalibrationError: a distance that is not finite, or all of a kind the same.
        """
        logs = distances.double().clamp_min(SMALLEST).log().flatten(0, 1)
        low, centre, high = (logs.quantile(q, dim=0) for q in BULK)
        try:
            return cls(tuple(centre.tolist()), tuple(((high - low) / 2).tolist()))
        except SettingsError as error:
            raise CalibrationError(f"{len(distances)} in-domain images: {error}") from error

    def strongest(
        self, distances: Float[Tensor, "b attempts kinds"]
    ) -> Float[Tensor, "b attempts"]:
        """Each attempt's strongest evidence: the largest distance, in spreads above its centre.

        The largest and not the sum, so that a kind blind to what is odd, or misled by it, can't
        hide what another sees.
        """
        logs = distances.clamp_min(SMALLEST).log()
        standard = (logs - logs.new_tensor(self.centres)) / logs.new_tensor(self.spreads)
        return standard.amax(-1)


@dataclass(frozen=True)
class Scale:
    """Where a statistic lies on in-domain images, as `Scales` says it of distances' logarithms."""

    centre: float
    spread: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.centre) and math.isfinite(self.spread) and self.spread > 0):
            raise SettingsError(f"{self}: need a finite centre and a finite spread above 0")

    @classmethod
    def from_values(cls, values: Float[Tensor, " n"]) -> "Scale":
        """The scale of in-domain images' values.

        Raises:
            CalibrationError: a value that is not finite, or all the same.
        """
        low, centre, high = (values.double().quantile(q).item() for q in BULK)
        try:
            return cls(centre, (high - low) / 2)
        except SettingsError as error:
            raise CalibrationError(f"{len(values)} in-domain images: {error}") from error

    def standard(self, values: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The values in spreads above the centre."""
        return (values - self.centre) / self.spread


@dataclass(frozen=True)
class Rule:
    """What a calibration fixes of scoring before it scores: a new image goes by the same rule.

    scales: of the distances, if there are several; surprise: of the images' surprise (minus the
    log-density of their score norms), if the method asks for it; settled: the score below which an
    image takes no more attempts, None if all images take all.
    """

    scales: Scales | None = None
    surprise: Scale | None = None
    settled: float | None = None

    @classmethod
    def from_distances(
        cls,
        distances: Float[Tensor, "n attempts kinds"],
        early_stop: float | None = None,
        how: str = "median",
        surprise: Float[Tensor, " n"] | None = None,
    ) -> "Rule":
        """The rule of in-domain images; `early_stop` is the quantile of scores that is settled.

        Raises:
            CalibrationError: no scale can be taken from the distances or the surprise.
        """
        scales = Scales.from_distances(distances) if distances.shape[2] > 1 else None
        usual = None if surprise is None else Scale.from_values(surprise)
        if early_stop is None:
            return cls(scales, usual)
        scores = aggregate(cls(scales, usual).evidence(distances, surprise), how)
        return cls(scales, usual, scores.double().quantile(early_stop).item())

    @classmethod
    def from_json(cls, stored: Any) -> "Rule":
        """Undo `dataclasses.asdict`; raises what malformed data raises, or SettingsError."""
        scales, surprise, settled = stored["scales"], stored["surprise"], stored["settled"]
        if settled is not None and not math.isfinite(settled):
            raise SettingsError(f"settled={settled}: need a finite score")
        if scales is not None:
            scales = Scales(tuple(scales["centres"]), tuple(scales["spreads"]))
        if surprise is not None:
            surprise = Scale(surprise["centre"], surprise["spread"])
        return cls(scales, surprise, settled)

    def check(self, distance: str, *, norms: bool = False) -> None:
        """Refuse several distances, or score norms, without scales.

        Raises:
            CalibrationError: the message says what to do.
        """
        lacking = [distance] if "+" in distance and self.scales is None else []
        lacking += ["score norms"] if norms and self.surprise is None else []
        if lacking:
            raise CalibrationError(
                f"the model has no scales for {' and '.join(lacking)}: run `liftmap calibrate` on "
                "in-domain images that were not trained on, or take one distance alone"
            )

    def evidence(
        self,
        distances: Float[Tensor, "b attempts kinds"],
        surprise: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b attempts"]:
        """A single distance as it is, of several the strongest on their scales.

        The surprise, in spreads above what is usual, is added to each attempt's.
        """
        evidence = distances[..., 0] if self.scales is None else self.scales.strongest(distances)
        if self.surprise is None or surprise is None:
            return evidence
        return evidence + self.surprise.standard(surprise)[:, None].to(evidence)

    def scores(
        self,
        distances: Float[Tensor, "b attempts kinds"],
        how: str = "median",
        surprise: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " b"]:
        """Scores of images whose every attempt was measured: those beyond a stop don't count."""
        evidence = self.evidence(distances, surprise)
        rows, attempts = evidence.shape
        return until_settled(
            lambda i, first, last: evidence[i, first:last], rows, attempts, self.settled, how
        )[0]


def rule_rows(count: int) -> Int[Tensor, " _"]:
    """Which of so many calibration images give the rule: spread evenly, the first among them.

    A fifth, but two if another is left: a scale needs as many.

    >>> rule_rows(11).tolist()
    [0, 5]
    """
    chosen = min(RULE_MOST, max(1, min(2, count - 1), count // RULE_SHARE))
    return torch.arange(chosen) * count // chosen
