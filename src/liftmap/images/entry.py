"""What a source of images is: a lazy stream of (id, how to load it), and what is made of one.

Memory doesn't grow with the number of images: folders are listed as they are walked, archives and
arrays are read row by row.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from PIL import Image

from liftmap.errors import ImageError, SourceError
from liftmap.images.decode import MOST_PIXELS
from liftmap.images.picture import Decoded, ValueRange
from liftmap.images.ranges import eight_bits
from liftmap.images.tally import Tally

# of an image inside an archive or an object store, uncompressed: a larger one is not read
MOST_BYTES = 256 * 2**20


class Entry(NamedTuple):
    """One image: its id, stable and unique within the source, and how to get it.

    load gives a decoded picture, or raises ImageError.
    stamp changes whenever the image may have changed: size and times of the file that it is in, as
    they were before it is loaded; None where nothing tells.
    """

    id: str
    load: Callable[[], Decoded]
    stamp: str | None = None


def refused(id: str, reason: str) -> Entry:
    """An image that can't be used, and why."""

    def load() -> Decoded:
        raise ImageError(reason)

    return Entry(id, load, reason)


def stamp_of(path: Path) -> str | None:
    """Size and times of a file; None if it has none, which loading explains."""
    try:
        status = path.stat()
    except OSError:
        return None
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


@runtime_checkable
class Source(Protocol):
    """A stream of images in a fixed order, which can be walked again and again."""

    @property
    def name(self) -> str:
        """What it was opened as."""

    @property
    def tally(self) -> Tally:
        """What was passed over by the last walk that came to the end."""

    def __iter__(self) -> Iterator[Entry]:
        """The images, one by one; raises SourceError when there are none."""

    def count(self) -> int | None:
        """How many there are, where that is cheap to know."""


@dataclass(frozen=True)
class Request:
    """What was asked for: a source's name, and the options that some kinds take."""

    spec: str
    root: Path | None = None
    download: bool = False
    column: str | None = None
    hidden: bool = False
    most_pixels: int = MOST_PIXELS


@dataclass(frozen=True)
class Stream:
    """A source made of functions.

    entries: gives the images of a walk, and notes in its tally what it passes over.
    find: gives the image of an id, for sources that can do so without walking to it.
    reopen: opens it again, also in another process. ids_repeat: whether they may; then all but the
    first of an id get a number.
    """

    name: str
    entries: Callable[[Tally], Iterator[Entry]]
    counter: Callable[[], int | None] = lambda: None
    find: Callable[[str], Entry] | None = None
    reopen: "Callable[[], Source] | None" = None
    tally: Tally = field(default_factory=Tally, compare=False)  # of the last walk to the end
    ids_repeat: bool = False

    def __iter__(self) -> Iterator[Entry]:
        tally, first = Tally(), True
        entries = self.entries(tally)
        for entry in _unique(entries, tally) if self.ids_repeat else entries:
            first = False
            yield entry
        self.tally.become(tally)
        if first:
            raise SourceError(f"{self.name}: no images in it{self.tally.instead()}")

    def count(self) -> int | None:
        return self.counter()


def _unique(entries: Iterable[Entry], tally: Tally) -> Iterator[Entry]:
    """The entries by ids of which each is given once: a, a#2, a#3.

    Of each id a hash is kept, not the id.
    """
    last: dict[int, int] = {}  # the number that each id got last
    for entry in entries:
        id, number = entry.id, last.get(hash(entry.id), 0) + 1
        while number > 1 and hash(id := f"{entry.id}#{number}") in last:
            number += 1
        last[hash(entry.id)] = number
        if number > 1:
            last[hash(id)] = 1
            tally.renamed += 1
        yield entry if number == 1 else entry._replace(id=id)


def take(source: Source, limit: int | None) -> Source:
    """The first `limit` images of a source; all of them when it is None."""
    return source if limit is None else part(source, 0, limit, name=source.name)


def part(source: Source, start: int, stop: int | None, *, name: str) -> Stream:
    """The images from number `start` up to, without, number `stop`; ids stay the source's."""
    total = source.count()
    ends = [end for end in (total, stop) if end is not None]
    return Stream(
        name,
        lambda tally: _slice(source, start, stop, tally),
        lambda: max(0, min(ends) - start) if ends else None,
        reopen=getattr(source, "reopen", None),
    )


def _slice(source: Source, start: int, stop: int | None, tally: Tally) -> Iterator[Entry]:
    yield from islice(iter(source), start, stop)
    tally.add(source.tally)  # if it was walked to its end


def readable(
    source: Source, value_range: ValueRange | None = None
) -> Iterator[tuple[str, Image.Image]]:
    """Ids and pictures of eight bits of a source, without those that can't be used.

    Args:
        value_range: as `eight_bits` takes it.
    """
    for entry in source:
        try:
            yield entry.id, eight_bits(entry.load(), value_range)
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
