import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from liftmap.errors import ImageError, SettingsError
from liftmap.images.prepare import Preparation, decode, fingerprint, to_image, to_model_range


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> Image.Image:
    width, height = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 20, y * 30, (x + y) * 10], -1).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    grey = gradient("L")
    assert np.array_equal(decode(encoded(grey, kind)).convert("L"), grey)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_back_nearly(kind: str) -> None:
    image = gradient(size=(64, 64))
    off = np.asarray(decode(encoded(image, kind, quality=95)), float) - np.asarray(image, float)
    assert abs(off).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """EXIF 2.3, tag 274: how the stored rows and columns are to be turned for viewing."""
    upright = np.asarray(gradient("L"))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(decode(data), upright)


def test_alpha_lies_on_white() -> None:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    image.putpixel((0, 0), (200, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    got = decode(encoded(image))
    assert got.mode == "RGB"
    assert got.getpixel((0, 0)) == (255, 255, 255)
    assert got.getpixel((1, 0)) == pytest.approx((127, 127, 127), abs=1)
    assert got.getpixel((3, 3)) == (200, 0, 0)
    grey = decode(encoded(image.convert("LA")))
    assert grey.mode == "L"
    assert grey.getpixel((0, 0)) == 255


def test_palettes_with_a_transparent_colour() -> None:
    image = gradient().quantize(8)
    seen = image.getpixel((3, 3))
    data = encoded(image, transparency=seen)
    assert decode(data).getpixel((3, 3)) == (255, 255, 255)
    assert decode(encoded(image)).getpixel((3, 3)) == image.convert("RGB").getpixel((3, 3))


def test_sixteen_bit_grey_is_scaled_not_cut() -> None:
    pixels = np.array([[0, 257], [32896, 65535]], dtype=np.uint16)
    got = to_image(encoded(Image.fromarray(pixels)))
    assert np.asarray(got).tolist() == [[0, 1], [128, 255]]


def test_cmyk_and_one_bit() -> None:
    assert decode(encoded(gradient("CMYK"), "JPEG")).mode == "RGB"
    assert decode(encoded(gradient("1"))).mode == "L"


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("L", (4, 4), v) for v in (10, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).convert("L").getpixel((0, 0)) == 10


def png_bomb(side: int = 20_000) -> bytes:
    """A valid PNG of side x side black pixels, a few hundred kilobytes long."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"Dear Sir, this is a letter.", "not an image"),
        (encoded(gradient(size=(64, 64)), "JPEG")[:300], "can't be decoded.*[Tt]runcated"),
        (encoded(gradient(size=(64, 64)))[:-40], "can't be decoded"),
        (encoded(Image.new("L", (1, 1))), "1x1 pixels: need at least 2x2"),
        (encoded(Image.new("L", (9, 1))), "9x1 pixels"),
        (png_bomb(), "too many pixels"),
        (png_bomb(10_000), "too many pixels"),
    ],
)
def test_bad_files_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode(data)


def test_a_zero_byte_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ImageError, match="the file is empty"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (np.full((4, 4), np.nan), "16 of 16 values are NaN"),
        (np.full((4, 4), np.inf, np.float32), "infinite"),
        (np.full((4, 4), 255.0), "255.*need \\[0, 1\\]"),
        (np.zeros((4, 4), np.int64), "int64 values from 0 to 0: .*--range 0:255"),
        (np.zeros((4, 4, 5), np.uint8), r"shape \(4, 4, 5\)"),
        (np.zeros((4, 4), np.complex64), "array of complex64"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (torch.zeros(4, 4), "need \\(channels, h, w\\)"),
        (np.zeros((1, 1), np.uint8), "1x1 pixels"),
        (np.array([[None, 1], [2, 3]]), "array of object"),
    ],
)
def test_bad_arrays_are_refused_with_the_reason(picture: object, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        to_image(picture)  # type: ignore[arg-type]


def test_all_forms_of_a_picture_give_the_same_image(tmp_path: Path) -> None:
    image = gradient()
    pixels = np.asarray(image)
    image.save(tmp_path / "a.png")
    forms = [
        image,
        pixels,
        pixels / 255.0,
        (pixels.astype(np.uint16) * 257),
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        torch.from_numpy(pixels / 255.0).permute(2, 0, 1),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
    ]
    prepare = Preparation(8, 12, 3)
    first = prepare(forms[0])
    assert first.permute(1, 2, 0).numpy().tolist() == pixels.tolist()
    for form in forms[1:]:
        assert torch.equal(prepare(form), first)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 40),
    st.integers(2, 40),
    st.integers(2, 40),
    st.integers(2, 40),
    st.sampled_from(["stretch", "crop", "pad"]),
    st.sampled_from([1, 3]),
    st.integers(0, 255),
)
def test_preparation_keeps_constants_and_gives_the_asked_shape(
    height: int, width: int, h: int, w: int, fit: str, channels: int, value: int
) -> None:
    prepare = Preparation(h, w, channels, fit)
    got = prepare(Image.new("L", (width, height), value))
    assert got.shape == (channels, h, w)
    assert got.dtype == torch.uint8
    assert (got == value).any()
    assert ((got == value) | (got == 0)).all() if fit == "pad" else (got == value).all()


def test_padding_leaves_a_pixel_of_the_thinnest_picture() -> None:
    got = Preparation(4, 4, 1, "pad")(Image.new("L", (400, 2), 200))
    assert sorted(got[0].sum(1).tolist()) == [0, 0, 0, 4 * 200]


def test_resizing_is_bilinear_with_antialiasing() -> None:
    """Halving a checkerboard of single pixels averages it; nearest would keep black or white."""
    board = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    inner = Preparation(16, 16, 1)(board)[0, 1:-1, 1:-1].float()
    assert (inner - 127.5).abs().max() < 2


def test_crop_keeps_the_middle_and_pad_keeps_all() -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255
    assert (Preparation(10, 10, 1, "crop")(wide) == 255).all()
    padded = Preparation(30, 30, 1, "pad")(wide)[0]
    assert padded[15, 15] == 255
    assert (padded[:10] == 0).all()


def test_grey_becomes_three_equal_channels_and_range_is_symmetric() -> None:
    got = Preparation(8, 12, 3)(gradient("L"))
    assert torch.equal(got[0], got[1])
    ends = to_model_range(torch.tensor([0, 255], dtype=torch.uint8))
    assert ends.tolist() == [-1.0, 1.0]


def test_the_fingerprint_depends_on_pixels_and_shape() -> None:
    pixels = torch.zeros(1, 4, 6, dtype=torch.uint8)
    other = pixels.clone()
    other[0, 3, 5] = 1
    prints = {fingerprint(pixels), fingerprint(other), fingerprint(pixels.view(1, 6, 4))}
    assert len(prints) == 3
    assert fingerprint(pixels) == fingerprint(pixels.clone())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "channels=2"),
        ({"height": 1}, "1x8 pixels"),
        ({"fit": "squeeze"}, "stretch, crop, pad"),
    ],
)
def test_bad_settings_name_value_and_need(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Preparation(**({"height": 8, "width": 8, "channels": 1} | options))  # type: ignore[arg-type]
