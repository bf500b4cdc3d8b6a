"""Where statistics of in-domain images lie, so that different ones can be compared."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from liftmap.errors import CalibrationError, SettingsError

SMALLEST = 1e-6  # distances below are taken as this one, so that a perfect redraw has a logarithm
BULK = (0.1587, 0.5, 0.8413)  # half the way from the first to the last: a normal deviation


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
