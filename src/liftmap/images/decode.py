"""From an image file's bytes to a picture: grey or RGB, upright, alpha laid on white."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from liftmap.errors import ImageError, MissingExtraError
from liftmap.images.kinds import CONVERT, HEAD, IMAGES, UNREAD, ending, kind_of
from liftmap.images.picture import Decoded, check_sides, remarked
from liftmap.images.quirks import loaded

# what may be decoded, whatever a file is called: some of Pillow's other formats start programs
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM", "HEIF")
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # Pillow's limit: 89 million
FIRST_FRAME = "several frames or pages in one file: the first alone is looked at"


def decode(data: bytes | str | Path, *, most_pixels: int = MOST_PIXELS) -> Decoded:
    """Decode an image file: EXIF orientation applied, alpha laid on white.

    Grey is "L", colour RGB; palettes and CMYK become RGB. More than eight bits of grey, or of
    colour in a PNG, stay as they are. Animations give one frame, the first.

    Raises:
        ImageError: gone, empty, truncated, no image of FORMATS, of more than `most_pixels`, or
            smaller than 2x2; the message says which.
    """
    if isinstance(data, bytes):
        return _decode(io.BytesIO(data), most_pixels)
    if ending(str(data)) in UNREAD:
        raise ImageError(f"{ending(str(data))} is not read: {UNREAD[ending(str(data))]}")
    if Path(data).exists() and not Path(data).is_file():  # a pipe would wait for its writer
        raise ImageError("not a file: a pipe, a socket, a device or a folder")
    try:
        # by a stream: of a path Pillow maps uncompressed TIFF into memory, and then turns the
        # sides of an image that lies on its side, not the image
        with Path(data).open("rb") as file:
            return _decode(file, most_pixels)
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"can't be read ({reason})") from error


def _decode(stream: io.BufferedIOBase, most_pixels: int) -> Decoded:
    try:
        with _limited(most_pixels), _opened(stream) as image:
            _check_size(image, most_pixels)
            several = getattr(image, "n_frames", 1) > 1 and image.format not in ("MPO", "JPEG")
            found = loaded(image, stream)
            return remarked(found, FIRST_FRAME) if several else found
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(_too_many(str(error), most_pixels)) from error
    except UnidentifiedImageError as error:
        raise ImageError(_unidentified(stream)) from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them raise
        raise ImageError(f"can't be decoded ({error})") from error


_LIMIT = Lock()


@contextmanager
def _limited(most_pixels: int) -> Iterator[None]:
    """Pillow's own limit, which is the process's, out of the way of a higher one.

    Up to twice its limit Pillow only warns; here `_check_size` keeps to the limit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # also what it says of damaged tags beside the pixels
        if most_pixels <= MOST_PIXELS:
            yield
            return
        with _LIMIT:
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, most_pixels
            try:
                yield
            finally:
                Image.MAX_IMAGE_PIXELS = before


def _opened(stream: io.BufferedIOBase) -> ImageFile:
    file: Any = stream  # Pillow's signature asks for a class that no open file has
    try:
        return Image.open(file, formats=FORMATS[:-1])
    except UnidentifiedImageError:
        if _head(stream) != "heic":
            raise
    try:
        from pillow_heif import HeifImagePlugin  # noqa: F401  # registers itself with Pillow
    except ImportError as error:
        raise ImageError(f"HEIC: {MissingExtraError('pillow-heif', 'heif')}") from error
    return Image.open(file, formats=FORMATS[-1:])


def _head(stream: io.BufferedIOBase) -> str | None:
    """What the first bytes say."""
    stream.seek(0)
    kind = kind_of(stream.read(HEAD))
    stream.seek(0)
    return kind


def _unidentified(stream: io.BufferedIOBase) -> str:
    if not stream.seek(0, io.SEEK_END):
        return "the file is empty"
    kind = _head(stream)
    if kind in IMAGES:
        return f"{kind.upper()} of a form that is not read, or cut off at its beginning: {CONVERT}"
    return "not an image, or of an unknown format"


def _check_size(image: Image.Image, most_pixels: int) -> None:
    width, height = image.size
    if width * height > most_pixels:
        raise ImageError(_too_many(f"{width}x{height}", most_pixels))
    check_sides(image.size)


def _too_many(what: str, most: int) -> str:
    return (
        f"too many pixels, which may be an attack ({what}; at most {most}): where you trust the "
        "file, allow more with --most-pixels"
    )
