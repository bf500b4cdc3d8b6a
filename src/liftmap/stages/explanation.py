"""What was hidden, what was redrawn, and where the redraw differs: data, and a picture of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from liftmap.files import atomic_path

CALM = 0.999  # share of in-domain pixels that are drawn in the darker half of the colours


@dataclass(frozen=True)
class Explanation:
    """One image's score, taken apart.

    original: the image in [-1, 1].
    hidden: what each attempt hid; True = redrawn.
    redraws: what each attempt drew, in about [-1, 1].
    maps: each distance, pixel by pixel.
    evidence: one number an attempt. The score is the aggregate of those that the image took.
    surprise: the part of the score that comes from noise norms, in spreads; None if not asked for.
    p_value, map_top: None without a calibration. map_top is the distance drawn brightest.
    """

    original: Float[Tensor, "c h w"]
    hidden: Bool[Tensor, "attempts 1 h w"]
    redraws: Float[Tensor, "attempts c h w"]
    maps: Float[Tensor, "attempts kinds h w"]
    evidence: Float[Tensor, " attempts"]
    score: float
    surprise: float | None
    p_value: float | None
    map_top: float | None = None

    @property
    def distance_map(self) -> Float[Tensor, "h w"]:
        """The median over attempts of the per-pixel distance; of several their geometric mean.

        At 32x32 pixels LPIPS says how far and hardly where, SSIM where and hardly how far.
        """
        medians = self.maps.quantile(0.5, dim=0).clamp_min(0.0)
        return medians.log().mean(0).exp()

    @property
    def shares(self) -> str:
        """What redraws and norms add to the score, in brackets; nothing if there are no norms."""
        if self.surprise is None:
            return ""
        return f" (redraws {self.score - self.surprise:+.1f}, noise norms {self.surprise:+.1f})"

    @property
    def words(self) -> str:
        """The score, what it consists of, its in-domain quantile and p-value, as people say it."""
        told = f"score {self.score:.3f}{self.shares}"
        if self.p_value is not None:
            quantile = f"above {1 - self.p_value:.1%} of in-domain images"
            told += f", {quantile}, p {self.p_value:.4f}: {in_words(self.p_value)}"
        return told

    @property
    def typical(self) -> int:
        """The attempt whose evidence is nearest the score."""
        return int((self.evidence - self.score).abs().argmin())


def brightest(usual: list[Explanation]) -> float:
    """Which distance is drawn brightest in all maps of a method, from in-domain images' maps.

    It is twice the quantile CALM of their pixels: a normal image then looks calm.
    """
    maps = torch.stack([explanation.distance_map for explanation in usual])
    return 2 * float(np.quantile(maps.numpy(), CALM))


def in_words(p_value: float) -> str:
    """A p-value as people say it.

    >>> in_words(0.0048)
    'about 1 in 208 in-domain images looks this odd'
    >>> in_words(0.6)
    'about 60 in 100 in-domain images look this odd'
    """
    if p_value > 0.1:
        return f"about {round(100 * p_value)} in 100 in-domain images look this odd"
    return f"about 1 in {int(1 / p_value + 1e-9)} in-domain images looks this odd"


def draw_explanations(
    explanations: list[Explanation],
    path: Path,
    *,
    titles: list[str] | None = None,
) -> None:
    """Save a PNG with a row an image: original, two masked with their redraws, distance map.

    Distance maps share one colour scale, the calibration's, so that normal images don't look odd;
    without a calibration its top is the largest of these maps.

    Raises:
        OutputError: the file can't be written.
    """
    from matplotlib.figure import Figure

    columns = columns_of(explanations[0])
    figure = Figure(figsize=(1.5 * len(columns), 1.65 * len(explanations)), layout="constrained")
    axes = figure.subplots(len(explanations), len(columns), squeeze=False)
    top = explanations[0].map_top or max(float(e.distance_map.max()) for e in explanations)
    for row, explanation in enumerate(explanations):
        _draw_row(axes[row], explanation, top)
        if titles:
            axes[row][0].set_ylabel(titles[row], fontsize=7)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def columns_of(explanation: Explanation) -> list[str]:
    """What each picture of an image's row shows: the first two attempts, flipped masks or not."""
    first, second = explanation.hidden[0], explanation.hidden[_pair(explanation)[1]]
    again = "hidden, flipped" if torch.equal(second, ~first) else "hidden again"
    return ["original", "hidden", "redraw", again, "redraw", "distance"]


def _pair(explanation: Explanation) -> tuple[int, int]:
    """The attempts shown: the first two, or the only one twice."""
    return 0, min(1, len(explanation.redraws) - 1)


def _draw_row(axes: Any, explanation: Explanation, top: float) -> None:
    shown = [_picture(explanation.original)]
    for attempt in _pair(explanation):
        hidden = explanation.hidden[attempt].expand_as(explanation.original)
        shown.append(_picture(torch.where(hidden, torch.zeros(()), explanation.original)))
        shown.append(_picture(explanation.redraws[attempt]))
    for axis, picture in zip(axes, shown, strict=False):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes[-1].imshow(explanation.distance_map, cmap="inferno", vmin=0, vmax=top)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])


def _picture(image: Tensor) -> Tensor:
    """(c, h, w) in [-1, 1] as (h, w[, 3]) in [0, 1]."""
    picture = ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0)
    return picture[..., 0] if picture.shape[-1] == 1 else picture
