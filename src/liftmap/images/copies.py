"""Images that are nearly the same: compressed again, made a little smaller or brighter.

An image is compared by its sketch: the 63 lowest frequencies of its cosine transform, each times
its frequency. Natural images have the less of a frequency the higher it is, so that this makes each
tell as much. How far two sketches may be apart depends on the images: compression and resizing
spoil what is fine, so an image with much of it may differ more from its copies than a smooth one.
An image that shows little but fine things is known again only pixel by pixel. What was measured
stands in docs/guarantee.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from liftmap.errors import ModelError
from liftmap.files import atomic_path
from liftmap.images.prepare import fingerprint
from liftmap.images.store import PreparedImages

SIDE = 8  # frequencies a side
FINE = 6.0  # frequencies from here on are what copies may differ in
FLOOR = 1.0  # grey levels that even the smoothest images may be apart
NEAR = 0.67  # copies are no further apart than this share of what is fine: docs/guarantee.md
MOST_APART = 0.3  # nor than this share of the sketch itself
BRIGHTER = 20.0  # grey levels by which the means of copies may differ
ROWS, COLUMNS = 512, 8192  # sketches compared at once: 16 MB


class Copy(IntEnum):
    """What an image is among those that a model has seen; the lowest that holds."""

    EXACT_TRAINED = 0
    EXACT_HELD_OUT = 1
    NEAR_TRAINED = 2
    NEAR_HELD_OUT = 3
    NONE = 4

    @property
    def words(self) -> str | None:
        """What it means for the image's p-value; None for an image that is like no other."""
        exact, known = self in (Copy.EXACT_TRAINED, Copy.EXACT_HELD_OUT), self != Copy.NONE
        trained = self in (Copy.EXACT_TRAINED, Copy.NEAR_TRAINED)
        what = "trained on" if trained else "calibrated on"
        likeness = "an exact copy" if exact else "nearly the same as one"
        told = f"{likeness} of those that the model was {what}: its p-value says little"
        return told if known else None


class Sketches(NamedTuple):
    """What images are compared by.

    waves: in grey levels. reaches: the waves of a copy are less far apart than the smaller one.
    """

    waves: Float[Tensor, "n 63"]
    means: Float[Tensor, " n"]
    reaches: Float[Tensor, " n"]

    @classmethod
    def of(cls, pixels: UInt8[Tensor, "n c h w"]) -> "Sketches":
        """The sketches of images; colours are averaged."""
        grey = pixels.float().mean(1)
        height, width = grey.shape[1:]
        means, area = grey.mean((1, 2)), height * width
        grey = grey - means[:, None, None]
        found = _cosines(height) @ grey @ _cosines(width).T
        squares = torch.arange(SIDE).square()
        frequency = (squares[:, None] + squares).sqrt()
        coarse = found.square()[:, frequency < FINE].sum(1)
        fine = (grey.square().sum((1, 2)) - coarse).clamp_min(0)
        waves = (found * frequency).flatten(1)[:, 1:] / area**0.5
        reaches = NEAR * (FLOOR + (fine / area).sqrt())
        return cls(waves, means, torch.minimum(reaches, MOST_APART * waves.norm(dim=1)))

    def rows(self, chosen: Tensor | slice) -> "Sketches":
        return Sketches(*(part[chosen] for part in self))


def _cosines(side: int) -> Float[Tensor, "8 side"]:
    """The lowest rows of the orthonormal cosine transform; zeros beyond those that there are."""
    wave = torch.arange(SIDE)
    at = (torch.arange(side) + 0.5) * (torch.pi / side)
    rows = torch.cos(wave[:, None] * at) * (2 / side) ** 0.5
    rows[0] *= 0.5**0.5
    return torch.where((wave < side)[:, None], rows, 0.0)


def near_pairs(one: Sketches, other: Sketches) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """(rows of one, rows of other) that are nearly the same; memory grows with their product."""
    apart = torch.cdist(one.waves, other.waves, compute_mode="use_mm_for_euclid_dist")
    rows, columns = (apart < one.reaches[:, None]).nonzero(as_tuple=True)
    near = apart[rows, columns] < other.reaches[columns]
    near &= (one.means[rows] - other.means[columns]).abs() <= BRIGHTER
    return rows[near], columns[near]


def pairs_within(sketches: Sketches) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs of different images that are nearly the same, some at a time.

    Sketches of copies have nearly the same length, so that in order of length only those that lie
    close need to be compared.
    """
    length, order = sketches.waves.norm(dim=1).sort()
    ordered = sketches.rows(order)
    for begin in range(0, len(order), ROWS):
        end = min(begin + ROWS, len(order))
        block = ordered.rows(slice(begin, end))
        reach = length[end - 1] + block.reaches.max()
        last = int(torch.searchsorted(length, reach, right=True))
        for at in range(begin, last, COLUMNS):
            rows, columns = near_pairs(block, ordered.rows(slice(at, min(at + COLUMNS, last))))
            rows, columns = rows + begin, columns + at
            later = rows < columns
            yield order[rows[later]], order[columns[later]]


class Copies(NamedTuple):
    """How many images have a copy among the others.

    exact, near: by side: trained on, held out. across: images held out of which an exact or near
    copy was trained on.
    """

    exact: tuple[int, int]
    near: tuple[int, int]
    across: int

    def words(self, *, grouped: bool = False) -> str:
        """One line for people; grouped: they have said already what belongs together."""
        if not any((*self.exact, *self.near)):
            return "no copies among the images"
        told = ", ".join(
            f"{sum(sides)} images have {kind} copy ({sides[0]} trained on, {sides[1]} held out)"
            for kind, sides in (("an exact", self.exact), ("a near", self.near))
            if any(sides)
        )
        if not self.across:
            return f"{told}; none of them is on both sides"
        one = self.across == 1
        of = "image is a copy of one" if one else "images are copies of some"
        advice = "" if grouped else "keep series on one side with --group-by, or "
        return (
            f"{told}; {self.across} held-out {of} trained on, so that more than the promised rate "
            f"may be flagged: {advice}leave the copies out (`liftmap check` names them)"
        )


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model remembers of the images that it was trained on and of those held out.

    76 bytes an image: enough to know copies again, not to see the images.

    trained: so many come first; the others were held out.
    waves: the sketches' waves in 127ths of their largest; tops: the largest.
    """

    trained: int
    fingerprints: Int[Tensor, " n"]
    waves: Int[Tensor, "n 63"]
    tops: Float[Tensor, " n"]
    means: UInt8[Tensor, " n"]
    reaches: Float[Tensor, " n"]

    @classmethod
    def of(cls, trained: PreparedImages, held_out: PreparedImages) -> "Seen":
        """What is kept of prepared images."""
        parts = [
            _packed(images.pixels(rows))
            for images in (trained, held_out)
            for rows in torch.split(torch.arange(len(images)), COLUMNS // 4)
        ]
        return cls(len(trained), *(torch.cat(part) for part in zip(*parts, strict=True)))

    def __len__(self) -> int:
        return len(self.fingerprints)

    @cached_property
    def sketches(self) -> Sketches:
        waves = self.waves.float() * (self.tops.float() / 127)[:, None]
        return Sketches(waves, self.means.float(), self.reaches.float())

    @cached_property
    def _known(self) -> dict[int, int]:
        """The first row of each fingerprint."""
        return {f: i for i, f in reversed(list(enumerate(self.fingerprints.tolist())))}

    def compare(self, pixels: UInt8[Tensor, "b c h w"]) -> Int[Tensor, " b"]:
        """What each prepared image is among those seen, as `Copy` numbers it."""
        found = torch.full((len(pixels),), int(Copy.NONE))
        for begin in range(0, len(pixels), ROWS):
            some = pixels[begin : begin + ROWS]
            sketches = Sketches.of(some)
            part = found[begin : begin + ROWS]
            for at in range(0, len(self), COLUMNS):
                rows, columns = near_pairs(sketches, self.sketches.rows(slice(at, at + COLUMNS)))
                held = (columns + at >= self.trained).long()
                part.scatter_reduce_(0, rows, Copy.NEAR_TRAINED + held, "amin")
            for i, image in enumerate(some):
                row = self._known.get(_signed(fingerprint(image)))
                if row is not None:
                    part[i] = Copy.EXACT_TRAINED + (row >= self.trained)
        return found

    def copies(self) -> Copies:
        """How many of the images seen have copies among them. 60,000 images take some seconds."""
        held = torch.arange(len(self)) >= self.trained
        _, firsts, inverse, counts = np.unique(
            self.fingerprints.numpy(), return_index=True, return_inverse=True, return_counts=True
        )
        number, times = torch.from_numpy(inverse), torch.from_numpy(counts)
        exact = times[number] > 1
        on_trained = torch.zeros(len(times), dtype=torch.bool)
        on_trained[number[~held]] = True
        across = held & on_trained[number]
        chosen = torch.from_numpy(np.sort(firsts))  # of exact copies the first stands for all
        near = torch.zeros(len(self), dtype=torch.bool)
        for one, other in pairs_within(self.sketches.rows(chosen)):
            one, other = chosen[one], chosen[other]
            near[one] = near[other] = True
            apart = held[one] != held[other]
            across[torch.where(held[one], one, other)[apart]] = True
        return Copies(_by_side(exact, held), _by_side(near, held), int(across.sum()))

    def save(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            OutputError: it can't be written.
        """
        from safetensors.torch import save_file

        tensors = {name: getattr(self, name).contiguous() for name in _PACKED}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"trained": str(self.trained)})

    @classmethod
    def load(cls, path: Path) -> "Seen":
        """What `save` wrote.

        Raises:
            ModelError: the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                trained = int(file.metadata()["trained"])
                tensors = {name: file.get_tensor(name) for name in _PACKED}
            count = len(tensors["fingerprints"])
            for name, (kind, shape) in _PACKED.items():
                found = tensors[name].dtype, tuple(tensors[name].shape)
                if found != (kind, (count, *shape)):
                    raise ValueError(f"{name}: {found}")
            if not 0 <= trained <= count:
                raise ValueError(f"{trained} of {count} images trained on")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{path} is damaged ({error}): copy it again, or delete it; then copies of the "
                "training's images are no longer known"
            ) from error
        return cls(trained, **tensors)


_PACKED: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "fingerprints": (torch.int64, ()),
    "waves": (torch.int8, (SIDE**2 - 1,)),
    "tops": (torch.float16, ()),
    "means": (torch.uint8, ()),
    "reaches": (torch.float16, ()),
}


def _packed(pixels: UInt8[Tensor, "n c h w"]) -> tuple[Tensor, ...]:
    """The columns of `Seen`, of some images."""
    prints = torch.tensor([_signed(fingerprint(image)) for image in pixels], dtype=torch.int64)
    sketches = Sketches.of(pixels)
    tops = sketches.waves.abs().amax(1).half()
    waves = sketches.waves * (127 / tops.float().clamp_min(1e-6))[:, None]
    packed = waves.round().clamp(-127, 127).to(torch.int8)
    return prints, packed, tops, sketches.means.to(torch.uint8), sketches.reaches.half()


def _signed(number: int) -> int:
    """64 bits as tensors have them."""
    return number - (number >> 63 << 64)


def _by_side(chosen: Tensor, held: Tensor) -> tuple[int, int]:
    return int((chosen & ~held).sum()), int((chosen & held).sum())
