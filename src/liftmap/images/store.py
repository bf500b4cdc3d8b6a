"""Prepared images on disk: one pass over any source, then random access in flat memory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from liftmap.errors import ImageError, SettingsError, SourceError
from liftmap.files import atomic_path
from liftmap.images.entry import Source
from liftmap.images.prepare import Preparation, to_model_range


@dataclass(frozen=True)
class HoldOut:
    """How many images are kept from training, to calibrate on.

    share: of all images; 0 keeps none.
    least: at least so many, but never more than a fifth of all. 125 support a rate of 1%.
    most: at most so many, since calibration scores each of them.
    """

    share: float = 0.05
    most: int = 2000
    least: int = 125

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or self.most < 0 or self.least < 0:
            raise SettingsError(
                f"hold-out share={self.share}, most={self.most}, least={self.least}: "
                "need 0 <= share < 1, most >= 0 and least >= 0"
            )

    def count(self, images: int) -> int:
        """How many of so many images are kept; none if the share is 0."""
        floor = min(self.least, images // 5) if self.share else 0
        return min(self.most, max(floor, round(self.share * images)))


class PreparedImages:
    """Prepared uint8 images of one shape in a raw file, read through a memory map.

    `rows` picks some of them, in that order, without copying.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int, int], rows: Int[np.ndarray, " n"] | None = None
    ) -> None:
        self.path, self.shape = path, shape
        count = path.stat().st_size // int(np.prod(shape))
        self._pixels = np.memmap(path, dtype=np.uint8, mode="r", shape=(count, *shape))
        self._rows = np.arange(count) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def pixels(self, rows: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """Those images as they were prepared."""
        return torch.from_numpy(self._pixels[self._rows[rows.numpy()]])

    def take(self, rows: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Those images in [-1, 1]."""
        return to_model_range(self.pixels(rows))

    def hold_out(self, count: int, *, seed: int = 0) -> tuple["PreparedImages", "PreparedImages"]:
        """(the rest, `count` random ones of the images), disjoint, both in file order."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        rest = np.setdiff1d(np.arange(len(self)), chosen)
        return (
            PreparedImages(self.path, self.shape, self._rows[rest]),
            PreparedImages(self.path, self.shape, self._rows[chosen]),
        )


def store_source(
    source: Source,
    preparation: Preparation,
    path: Path,
    *,
    on_image: Callable[[], None] = lambda: None,
    on_skip: Callable[[str, str], None] = lambda id, reason: None,
) -> PreparedImages:
    """Prepare each image of a source and write it to `path`; images that can't be read are skipped.

    Args:
        on_image: called after each image, read or skipped.
        on_skip: called with the id and the reason of each skipped image.

    Raises:
        SourceError: no image could be read.
        OutputError: the file can't be written.
    """
    written = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for entry in source:
            try:
                file.write(preparation(entry.load()).numpy().tobytes())
                written += 1
            except ImageError as error:
                on_skip(entry.id, str(error))
            on_image()
        if not written:
            raise SourceError(f"{source.name}: none of its images could be read")
    shape = (preparation.channels, preparation.height, preparation.width)
    return PreparedImages(path, shape)
