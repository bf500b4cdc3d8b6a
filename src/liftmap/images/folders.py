"""Images as files: a folder with all below it, or a single file."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from liftmap.errors import ImageError, SourceError
from liftmap.images.decode import MOST_PIXELS, decode
from liftmap.images.entry import Entry, Request, Stream, printable, raw_name, stamp_of
from liftmap.images.kinds import HEAD, is_meant
from liftmap.images.picture import Decoded
from liftmap.images.tally import Tally


def folder_source(request: Request) -> Stream:
    """Every image below a folder; ids are paths relative to it, sorted within each folder.

    What is an image, files' names and first bytes say. Hidden files and folders, and what systems
    leave behind, are passed over. Links to folders are followed, each folder once, so that a loop
    of links ends.

    Raises:
        SourceError: no image in it, or it can't be listed.
    """
    root, tally = Path(request.spec), Tally()
    first = next(_entries(root, request, tally), None)
    if first is None:
        empty = "" if tally.instead() else ": the folder is empty"
        raise SourceError(f"{root}: no images in it{tally.instead()}{empty}")
    return Stream(
        request.spec,
        lambda tally: _entries(root, request, tally),
        lambda: sum(1 for _ in _entries(root, request, Tally())),
        find=lambda id: Entry(id, partial(_load_below, root, id, request.most_pixels)),
    )


def image_source(request: Request) -> Stream:
    """A single image file."""
    path = Path(request.spec)
    entry = file_entry(path, printable(path.name), request.most_pixels)
    return Stream(request.spec, lambda tally: iter([entry]), lambda: 1)


def file_entry(path: Path, id: str, most_pixels: int = MOST_PIXELS) -> Entry:
    """The image of a file, which may be none."""
    return Entry(id, partial(decode, path, most_pixels=most_pixels), stamp_of(path))


def _load_below(root: Path, id: str, most_pixels: int) -> Decoded:
    """The image of an id that may come from a stranger's table: it must not lead elsewhere."""
    name = raw_name(id)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ImageError(f"the id {id!r} leads out of {root}")
    return decode(root / name, most_pixels=most_pixels)


def files_below(root: Path, tally: Tally, *, hidden: bool = False) -> Iterator[Path]:
    """All files below a folder, each folder once; what can't be listed is noted, and passed over.

    Raises:
        SourceError: the folder itself can't be listed.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                names = sorted((e.name, _is_folder(e)) for e in listing)
        except OSError as error:
            if folder == root:
                raise SourceError(f"{root}: can't be read ({error.strerror})") from error
            tally.unlisted[printable(str(folder.relative_to(root)))] = str(error.strerror)
            continue
        names = [(n, is_folder) for n, is_folder in names if hidden or not tally.hides(n)]
        waiting += [folder / name for name, is_folder in reversed(names) if is_folder]
        yield from (folder / name for name, is_folder in names if not is_folder)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself: loading it says why


def _entries(root: Path, request: Request, tally: Tally) -> Iterator[Entry]:
    for path in files_below(root, tally, hidden=request.hidden):
        name = path.relative_to(root).as_posix()
        if is_meant(name) or tally.wants(name, partial(_head, path)):
            yield file_entry(path, printable(name), request.most_pixels)


def _head(path: Path) -> bytes:
    """The first bytes of a file; none of what would keep one waiting."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(HEAD)
