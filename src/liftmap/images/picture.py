"""What a decoded picture is: eight bits a channel as a Pillow image, or deeper values as stored.

Only whoever knows the range of deeper values can make eight bits of them: twelve bits in a file of
sixteen look like a dark picture.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageOps

from liftmap.errors import ImageError

MIN_SIDE = 2  # a single row or column of pixels has no hidden and known part
_REMARKS = "liftmap remarks"  # the key of a picture's remarks in Pillow's `info`
# TIFF 6.0's tags
_BITS, _PHOTOMETRIC, _SAMPLES = 258, 262, 339

MASK = "black: its values are 0 and 1 of 255 (give a mask as bool, or as 0 and 255)"

ValueRange = tuple[float, float]


@dataclass(frozen=True)
class Deep:
    """A picture of other than eight bits a channel.

    values: (h, w, c), c = 1 or 3 colours, and alpha as a last channel where c is 2 or 4.
    low, high: of all finite values of the array that it is part of, to judge their range by.
    top: the value of white where the kind of file or number says it, as 65535; None where not.
    scaled: the file says itself which value is white, so no other range can be meant.
    inverted: 0 is white.
    """

    values: np.ndarray
    low: float
    high: float
    top: float | None = None
    scaled: bool = False
    inverted: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow has it."""
        return self.values.shape[1], self.values.shape[0]

    @property
    def colours(self) -> int:
        """1 or 3: its channels without alpha."""
        return 1 if self.values.shape[2] < 3 else 3

    @property
    def mode(self) -> str:
        """What its values are, as Pillow's modes say it for eight bits."""
        return f"{self.values.dtype} {'grey' if self.colours == 1 else 'colour'}"


Decoded = Image.Image | Deep


def remarked(picture: Decoded, *remarks: str) -> Decoded:
    """The picture with more that the user should be told."""
    told = tuple(dict.fromkeys((*remarks_of(picture), *remarks)))
    if isinstance(picture, Deep):
        return replace(picture, remarks=told)
    picture.info[_REMARKS] = told
    return picture


def remarks_of(picture: Decoded) -> tuple[str, ...]:
    """What the user should be told of a picture."""
    if isinstance(picture, Deep):
        return picture.remarks
    told: tuple[str, ...] = picture.info.get(_REMARKS, ())
    return told


def check_sides(size: tuple[int, int]) -> None:
    """Refuse what is less than two pixels wide or high.

    Raises:
        ImageError: the message names the size.
    """
    if min(size) < MIN_SIDE:
        raise ImageError(f"{size[0]}x{size[1]} pixels: need at least {MIN_SIDE}x{MIN_SIDE}")


def plain(image: Image.Image) -> Decoded:
    """Any Pillow image upright, without alpha, grey or RGB; deeper values as they are.

    Raises:
        ImageError: too small.
    """
    check_sides(image.size)
    upright = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return upright
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep(image, np.asarray(upright))
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        return _on_white(upright.convert("LA") if image.mode == "La" else upright, grey=grey)
    return upright.convert("L" if image.mode == "1" else "RGB")


def _on_white(image: Image.Image, *, grey: bool) -> Image.Image:
    over = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    laid = Image.alpha_composite(white, over).convert("L" if grey else "RGB")
    laid.info = {}
    return laid


def _deep(image: Image.Image, values: np.ndarray) -> Deep:
    """A Pillow image of mode I;16, I or F, and its values the right way up."""
    tags = getattr(image, "tag_v2", {})
    top = None
    if image.mode.startswith("I;16"):
        top = 2.0 ** tags.get(_BITS, (16,))[0] - 1
    if tags.get(_SAMPLES, (0,))[0] == 1 and values.dtype == np.int32:
        values = values.view(np.uint32)  # Pillow has no mode for them
    # Pillow stretches these over sixteen bits, by what the file says of its range
    scaled = image.format in ("PPM", "JPEG2000") and image.mode != "F"
    if isinstance(clear := image.info.get("transparency"), int):
        opaque = (values != clear).astype(values.dtype) * values.dtype.type(65535)
        values = np.stack([values, opaque], axis=2)
    found = of_array(values, top=65535.0 if scaled else top)
    if not isinstance(found, Deep):
        raise ImageError(f"a picture of mode {image.mode}: need grey or colour")
    return replace(found, scaled=scaled, inverted=tags.get(_PHOTOMETRIC) == 0)


def of_array(
    values: np.ndarray,
    *,
    low: float | None = None,
    high: float | None = None,
    top: float | None = None,
) -> Decoded:
    """An array (h, w) or (h, w, c) as a picture; c = 1 or 3 colours, 2 or 4 with alpha.

    uint8 and bool give a Pillow image.

    Args:
        low, high: of the array that this one is part of, to judge its range by.
        top: the value of white, if it is known.

    Raises:
        ImageError: wrong shape or type; the message names what was found.
    """
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[2] not in (1, 2, 3, 4):
        raise ImageError(f"array of shape {values.shape}: need (h, w) or (h, w, 1 to 4)")
    check_sides((values.shape[1], values.shape[0]))
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:
        eight = np.ascontiguousarray(values)
        made = plain(Image.fromarray(eight[..., 0] if eight.shape[2] == 1 else eight))
        return remarked(made, MASK) if values.size and values.max() == 1 else made
    if values.dtype.kind not in "uif":
        raise ImageError(f"array of {values.dtype}: need whole numbers, floats or bool")
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    low, high = least if low is None else low, most if high is None else high
    if top is None and values.dtype.kind == "u" and values.dtype.itemsize == 2:
        top = 65535.0
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        top = 1.0
    return Deep(values, low, high, top)
