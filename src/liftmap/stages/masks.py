"""[lift] Which pixels to hide. `hidden` is bool (1, 1, height, width); True = to be redrawn."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from liftmap.errors import SettingsError


@dataclass(frozen=True)
class MaskSettings:
    """Which mask each attempt uses; saved with the model.

    kind: one of MASKS: "checkerboard" (alternating, the paper's default), "fixed-checkerboard",
        "centre", "random-patches" or "custom".
    cells: the checkerboard's cells a side.
    side: the centre square's side as a share of the image's.
    patch, ratio: side in pixels and hidden share of the random patches (SimMIM, Xie et al. 2022).
    rows: a custom mask, one string a row, "#" hidden and "." kept; see `custom`.
    """

    kind: str = "checkerboard"
    cells: int = 8
    side: float = 0.5
    patch: int = 4
    ratio: float = 0.5
    rows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in MASKS:
            raise SettingsError(f"mask {self.kind!r}: need one of {', '.join(MASKS)}")
        if self.cells < 2:
            raise SettingsError(
                f"cells={self.cells}: need at least 2, or one cell hides the whole image"
            )
        for name in ("side", "ratio"):
            if not 0 < getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)}: need more than 0, less than 1")
        if self.patch < 1:
            raise SettingsError(f"patch={self.patch}: need at least 1 pixel")
        if (self.kind == "custom") != bool(self.rows):
            raise SettingsError(
                f"mask {self.kind!r} with {len(self.rows)} rows: use custom(hidden)"
            )
        if len({len(row) for row in self.rows}) > 1 or set("".join(self.rows)) - {"#", "."}:
            raise SettingsError("rows: need strings of one length made of # (hidden) and . (kept)")

    @classmethod
    def custom(cls, hidden: Bool[Tensor, "h w"]) -> "MaskSettings":
        """A mask of the user's own, the same at every attempt; True = to be redrawn."""
        lines = ("".join("#" if v else "." for v in row) for row in hidden.tolist())
        return cls(kind="custom", rows=tuple(lines))


def checkerboard(
    height: int, width: int, cells: int, *, flipped: bool = False
) -> Bool[Tensor, "1 1 h w"]:
    """Hide every other cell of a cells x cells grid, keeping the top left one; True = hidden.

    The flipped mask is the complement: across the pair every pixel is hidden once. Where cells
    doesn't divide a side, cells differ by at most a pixel.

    >>> checkerboard(2, 4, 2)[0, 0].int().tolist()
    [[0, 0, 1, 1], [1, 1, 0, 0]]

    Raises:
        SettingsError: more cells than pixels a side.
    """
    if cells > min(height, width):
        raise SettingsError(f"cells={cells} on {height}x{width} pixels: need at most one a pixel")
    row = torch.arange(height) * cells // height
    column = torch.arange(width) * cells // width
    odd = (row[:, None] + column[None, :]) % 2 == 1
    return (odd ^ flipped)[None, None]


def centre(height: int, width: int, side: float) -> Bool[Tensor, "1 1 h w"]:
    """Hide one centred rectangle with the given share of each side, at least a pixel."""
    hidden = torch.zeros(1, 1, height, width, dtype=torch.bool)
    tall, wide = (max(1, round(side * length)) for length in (height, width))
    top, left = (height - tall) // 2, (width - wide) // 2
    hidden[..., top : top + tall, left : left + wide] = True
    return hidden


def random_patches(
    height: int, width: int, patch: int, ratio: float, seed: int
) -> Bool[Tensor, "1 1 h w"]:
    """Hide a random share of the patch x patch squares (SimMIM, Xie et al. 2022, section 3.2).

    Squares at the right and lower edge are cut where patch doesn't divide the side.
    """
    rows, columns = math.ceil(height / patch), math.ceil(width / patch)
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(rows * columns, dtype=torch.bool)
    chosen[order[: math.ceil(rows * columns * ratio)]] = True
    squares = chosen.view(rows, columns)
    full = squares.repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    return full[None, None, :height, :width]


def _custom(settings: MaskSettings, height: int, width: int) -> Bool[Tensor, "1 1 h w"]:
    got = (len(settings.rows), len(settings.rows[0]))
    if got != (height, width):
        raise SettingsError(f"custom mask of {got[0]}x{got[1]} pixels: need {height}x{width}")
    return torch.tensor([[c == "#" for c in row] for row in settings.rows])[None, None]


# (settings, height, width, attempt, seed) -> hidden
MaskMaker = Callable[[MaskSettings, int, int, int, int], Tensor]

MASKS: dict[str, MaskMaker] = {
    "checkerboard": lambda m, h, w, i, seed: checkerboard(h, w, m.cells, flipped=i % 2 == 1),
    "fixed-checkerboard": lambda m, h, w, i, seed: checkerboard(h, w, m.cells),
    "centre": lambda m, h, w, i, seed: centre(h, w, m.side),
    "random-patches": lambda m, h, w, i, seed: random_patches(
        h, w, m.patch, m.ratio, seed * 1_000_003 + i
    ),
    "custom": lambda m, h, w, i, seed: _custom(m, h, w),
}


def hidden_masks(
    settings: MaskSettings, height: int, width: int, attempts: int, *, seed: int = 0
) -> Bool[Tensor, "attempts 1 h w"]:
    """The mask of each attempt, the same for every image.

    The alternating checkerboard keeps the top left cell at attempts 0, 2, 4, ... and hides it at
    1, 3, 5, ..., as the authors' code does.
    """
    make = MASKS[settings.kind]
    return torch.cat([make(settings, height, width, i, seed) for i in range(attempts)])
