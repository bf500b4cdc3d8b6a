"""From deeper values to eight bits, by the range that they are meant to have."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from liftmap.errors import ImageError
from liftmap.images.picture import Decoded, Deep, ValueRange, of_array, remarked

DARK = 1 / 8  # of a range: a picture that ends below was hardly meant to have that range
OUTSIDE = 0.01  # share of values that may lie outside a range, and are cut to it
ROWS = 4096  # that are stretched at once
_UPPER = "liftmap upper bits"  # the key, in Pillow's `info`, of what has lost the lower half


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
    eight = of_array(_stretched(picture, low, high))
    image = remarked(eight, *picture.remarks, *_remarks(picture, low, high))
    if isinstance(image, Deep):
        raise ImageError("eight bits were asked for")
    return image


def _stretched(picture: Deep, low: float, high: float) -> UInt8[np.ndarray, "h w c"]:
    """Its values in eight bits; alpha by a white of its own."""
    values, colours = picture.values, picture.colours
    made = np.empty(values.shape, dtype=np.uint8)
    made[..., :colours] = _shades(values[..., :colours], low, high)
    if picture.inverted:
        made[..., :colours] = 255 - made[..., :colours]
    if values.shape[2] > colours:
        alpha = values[..., colours:]
        tops = sorted({1.0 if values.dtype.kind == "f" else high, high, picture.top or high})
        fits = [top for top in tops if alpha.max() <= top]
        made[..., colours:] = _shades(alpha, 0.0, fits[0] if fits else tops[-1])
    return made


def _shades(values: np.ndarray, low: float, high: float) -> UInt8[np.ndarray, "..."]:
    """Values from low to high as 0 to 255."""
    if values.dtype == np.uint16:  # by a table: pictures may have millions of pixels
        table = _shades(np.arange(65536, dtype=np.uint32), low, high)
        found: np.ndarray = table[values]
        return found
    made = np.empty(values.shape, dtype=np.uint8)
    for begin in range(0, len(values), ROWS):
        shares = (values[begin : begin + ROWS].astype(np.float64) - low) / (high - low)
        made[begin : begin + ROWS] = np.round(shares.clip(0, 1) * 255.0)
    return made


def range_text(value_range: ValueRange) -> str:
    """A range as --range takes it.

    >>> range_text((0.0, 4095.0))
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


def _remarks(picture: Deep, low: float, high: float) -> list[str]:
    """What to say of a picture whose values don't fit a range; refuses what can't fit it."""
    colours = picture.values[..., : picture.colours]
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


def _dark(value_range: ValueRange, what_to_do: str) -> str:
    return (
        f"dark: values end below an eighth of {range_text(value_range)} (if they can't be higher, "
        f"{what_to_do})"
    )


def likely_range(low: float, high: float, *, floats: bool) -> ValueRange:
    """The smallest customary range that holds all values: of 8, 10, 12, 14 or 16 bits, or [0, 1].

    >>> likely_range(0.0, 0.5, floats=True), likely_range(3.0, 900.0, floats=False)
    ((0.0, 1.0), (0.0, 1023.0))
    """
    tops = [1.0] if floats else []
    tops += [2.0**bits - 1 for bits in (8, 10, 12, 14, 16)]
    fits = [top for top in tops if low >= 0 and high <= top]
    return (0.0, fits[0]) if fits else (low, max(high, low + 1))


def upper_bits(picture: Decoded) -> Decoded:
    """The picture, known to be the upper eight of the sixteen bits that its file has."""
    if isinstance(picture, Image.Image):
        picture.info[_UPPER] = True
        if 0 < np.asarray(picture).max() <= 255 * DARK:
            what_to_do = "convert it to eight bits with the right range"
            return remarked(picture, _dark((0.0, 65535.0), what_to_do))
    return picture
