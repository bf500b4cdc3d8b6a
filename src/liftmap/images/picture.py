"""What a decoded picture is: eight bits a channel as a Pillow image, or deeper values as stored.

Only whoever knows the range of deeper values can make eight bits of them: twelve bits in a file of
sixteen look like a dark picture.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageOps

from liftmap.errors import ImageError

MIN_SIDE = 2  # a single row or column of pixels has no hidden and known part
DARK = 1 / 8  # of a range: a picture that ends below was hardly meant to have that range
OUTSIDE = 0.01  # share of values that may lie outside a range, and are cut to it
# keys in Pillow's `info`: a picture's remarks; that it is the upper half of sixteen bits
_REMARKS, _UPPER = "liftmap remarks", "liftmap upper bits"
# TIFF 6.0's tags
_BITS, _PHOTOMETRIC = 258, 262

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
    def mode(self) -> str:
        """What its values are, as Pillow's modes say it for eight bits."""
        return f"{self.values.dtype} {'grey' if self.values.shape[2] < 3 else 'colour'}"


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


def upper_bits(picture: Decoded) -> Decoded:
    """The picture, known to be the upper eight of the sixteen bits that its file has."""
    if isinstance(picture, Image.Image):
        picture.info[_UPPER] = True
        if 0 < np.asarray(picture).max() <= 255 * DARK:
            what_to_do = "convert it to eight bits with the right range"
            return remarked(picture, _dark((0.0, 65535.0), what_to_do))
    return picture


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
        return plain(Image.fromarray(eight[..., 0] if eight.shape[2] == 1 else eight))
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


def eight_bits(picture: Decoded, value_range: ValueRange | None = None) -> Image.Image:
    """A picture as Pillow's grey or RGB, alpha laid on white.

    Args:
        value_range: the values of black and white where a picture has more than eight bits; by
            default 0 and what its file, or its kind of number, has for white.

    Raises:
        ImageError: NaN, no range is known, or over a hundredth of the values lie outside of it.
    """
    if not isinstance(picture, Deep):
        if value_range is None:
            return picture
        if _UPPER in picture.info and value_range != (0.0, 65535.0):
            raise ImageError(
                "sixteen bits a channel in colour, of which only the upper eight are read: can't "
                f"have the range {range_text(value_range)}; convert it to eight bits"
            )
        remark = f"eight bits, where others have values of {range_text(value_range)}"
        remarked(picture, remark)
        return picture
    low, high = _range_of(picture, value_range)
    colours = 1 if picture.values.shape[2] < 3 else 3
    shares = picture.values.astype(np.float64)
    shares[..., :colours] = (shares[..., :colours] - low) / (high - low)
    shares[..., colours:] /= picture.top or high
    if picture.inverted:
        shares[..., :colours] = 1 - shares[..., :colours]
    eight = of_array(np.round(shares.clip(0, 1) * 255.0).astype(np.uint8))
    remarks = _range_remarks(picture, low, high, asked=value_range is not None)
    image = remarked(eight, *picture.remarks, *remarks)
    if isinstance(image, Deep):
        raise ImageError("eight bits were asked for")
    return image


def range_text(value_range: ValueRange) -> str:
    """A range as --range takes it.

    >>> range_text((0, 4095))
    '0:4095'
    """
    return f"{value_range[0]:g}:{value_range[1]:g}"


def _range_of(picture: Deep, asked: ValueRange | None) -> ValueRange:
    bad = int((~np.isfinite(picture.values)).sum()) if picture.values.dtype.kind == "f" else 0
    if bad:
        raise ImageError(f"{bad} of {picture.values.size} values are NaN or infinite")
    if asked is not None and not picture.scaled:
        return asked
    if picture.top is not None:
        return 0.0, picture.top
    guess = likely_range(picture.low, picture.high, floats=picture.values.dtype.kind == "f")
    raise ImageError(
        f"{picture.values.dtype} values from {picture.low:.6g} to {picture.high:.6g}: need [0, 1] "
        f"for floats, or the values of black and white, as --range {range_text(guess)}"
    )


def _dark(value_range: ValueRange, what_to_do: str) -> str:
    return (
        f"dark: values end below an eighth of {range_text(value_range)} (if they can't be higher, "
        f"{what_to_do})"
    )


def likely_range(low: float, high: float, *, floats: bool) -> ValueRange:
    """The smallest customary range that holds all values: of 8, 10, 12, 14 or 16 bits, or [0, 1].

    >>> likely_range(0, 0.5, floats=True), likely_range(3, 900, floats=False)
    ((0.0, 1.0), (0.0, 1023.0))
    """
    tops = [1.0] if floats else []
    tops += [2.0**bits - 1 for bits in (8, 10, 12, 14, 16)]
    fits = [top for top in tops if low >= 0 and high <= top]
    return (0.0, fits[0]) if fits else (low, max(high, low + 1))


def _range_remarks(picture: Deep, low: float, high: float, *, asked: bool) -> list[str]:
    """What to say of a picture whose values don't fit a range; refuses what can't fit it."""
    colours = picture.values[..., : 1 if picture.values.shape[2] < 3 else 3]
    outside = float(((colours < low) | (colours > high)).mean())
    if outside > OUTSIDE:
        raise ImageError(
            f"{outside:.0%} of its values, from {picture.low:.6g} to {picture.high:.6g}, lie "
            f"outside the range {range_text((low, high))}: give another with --range"
        )
    remarks = []
    if outside:
        remarks.append(f"values outside the range {range_text((low, high))} were cut to it")
    brightest = (float(colours.max()) - low) / (high - low)
    if 0 < brightest <= DARK and not picture.scaled:
        guess = range_text(
            likely_range(low, float(colours.max()), floats=colours.dtype.kind == "f")
        )
        remarks.append(_dark((low, high), f"give their range, as --range {guess}"))
    return remarks
