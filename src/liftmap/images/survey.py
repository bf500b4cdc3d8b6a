"""What a source's images are, before anything is made of them: kinds, sizes, faults, copies."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from liftmap.errors import ImageError
from liftmap.images.copies import Sketches, pairs_within
from liftmap.images.entry import Source
from liftmap.images.picture import Decoded, Deep
from liftmap.images.prepare import Preparation, Prepared, fingerprint
from liftmap.images.ranges import likely_range
from liftmap.images.tally import Tally

NAMED = 10  # ids told of each fault
ODD = 2.5  # times the usual length, or the usual proportion, of the sides
COLOURED = 12  # grey levels that the channels of a coloured picture are apart somewhere
KEPT = 8  # prepared images that a survey keeps, to time on
COARSE = 8.0  # pixels of a picture that become one of the model's: finer things are lost
SKEWED = 1.3  # how far a side may be stretched before it is worth a word

Size = tuple[int, int]  # width, height


@dataclass
class Fault:
    """How many images have it, and the first of them, each with what there is to say."""

    count: int = 0
    first: dict[str, str] = field(default_factory=dict)

    def add(self, id: str, told: str = "") -> None:
        """One more."""
        self.count += 1
        if len(self.first) < NAMED:
            self.first[id] = told


@dataclass
class Survey:
    """What was found in the images that were looked at.

    total: how many the source has; None if that isn't known. whole: whether all were looked at.
    kinds: by what they are, as "RGB". sizes: how many have each. first: the first id of a size.
    blank: of one single colour. copies: pixel for pixel, as the model gets them; told of which.
    near: nearly so, looked for only among all images of a source.
    coloured: whose channels differ. training: the range of deeper values is yet to be found.
    remarks: by text, how many images have it. pixels: the first prepared images.
    """

    total: int | None
    preparation: Preparation
    tally: Tally
    looked: int = 0
    whole: bool = False
    kinds: Counter[str] = field(default_factory=Counter)
    sizes: Counter[Size] = field(default_factory=Counter)
    first: dict[Size, str] = field(default_factory=dict)
    broken: Fault = field(default_factory=Fault)
    blank: Fault = field(default_factory=Fault)
    copies: Fault = field(default_factory=Fault)
    near: Fault = field(default_factory=Fault)
    remarks: Counter[str] = field(default_factory=Counter)
    pixels: list[UInt8[Tensor, "c h w"]] = field(default_factory=list)
    coloured: int = 0
    deep: int = 0
    training: bool = False

    @property
    def readable(self) -> int:
        """Images that can be used, of those that were looked at."""
        return self.looked - self.broken.count

    @property
    def odd_sizes(self) -> Fault:
        """Images far larger or smaller, or of other proportions, than the middle one."""
        found = Fault()
        if not self.sizes:
            return found
        usual, ratio = self.middle(_area), _ratio(self.middle(_ratio))
        for size, count in self.sizes.items():
            if _times(_area(size), _area(usual)) > ODD**2 or _times(_ratio(size), ratio) > ODD:
                found.add(self.first[size], f"{size[0]}x{size[1]}")
                found.count += count - 1
        return found

    def middle(self, key: Callable[[Size], float]) -> Size:
        """The size of the middle image, in the order of a key."""
        left = self.readable / 2
        for size in sorted(self.sizes, key=key):
            left -= self.sizes[size]
            if left <= 0:
                return size
        return max(self.sizes, key=key)

    def lines(self) -> Iterator[str]:
        """The few lines that are worth reading before every run."""
        yield self._what()
        if self.broken.count:
            yield _told(self.broken, "can't be used")
        yield from self._resized()
        if self.training and self.deep:
            yield (
                f"{self.deep} of more than 8 bits a channel: `train` takes the smallest usual "
                "range that holds all values, and keeps it; --range gives another"
            )
        for remark, count in self.remarks.items():
            yield f"{count} of {self.looked}: {remark}"
        if self.blank.count:
            yield _told(self.blank, "of one colour throughout")
        if self.copies.count:
            yield _told(self.copies, "exact copies, as the model sees them")
        if self.near.count:
            yield _told(self.near, "near copies, as if compressed again, resized or brighter")

    def _what(self) -> str:
        count = "images" if self.total is None else f"{self.total} images"
        first = "" if self.whole else f"; the first {self.looked}: "
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.kinds.most_common(4))
        return f"{count}{first or ': '}{kinds}{self._spread()}"

    def _spread(self) -> str:
        if not self.sizes:
            return ""
        small, large = min(self.sizes, key=_area), max(self.sizes, key=_area)
        least, most = f"{small[0]}x{small[1]}", f"{large[0]}x{large[1]}"
        return f", {least} pixels" if least == most else f", {least} to {most} pixels"

    def _resized(self) -> Iterator[str]:
        """What the model's size makes of the middle image."""
        if not self.sizes:
            return
        p = self.preparation
        width, height = self.middle(_area)
        across, down = width / p.width, height / p.height
        if max(across, down) >= COARSE:
            yield (
                f"{width}x{height} pixels become {p.width}x{p.height}: whatever is narrower than "
                f"some {max(across, down):.0f} pixels is hardly seen; cut large pictures into "
                "tiles, or train at a larger --size"
            )
        elif max(across, down) < 1:
            yield f"{width}x{height} pixels are enlarged to {p.width}x{p.height}"
        if p.fit == "stretch" and _times(across, down) > SKEWED:
            yield (
                f"{width}x{height} pixels are stretched to {p.width}x{p.height}, other proportions;"
                " a model trained with --fit crop or pad keeps them"
            )
        if p.channels == 1 and self.coloured:
            yield f"colour is not looked at: the model is grey, {self.coloured} images are not"


def _area(size: Size) -> float:
    return float(size[0] * size[1])


def _ratio(size: Size) -> float:
    return size[0] / size[1]


def _times(a: float, b: float) -> float:
    return max(a / b, b / a)


def _told(fault: Fault, what: str) -> str:
    ids = [f"{id} ({told})" if told else id for id, told in list(fault.first.items())[:3]]
    more = ", ..." if fault.count > len(ids) else ""
    return f"{what}: {fault.count}, {', '.join(ids)}{more}"


def survey(
    source: Source,
    preparation: Preparation,
    *,
    most: int | None = None,
    seconds: float | None = None,
    training: bool = False,
    on_image: Callable[[int], None] = lambda done: None,
) -> Survey:
    """Look at a source's images, all of them or the first.

    Args:
        most: so many at most. seconds: for so long at most.
        training: the images are to be trained on, which finds the range of deeper values.
        on_image: called with how many were looked at.

    Raises:
        SourceError: there are none.
    """
    found = Survey(source.count(), preparation, source.tally, training=training)
    seen: dict[int, str] = {}
    sketches: dict[str, Sketches] = {}
    begun, found.whole = time.monotonic(), True
    for entry in source:
        late = seconds is not None and time.monotonic() - begun > seconds
        if found.looked == most or late:
            found.whole = False
            break
        found.looked += 1
        try:
            decoded = entry.load()
            pixels, remarks = _prepared(preparation, decoded, training)
            found.coloured += _is_coloured(decoded)
            found.deep += isinstance(decoded, Deep) and not decoded.scaled
        except ImageError as error:
            found.broken.add(entry.id, str(error))
            continue
        found.kinds[_kind(decoded)] += 1
        found.sizes[decoded.size] += 1
        found.first.setdefault(decoded.size, entry.id)
        found.remarks.update(remarks)
        if _note_faults(found, seen, entry.id, pixels) and most is None:
            sketches[entry.id] = Sketches.of(pixels[None])
        on_image(found.looked)
    if found.whole:
        found.total = found.looked
        _note_near(found, sketches)
    return found


def _note_near(found: Survey, sketches: dict[str, Sketches]) -> None:
    """Each image that is nearly an earlier one, once."""
    if len(sketches) < 2:
        return
    ids = list(sketches)
    all_of_them = Sketches(*(torch.cat(part) for part in zip(*sketches.values(), strict=True)))
    first: dict[int, int] = {}
    for one, other in pairs_within(all_of_them):
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            late, early = max(a, b), min(a, b)
            first[late] = min(early, first.get(late, early))
    for late, early in sorted(first.items()):
        found.near.add(ids[late], f"nearly {ids[early]}")


def _note_faults(
    found: Survey, seen: dict[int, str], id: str, pixels: UInt8[Tensor, "c h w"]
) -> bool:
    """Count what is wrong with an image; whether it is like no other so far."""
    first = seen.setdefault(fingerprint(pixels), id)
    blank = bool((pixels == pixels[:, :1, :1]).all())
    if blank:
        found.blank.add(id)
    elif first != id:
        found.copies.add(id, f"the same as {first}")
    if len(found.pixels) < KEPT:
        found.pixels.append(pixels)
    return first == id and not blank


def _prepared(preparation: Preparation, picture: Decoded, training: bool) -> Prepared:
    """As training will take it, but for the range, which it finds in all images together."""
    known = not training or preparation.value_range is not None
    if not known and isinstance(picture, Deep) and not picture.scaled:
        floats = picture.values.dtype.kind == "f"
        found = likely_range(picture.low, picture.high, floats=floats)
        preparation = replace(preparation, value_range=found)
    return preparation.prepared(picture)


def _is_coloured(picture: Decoded) -> bool:
    if isinstance(picture, Deep) or picture.mode != "RGB":
        return isinstance(picture, Deep) and picture.colours == 3
    small = np.asarray(picture.resize((16, 16)), dtype=np.int16)
    return bool(np.ptp(small, axis=2).max() > COLOURED)


def _kind(picture: Decoded) -> str:
    if isinstance(picture, Deep):
        return picture.mode
    return {"L": "grey", "RGB": "RGB"}.get(picture.mode, picture.mode)


def stacked(found: Survey) -> UInt8[Tensor, "b c h w"]:
    """The first prepared images, to time on."""
    return torch.stack(found.pixels)
