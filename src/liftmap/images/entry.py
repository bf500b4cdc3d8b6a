"""What a source of images is: a lazy stream of (id, how to load it), and what is made of one.

Memory doesn't grow with the number of images: folders are listed as they are walked, archives and
arrays are read row by row.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from PIL import Image

from liftmap.errors import ImageError, SourceError

# what Pillow may be asked to decode; GIF gives its first frame
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"))
# of an image inside an archive or an object store, uncompressed: a larger one is not read
MOST_BYTES = 256 * 2**20


class Entry(NamedTuple):
    """One image: its id, stable and unique within the source, and how to get it.

    load gives a grey or RGB image, or raises ImageError.
    stamp changes whenever the image may have changed: size and times of the file that it is in, as
    they were before it is loaded; None where nothing tells.
    """

    id: str
    load: Callable[[], Image.Image]
    stamp: str | None = None


def stamp_of(file: Path) -> str | None:
    """Size and times of a file; None if it has none, which loading explains."""
    try:
        status = file.stat()
    except OSError:
        return None
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


@runtime_checkable
class Source(Protocol):
    """A stream of images in a fixed order, which can be walked again and again."""

    @property
    def name(self) -> str:
        """What it was opened as."""

    def __iter__(self) -> Iterator[Entry]:
        """The images, one by one; raises SourceError when there are none."""

    def count(self) -> int | None:
        """How many there are, where that is cheap to know."""


@dataclass(frozen=True)
class Stream:
    """A source made of functions.

    find: gives the image of an id, for sources that can do so without walking to it.
    """

    name: str
    entries: Callable[[], Iterator[Entry]]
    counter: Callable[[], int | None] = lambda: None
    find: Callable[[str], Entry] | None = None

    def __iter__(self) -> Iterator[Entry]:
        first = True
        for entry in self.entries():
            first = False
            yield entry
        if first:
            raise SourceError(f"{self.name}: no images in it")

    def count(self) -> int | None:
        return self.counter()


@dataclass(frozen=True)
class Request:
    """What was asked for: the text after the kind, and the options that some kinds take."""

    spec: str
    root: Path | None = None
    download: bool = False
    column: str | None = None


def take(source: Source, limit: int | None) -> Source:
    """The first `limit` images of a source; all of them when it is None."""
    return source if limit is None else part(source, 0, limit, name=source.name)


def part(source: Source, start: int, stop: int | None, *, name: str) -> Source:
    """The images from number `start` up to, without, number `stop`; ids stay the source's."""
    total = source.count()
    ends = [end for end in (total, stop) if end is not None]
    return Stream(
        name,
        lambda: islice(iter(source), start, stop),
        lambda: max(0, min(ends) - start) if ends else None,
    )


def readable(source: Source) -> Iterator[tuple[str, Image.Image]]:
    """Ids and images of a source, without those that can't be read."""
    for entry in source:
        try:
            yield entry.id, entry.load()
        except ImageError:
            continue


@contextmanager
def reading(name: str | Path, kind: str) -> Iterator[None]:
    """Make a SourceError of whatever a damaged or malicious file makes its reader raise."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:  # zlib, zipfile, tarfile, numpy and pyarrow have dozens
        reason = str(error) or type(error).__name__
        raise SourceError(f"{name}: can't be read as {kind} ({reason})") from error
