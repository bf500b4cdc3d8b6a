"""From any picture to the model's input: upright, colours, size, range.

The same chain serves training, calibration and scoring. Prepared images are uint8, so that they can
be stored, hashed and compared exactly.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from io import BufferedIOBase
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from liftmap.errors import ImageError, SettingsError
from liftmap.images.decode import FIRST_FRAME, decode
from liftmap.images.entry import Entry
from liftmap.images.picture import (
    MIN_SIDE,
    Decoded,
    Deep,
    ValueRange,
    of_array,
    plain,
    remarked,
    remarks_of,
)
from liftmap.images.ranges import eight_bits

FITS = ("stretch", "crop", "pad")

_ALONE = (Tensor, np.ndarray, str, Path, bytes, bytearray, memoryview, Image.Image, Deep)

Picture = (
    Decoded | np.ndarray | Tensor | str | Path | bytes | bytearray | memoryview | BufferedIOBase
)


class Prepared(NamedTuple):
    """A picture as the model's input, and what the user should be told of it."""

    pixels: UInt8[Tensor, "c h w"]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes the model's input; saved with the model.

    height, width: pixels; channels: 1 grey, 3 RGB.
    fit: "stretch" resizes each side on its own; "crop" resizes until the picture covers the size
        and cuts the middle out; "pad" resizes until it fits in and fills up with black.
    value_range: the values of black and white in pictures of more than eight bits a channel; None
        for what each says of itself, as 0 to 65535 of sixteen bits.
    Resizing is bilinear with antialiasing.
    """

    height: int
    width: int
    channels: int
    fit: str = "stretch"
    value_range: ValueRange | None = None

    def __post_init__(self) -> None:
        if min(self.height, self.width) < MIN_SIDE:
            raise SettingsError(
                f"{self.height}x{self.width} pixels: need at least {MIN_SIDE} a side"
            )
        if self.channels not in (1, 3):
            raise SettingsError(f"channels={self.channels}: need 1 (grey) or 3 (RGB)")
        if self.fit not in FITS:
            raise SettingsError(f"fit {self.fit!r}: need one of {', '.join(FITS)}")
        if self.value_range is not None:
            low, high = self.value_range
            if not (isfinite(low) and isfinite(high) and low < high):
                raise SettingsError(f"value range {low:g} to {high:g}: need two rising numbers")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    def __call__(self, picture: Picture) -> UInt8[Tensor, "c h w"]:
        """The model's input.

        Raises:
            ImageError: the picture can't be used; the message says why.
        """
        return self.prepared(picture).pixels

    def prepared(self, picture: Picture) -> Prepared:
        """The model's input, with what the user should be told; raises as a call does."""
        image = to_image(picture, self.value_range)
        plainly = image.convert("L" if self.channels == 1 else "RGB")
        return Prepared(self._sized(plainly), remarks_of(image))

    def _sized(self, image: Image.Image) -> UInt8[Tensor, "c h w"]:
        size = (self.width, self.height)
        if self.fit == "crop":
            image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        elif self.fit == "pad":
            image = _padded(image, size)
        elif image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        pixels = np.array(image, dtype=np.uint8).reshape(self.height, self.width, self.channels)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


class Batch(NamedTuple):
    """Entries as the model's inputs.

    pixels: of those that can be used. reasons: by place, why the others can't. remarks: by place.
    """

    pixels: list[UInt8[Tensor, "c h w"]]
    reasons: dict[int, str]
    remarks: dict[int, tuple[str, ...]]


def prepare_entries(preparation: Preparation, entries: Iterable[Entry]) -> Batch:
    """The model's inputs of some entries."""
    batch = Batch([], {}, {})
    for place, entry in enumerate(entries):
        try:
            pixels, remarks = preparation.prepared(entry.load())
        except ImageError as error:
            batch.reasons[place] = str(error)
            continue
        batch.pixels.append(pixels)
        if remarks:
            batch.remarks[place] = remarks
    return batch


def _padded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture as large as fits, centred on black.

    ImageOps.pad rounds the short side of a long, thin picture to nothing; here a pixel is left.
    """
    scale = min(side / length for side, length in zip(size, image.size, strict=True))
    width, height = (max(1, round(length * scale)) for length in image.size)
    canvas = Image.new(image.mode, size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    canvas.paste(resized, ((size[0] - width) // 2, (size[1] - height) // 2))
    return canvas


def to_image(picture: Picture, value_range: ValueRange | None = None) -> Image.Image:
    """Any accepted form of a picture as a grey or RGB Pillow image, upright, alpha on white.

    Arrays are (h, w) or (h, w, c), tensors (c, h, w), with 1 or 3 colours, or 2 or 4 with alpha:
    uint8, bool, uint16 over its full range, or floats in [0, 1].

    Args:
        value_range: the values of black and white of arrays and files of other than eight bits;
            needed for other numbers.

    Raises:
        ImageError: wrong shape, type or range, or NaN; the message names what was found.
    """
    return eight_bits(decoded(picture), value_range)


def decoded(picture: Picture) -> Decoded:
    """Any accepted form of a picture, upright, alpha on white; raises as `to_image` does."""
    if isinstance(picture, Deep):
        return picture
    if isinstance(picture, Image.Image):
        return _of_pillow(picture)
    if isinstance(picture, Tensor):
        if picture.ndim != 3:
            raise ImageError(f"tensor of shape {tuple(picture.shape)}: need (channels, h, w)")
        return of_array(_as_array(picture, (1, 2, 0)))
    if isinstance(picture, np.ma.MaskedArray):
        raise ImageError("a masked array: fill what is masked, with filled()")
    if isinstance(picture, np.ndarray):
        return of_array(picture)
    return decode(_encoded(picture))


def _encoded(picture: object) -> bytes | str | Path:
    """The bytes of an image's file, or its path."""
    if isinstance(picture, bytes | str | Path):
        return picture
    if isinstance(picture, bytearray | memoryview):
        return bytes(picture)
    if hasattr(picture, "read") and isinstance(data := picture.read(), bytes):
        return data
    raise ImageError(
        f"a {type(picture).__name__} is no picture: need a Pillow image, array, tensor, path, bytes"
    )


def as_list(pictures: Picture | Iterable[Picture]) -> list[Picture]:
    """One or many pictures as a list; a 4-D array or tensor is a batch.

    Raises:
        SettingsError: there are none.
    """
    given: Any = pictures
    if isinstance(given, Tensor) and given.ndim == 4:
        found = _rows(_as_array(given, (0, 2, 3, 1)))
    elif isinstance(given, np.ndarray) and given.ndim == 4:
        found = _rows(given)
    elif isinstance(given, _ALONE) or hasattr(given, "read") or not isinstance(given, Iterable):
        found = [given]  # what is no picture is refused by name when it is read
    else:
        found = list(given)
    if not found:
        raise SettingsError("0 images: need at least one")
    return found


def _of_pillow(image: Image.Image) -> Decoded:
    try:
        several = getattr(image, "n_frames", 1) > 1 and image.format not in ("MPO", "JPEG")
        return remarked(plain(image), FIRST_FRAME) if several else plain(image)
    except ImageError:
        raise
    except Exception as error:  # it may not be decoded yet, or be closed
        raise ImageError(f"can't be decoded ({error})") from error


def _as_array(values: Tensor, order: tuple[int, ...]) -> np.ndarray:
    """A tensor's values with its axes in that order."""
    try:
        values = values.detach().cpu().permute(order)
        array: np.ndarray = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise ImageError(f"tensor of {values.dtype}: need plain numbers ({error})") from error
    return array


def _rows(batch: np.ndarray) -> list[Picture]:
    """A batch's images; their range is judged over all of them."""
    if batch.dtype.kind != "f" or not (finite := batch[np.isfinite(batch)]).size:
        return list(batch)
    low, high = float(finite.min()), float(finite.max())
    return [of_array(image, low=low, high=high) for image in batch]


def to_model_range(pixels: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
    """0 to 255 as -1 to 1.

    >>> to_model_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [-1.0, 1.0]
    """
    return pixels.float() / 127.5 - 1.0


def fingerprint(pixels: UInt8[Tensor, "c h w"]) -> int:
    """64 bits that depend on the pixels and the shape alone: the image's own seed."""
    digest = blake2b(repr(tuple(pixels.shape)).encode(), digest_size=8)
    digest.update(pixels.contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest(), "big")
