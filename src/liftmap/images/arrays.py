"""Images as rows of arrays: .npz, .npy, IDX; read by row, never unpickled."""

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from liftmap.errors import SourceError
from liftmap.images.decode import MOST_PIXELS
from liftmap.images.entry import Entry, Request, Stream, reading, stamp_of
from liftmap.images.picture import Decoded, of_array

IDX_IMAGES = 2051  # magic number of an unsigned-byte array with three axes (LeCun's IDX format)
FLAT = 8  # times as wide as high: no two axes of an image
BLOCK = 2**20  # values that are looked at together, for an array's range


def npz_source(request: Request, key: str | None = None) -> Stream:
    """One array of an .npz, by its key: the one named "images", or the only one there is.

    Ids are row numbers.
    """
    path = Path(request.spec)
    with reading(path, "an array"), zipfile.ZipFile(path) as archive:
        keys = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
    chosen = key or ("images" if "images" in keys or len(keys) != 1 else keys[0])
    if chosen not in keys:
        raise SourceError(
            f"{path} has no array {chosen!r}: it has {', '.join(keys)}; use {path}:KEY"
        )
    name = f"{path}:{key}" if key else request.spec
    opened = partial(_ZipMember, path, f"{chosen}.npy")
    return _array_stream(replace(request, spec=name), opened, stamp_of(path))


def npy_source(request: Request) -> Stream:
    """The rows of an .npy file; ids are row numbers."""
    path = Path(request.spec)
    return _array_stream(request, lambda: path.open("rb"), stamp_of(path))


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


@dataclass(frozen=True)
class _Header:
    """An array of images: how many, each one's shape, and what its values are."""

    count: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _array_stream(request: Request, opened: OpenFile, stamp: str | None) -> Stream:
    name = request.spec
    with reading(name, "an array"), opened() as file:
        header = _header(name, file)
    extent = cache(lambda: _extent(name, header, opened))  # by a walk of its own, once
    return Stream(
        name,
        lambda tally: _rows(name, header, opened, extent, stamp),
        lambda: header.count,
    )


def _header(name: str, file: Any) -> _Header:
    """What an array of images is, from its header alone."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, by_column, dtype = read[np.lib.format.read_magic(file)](file)
    if dtype.hasobject:
        raise SourceError(f"{name} holds Python objects: need uint8 images; pickles are not read")
    if len(shape) == 2 and max(shape) > FLAT * min(shape):
        raise SourceError(
            f"{name} holds {shape[0]}x{shape[1]} values: one image of such sides, or the pixels of "
            "many in a row? Save it as (n, h, w)"
        )
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 2, 3, 4)):
        shape = (1, *shape)  # one image: rows of two or three pixels are nobody's images
    fits = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 2, 3, 4))
    if (by_column and len(shape) > 1) or not fits or dtype.kind not in "uifb":
        raise SourceError(
            f"{name} holds {dtype} {shape}{', column by column' if by_column else ''}: need "
            "numbers of shape (n, h, w) or (n, h, w, channels), or one image (h, w) or "
            "(h, w, channels), in row order"
        )
    _check_size(name, shape[1], shape[2])
    return _Header(shape[0], shape[1:], dtype)


def _check_size(name: str, height: int, width: int) -> None:
    """Refuse images of more pixels than Pillow would decode, before memory is taken for one."""
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        raise SourceError(
            f"{name} claims images of {height}x{width} pixels: need 1 to {MOST_PIXELS} in all"
        )


Extent = tuple[float | None, float | None]


def _extent(name: str, header: _Header, opened: OpenFile) -> Extent:
    """The least and the greatest finite value of the whole array, where its range is in question.

    A dark image of an array from 0 to 255 must not be taken for a bright one from 0 to 1.
    """
    if header.dtype.kind in "ub" and header.dtype.itemsize <= 2:
        return None, None
    low, high = math.inf, -math.inf
    with reading(name, "an array"), opened() as file:
        _header(name, file)
        while data := _read_up_to(file, BLOCK * header.dtype.itemsize):
            whole = len(data) - len(data) % header.dtype.itemsize
            values = np.frombuffer(data[:whole], header.dtype)
            finite = values[np.isfinite(values)]
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (None, None)


def _rows(
    name: str,
    header: _Header,
    opened: OpenFile,
    extent: Callable[[], Extent],
    stamp: str | None,
) -> Iterator[Entry]:
    low, high = extent()
    with reading(name, "an array"), opened() as file:
        _header(name, file)
        for row in range(header.count):
            data = _read_up_to(file, header.row_bytes)
            if len(data) < header.row_bytes:
                raise SourceError(f"{name} is truncated at row {row} of {header.count}")
            yield Entry(str(row), partial(_load_row, data, header, low, high), stamp)


def _load_row(data: bytes, header: _Header, low: float | None, high: float | None) -> Decoded:
    values = np.frombuffer(data, header.dtype).reshape(header.shape)
    native = values.astype(header.dtype.newbyteorder("="), copy=False)
    return of_array(native, low=low, high=high)


def idx_source(request: Request) -> Stream:
    """The images of an IDX file, plain or compressed, as MNIST and its kin are published."""
    path = Path(request.spec)
    count = _idx_header(path)[0]
    return Stream(request.spec, lambda tally: _idx_rows(path), lambda: count)


def _open_idx(path: Path) -> Any:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def _idx_header(path: Path) -> tuple[int, int, int]:
    with reading(path, "IDX"), _open_idx(path) as file:
        magic, count, height, width = struct.unpack(">4I", file.read(16))
    if magic != IDX_IMAGES:
        raise SourceError(f"{path}: IDX number {magic}, need {IDX_IMAGES} (images, not labels)")
    _check_size(str(path), height, width)
    return count, height, width


def _idx_rows(path: Path) -> Iterator[Entry]:
    count, height, width = _idx_header(path)
    header, stamp = _Header(count, (height, width), np.dtype(np.uint8)), stamp_of(path)
    with reading(path, "IDX"), _open_idx(path) as file:
        file.read(16)
        for row in range(count):
            data = _read_up_to(file, height * width)
            if len(data) < height * width:
                raise SourceError(f"{path} is truncated at row {row} of {count}")
            yield Entry(str(row), partial(_load_row, data, header, None, None), stamp)


def _read_up_to(file: Any, size: int) -> bytes:
    """So many bytes, or none where a compressed file ends too early."""
    try:
        data: bytes = file.read(size)
    except (EOFError, zlib.error):
        return b""
    return data
