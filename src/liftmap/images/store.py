"""Prepared images on disk: one pass over any source, then random access in flat memory.

Beside `NAME`, the pixels, lies `NAME.ids`: the images' ids, one a line, as JSON has strings.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from liftmap.errors import ImageError, SettingsError, SourceError
from liftmap.files import atomic_path
from liftmap.images.entry import Source
from liftmap.images.groups import check_group_by, draw, joined, named_groups
from liftmap.images.picture import Deep, ValueRange
from liftmap.images.prepare import Preparation, fingerprint, to_model_range
from liftmap.images.ranges import likely_range


class Groups(NamedTuple):
    """Which images stay on one side of a hold-out.

    numbers: a group's images have the same. alone: ids that fit no group, each its own.
    """

    numbers: Int[np.ndarray, " n"]
    alone: int

    @property
    def sizes(self) -> Int[np.ndarray, " groups"]:
        """How many images each group has."""
        return np.bincount(self.numbers)


@dataclass(frozen=True)
class HoldOut:
    """How many images are kept from training, to calibrate on, and which stay together.

    share: of all images; 0 keeps none.
    least: at least so many, but never more than a fifth of all. 125 support a rate of 1%.
    most: at most so many, since calibration scores each of them.
    group_by: "folder", or a regular expression with one group in it: images of one folder, or
        of one match in their ids, are never on both sides. None: each image for itself.
    copies_together: nor are images of the same pixels. False for models of before there was this.
    """

    share: float = 0.05
    most: int = 2000
    least: int = 125
    group_by: str | None = None
    copies_together: bool = True

    def __post_init__(self) -> None:
        if self.group_by is not None:
            check_group_by(self.group_by)
        if not 0 <= self.share < 1 or self.most < 0 or self.least < 0:
            raise SettingsError(
                f"hold-out share={self.share}, most={self.most}, least={self.least}: "
                "need 0 <= share < 1, most >= 0 and least >= 0"
            )

    def count(self, images: int) -> int:
        """How many of so many images are kept; none if the share is 0."""
        floor = min(self.least, images // 5) if self.share else 0
        return min(self.most, max(floor, round(self.share * images)))

    def groups(self, images: "PreparedImages") -> Groups | None:
        """Which of the images stay together; None if each stands for itself.

        Raises:
            SourceError: they were stored without ids, which `group_by` needs.
        """
        same = images.same_pixels() if self.copies_together else np.arange(len(images))
        if self.group_by is None:
            return Groups(same, 0) if self.copies_together else None
        numbers, alone = named_groups(images.ids(), self.group_by)
        return Groups(joined(numbers, same), alone)


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

    def ids(self) -> list[str]:
        """The images' ids in their source.

        Raises:
            SourceError: they were stored without, or the file is damaged.
        """
        path = ids_path(self.path)
        try:
            found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return [found[row] for row in self._rows.tolist()]
        except (OSError, ValueError, IndexError) as error:
            raise SourceError(
                f"{path}, the images' ids, can't be read ({error}): delete {self.path.name} beside "
                "it, so that the images are prepared again"
            ) from error

    def same_pixels(self) -> Int[np.ndarray, " n"]:
        """A number an image; images of exactly the same pixels have the same."""
        prints = np.empty(len(self), dtype=np.uint64)
        for rows in torch.split(torch.arange(len(self)), 4096):
            prints[rows.numpy()] = [fingerprint(image) for image in self.pixels(rows)]
        numbers: np.ndarray = np.unique(prints, return_inverse=True)[1]
        return numbers

    def hash(self) -> str:
        """A name for exactly the file's images, whatever rows are picked."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]

    def hold_out(
        self, count: int, *, seed: int = 0, groups: Groups | None = None
    ) -> tuple["PreparedImages", "PreparedImages"]:
        """(the rest, about `count` random ones of the images), disjoint, both in file order.

        Args:
            groups: images that stay together (`groups.draw`); without them it is `count` exactly.

        Raises:
            SettingsError: all groups are too large; the message says how large.
        """
        numbers = None if groups is None else groups.numbers
        chosen = draw(count, len(self), seed=seed, groups=numbers)
        rest = np.setdiff1d(np.arange(len(self)), chosen)
        return (
            PreparedImages(self.path, self.shape, self._rows[rest]),
            PreparedImages(self.path, self.shape, self._rows[chosen]),
        )


def ids_path(path: Path) -> Path:
    """Where the ids of the images in a file lie."""
    return path.with_name(f"{path.name}.ids")


class _DeepFoundError(Exception):
    """The source has images whose range is not known yet."""


def value_range_of(source: Source) -> ValueRange:
    """The customary range that holds all values of a source's images of more than eight bits.

    Raises:
        SourceError: some of them are whole numbers and others floats.
    """
    low, high, floats = math.inf, -math.inf, set()
    for entry in source:
        try:
            picture = entry.load()
        except ImageError:
            continue
        if isinstance(picture, Deep) and not picture.scaled:
            low, high = min(low, picture.low), max(high, picture.high)
            floats.add(picture.values.dtype.kind == "f")
    if len(floats) != 1:
        raise SourceError(
            f"{source.name}: images of whole numbers and of floats, or none: need one range for "
            "all, as --range 0:4095"
        )
    return likely_range(low, high, floats=floats.pop())


def store_with_range(
    source: Source,
    preparation: Preparation,
    path: Path,
    *,
    on_image: Callable[[], None] = lambda: None,
    on_skip: Callable[[str, str], None] = lambda id, reason: None,
) -> tuple[PreparedImages, Preparation]:
    """`store_source` with the range of images of more than eight bits, found if none was given.

    It is found in all of them, so that one range serves all, and later images as well.
    """
    options: dict[str, Any] = {"on_image": on_image, "on_skip": on_skip}
    try:
        known = preparation.value_range is not None
        return store_source(source, preparation, path, **options, range_known=known), preparation
    except _DeepFoundError:
        preparation = replace(preparation, value_range=value_range_of(source))
    return store_source(source, preparation, path, **options), preparation


def store_source(
    source: Source,
    preparation: Preparation,
    path: Path,
    *,
    on_image: Callable[[], None] = lambda: None,
    on_skip: Callable[[str, str], None] = lambda id, reason: None,
    range_known: bool = True,
) -> PreparedImages:
    """Prepare each image of a source and write it to `path`; images that can't be read are skipped.

    Args:
        on_image: called after each image, read or skipped.
        on_skip: called with the id and the reason of each skipped image.
        range_known: False gives up at the first image whose range is in question.

    Raises:
        SourceError: no image could be read.
        OutputError: the file can't be written.
    """
    ids: list[str] = []
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for entry in source:
            try:
                picture = entry.load()
                if not range_known and isinstance(picture, Deep) and not picture.scaled:
                    raise _DeepFoundError
                file.write(preparation(picture).numpy().tobytes())
                ids.append(entry.id)
            except ImageError as error:
                on_skip(entry.id, str(error))
            on_image()
        if not ids:
            raise SourceError(f"{source.name}: none of its images could be read")
        with atomic_path(ids_path(path)) as beside:  # before the pixels are there under their name
            beside.write_text("".join(f"{json.dumps(id)}\n" for id in ids), encoding="utf-8")
    shape = (preparation.channels, preparation.height, preparation.width)
    return PreparedImages(path, shape)
