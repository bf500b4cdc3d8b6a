"""Where images come from, as a lazy stream of (id, how to load it): the registry of sources.

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

SLICE = re.compile(r"(.+)\[(\d*):(\d*)\]")
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


def open_source(
    spec: str | Path,
    *,
    root: Path | None = None,
    download: bool = False,
    column: str | None = None,
) -> Source:
    """Open a source of images by its name.

    Args:
        spec: a folder, an image, .zip, .tar[.gz], .npz[:key], .npy, IDX (-ubyte[.gz]), .parquet,
            torchvision:NAME:split, hf:NAME:split, or s3://bucket/folder and its like. Any of them
            may end in [start:stop], which takes those images of it, counted from 0:
            digits.npz:images[8000:].
        root: the folder of torchvision's data sets.
        download: let torchvision download.
        column: the Parquet column of image bytes; found by its type otherwise.

    Raises:
        SourceError: nothing there, of an unknown kind, or without images; the message says which.
        MissingExtraError: `hf:` without the extra "hub".
    """
    sliced = SLICE.fullmatch(str(spec))
    if sliced and not Path(spec).exists():
        whole = open_source(sliced[1], root=root, download=download, column=column)
        start, stop = int(sliced[2] or 0), int(sliced[3]) if sliced[3] else None
        return part(whole, start, stop, name=str(spec))
    request = Request(str(spec), root, download, column)
    prefix = request.spec.partition(":")[0]
    named = _named()
    if ":" in request.spec and prefix in named:
        return named[prefix](request)
    if "://" in request.spec:
        from liftmap.images.urls import url_source

        return url_source(request)
    path = Path(request.spec)
    if path.is_dir():
        from liftmap.images.folders import folder_source

        return folder_source(request)
    ending, open_file = _by_ending(request.spec)
    file = Path(request.spec.rpartition(":")[0]) if ending == ".npz:" else path
    if not file.exists():
        raise SourceError(f"{file}: no such file or folder")
    return open_file(request)


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


Opener = Callable[[Request], Source]


def _named() -> dict[str, Opener]:
    """Sources by the word before the colon."""
    from liftmap.images import datasets

    return {"torchvision": datasets.torchvision_source, "hf": datasets.hub_source}


def _endings() -> dict[str, Opener]:
    """Sources by the end of their name; ".npz:" stands for file.npz:key."""
    from liftmap.images import archives, arrays, folders

    return {
        ".zip": archives.zip_source,
        ".tar": archives.tar_source,
        ".tar.gz": archives.tar_source,
        ".tgz": archives.tar_source,
        ".npz": arrays.npz_source,
        ".npz:": arrays.npz_source,
        ".npy": arrays.npy_source,
        "-ubyte": arrays.idx_source,
        "-ubyte.gz": arrays.idx_source,
        ".parquet": arrays.parquet_source,
        **dict.fromkeys(sorted(SUFFIXES), folders.image_source),
    }


def _by_ending(spec: str) -> tuple[str, Opener]:
    endings = _endings()
    name = spec.lower()
    if ".npz:" in name:
        return ".npz:", endings[".npz:"]
    for ending, opener in endings.items():
        if name.endswith(ending):
            return ending, opener
    if not Path(spec).exists():
        raise SourceError(f"{spec}: no such file or folder")
    known = ", ".join(e for e in endings if e not in SUFFIXES and e != ".npz:")
    raise SourceError(
        f"{spec}: no known kind of source; need a folder, an image, a name that ends in {known}, "
        f"or {', '.join(f'{kind}:NAME:split' for kind in _named())}"
    )
