"""What a method will be able to do, found out before a network is trained for hours."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from liftmap.diffusion.denoiser import Denoiser, Parametrisation
from liftmap.diffusion.process import Process
from liftmap.errors import CalibrationError, SettingsError
from liftmap.images.store import HoldOut
from liftmap.stages.aggregate import aggregate
from liftmap.stages.calibrate import Calibration
from liftmap.stages.judge import scale_images
from liftmap.stages.masks import hidden_masks
from liftmap.stages.method import PAIR, Method
from liftmap.stages.redraw import Redraw

FEWEST = 3  # held-out images: two give the scales, and one calibrates
DENSE = 4  # images trained on, from which noise norms have a density (`Mixture.fit`)
REHEARSED = 3  # steps of the sampler
USUAL = 0.05  # the rate that `score` takes by default
STRICT = 0.01
MOST_IMAGES = 10**9


class _Silent(nn.Module):
    """A network that answers nothing, at once."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Float[Tensor, "n c h w"], time_input: Tensor) -> Float[Tensor, "n c h w"]:
        return self.nothing.expand_as(x)


def rehearse(
    method: Method, process: Process, by: Parametrisation, shape: tuple[int, int, int]
) -> None:
    """Take an image of that shape through all stages of a method, without a network, in few steps.

    Args:
        shape: channels, height and width.

    Raises:
        SettingsError: the method can't be used on such images; the message names the size, what is
            needed, and the fix.
    """
    _, height, width = shape
    short = replace(
        method,
        attempts=min(method.attempts, PAIR),
        sampler=replace(method.sampler, steps=min(method.sampler.steps, REHEARSED)),
    )
    try:
        hidden_masks(method.mask, height, width, method.attempts, seed=method.seed)
        redraw = Redraw(Denoiser(_Silent(), process, by, precision="float32"), short, shape[1:])
        found = redraw(torch.zeros(1, *shape, dtype=torch.uint8))
        aggregate(found.distances[..., 0], method.aggregate)
    except SettingsError as error:
        raise SettingsError(
            f"the method can't be used at {height}x{width} pixels: {error} (train takes --size and "
            "--distance)"
        ) from error


@dataclass(frozen=True)
class Outlook:
    """Which false-alarm rates a training will support by a method.

    images: of the source; held_out: of them, kept from training.
    """

    method: Method
    hold_out: HoldOut
    images: int
    held_out: int

    @property
    def scores(self) -> int:
        """How many held-out images will give calibration scores; the others give the scales."""
        return calibration_scores(self.method, self.images - self.held_out, self.held_out)

    def supports(self, false_alarms: float) -> bool:
        """Whether the calibration will accept a rate in (0, 1): `Calibration.allowed` says so."""
        if not self.scores:
            return False
        try:
            Calibration((0.0,) * self.scores).allowed(false_alarms)
        except CalibrationError:
            return False
        return True

    def needed(self, false_alarms: float) -> int | None:
        """The fewest normal images that support a rate with this hold-out, groups aside.

        None if no number does.
        """
        low, high = 1, MOST_IMAGES
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._enough(middle, false_alarms) else (middle + 1, high)
        return low if self._enough(low, false_alarms) else None

    def _enough(self, images: int, false_alarms: float) -> bool:
        held_out = self.hold_out.count(images)
        return replace(self, images=images, held_out=held_out).supports(false_alarms)

    @property
    def words(self) -> str:
        """One line for people."""
        lacking = [rate for rate in (USUAL, STRICT) if not self.supports(rate)]
        takes = "; ".join(self._takes(rate) for rate in lacking)
        if not self.scores:
            return (
                f"warning: {self.held_out} of {self.images} images are held out, too few to "
                "calibrate on: the model will decide nothing until `liftmap calibrate` is run on "
                f"other normal images; {takes}"
            )
        lowest = -(-1000 // (self.scores + 1)) / 10  # rounded up, so that what is told is accepted
        told = (
            f"{self.scores} held-out images will calibrate: false-alarm rates from {lowest:g}% on"
        )
        if USUAL in lacking:
            return f"warning: {told}, not 5%, which score takes by default; {takes}"
        return f"{told}; {takes}" if takes else told

    def _takes(self, rate: float) -> str:
        images = self.needed(rate)
        if images is None:
            return f"{rate:.0%} can't be had with this hold-out"
        return f"{rate:.0%} takes {images} normal images"


def calibration_scores(method: Method, trained: int, held_out: int) -> int:
    """How many of so many held-out images give calibration scores, as `Judge.learn` does it.

    0 if the method can't be calibrated on them.

    >>> calibration_scores(Method(), 500, 125)
    100
    """
    if held_out < FEWEST or (method.norms and trained < DENSE):
        return 0
    scaled = "+" in method.distance or method.norms or method.early_stop is not None
    return held_out - (len(scale_images(held_out)) if scaled else 0)
