"""What tells one source's images from another's, so that scores of one never stand for the other.

By content, wherever it lies, except for two kinds: published data sets go by their names, and
objects in stores by what the store tells of them, since reading them all would cost what scoring
does.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from liftmap.errors import ImageError
from liftmap.images.entry import Entry, Source, raw_name, stamp_of
from liftmap.images.picture import Deep
from liftmap.images.sources import NAMED, SLICE

MOST_FILES = 2**18  # whose hashes are remembered


def data_key(source: Source) -> list[Any]:
    """A source's name, its number of images, and what stands for their content.

    - A file, which may be an archive or an array: the hash of its bytes.
    - A folder: of ids and bytes of its images' files.
    - An object store: of ids, sizes and times; without these of the images' pixels.
    - A published data set (torchvision:, hf:): nothing more.
    - Any other source: of ids and pixels.

    Raises:
        SourceError: the source can't be read.
    """
    whole = _whole(source.name)
    if whole.partition(":")[0] in NAMED and ":" in whole:
        return [source.name, source.count()]
    file = Path(whole.rpartition(":")[0] if ".npz:" in whole else whole)
    if file.is_file():
        return [Path(source.name).name, source.count(), file_key(file)]
    digest = hashlib.sha256()
    for part in _parts(source, whole):
        digest.update(f"{len(part)}:{part}".encode())
    return [Path(source.name).name, source.count(), digest.hexdigest()]


def _whole(name: str) -> str:
    """A source's name without the [start:stop] at its end, or several."""
    while not Path(name).exists() and (sliced := SLICE.fullmatch(name)):
        name = sliced[1]
    return name


def _parts(source: Source, whole: str) -> Iterable[str]:
    """What stands for each image of a source that is no file."""
    folder = Path(whole)
    for entry in source:
        yield entry.id
        file = folder / raw_name(entry.id)
        if folder.is_dir() and file.is_file():
            yield file_key(file)
        elif "://" in whole and entry.stamp is not None:
            yield entry.stamp
        else:
            yield _picture_key(entry)


def file_key(file: Path) -> str:
    """A hash of a file's bytes; computed again only when its size or its times have changed."""
    return _bytes_key(file, stamp_of(file))


@lru_cache(maxsize=MOST_FILES)
def _bytes_key(file: Path, stamp: str | None) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        return f"can't be read ({error.strerror})"


def _picture_key(entry: Entry) -> str:
    """A hash of an image's pixels, or why it can't be read."""
    try:
        image = entry.load()
    except ImageError as error:
        return str(error)
    data = (image.values if isinstance(image, Deep) else image).tobytes()
    return hashlib.sha256(repr((image.mode, image.size)).encode() + data).hexdigest()
