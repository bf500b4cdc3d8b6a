"""Ranges, transparency, orientation: what a picture's numbers mean."""

import io
import struct
import zlib

import numpy as np
import pytest
from forms import deep_colour_png, encoded, zero_is_white
from PIL import Image

from liftmap.errors import ImageError
from liftmap.images.decode import decode
from liftmap.images.picture import Deep, remarks_of
from liftmap.images.prepare import Preparation, as_list, to_image
from liftmap.images.ranges import likely_range

SHADES = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)


def told(picture: object, value_range: tuple[float, float] | None = None) -> tuple[str, ...]:
    return remarks_of(to_image(picture, value_range))  # type: ignore[arg-type]


def shades(picture: object, value_range: tuple[float, float] | None = None) -> list[list[int]]:
    return np.asarray(to_image(picture, value_range)).tolist()  # type: ignore[arg-type,no-any-return]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_range_brings_deep_values_to_the_picture_in_eight_bits(bits: int, kind: str) -> None:
    """v of 255 and round(v / 255 * top) of top are the same shade."""
    top = 2.0**bits - 1
    stored = np.round(SHADES / 255 * top).astype(np.uint16)
    data = encoded(Image.fromarray(stored), kind)
    assert shades(data, (0.0, top)) == SHADES.tolist()
    assert shades(stored, (0.0, top)) == SHADES.tolist()
    assert shades(stored.astype(np.float64), (0.0, top)) == SHADES.tolist()
    assert shades(stored.astype(np.int32), (0.0, top)) == SHADES.tolist()


def test_twelve_bits_in_sixteen_are_dark_and_said_to_be() -> None:
    stored = np.round(SHADES / 255 * 4095).astype(np.uint16)
    [remark] = told(stored)
    assert "dark: values end below an eighth of 0:65535" in remark
    assert "--range 0:4095" in remark
    assert not told(stored, (0.0, 4095.0))
    assert not told(SHADES.astype(np.uint16) * np.uint16(257)), "the full range is nothing to tell"


def test_whole_numbers_without_a_range_of_their_own_are_refused() -> None:
    data = encoded(Image.fromarray(SHADES.astype(np.int32)), "TIFF")
    with pytest.raises(ImageError, match=r"int32 values from 0 to 230.*--range 0:255"):
        to_image(data)
    assert shades(data, (0.0, 255.0)) == SHADES.tolist()


def test_floats_are_judged_over_the_array_that_they_belong_to() -> None:
    batch = np.stack([SHADES * 1.0, SHADES / 255.0])[..., None]
    for image in as_list(batch):
        with pytest.raises(ImageError, match=r"from 0 to 230.*--range 0:255"):
            to_image(image)
    first, second = (to_image(image, (0.0, 255.0)) for image in as_list(batch))
    assert np.asarray(first).tolist() == SHADES.tolist()
    assert np.asarray(second).max() == 1, "the dark one of the two stays dark"


def test_values_outside_a_range_are_cut_if_they_are_few_and_refused_if_many() -> None:
    values = np.full((20, 20), 1000, np.uint16)
    values[0, 0] = 5000
    assert told(values, (0.0, 4095.0)) == ("values outside the range 0:4095 were cut to it",)
    values[:3] = 5000
    with pytest.raises(ImageError, match=r"15% of its values, from 1000 to 5000, lie outside"):
        to_image(values, (0.0, 4095.0))


def test_eight_bits_among_deeper_ones_are_told() -> None:
    assert told(SHADES, (0.0, 4095.0)) == ("eight bits, where others have values of 0:4095",)
    assert shades(SHADES, (0.0, 4095.0)) == SHADES.tolist()


def test_a_file_that_states_its_white_is_believed() -> None:
    """PGM's maxval; and JPEG 2000 stretches what it holds over sixteen bits."""
    stored = np.round(SHADES / 255 * 4095).astype(">u2")
    pgm = b"P5 6 4 4095\n" + stored.tobytes()
    for value_range in (None, (0.0, 4095.0)):
        assert shades(pgm, value_range) == SHADES.tolist()
        assert not told(pgm, value_range)


def test_zero_is_white_at_every_depth_and_range() -> None:
    assert shades(zero_is_white(255 - SHADES)) == SHADES.tolist()
    twelve = np.round((255 - SHADES) / 255 * 4095).astype(np.uint16)
    assert shades(zero_is_white(twelve), (0.0, 4095.0)) == SHADES.tolist()


def test_likely_ranges() -> None:
    assert likely_range(0.0, 256.0, floats=False) == (0.0, 1023.0)
    assert likely_range(-3.0, 20.0, floats=True) == (-3.0, 20.0)
    assert likely_range(0.0, 1e6, floats=False) == (0.0, 1e6)


def test_nan_is_refused_whatever_the_range() -> None:
    values = SHADES / 1.0
    values[0, 0] = np.nan
    with pytest.raises(ImageError, match="1 of 24 values are NaN"):
        to_image(values, (0.0, 255.0))


def png(header: tuple[int, int], clear: bytes, data: bytes, extra: bytes = b"") -> bytes:
    """A PNG of 2x2 pixels, byte by byte: (bits, colour type), tRNS, rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", 2, 2, *header, 0, 0, 0)
    made = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra
    return made + chunk(b"tRNS", clear) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def palette(*colours: int) -> bytes:
    body = bytes(shade for colour in colours for shade in (colour,) * 3)
    return (
        struct.pack(">I", len(body))
        + b"PLTE"
        + body
        + struct.pack(">I", zlib.crc32(b"PLTE" + body))
    )


# each shows  clear 0 / 85 0  where the first pixel, black, is transparent, and so white on white
CLEAR = {
    "one bit": png((1, 0), struct.pack(">H", 0), b"\0\x40\0\x40"),
    "two bits": png((2, 0), struct.pack(">H", 0), b"\0\x10\0\x60"),
    "four bits": png((4, 0), struct.pack(">H", 0), b"\0\x05\0\x5a"),
    "grey": png((8, 0), struct.pack(">H", 0), bytes((0, 0, 85, 0, 85, 170))),
    "sixteen bits": png((16, 0), bytes(2), struct.pack(">B2HB2H", 0, 0, 21845, 0, 21845, 43690)),
    "colour": png((8, 2), bytes(6), bytes((0, *[0] * 3, *[85] * 3, 0, *[85] * 3, *[170] * 3))),
    "sixteen bits of colour": png(
        (16, 2),
        bytes(6),
        struct.pack(">B6HB6H", 0, *[0] * 3, *[21845] * 3, 0, *[21845] * 3, *[43690] * 3),
    ),
    "a palette": png((8, 3), b"\0", bytes((0, 0, 1, 0, 1, 2)), palette(0, 85, 170)),
}
SHOWN = {"one bit": [[255, 255], [255, 255]]}  # there is no third shade


@pytest.mark.parametrize("name", CLEAR)
def test_a_transparent_colour_is_laid_on_white_at_every_depth(name: str) -> None:
    shown = np.asarray(to_image(CLEAR[name]).convert("L")).tolist()
    assert shown == SHOWN.get(name, [[255, 85], [85, 170]])


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGBA", {}),
        ("PNG", "LA", {}),
        ("TIFF", "RGBA", {}),
        ("TIFF", "LA", {}),
        ("WEBP", "RGBA", {"lossless": True, "exact": True}),
        ("JPEG2000", "RGBA", {}),
        ("JPEG2000", "LA", {}),
    ],
)
def test_alpha_is_laid_on_white_in_every_format(
    kind: str, mode: str, options: dict[str, object]
) -> None:
    image = Image.fromarray(np.full((8, 8), 100, np.uint8)).convert(mode)
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 85, 170, 255]]), 2, 1).repeat(8, 0)))
    row = np.asarray(to_image(encoded(image, kind, **options)).convert("L"))[0]
    assert row[::2].tolist() == pytest.approx([255, 203, 152, 100], abs=1)
    premultiplied = image.convert("La" if mode == "LA" else "RGBa")
    assert np.asarray(to_image(premultiplied), int) == pytest.approx(
        np.asarray(to_image(image), int), abs=2
    )


def test_alpha_of_sixteen_bits_and_of_arrays() -> None:
    colours = np.full((2, 2, 4), 0.2)
    colours[0, 0, 3], colours[0, 1, 3], colours[1, :, 3] = 0.0, 1.0, 0.5
    assert shades(colours)[0] == [[255] * 3, [51] * 3]
    assert shades(colours)[1][0][0] == pytest.approx(153, abs=1)
    grey = np.stack([np.full((2, 2), 51, np.uint8), np.uint8([[0, 255], [255, 255]])], axis=2)
    assert shades(grey) == [[255, 51], [51, 51]]
    data = deep_colour_png(SHADES, 6, 4)
    assert np.asarray(to_image(data))[..., 0].tolist() == SHADES.tolist()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_given_to_python_is_turned_as_its_file_is(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.linspace(0, 250, 24 * 16).reshape(16, 24).astype(np.uint8))
    data = encoded(stored, kind, exif=exif)
    opened = Image.open(io.BytesIO(data))
    as_file, as_image = np.asarray(to_image(data)), np.asarray(to_image(opened))
    assert as_file.tolist() == as_image.tolist()
    assert as_file.shape[:2] == ((16, 24) if orientation < 5 else (24, 16))
    assert to_image(opened.convert("RGB")).size == to_image(data).size, "it keeps the tag"


def test_pictures_of_several_frames_say_so() -> None:
    frames = [Image.fromarray(SHADES), Image.fromarray(255 - SHADES)]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert any("several frames" in remark for remark in told(data)), kind
        assert not told(encoded(frames[0], kind))


def test_raw_data_that_look_like_tiff_are_refused() -> None:
    """Camera raw files and DNG begin with a small preview."""
    preview = encoded(Image.fromarray(SHADES), "TIFF", tiffinfo={254: 1})
    with pytest.raises(ImageError, match=r"preview.*develop"):
        decode(preview)
    with pytest.raises(ImageError, match=r"preview.*develop"):
        decode(encoded(Image.fromarray(SHADES), "TIFF", tiffinfo={50706: b"\1\4\0\0"}))


def test_more_pixels_than_pillow_allows_by_an_option() -> None:
    side = 9_500
    data = encoded(Image.new("1", (side, side)), "PNG")
    with pytest.raises(ImageError, match=r"too many pixels.*--most-pixels"):
        decode(data)
    limit = Image.MAX_IMAGE_PIXELS
    assert decode(data, most_pixels=side**2).size == (side, side)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_range_is_part_of_the_preparation() -> None:
    stored = np.round(SHADES / 255 * 4095).astype(np.uint16)
    prepared = Preparation(4, 6, 1, value_range=(0.0, 4095.0)).prepared(stored)
    assert prepared.pixels[0].tolist() == SHADES.tolist()
    assert not prepared.remarks
    assert isinstance(decode(encoded(Image.fromarray(stored), "PNG")), Deep)


def test_sixteen_bits_of_colour_are_their_upper_eight_and_said_to_be_dark() -> None:
    full = deep_colour_png(SHADES, 2, 3)
    assert np.asarray(to_image(full))[..., 1].tolist() == SHADES.tolist()
    assert not told(full)
    assert np.asarray(to_image(full, (0.0, 65535.0)))[..., 1].tolist() == SHADES.tolist()
    with pytest.raises(ImageError, match=r"upper eight are read: can't have the range 0:4095"):
        to_image(full, (0.0, 4095.0))
    [remark] = told(deep_colour_png(SHADES // 16, 2, 3))
    assert "dark" in remark
