"""What Pillow reads otherwise than it is meant, by the kind of file: mended, or refused by name."""

import math
from typing import Any

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from liftmap.errors import ImageError
from liftmap.images.kinds import CONVERT, DEVELOP
from liftmap.images.picture import Decoded, of_array, plain
from liftmap.images.ranges import upper_bits

# TIFF tags: TIFF 6.0, and DNGVersion of DNG 1.7
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 254, 258, 259, 262, 277
_STRIP_BYTES, _PLANAR, _PALETTE, _FORMAT, _DNG = 279, 284, 320, 339, 50706
_SIGNED, _YCBCR = 2, 6  # of _FORMAT, of _PHOTOMETRIC
_DEEP_COLOUR = ("RGB;16B", "RGBA;16B", "LA;16B")  # Pillow's names of what PNG holds
_GREYS = {"1": 255, "L;2": 85, "L;4": 17}  # what Pillow multiplies PNG's shallow grey by
_SIZE = b"\xff\x4f\xff\x51"  # JPEG 2000's marker of sizes (ISO/IEC 15444-1, A.5.1)
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "GIF": b";"}
_MAY_END_IN_ZEROS = ("TIFF", "BMP", "DIB", "PPM")
ZEROS = 64  # at the end of a file whose kind has none there


def loaded(image: ImageFile, stream: Any) -> Decoded:
    """A file that Pillow has opened, as a picture.

    Raises:
        ImageError: what would be read wrongly; and Pillow's own errors.
    """
    _refuse_zeros(image.format or "", stream)
    if image.format == "TIFF":
        _refuse_tiff(image)
    bits = _bits_of_jpeg_2000(stream) if image.format == "JPEG2000" else []
    if bits and image.mode != "I;16" and not -8 <= min(bits) <= max(bits) <= 8:
        raise ImageError(f"JPEG 2000 of {max(map(abs, bits))} bits in colour: {CONVERT}")
    upper = _is_deep_colour(image)
    _scale_transparent(image)
    image.load()
    if image.format == "TIFF":
        found = _mended_tiff(image)
    elif bits and 0 < max(bits) < 8:
        found = plain(_scaled_up(image, max(bits)))
    else:
        found = plain(image)
    return upper_bits(found) if upper else found


def _refuse_zeros(kind: str, stream: Any) -> None:
    """Refuse a file that ends in zeros as no such file does: a download that was cut off."""
    stream.seek(0, 2)
    size = stream.tell()
    stream.seek(max(0, size - ZEROS))
    tail = stream.read()
    stream.seek(0)
    if kind in _MAY_END_IN_ZEROS or size < ZEROS or tail.strip(b"\0"):
        return
    whole = stream.read().rstrip(b"\0")  # some cameras fill up what is complete
    stream.seek(0)
    if kind not in _ENDS or not whole.endswith(_ENDS[kind]):
        raise ImageError(
            f"it ends in {size - len(whole)} zeros, as a download does that was cut off"
        )


def _tag(image: ImageFile, tag: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(tag, default)


def _refuse_tiff(image: ImageFile) -> None:
    """Camera raw files look like TIFF, and begin with a small picture for viewers. Others."""
    if _tag(image, _DNG, None) is not None or _tag(image, _SUBFILE, 0) & 1:
        raise ImageError(f"it begins with a preview of another picture, as raw data do: {DEVELOP}")
    if _tag(image, _COMPRESSION, 1) != 1:
        return
    bits, channels = _tag(image, _BITS, (1,)), _tag(image, _SAMPLES, 1)
    planes = _tag(image, _PLANAR, 1) == 2 and channels > 1
    if planes and 16 in bits:
        raise ImageError(f"TIFF of 16 bits, uncompressed, plane by plane: {CONVERT}")
    counts = _tag(image, _STRIP_BYTES, None)
    if counts is None or planes or _tag(image, _PHOTOMETRIC, 1) == _YCBCR:
        return
    needed = math.ceil(image.width * sum(bits) * (channels if len(bits) == 1 else 1) / 8)
    if sum(counts) < needed * image.height:
        raise ImageError(f"{sum(counts)} bytes of pixels, need {needed * image.height}: cut off")


def _mended_tiff(image: ImageFile) -> Decoded:
    """Signed values as such; a palette of eight bits, as old programs wrote it, for one of 16."""
    if _tag(image, _FORMAT, (1,))[0] == _SIGNED and _tag(image, _BITS, (8,)) == (8,):
        return of_array(np.asarray(image).view(np.int8))
    colours = _tag(image, _PALETTE, ())
    if image.mode == "P" and colours and 0 < max(colours) < 256:
        third = len(colours) // 3
        image.putpalette([c for i in range(third) for c in colours[i::third]])
    return plain(image)


def _is_deep_colour(image: ImageFile) -> bool:
    """Whether a file has sixteen bits a channel, of which Pillow keeps the upper eight."""
    if image.format == "PNG":
        return any(str(tile[3]) in _DEEP_COLOUR for tile in image.tile)
    return image.format == "TIFF" and image.mode != "I;16" and 16 in _tag(image, _BITS, ())


def _scale_transparent(image: ImageFile) -> None:
    """PNG counts a transparent colour in the file's bits, Pillow compares it with eight."""
    clear = image.info.get("transparency")
    if image.format != "PNG" or not image.tile:
        return
    bits = str(image.tile[0][3])
    if isinstance(clear, int) and image.mode in ("1", "L"):
        image.info["transparency"] = clear * _GREYS.get(bits, 1)
    elif isinstance(clear, tuple) and bits in _DEEP_COLOUR:
        image.info["transparency"] = tuple(shade >> 8 for shade in clear)


def _bits_of_jpeg_2000(stream: Any) -> list[int]:
    """The bits of each component, below zero where they are signed; none if they aren't found."""
    stream.seek(0)
    head = stream.read(65536)
    stream.seek(0)
    at = head.find(_SIZE)
    if at < 0 or at + 42 > len(head):
        return []
    count = int.from_bytes(head[at + 40 : at + 42], "big")
    sizes = head[at + 42 : at + 42 + 3 * count : 3]
    return [-(size & 127) - 1 if size & 128 else size + 1 for size in sizes]


def _scaled_up(image: Image.Image, bits: int) -> Image.Image:
    """Of fewer than eight bits Pillow makes the upper ones of eight, and leaves the others 0."""
    top = 2**bits - 1
    return image.point([round((v >> (8 - bits)) * 255 / top) for v in range(256)] * len(image.mode))
