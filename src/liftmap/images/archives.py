"""Images in .zip and .tar archives, read in place: nothing is ever extracted to disk."""

import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from liftmap.errors import ImageError, SourceError
from liftmap.images.prepare import decode
from liftmap.images.sources import SUFFIXES, Entry, Request, Stream

# one member's size as stored uncompressed: a larger one is refused before it is read
MOST_BYTES = 256 * 2**20


def zip_source(request: Request) -> Stream:
    """The images in a .zip, in its own order; ids are member names."""
    path = Path(request.spec)
    try:
        with zipfile.ZipFile(path) as archive:
            count = sum(_wanted(i.filename) for i in archive.infolist() if not i.is_dir())
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(f"{path}: can't be read as a zip archive ({error})") from error
    return Stream(request.spec, lambda: _zip_entries(path), lambda: count)


def _zip_entries(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir() and _wanted(member.filename):
                yield Entry(member.filename, partial(_load_zipped, archive, member))


def _load_zipped(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Image.Image:
    _check_member(member.filename, member.file_size)
    try:
        data = archive.read(member)
    except Exception as error:  # zipfile raises its decompressors' own errors
        raise ImageError(f"can't be read from the archive ({error})") from error
    return decode(data)


def tar_source(request: Request) -> Stream:
    """The images in a .tar or .tar.gz, in its own order; ids are member names."""
    path = Path(request.spec)
    try:
        with tarfile.open(path):
            pass
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(f"{path}: can't be read as a tar archive ({error})") from error
    return Stream(request.spec, lambda: _tar_entries(path))


def _tar_entries(path: Path) -> Iterator[Entry]:
    with tarfile.open(path, "r:*") as archive:
        try:
            for member in archive:
                if member.isfile() and _wanted(member.name):
                    yield Entry(member.name, partial(_load_tarred, archive, member))
                archive.members = []  # type: ignore[attr-defined]  # it keeps all it has seen
        except (tarfile.TarError, OSError, EOFError) as error:
            raise SourceError(f"{path}: the archive is damaged ({error})") from error


def _load_tarred(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Image.Image:
    _check_member(member.name, member.size)
    try:
        file = archive.extractfile(member)
        data = file.read() if file else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ImageError(f"can't be read from the archive ({error})") from error
    return decode(data)


def _wanted(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _check_member(name: str, size: int) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ImageError(f"unsafe name {name!r} in the archive: it points outside")
    if size > MOST_BYTES:
        raise ImageError(f"{size} bytes in the archive: need at most {MOST_BYTES}")
