"""Images in .zip and .tar archives, read in place: nothing is ever extracted to disk."""

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from liftmap.errors import ImageError
from liftmap.images.entry import MOST_BYTES, SUFFIXES, Entry, Request, Stream, reading
from liftmap.images.prepare import decode

# kinds of tar headers that hold a member's long name or further attributes; how long they may be
EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
MOST_HEADER = 2**20


def zip_source(request: Request) -> Stream:
    """The images in a .zip, in its own order; ids are member names."""
    path = Path(request.spec)
    with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
        count = sum(_wanted(i.filename) for i in archive.infolist() if not i.is_dir())
    return Stream(request.spec, lambda: _zip_entries(path), lambda: count)


def _zip_entries(path: Path) -> Iterator[Entry]:
    with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir() and _wanted(member.filename):
                read = partial(archive.read, member)
                yield _entry(member.filename, member.file_size, read)


def tar_source(request: Request) -> Stream:
    """The images in a .tar or .tar.gz, in its own order; ids are member names."""
    path = Path(request.spec)
    with reading(path, "a tar archive"), tarfile.open(path, tarinfo=_Member):
        pass
    return Stream(request.spec, lambda: _tar_entries(path))


def _tar_entries(path: Path) -> Iterator[Entry]:
    with (
        reading(path, "a tar archive"),
        tarfile.open(path, "r:*", tarinfo=_Member) as archive,
    ):
        for member in archive:
            if member.isfile() and _wanted(member.name):
                yield _entry(member.name, member.size, partial(_read_tarred, archive, member))
            archive.members = []  # type: ignore[attr-defined]  # it keeps all it has seen


class _Member(tarfile.TarInfo):
    """A tar's member whose extended header can't fill the memory: tarfile reads it whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in EXTENDED and self.size > MOST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes: need at most {MOST_HEADER}")
        made: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return made


def _read_tarred(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file else b""


def _entry(name: str, size: int, read: Callable[[], bytes]) -> Entry:
    """An archive's member, read at once: archives are walked forward, and closed at their end."""
    try:
        _check_member(name, size)
        return Entry(name, partial(decode, read()))
    except ImageError as error:
        return Entry(name, partial(_refuse, str(error)))
    except Exception as error:  # the decompressors raise errors of their own
        return Entry(name, partial(_refuse, f"can't be read from the archive ({error})"))


def _refuse(reason: str) -> Image.Image:
    raise ImageError(reason)


def _wanted(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _check_member(name: str, size: int) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ImageError(f"unsafe name {name!r} in the archive: it points outside")
    if size > MOST_BYTES:
        raise ImageError(f"{size} bytes in the archive: need at most {MOST_BYTES}")
