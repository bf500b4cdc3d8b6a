"""From any picture to the model's input: decode, orient, colours, size, range.

The same chain serves training, calibration and scoring. Prepared images are uint8, so that they can
be stored, hashed and compared exactly.
"""

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from liftmap.errors import ImageError, SettingsError

MIN_SIDE = 2  # a single row or column of pixels has no hidden and known part
FITS = ("stretch", "crop", "pad")
# what may be decoded, whatever a file is called: some of Pillow's other formats start programs
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # Pillow's limit: 89 million

Picture = Image.Image | np.ndarray | Tensor | str | Path | bytes


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes the model's input; saved with the model.

    height, width: pixels; channels: 1 grey, 3 RGB.
    fit: "stretch" resizes each side on its own; "crop" resizes until the picture covers the size
        and cuts the middle out; "pad" resizes until it fits in and fills up with black.
    Resizing is bilinear with antialiasing.
    """

    height: int
    width: int
    channels: int
    fit: str = "stretch"

    def __post_init__(self) -> None:
        if min(self.height, self.width) < MIN_SIDE:
            raise SettingsError(
                f"{self.height}x{self.width} pixels: need at least {MIN_SIDE} a side"
            )
        if self.channels not in (1, 3):
            raise SettingsError(f"channels={self.channels}: need 1 (grey) or 3 (RGB)")
        if self.fit not in FITS:
            raise SettingsError(f"fit {self.fit!r}: need one of {', '.join(FITS)}")

    def __call__(self, picture: Picture) -> UInt8[Tensor, "c h w"]:
        """The model's input.

        Raises:
            ImageError: the picture can't be used; the message says why.
        """
        image = to_image(picture).convert("L" if self.channels == 1 else "RGB")
        size = (self.width, self.height)
        if self.fit == "crop":
            image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        elif self.fit == "pad":
            image = _padded(image, size)
        elif image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        pixels = np.array(image, dtype=np.uint8).reshape(self.height, self.width, self.channels)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


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


def decode(data: bytes | str | Path | BinaryIO) -> Image.Image:
    """Decode an image file to grey ("L") or RGB: EXIF orientation applied, alpha laid on white.

    16-bit grey is scaled to 8 bits, palettes and CMYK become RGB, animations give one frame, the
    first.

    Raises:
        ImageError: empty, truncated, no image of FORMATS, more pixels than Pillow's limit, or
            smaller than 2x2; the message says which.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    if isinstance(data, bytes) and not data:
        raise ImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice its limit; here its limit is the limit
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(stream, formats=FORMATS) as image:
                image.load()
                return _plain(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"too many pixels, which may be an attack ({error})") from error
    except UnidentifiedImageError as error:
        empty = isinstance(data, str | Path) and Path(data).stat().st_size == 0
        reason = "the file is empty" if empty else "not an image, or of an unknown format"
        raise ImageError(reason) from error
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them raise
        raise ImageError(f"can't be decoded ({error})") from error


def to_image(picture: Picture) -> Image.Image:
    """Any accepted form of a picture as a grey or RGB Pillow image.

    Arrays are (h, w) or (h, w, c), tensors (c, h, w), with 1, 3 or 4 channels (4 = with alpha):
    uint8, bool, uint16 over its full range, or floats in [0, 1].

    Raises:
        ImageError: wrong shape, type or range, or NaN; the message names what was found.
    """
    if isinstance(picture, Image.Image):
        return _plain(picture)
    if isinstance(picture, Tensor):
        if picture.ndim != 3:
            raise ImageError(f"tensor of shape {tuple(picture.shape)}: need (channels, h, w)")
        return _from_array(picture.detach().cpu().permute(1, 2, 0).numpy())
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if isinstance(picture, bytes | str | Path):
        return decode(picture)
    raise ImageError(
        f"a {type(picture).__name__} is no picture: need a Pillow image, array, tensor, path, bytes"
    )


def _from_array(pixels: np.ndarray) -> Image.Image:
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ImageError(f"array of shape {pixels.shape}: need (h, w) or (h, w, 1, 3 or 4)")
    eight = _to_uint8(pixels)
    return _plain(Image.fromarray(eight[..., 0] if eight.shape[2] == 1 else eight))


def _to_uint8(pixels: np.ndarray) -> UInt8[np.ndarray, "h w c"]:
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint16:
        return np.round(pixels / 257.0).astype(np.uint8)  # 65535 / 255 = 257
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ImageError(f"array of {pixels.dtype}: need uint8, uint16, bool or floats in [0, 1]")
    bad = int((~np.isfinite(pixels)).sum())
    if bad:
        raise ImageError(f"{bad} of {pixels.size} values are NaN or infinite")
    if pixels.size and (pixels.min() < 0 or pixels.max() > 1):
        low, high = float(pixels.min()), float(pixels.max())
        raise ImageError(f"float values from {low:.3g} to {high:.3g}: need [0, 1]")
    return np.round(pixels * 255.0).astype(np.uint8)


def _plain(image: Image.Image) -> Image.Image:
    """Grey or RGB without alpha, of a usable size."""
    if min(image.size) < MIN_SIDE:
        width, height = image.size
        raise ImageError(f"{width}x{height} pixels: need at least {MIN_SIDE}x{MIN_SIDE}")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        return _from_array(np.asarray(image).clip(0, 65535).astype(np.uint16))
    if image.mode == "F":
        return _from_array(np.asarray(image))
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        grey = image.mode in ("LA", "La")
        over = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, over).convert("L" if grey else "RGB")
    return image.convert("L" if image.mode == "1" else "RGB")


def as_list(pictures: Picture | Iterable[Picture]) -> list[Picture]:
    """One or many pictures as a list; a 4-D array or tensor is a batch."""
    if isinstance(pictures, np.ndarray | Tensor):
        return list(pictures) if pictures.ndim == 4 else [pictures]
    if isinstance(pictures, str | Path | bytes | Image.Image):
        return [pictures]
    return list(pictures)


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
