"""The registry of sources: which kind of source a name stands for."""

import re
from collections.abc import Callable
from pathlib import Path

from liftmap.errors import SourceError
from liftmap.images import archives, arrays, datasets, folders, urls
from liftmap.images.entry import SUFFIXES, Request, Source, part

SLICE = re.compile(r"(.+)\[(\d*):(\d*)\]")

Opener = Callable[[Request], Source]

# by the word before the colon
NAMED: dict[str, Opener] = {
    "torchvision": datasets.torchvision_source,
    "hf": datasets.hub_source,
}

# by the end of the name; ".npz:" stands for file.npz:key
ENDINGS: dict[str, Opener] = {
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
    if ":" in request.spec and prefix in NAMED:
        return NAMED[prefix](request)
    if "://" in request.spec:
        return urls.url_source(request)
    path = Path(request.spec)
    if path.is_dir():
        return folders.folder_source(request)
    ending, open_file = _by_ending(request.spec)
    file = Path(request.spec.rpartition(":")[0]) if ending == ".npz:" else path
    if not file.exists():
        raise SourceError(f"{file}: no such file or folder")
    return open_file(request)


def _by_ending(spec: str) -> tuple[str, Opener]:
    name = spec.lower()
    if ".npz:" in name:
        return ".npz:", ENDINGS[".npz:"]
    for ending, opener in ENDINGS.items():
        if name.endswith(ending):
            return ending, opener
    if not Path(spec).exists():
        raise SourceError(f"{spec}: no such file or folder")
    known = ", ".join(e for e in ENDINGS if e not in SUFFIXES and e != ".npz:")
    raise SourceError(
        f"{spec}: no known kind of source; need a folder, an image, a name that ends in {known}, "
        f"or {', '.join(f'{kind}:NAME:split' for kind in NAMED)}"
    )
