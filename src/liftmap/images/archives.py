"""Images in .zip and .tar archives, read in place: nothing is ever extracted to disk."""

import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from tarfile import HeaderError, TarFile
from typing import Any

from liftmap.errors import ImageError
from liftmap.images.decode import decode
from liftmap.images.entry import (
    MOST_BYTES,
    Entry,
    Request,
    Stream,
    printable,
    reading,
    refused,
    stamp_of,
)
from liftmap.images.kinds import HEAD, UNREAD, ending, is_meant
from liftmap.images.tally import Tally

# kinds of tar headers that hold a member's long name or further attributes; how long they may be
EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
MOST_HEADER = 2**20
MOST_LINK = 4096  # bytes of a link's target
READ = 2**20  # bytes at once


def zip_source(request: Request) -> Stream:
    """The images in a .zip, in its own order; ids are member names."""
    path = Path(request.spec)
    with reading(path, "a zip archive"), zipfile.ZipFile(path):
        pass
    return Stream(
        request.spec,
        lambda tally: _zip_entries(path, request, tally),
        lambda: _count_zip(path, request),
        ids_repeat=True,
    )


def _count_zip(path: Path, request: Request) -> int:
    with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
        return sum(1 for _ in _zip_members(archive, request, Tally()))


def _zip_members(
    archive: zipfile.ZipFile, request: Request, tally: Tally
) -> Iterator[zipfile.ZipInfo]:
    for member in archive.infolist():
        if member.is_dir() or _hides(member.filename, request, tally):
            continue
        if tally.wants(member.filename, partial(_zip_head, archive, member)):
            yield member


def _zip_head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as file:
        return file.read(HEAD)


def _zip_entries(path: Path, request: Request, tally: Tally) -> Iterator[Entry]:
    with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
        for member in _zip_members(archive, request, tally):
            try:
                meant = _zip_target(archive, member)
            except ImageError as error:
                yield refused(printable(member.filename), str(error))
                continue
            stamp = f"{meant.CRC:08x} {meant.file_size}"
            yield _entry(
                member.filename, meant.file_size, partial(archive.read, meant), request, stamp
            )


def _zip_target(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """The member itself, or the one that it is a link to."""
    seen: set[str] = set()
    while stat.S_ISLNK(member.external_attr >> 16) and member.file_size <= MOST_LINK:
        target = archive.read(member).decode("utf-8", "replace")
        name = _inside(member.filename, target)
        if name in seen or name not in archive.NameToInfo:
            raise ImageError(f"a link to {target!r}, which is not in the archive")
        seen.add(name)
        member = archive.getinfo(name)
    return member


def _inside(name: str, target: str) -> str:
    """Where a link leads, as a member's name."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


def tar_source(request: Request) -> Stream:
    """The images in a .tar, plain or compressed, in its own order; ids are member names.

    Links within the archive come after all else, since what they lead to may come later.
    """
    path = Path(request.spec)
    with reading(path, "a tar archive"), tarfile.open(path, tarinfo=_Member):
        pass
    return Stream(
        request.spec,
        lambda tally: _tar_entries(path, request, tally),
        ids_repeat=True,
    )


def _tar_entries(path: Path, request: Request, tally: Tally) -> Iterator[Entry]:
    links: dict[str, str] = {}
    for archive, member in _tar_members(path, tally):
        if member.isdir() or _hides(member.name, request, tally):
            continue
        if member.issym() or member.islnk():
            target = _inside(member.name, member.linkname) if member.issym() else member.linkname
            links[posixpath.normpath(member.name)] = posixpath.normpath(target)
        elif not member.isfile():
            if is_meant(member.name):
                yield refused(printable(member.name), "not a file: a pipe or a device")
        else:
            yield from _tarred(member.name, archive, member, request, tally)
    if links:
        yield from _tar_links(path, request, links, tally)


def _tar_members(path: Path, tally: Tally) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with (
        reading(path, "a tar archive"),
        tarfile.open(path, "r:*", tarinfo=_Member) as archive,
    ):
        for member in archive:
            yield archive, member
            archive.members = []  # type: ignore[attr-defined]  # it keeps all it has seen
        if reason := _not_looked_at(archive):
            tally.unlisted[printable(path.name)] = reason


def _not_looked_at(archive: tarfile.TarFile) -> str | None:
    """Why there may be more members than were found: tarfile ends at the first broken header."""
    ended = getattr(archive, "ended_by", "")
    if ended in ("EmptyHeaderError", "TruncatedHeaderError"):
        return "it has no end, so that it may be cut off"
    if ended != "EOFHeaderError":
        return "a broken header in its midst"
    file: Any = archive.fileobj
    while block := file.read(READ):
        if block.strip(b"\0"):
            return "data after its end"
    return None


def _tarred(
    name: str,
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    request: Request,
    tally: Tally,
) -> Iterator[Entry]:
    """The image of a member, if it is one; read forward alone, since going back is slow."""
    file = archive.extractfile(member)
    head = b""

    def read_head() -> bytes:
        nonlocal head
        head = file.read(HEAD) if file else b""
        return head

    def read() -> bytes:
        return head + (file.read() if file else b"")

    if tally.wants(name, read_head):
        yield _entry(name, member.size, read, request, stamp_of(Path(request.spec)))


def _tar_links(
    path: Path, request: Request, links: dict[str, str], tally: Tally
) -> Iterator[Entry]:
    """What links lead to, by a second walk; then those that lead nowhere."""
    ends: dict[str, list[str]] = {}
    for name in links:
        ends.setdefault(_end_of(name, links), []).append(name)
    for archive, member in _tar_members(path, Tally()):
        if member.isfile():
            for name in ends.pop(posixpath.normpath(member.name), ()):
                yield from _tarred(name, archive, member, request, tally)
    for target, names in ends.items():
        for name in names:
            if is_meant(name):
                reason = f"a link to {target!r}, which is not a file in the archive"
                yield refused(printable(name), reason)


def _end_of(name: str, links: dict[str, str]) -> str:
    """The name at the end of a chain of links; a loop ends where it closes."""
    seen: set[str] = set()
    while name in links and name not in seen:
        seen.add(name)
        name = links[name]
    return name


class _Member(tarfile.TarInfo):
    """A tar's member whose extended header can't fill the memory: tarfile reads it whole.

    The archive is told what its list of members ended by.
    """

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> "_Member":
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            tarfile.ended_by = type(error).__name__  # type: ignore[attr-defined]
            raise

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in EXTENDED and self.size > MOST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes: need at most {MOST_HEADER}")
        made: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return made


def _entry(
    name: str,
    size: int,
    read: Callable[[], bytes],
    request: Request,
    stamp: str | None = None,
) -> Entry:
    """An archive's member, read at once: archives are walked forward, and closed at their end."""
    id = printable(name)
    try:
        _check_member(name, size)
        load: Any = partial(decode, read(), most_pixels=request.most_pixels)
        return Entry(id, load, stamp)
    except ImageError as error:
        return refused(id, str(error))
    except Exception as error:  # the decompressors raise errors of their own
        return refused(id, f"can't be read from the archive ({error})")


def _hides(name: str, request: Request, tally: Tally) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return not request.hidden and any(
        tally.hides(part) for part in parts if part not in (".", "..")
    )


def _check_member(name: str, size: int) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ImageError(f"unsafe name {name!r} in the archive: it points outside")
    if size > MOST_BYTES:
        raise ImageError(f"{size} bytes in the archive: need at most {MOST_BYTES}")
    if ending(name) in UNREAD:
        raise ImageError(f"{ending(name)} is not read: {UNREAD[ending(name)]}")
