"""What Pillow reads otherwise than it is meant: mended, or refused by name; files byte by byte."""

import io

import numpy as np
import pytest
from forms import deep_colour_png, encoded, jpeg_2000, tiff
from PIL import Image

from liftmap.errors import ImageError
from liftmap.images.decode import decode
from liftmap.images.prepare import to_image

GREY = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)


def test_the_writer_of_these_tests_is_read_as_it_is_meant() -> None:
    assert np.asarray(to_image(tiff(GREY))).tolist() == GREY.tolist()


def test_planes_of_sixteen_bits_are_refused() -> None:
    planes = np.repeat(GREY[None].astype(np.uint16), 3, axis=0).reshape(18, 8)
    strips = tuple(8 + i * 96 for i in range(3))
    data = tiff(planes, t257=6, t258=(16, 16, 16), t262=2, t273=strips, t277=3, t278=6,
                t279=(96, 96, 96), t284=2)  # fmt: skip
    with pytest.raises(ImageError, match="plane by plane: convert"):
        decode(data)


def test_signed_values_of_eight_bits_need_a_range() -> None:
    signed = (GREY.astype(np.int16) - 128).astype(np.int8)
    data = tiff(signed.view(np.uint8), t339=2)
    with pytest.raises(ImageError, match=r"int8 values from -128 to 107"):
        to_image(data)
    assert np.asarray(to_image(data, (-128.0, 127.0))).tolist() == GREY.tolist()


def test_unsigned_values_of_32_bits_stay_unsigned() -> None:
    values = np.full((60, 60), 30_000, np.uint32)
    values[0, :20] = 2**32 - 1
    image = np.asarray(to_image(tiff(values, t339=1), (0.0, 65535.0)))
    assert image[0, 0] == 255 and image[1, 0] == 117


@pytest.mark.parametrize("depth", [1, 256])
def test_a_palette_of_eight_bits_is_as_good_as_one_of_sixteen(depth: int) -> None:
    colours = tuple(shade * depth for shade in [*range(256)] * 3)
    image = to_image(tiff(GREY, t262=3, t320=colours))
    assert np.asarray(image.convert("L")).tolist() == GREY.tolist()


@pytest.mark.parametrize("count", [0, 20])
def test_strips_that_are_too_short_are_refused(count: int) -> None:
    with pytest.raises(ImageError, match=f"{count} bytes of pixels, need 48: cut off"):
        decode(tiff(GREY, t279=count))


@pytest.mark.parametrize(("bits", "channels"), [(10, 3), (12, 3), (16, 4), (16, 2)])
def test_deep_jpeg_2000_in_colour_is_refused(bits: int, channels: int) -> None:
    """Pillow lets white overflow to black."""
    with pytest.raises(ImageError, match=f"JPEG 2000 of {bits} bits in colour"):
        decode(jpeg_2000(GREY, bits, channels))


def test_shallow_jpeg_2000_reaches_white() -> None:
    from liftmap.images.quirks import _scaled_up

    for bits in (1, 2, 4):
        shades = [v << (8 - bits) for v in range(2**bits)]
        image = _scaled_up(Image.fromarray(np.array([shades, shades], np.uint8)), bits)
        got = np.asarray(image)[0].tolist()
        assert got == [round(v * 255 / (2**bits - 1)) for v in range(2**bits)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "AVIF", "JPEG2000"])
def test_downloads_that_end_in_zeros_are_refused(kind: str) -> None:
    draw = np.random.default_rng(0)
    noise = Image.fromarray(draw.integers(0, 256, (64, 64), dtype=np.uint8))
    data = encoded(noise, kind)
    cut = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    with pytest.raises(ImageError):
        decode(cut)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "PPM"])
def test_files_that_are_filled_up_and_black_ends_are_fine(kind: str) -> None:
    black = Image.new("L", (64, 64))
    assert decode(encoded(black, kind) + bytes(512)).size == (64, 64)


def test_alpha_has_a_white_of_its_own() -> None:
    """Values of twelve bits with alpha of twelve; floats of 0 to 255 with alpha of 0 to 1."""
    twelve = np.round(GREY / 255 * 4095).astype(np.uint16)
    opaque = np.dstack([twelve, np.full_like(twelve, 4095)])
    assert np.asarray(to_image(opaque, (0.0, 4095.0))).tolist() == GREY.tolist()
    floats = np.dstack([GREY * 1.0, np.ones(GREY.shape)])
    assert np.asarray(to_image(floats, (0.0, 255.0))).tolist() == GREY.tolist()


def test_masks_of_zero_and_one_are_said_to_be_black() -> None:
    from liftmap.images.picture import remarks_of

    assert "black: its values are 0 and 1" in remarks_of(to_image((GREY > 99).astype(np.uint8)))[0]
    assert not remarks_of(to_image(GREY > 99))


def test_what_is_no_picture_is_refused_by_our_own_error() -> None:
    import torch

    from liftmap.images.prepare import as_list

    stream = io.BytesIO(encoded(Image.fromarray(GREY), "PNG"))
    [opened] = as_list(stream)  # type: ignore[arg-type]
    assert np.asarray(to_image(opened)).tolist() == GREY.tolist()
    assert to_image(bytearray(stream.getvalue())).size == (8, 6)
    lazy = Image.open(io.BytesIO(deep_colour_png(GREY, 2, 3)[:90]))
    for wrong in (
        lazy,
        np.ma.masked_array(GREY, GREY > 9),
        torch.zeros(1, 8, 8).to_sparse(),
    ):
        [one] = as_list(wrong)  # type: ignore[arg-type]
        with pytest.raises(ImageError):
            to_image(one)
    for nothing in ([], np.zeros((0, 8, 8, 3)), torch.zeros(0, 3, 8, 8)):
        with pytest.raises(ValueError, match="0 images: need at least one"):
            as_list(nothing)


def test_pictures_of_millions_of_pixels_take_no_time() -> None:
    import time

    wide = np.zeros((8000, 8000), np.uint16)
    begun = time.monotonic()
    to_image(wide, (0.0, 4095.0))
    assert time.monotonic() - begun < 8
