"""What a source of images is: a lazy stream of (id, how to load it), and what is made of one.

Memory doesn't grow with the number of images: folders are listed as they are walked, archives and
arrays are read row by row.
"""

import re
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
    """

    id: str
    load: Callable[[], Image.Image]


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


# what a name may hold and a table or a terminal can't; and what would look as if it were escaped
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]|\\(?=x[0-9A-Fa-f]{2})")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def printable(name: str) -> str:
    r"""A file's name as an id that any table, terminal and JSON can hold; `raw_name` undoes it.

    Control characters, and bytes that are not UTF-8 (which Python keeps as lone surrogates), become
    \xNN, a byte each; so does the backslash of what looks like that already.

    >>> printable("caf\udce9\n.png")
    'caf\\xe9\\x0a.png'
    >>> printable(r"a\x41b\c.png")
    'a\\x5cx41b\\c.png'
    """
    return _UNPRINTABLE.sub(lambda found: _as_bytes(found[0]), name)


def _as_bytes(character: str) -> str:
    try:
        code = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no byte of a name, as on systems that name files in UTF-16
        code = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in code)


def raw_name(id: str) -> str:
    r"""The name that `printable` made an id of, as Python's file functions take it.

    >>> raw_name(r"caf\xe9\x0a.png")
    'caf\udce9\n.png'
    >>> raw_name(r"a\x5cx41b\c.png")
    'a\\x41b\\c.png'
    """
    code = id.encode("utf-8", "surrogateescape")
    code = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), code)
    return code.decode("utf-8", "surrogateescape")


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
