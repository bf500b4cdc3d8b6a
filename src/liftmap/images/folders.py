"""Images as files: a folder with all below it, or a single file."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from liftmap.errors import ImageError, SourceError
from liftmap.images.entry import SUFFIXES, Entry, Request, Stream, stamp_of
from liftmap.images.prepare import decode


def folder_source(request: Request) -> Stream:
    """Every image below a folder; ids are paths relative to it, sorted within each folder.

    Links to folders are followed, each folder once, so that a loop of links ends.
    """
    root = Path(request.spec)
    others = _first_files(root)
    if others is not None:
        raise SourceError(
            f"{root}: no images in it ({others}); known endings: {', '.join(sorted(SUFFIXES))}"
        )
    return Stream(
        request.spec,
        lambda: (_entry(p.relative_to(root).as_posix(), p) for p in _images(root)),
        lambda: sum(1 for _ in _images(root)),
        find=lambda id: Entry(id, partial(_load_below, root, id)),
    )


def image_source(request: Request) -> Stream:
    """A single image file."""
    path = Path(request.spec)
    return Stream(request.spec, lambda: iter([_entry(path.name, path)]), lambda: 1)


def _entry(id: str, path: Path) -> Entry:
    return Entry(id, partial(load_file, path), stamp_of(path))


def _load_below(root: Path, id: str) -> Image.Image:
    """The image of an id that may come from a stranger's table: it must not lead elsewhere."""
    if Path(id).is_absolute() or ".." in Path(id).parts:
        raise ImageError(f"the id {id!r} leads out of {root}")
    return load_file(root / id)


def load_file(path: Path) -> Image.Image:
    """The image in a file.

    Raises:
        ImageError: there is none, or it can't be read.
    """
    try:
        return decode(path)
    except OSError as error:
        raise ImageError(f"can't be read ({error.strerror or error})") from error


def _walk(root: Path) -> Iterator[Path]:
    """All files below root, each folder once; what can't be listed is passed over."""
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
        except OSError:
            if folder == root:
                raise
            continue
        waiting += [folder / name for name, is_folder in reversed(names) if is_folder]
        yield from (folder / name for name, is_folder in names if not is_folder)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself: loading it says why


def _images(root: Path) -> Iterator[Path]:
    return (path for path in _walk(root) if path.suffix.lower() in SUFFIXES)


def _first_files(root: Path) -> str | None:
    """None when there is an image; otherwise what is there instead."""
    others = 0
    try:
        for path in _walk(root):
            if path.suffix.lower() in SUFFIXES:
                return None
            others += 1
    except OSError as error:
        raise SourceError(f"{root}: can't be read ({error.strerror})") from error
    return f"{others} files of other kinds" if others else "the folder is empty"
