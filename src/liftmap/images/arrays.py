"""Images as rows of arrays and tables: .npz, .npy, IDX, Parquet; read by row, never unpickled."""

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from liftmap.errors import ImageError, SourceError
from liftmap.images.entry import Entry, Request, Stream, reading
from liftmap.images.prepare import MOST_PIXELS, decode, to_image

IDX_IMAGES = 2051  # magic number of an unsigned-byte array with three axes (LeCun's IDX format)


def npz_source(request: Request) -> Stream:
    """One array of an .npz, `file.npz:key`, key "images" by default; ids are row numbers."""
    name, _, key = request.spec.partition(".npz:")
    path = Path(f"{name}.npz" if key else request.spec)
    member = f"{key or 'images'}.npy"
    with reading(path, "an array"), zipfile.ZipFile(path) as archive:
        members = archive.namelist()
    if member not in members:
        keys = ", ".join(m.removesuffix(".npy") for m in members)
        raise SourceError(
            f"{path} has no array {key or 'images'!r}: it has {keys}; use file.npz:key"
        )
    return _array_stream(request.spec, lambda: _ZipMember(path, member))


def npy_source(request: Request) -> Stream:
    """The rows of an .npy file; ids are row numbers."""
    return _array_stream(request.spec, lambda: Path(request.spec).open("rb"))


class _ZipMember:
    """A file inside a zip, opened as a context."""

    def __init__(self, path: Path, member: str) -> None:
        self._archive = zipfile.ZipFile(path)
        self._file = self._archive.open(member)

    def __enter__(self) -> Any:
        return self._file

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._archive.close()


OpenFile = Callable[[], AbstractContextManager[Any]]


def _array_stream(name: str, opened: OpenFile) -> Stream:
    with reading(name, "an array"), opened() as file:
        shape, _ = _header(name, file)
    return Stream(name, lambda: _rows(name, opened), lambda: shape[0])


def _header(name: str, file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array of images, from its header alone."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, by_column, dtype = read[np.lib.format.read_magic(file)](file)
    if dtype.hasobject:
        raise SourceError(f"{name} holds Python objects: need uint8 images; pickles are not read")
    images = len(shape) in (3, 4) and (len(shape) == 3 or shape[3] in (1, 3, 4))
    if (
        by_column
        or not images
        or dtype.kind not in "uf"
        or (dtype.kind == "u" and dtype.itemsize > 2)
    ):
        raise SourceError(
            f"{name} holds {dtype} {shape}: need uint8, uint16 or floats in [0, 1] of shape "
            "(n, h, w) or (n, h, w, channels) in row order"
        )
    _check_size(name, shape[1], shape[2])
    return shape, dtype


def _check_size(name: str, height: int, width: int) -> None:
    """Refuse images of more pixels than Pillow would decode, before memory is taken for one."""
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        raise SourceError(
            f"{name} claims images of {height}x{width} pixels: need 1 to {MOST_PIXELS} in all"
        )


def _rows(name: str, opened: OpenFile) -> Iterator[Entry]:
    with reading(name, "an array"), opened() as file:
        shape, dtype = _header(name, file)
        size = math.prod(shape[1:]) * dtype.itemsize
        for row in range(shape[0]):
            data = _read_up_to(file, size)
            if len(data) < size:
                raise SourceError(f"{name} is truncated at row {row} of {shape[0]}")
            yield Entry(str(row), partial(_load_row, data, shape[1:], dtype))


def _load_row(data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Image.Image:
    return to_image(np.frombuffer(data, dtype).reshape(shape))


def idx_source(request: Request) -> Stream:
    """The images of an IDX file, plain or .gz, as MNIST and its kin are published."""
    path = Path(request.spec)
    count = _idx_header(path)[0]
    return Stream(request.spec, lambda: _idx_rows(path), lambda: count)


def _open_idx(path: Path) -> Any:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _idx_header(path: Path) -> tuple[int, int, int]:
    with reading(path, "IDX"), _open_idx(path) as file:
        magic, count, height, width = struct.unpack(">4I", file.read(16))
    if magic != IDX_IMAGES:
        raise SourceError(f"{path}: IDX number {magic}, need {IDX_IMAGES} (images, not labels)")
    _check_size(str(path), height, width)
    return count, height, width


def _idx_rows(path: Path) -> Iterator[Entry]:
    count, height, width = _idx_header(path)
    with reading(path, "IDX"), _open_idx(path) as file:
        file.read(16)
        for row in range(count):
            data = _read_up_to(file, height * width)
            if len(data) < height * width:
                raise SourceError(f"{path} is truncated at row {row} of {count}")
            yield Entry(str(row), partial(_load_row, data, (height, width), np.dtype(np.uint8)))


def _read_up_to(file: Any, size: int) -> bytes:
    """So many bytes, or none where a compressed file ends too early."""
    try:
        data: bytes = file.read(size)
    except (EOFError, zlib.error):
        return b""
    return data


def parquet_source(request: Request) -> Stream:
    """Encoded images in a Parquet column of bytes, or of {bytes, path} as `datasets` writes.

    Ids come from a column `id` where there is one, and are row numbers otherwise.
    """
    import pyarrow.parquet as pq

    path = Path(request.spec)
    with reading(path, "Parquet"), pq.ParquetFile(path) as file:
        schema, count = file.schema_arrow, file.metadata.num_rows
    column = request.column or next((f.name for f in schema if _holds_images(f.type)), None)
    if column is None or column not in schema.names:
        raise SourceError(f"{path}: no column {column or 'of image bytes'}: it has {schema.names}")
    return Stream(
        request.spec, lambda: _parquet_rows(path, column, "id" in schema.names), lambda: count
    )


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _parquet_rows(path: Path, column: str, has_id: bool) -> Iterator[Entry]:
    import pyarrow.parquet as pq

    row = 0
    with reading(path, "Parquet"), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(64, columns=["id", column] if has_id else [column]):
            for record in batch.to_pylist():
                value = record[column]
                data = value.get("bytes") if isinstance(value, dict) else value
                yield Entry(str(record["id"]) if has_id else str(row), partial(_load_bytes, data))
                row += 1


def _load_bytes(data: bytes | None) -> Image.Image:
    if not isinstance(data, bytes):
        raise ImageError("no image bytes in this row")
    return decode(data)
