"""One grey picture through every container and encoding that holds it without loss."""

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Grey = np.ndarray  # (h, w) uint8
Make = Callable[[Grey, Path], object]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(grey: Grey) -> bytes:
    return encoded(Image.fromarray(grey), "PNG")


def file(name: str, data: Callable[[Grey], bytes]) -> Make:
    """A file of that name below a folder, opened by its name."""

    def make(grey: Grey, folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data(grey))
        return path

    return make


def saved(name: str, kind: str, mode: str | None = None, **options: object) -> Make:
    """Pillow's own writer."""

    def data(grey: Grey) -> bytes:
        image = Image.fromarray(grey)
        return encoded(image.convert(mode) if mode else image, kind, **options)

    return file(name, data)


def palette(grey: Grey) -> bytes:
    image = Image.fromarray(grey, "L").copy()
    coloured = Image.frombytes("P", image.size, image.tobytes())
    coloured.putpalette([shade for i in range(256) for shade in (i, i, i)])
    return encoded(coloured, "PNG")


def deep(grey: Grey) -> np.ndarray:
    return grey.astype(np.uint16) * np.uint16(257)


def deep_colour_png(grey: Grey, colour: int, channels: int) -> bytes:
    """A PNG of sixteen bits a channel, which Pillow can't write in colour or with alpha."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = grey.shape
    values = np.repeat(deep(grey)[..., None], channels, axis=2)
    if colour in (4, 6):
        values[..., -1] = 65535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values: np.ndarray, **more: Any) -> bytes:
    """An uncompressed TIFF of one strip; tags by number as t262=1, several values as a tuple."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    height, width = values.shape[:2]
    tags: dict[int, Any] = {256: width, 257: height, 258: 8 * values.dtype.itemsize, 259: 1}
    tags |= {262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    tags |= {int(name[1:]): value for name, value in more.items()}
    extra, at, entries = b"", 8 + len(data), b""
    for tag, value in sorted(tags.items()):
        many = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"<{len(many)}{'H' if isinstance(value, tuple) else 'I'}", *many)
        field = packed.ljust(4, b"\0")
        if len(packed) > 4:
            field, extra = struct.pack("<I", at + len(extra)), extra + packed
        kind = 3 if isinstance(value, tuple) else 4
        entries += struct.pack("<HHI", tag, kind, len(many)) + field
    head = b"II*\0" + struct.pack("<I", at + len(extra))
    return head + data + extra + struct.pack("<H", len(tags)) + entries + bytes(4)


def jpeg_2000(grey: Grey, bits: int, channels: int) -> bytes:
    """A file of eight bits whose header says another number."""
    colour = np.repeat(grey[..., None], channels, axis=2)
    image = Image.fromarray(colour if channels > 1 else grey)
    data = bytearray(encoded(image, "JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51")
    for channel in range(channels):
        data[at + 42 + 3 * channel] = bits - 1
    return bytes(data)


def zero_is_white(values: np.ndarray) -> bytes:
    """TIFF with PhotometricInterpretation 0."""
    return tiff(values, t262=0)


def turned(kind: str, **options: object) -> Callable[[Grey], bytes]:
    """Stored on its side, with EXIF saying so."""

    def data(grey: Grey) -> bytes:
        exif = Image.Exif()
        exif[274] = 6
        stored = Image.fromarray(np.ascontiguousarray(np.rot90(grey)))
        return encoded(stored, kind, exif=exif, **options)

    return data


def ascii_pgm(grey: Grey) -> bytes:
    rows = "\n".join(" ".join(map(str, row)) for row in grey.tolist())
    return f"P2\n# a comment\n{grey.shape[1]} {grey.shape[0]}\n255\n{rows}\n".encode()


def deep_pgm(grey: Grey) -> bytes:
    head = f"P5 {grey.shape[1]} {grey.shape[0]} 65535\n".encode()
    return head + deep(grey).astype(">u2").tobytes()


def array(values: Callable[[Grey], np.ndarray]) -> Make:
    def make(grey: Grey, folder: Path) -> Path:
        np.save(folder / "a.npy", values(grey))
        return folder / "a.npy"

    return make


def keyed(grey: Grey, folder: Path) -> str:
    np.savez_compressed(folder / "a.npz", other=np.zeros(3), mine=grey[None])
    return f"{folder}/a.npz:mine"


def idx(grey: Grey) -> bytes:
    return struct.pack(">4I", 2051, 1, *grey.shape) + grey.tobytes()


def zipped(grey: Grey) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("d/a.png", png(grey))
    return stream.getvalue()


def tarred(mode: str, kind: bytes = tarfile.REGTYPE) -> Callable[[Grey], bytes]:
    def data(grey: Grey) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode) as archive:
            member = tarfile.TarInfo("d/a.png")
            member.size, member.type = len(png(grey)), kind
            archive.addfile(member, io.BytesIO(png(grey)))
        return stream.getvalue()

    return data


def linked(kind: bytes, target: str) -> Callable[[Grey], bytes]:
    """A picture that has another ending, and a link to it, which is the image."""

    def data(grey: Grey) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            link = tarfile.TarInfo("d/a.png")
            link.type, link.linkname = kind, target
            archive.addfile(link)
            member = tarfile.TarInfo("d/.kept")
            member.size = len(png(grey))
            archive.addfile(member, io.BytesIO(png(grey)))
        return stream.getvalue()

    return data


def parquet(column: Callable[[Grey, Path], object], **more: object) -> Make:
    def make(grey: Grey, folder: Path) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"thumbnail": [b"x"], **column(grey, folder), **more})  # type: ignore[dict-item]
        pq.write_table(table, folder / "a.parquet")
        return folder / "a.parquet"

    return make


def by_path(grey: Grey, folder: Path) -> dict[str, list[str]]:
    (folder / "kept").mkdir(exist_ok=True)
    (folder / "kept" / "a.png").write_bytes(png(grey))
    return {"image": ["kept/a.png"]}


def in_folder(grey: Grey, folder: Path) -> Path:
    (folder / "f" / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "f" / "sub" / "a.png").write_bytes(png(grey))
    (folder / "f" / "notes.txt").write_text("no image")
    return folder / "f"


def shards(grey: Grey, folder: Path) -> Path:
    (folder / "s").mkdir(exist_ok=True)
    parquet(lambda g, f: {"image": [{"bytes": png(g), "path": None}]})(grey, folder / "s")
    return folder / "s"


def listed(grey: Grey, folder: Path) -> str:
    (folder / "one.png").write_bytes(png(grey))
    (folder / "list.txt").write_text(f"{folder}/one.png\n\n", encoding="utf-8")
    return f"@{folder}/list.txt"


def pattern(grey: Grey, folder: Path) -> str:
    (folder / "p1.png").write_bytes(png(grey))
    return f"{folder}/p?.png"


FORMS: dict[str, Make] = {
    "PNG": saved("a.png", "PNG"),
    "PNG in colour": saved("a.png", "PNG", "RGB"),
    "PNG with a palette": file("a.png", palette),
    "PNG with alpha": saved("a.png", "PNG", "RGBA"),
    "PNG grey with alpha": saved("a.png", "PNG", "LA"),
    "PNG 16 bits": file("a.png", lambda g: encoded(Image.fromarray(deep(g)), "PNG")),
    "PNG 16 bits in colour": file("a.png", lambda g: deep_colour_png(g, 2, 3)),
    "PNG 16 bits grey with alpha": file("a.png", lambda g: deep_colour_png(g, 4, 2)),
    "PNG 16 bits in colour with alpha": file("a.png", lambda g: deep_colour_png(g, 6, 4)),
    "PNG on its side": file("a.png", turned("PNG")),
    "TIFF": saved("a.tif", "TIFF"),
    "TIFF LZW": saved("a.tif", "TIFF", compression="tiff_lzw"),
    "TIFF deflate": saved("a.tif", "TIFF", compression="tiff_adobe_deflate"),
    "TIFF packbits": saved("a.tif", "TIFF", compression="packbits"),
    "TIFF in colour": saved("a.tif", "TIFF", "RGB"),
    "TIFF with alpha": saved("a.tif", "TIFF", "RGBA"),
    "TIFF 16 bits": file("a.tif", lambda g: encoded(Image.fromarray(deep(g)), "TIFF")),
    "TIFF floats": file("a.tif", lambda g: encoded(Image.fromarray(g / np.float32(255)), "TIFF")),
    "TIFF whose zero is white": file("a.tif", lambda g: zero_is_white(255 - g)),
    "TIFF 16 bits whose zero is white": file("a.tif", lambda g: zero_is_white(65535 - deep(g))),
    "TIFF on its side": file("a.tif", turned("TIFF")),
    "BMP": saved("a.bmp", "BMP"),
    "BMP in colour": saved("a.bmp", "BMP", "RGB"),
    "GIF": saved("a.gif", "GIF"),
    "WebP": saved("a.webp", "WEBP", "RGB", lossless=True),
    "WebP with alpha": saved("a.webp", "WEBP", "RGBA", lossless=True, exact=True),
    "WebP on its side": file("a.webp", turned("WEBP", lossless=True)),
    "JPEG 2000": saved("a.jp2", "JPEG2000"),
    "JPEG 2000 16 bits": file("a.jp2", lambda g: encoded(Image.fromarray(deep(g)), "JPEG2000")),
    "PGM": saved("a.pgm", "PPM"),
    "PGM as text": file("a.pgm", ascii_pgm),
    "PGM 16 bits": file("a.pgm", deep_pgm),
    "PPM": saved("a.ppm", "PPM", "RGB"),
    "no ending": saved("a", "PNG"),
    "another ending": saved("a.jpg", "PNG"),
    "an ending in capitals": saved("A.PNG", "PNG"),
    "npy": array(lambda g: g),
    "npy of one image": array(lambda g: g[None]),
    "npy with a channel": array(lambda g: g[..., None]),
    "npy in colour": array(lambda g: np.repeat(g[None, ..., None], 3, axis=3)),
    "npy with alpha": array(lambda g: np.stack([g, np.full_like(g, 255)], axis=2)),
    "npy 16 bits": array(lambda g: deep(g)[None]),
    "npy 16 bits, the other byte order": array(lambda g: deep(g)[None].astype(">u2")),
    "npy floats": array(lambda g: g[None] / np.float32(255)),
    "npy floats, the other byte order": array(lambda g: (g[None] / 255.0).astype(">f8")),
    "npz": keyed,
    "IDX": file("a-ubyte", idx),
    "IDX, packed, under any name": file("fashion.gz", lambda g: gzip.compress(idx(g))),
    "zip": file("a.zip", zipped),
    "zip under any name": file("photos.dat", zipped),
    "tar": file("a.tar", tarred("w")),
    "tar.gz under any name": file("photos", tarred("w:gz")),
    "tar.bz2": file("a.tar.bz2", tarred("w:bz2")),
    "tar.xz": file("a.tar.xz", tarred("w:xz")),
    "tar, contiguous": file("a.tar", tarred("w", tarfile.CONTTYPE)),
    "tar, a symbolic link": file("a.tar", linked(tarfile.SYMTYPE, ".kept")),
    "tar, a hard link": file("a.tar", linked(tarfile.LNKTYPE, "d/.kept")),
    "Parquet": parquet(lambda g, f: {"image": [png(g)]}),
    "Parquet, bytes and path": parquet(lambda g, f: {"image": [{"bytes": png(g), "path": "x"}]}),
    "Parquet, a path": parquet(by_path),
    "a folder": in_folder,
    "a folder of tables": shards,
    "a list": listed,
    "a pattern": pattern,
}
