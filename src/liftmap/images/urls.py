"""Images in object stores: s3://bucket/folder, gs://bucket/folder and what else pyarrow opens."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from liftmap.errors import ImageError, SourceError
from liftmap.images.decode import decode
from liftmap.images.entry import MOST_BYTES, Entry, Request, Stream, printable, raw_name
from liftmap.images.kinds import HEAD, is_meant
from liftmap.images.picture import Decoded
from liftmap.images.tally import Tally


def url_source(request: Request) -> Stream:
    """Every image below an address; ids are paths relative to it, in the store's sorted order.

    Options of the store stand in the address, as pyarrow takes them:
    s3://bucket/folder?region=eu-central-1, or ?endpoint_override=host:port&scheme=http.

    Raises:
        SourceError: the address can't be used, or nothing is there.
    """
    spec = request.spec
    _open(spec)
    return Stream(
        spec,
        lambda tally: _entries(request, tally),
        find=lambda id: Entry(id, partial(_load, spec, raw_name(id), request.most_pixels)),
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


def _entries(request: Request, tally: Tally) -> Iterator[Entry]:
    import pyarrow as pa
    from pyarrow import fs

    system, root = _open(request.spec)
    try:
        found = system.get_file_info(fs.FileSelector(root, recursive=True))
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{request.spec}: can't be listed ({error})") from error
    for info in sorted(found, key=lambda info: info.path):
        name = info.path[len(root) :].lstrip("/")
        if info.type != fs.FileType.File:
            continue
        if not request.hidden and any(map(tally.hides, name.split("/"))):
            continue
        if is_meant(name) or tally.wants(name, partial(_read, system, info.path, HEAD)):
            load = partial(_load, request.spec, name, request.most_pixels)
            yield Entry(printable(name), load, _stamp(info))


def _stamp(info: Any) -> str | None:
    """Size and time of an object, where the store tells both."""
    known = info.size is not None and info.mtime_ns is not None
    return f"{info.size}-{info.mtime_ns}" if known else None


def _read(system: Any, path: str, most: int) -> bytes:
    with system.open_input_stream(path) as file:
        data: bytes = file.read(most)
    return data


def _load(spec: str, name: str, most_pixels: int) -> Decoded:
    system, root = _open(spec)
    try:
        data = _read(system, f"{root}/{name}", MOST_BYTES + 1)
    except OSError as error:
        raise ImageError(f"can't be read ({error})") from error
    if len(data) > MOST_BYTES:
        raise ImageError(f"more than {MOST_BYTES} bytes: need at most that")
    return decode(data, most_pixels=most_pixels)
