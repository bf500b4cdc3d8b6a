"""Images in object stores: s3://bucket/folder, gs://bucket/folder and what else pyarrow opens."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from PIL import Image

from liftmap.errors import ImageError, SourceError
from liftmap.images.entry import MOST_BYTES, SUFFIXES, Entry, Request, Stream
from liftmap.images.prepare import decode


def url_source(request: Request) -> Stream:
    """Every image below an address; ids are paths relative to it, in the store's sorted order.

    Options of the store stand in the address, as pyarrow takes them:
    s3://bucket/folder?region=eu-central-1, or ?endpoint_override=host:port&scheme=http.

    Raises:
        SourceError: the address can't be used, or nothing is there.
    """
    spec = request.spec
    root = _open(spec)[1]
    return Stream(
        spec,
        lambda: (
            _entry(spec, path[len(root) :].lstrip("/"), stamp) for path, stamp in _images(spec)
        ),
        find=lambda id: _entry(spec, id),
    )


def _open(spec: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        system, root = fs.FileSystem.from_uri(spec)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceError(f"{spec}: can't be opened ({error})") from error
    return system, root.rstrip("/")


def _images(spec: str) -> Iterator[tuple[str, str | None]]:
    """Paths of the images, with their stamps: size and time, where the store tells both."""
    import pyarrow as pa
    from pyarrow import fs

    system, root = _open(spec)
    try:
        found = system.get_file_info(fs.FileSelector(root, recursive=True))
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{spec}: can't be listed ({error})") from error
    files = sorted((info.path, _stamp(info)) for info in found if info.type == fs.FileType.File)
    return (file for file in files if file[0].lower().endswith(tuple(SUFFIXES)))


def _stamp(info: Any) -> str | None:
    known = info.size is not None and info.mtime_ns is not None
    return f"{info.size}-{info.mtime_ns}" if known else None


def _entry(spec: str, id: str, stamp: str | None = None) -> Entry:
    return Entry(id, partial(_load, spec, id), stamp)


def _load(spec: str, id: str) -> Image.Image:
    system, root = _open(spec)
    try:
        with system.open_input_stream(f"{root}/{id}") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ImageError(f"can't be read ({error})") from error
    if len(data) > MOST_BYTES:
        raise ImageError(f"more than {MOST_BYTES} bytes: need at most that")
    return decode(data)
