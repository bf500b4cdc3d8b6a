"""The registry of sources: which kind of source a name stands for, by its first bytes."""

import gzip
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from glob import glob, has_magic
from pathlib import Path

from liftmap.errors import SourceError
from liftmap.images import archives, arrays, datasets, folders, tables, urls
from liftmap.images.decode import MOST_PIXELS
from liftmap.images.entry import Entry, Request, Stream, part, printable, reading, refused
from liftmap.images.kinds import HEAD, IMAGES, PACKED, ending, is_meant, kind_of
from liftmap.images.tally import Tally

SLICE = re.compile(r"(.+)\[(\d*):(\d*)\]")
SHARDS = frozenset(("parquet", "tar", "zip"))  # what a folder without images may consist of

Opener = Callable[[Request], Stream]

# by the word before the colon
NAMED: dict[str, Opener] = {
    "torchvision": datasets.torchvision_source,
    "hf": datasets.hub_source,
}

# files, by what their first bytes say
FILES: dict[str, Opener] = {
    "zip": archives.zip_source,
    "npz": arrays.npz_source,
    "tar": archives.tar_source,
    "npy": arrays.npy_source,
    "idx": arrays.idx_source,
    "parquet": tables.parquet_source,
    **dict.fromkeys(sorted(IMAGES), folders.image_source),
}

ENDINGS = {
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
    ".npz": "npz",
    ".npy": "npy",
    "-ubyte": "idx",
    "-ubyte.gz": "idx",
    ".parquet": "parquet",
}

Spec = str | Path


def open_source(
    spec: Spec | Sequence[Spec],
    *,
    root: Path | None = None,
    download: bool = False,
    column: str | None = None,
    hidden: bool = False,
    most_pixels: int = MOST_PIXELS,
) -> Stream:
    """Open a source of images by its name.

    Args:
        spec: a folder, an image, an archive (zip, tar, tar.gz), an array (.npz[:key], .npy, IDX),
            Parquet, each under any name; a pattern of names, as "photos/*.png"; @list.txt, a file
            with a name a line; torchvision:NAME:split, hf:NAME:split, or s3://bucket/folder and
            its like. Any of them may end in [start:stop], which takes those images of it, counted
            from 0: digits.npz:images[8000:]. Several of them are one source.
        root: the folder of torchvision's data sets.
        download: let torchvision download.
        column: the Parquet column of images; found by its type and name otherwise.
        hidden: also take hidden files and folders, and what systems leave behind.
        most_pixels: of an image; a larger one is not decoded.

    Raises:
        SourceError: nothing there, of an unknown kind, or without images; the message says which.
        MissingExtraError: `hf:` without the extra "hub".
    """
    request = Request("", root, download, column, hidden, most_pixels)
    if isinstance(spec, str | Path):
        opened = _open(replace(request, spec=str(spec)))
    elif len(spec) == 1:
        opened = _open(replace(request, spec=str(spec[0])))
    else:
        requests = [replace(request, spec=str(one)) for one in spec]
        opened = _joined(" ".join(map(str, spec)), [(r.spec, _open(r)) for r in requests])
    reopen = partial(
        open_source,
        spec,
        root=root,
        download=download,
        column=column,
        hidden=hidden,
        most_pixels=most_pixels,
    )
    return replace(opened, reopen=reopen)


def _open(request: Request) -> Stream:
    spec = request.spec
    if Path(spec).exists():
        return _open_path(request)
    if sliced := SLICE.fullmatch(spec):
        start, stop = int(sliced[2] or 0), int(sliced[3]) if sliced[3] else None
        return part(_open(replace(request, spec=sliced[1])), start, stop, name=spec)
    prefix, _, rest = spec.partition(":")
    if prefix in NAMED:
        return NAMED[prefix](request)
    if rest.startswith("//"):
        return urls.url_source(request)
    if spec.startswith("@"):
        return _list_source(request)
    if has_magic(spec):
        found = sorted(glob(spec, recursive=True))  # noqa: PTH207  # absolute patterns, too
        if not found:
            raise SourceError(f"{spec}: no file or folder of such a name")
        return _lazily(spec, found, request)
    file, _, key = spec.rpartition(":")
    if file and key and Path(file).is_file():
        return arrays.npz_source(replace(request, spec=file), key)
    raise SourceError(f"{spec}: no such file or folder")


def _open_path(request: Request) -> Stream:
    path = Path(request.spec)
    if path.is_dir():
        return _open_folder(request)
    if not path.is_file():
        raise SourceError(f"{path} is a pipe, a socket or a device: need a file or a folder")
    kind = file_kind(path) or _by_name(path.name)
    if kind in FILES:
        return FILES[kind](request)
    raise SourceError(
        f"{path}: no known kind of source by its first bytes; need a folder, an image, an archive "
        "(zip, tar), an array (.npz, .npy, IDX), Parquet, or "
        f"{', '.join(f'{kind}:NAME:split' for kind in NAMED)}"
    )


def file_kind(path: Path) -> str | None:
    """What a file is, looking into what is compressed; None if that is no source.

    Raises:
        SourceError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            kind = kind_of(file.read(HEAD))
    except OSError as error:
        raise SourceError(f"{path}: can't be read ({error.strerror})") from error
    if kind == "gz":
        with reading(path, "gzip"), gzip.open(path) as unpacked:
            kind = kind_of(unpacked.read(HEAD))
        kind = kind if kind in ("idx", "tar") else None
    if kind == "zip":
        with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"
    if kind in PACKED or (kind is None and not is_meant(path.name)):
        return "tar" if _is_tar(path) else None  # tar's oldest form has no mark
    return kind


def _by_name(name: str) -> str | None:
    """What a file was meant to be whose bytes don't say so: its reader will say what is wrong."""
    if is_meant(name):
        return "png"
    meant = [kind for end, kind in ENDINGS.items() if name.lower().endswith(end)]
    return meant[0] if meant else None


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except Exception:  # decompressors raise errors of their own
        return False


def _open_folder(request: Request) -> Stream:
    """A folder of images; or, where it has none, of tables and archives."""
    try:
        return folders.folder_source(request)
    except SourceError:
        root = Path(request.spec)
        files = folders.files_below(root, Tally(), hidden=request.hidden)
        shards = [path for path in files if path.is_file() and file_kind(path) in SHARDS]
        if not shards:
            raise
    named = [str(path.relative_to(root).as_posix()) for path in shards]
    opened = [FILES[str(file_kind(p))](replace(request, spec=str(p))) for p in shards]
    return _joined(request.spec, list(zip(named, opened, strict=True)))


def _joined(name: str, sources: Sequence[tuple[str, Stream]]) -> Stream:
    """Several sources, one after the other; ids begin with what each is called."""

    def entries(tally: Tally) -> Iterator[Entry]:
        for called, source in sources:
            for entry in source:
                yield entry._replace(id=_below(called, entry.id))
            tally.add(source.tally)
        for called in _taken_by_name([called for called, _ in sources]):
            tally.containers[ending(called)] -= 1
        tally.containers = +tally.containers

    def count() -> int | None:
        counts = [source.count() for _, source in sources]
        return None if None in counts else sum(n for n in counts if n is not None)

    return Stream(name, entries, count, ids_repeat=True)


def _taken_by_name(specs: Sequence[str]) -> list[str]:
    """Archives and the like that lie in a folder beside which they are given by name."""
    folders_given = [Path(spec).resolve() for spec in specs if Path(spec).is_dir()]
    files = [spec for spec in specs if Path(spec).is_file() and not is_meant(spec)]
    return [f for f in files if any(Path(f).resolve().is_relative_to(d) for d in folders_given)]


def _below(called: str, id: str) -> str:
    """An image's id with its source's name before it; of an image alone, its source's name."""
    called = printable(called.rstrip("/"))
    return called if Path(called).name == id else f"{called}/{id}"


def _list_source(request: Request) -> Stream:
    """The sources that a file names, one a line; a name that is wrong costs itself alone."""
    path = Path(request.spec[1:])
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise SourceError(f"{path}: can't be read ({error.strerror})") from error
    names = [line for line in text.splitlines() if line.strip()]
    if not names:
        raise SourceError(f"{path}: no names in it; need one a line")
    return _lazily(request.spec, names, request)


def _lazily(name: str, specs: Sequence[str], request: Request) -> Stream:
    """Sources that are opened as the walk comes to them, since there may be very many."""

    def entries(tally: Tally) -> Iterator[Entry]:
        for spec in specs:
            if is_meant(spec) and Path(spec).is_file():
                yield folders.file_entry(Path(spec), printable(spec), request.most_pixels)
                continue
            try:
                if spec.startswith("@") and not Path(spec).exists():
                    raise SourceError(f"{spec}: a list in a list is not followed")
                source = _open(replace(request, spec=spec))
                for entry in source:
                    yield entry._replace(id=_below(spec, entry.id))
                tally.add(source.tally)
            except SourceError as error:
                yield refused(printable(spec), str(error))

    def count() -> int | None:
        alone = all(is_meant(spec) and Path(spec).is_file() for spec in specs)
        return len(specs) if alone else None

    return Stream(name, entries, count, ids_repeat=True)
