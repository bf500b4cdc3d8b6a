"""Class labels beside images, where a published data set has them; used for evaluation alone."""

import gzip
import struct
from pathlib import Path

import numpy as np
from jaxtyping import Int

from liftmap.errors import SourceError
from liftmap.images.sources import SLICE

IDX_LABELS = 2049  # magic number of an unsigned-byte array with one axis (LeCun's IDX format)


def read_labels(spec: str, *, root: Path | None = None) -> Int[np.ndarray, " n"]:
    """The labels of a source's images, in their order.

    Args:
        spec: as `open_source` takes it: an IDX file of images (its labels lie beside it as
            published), an .npz with an array `labels`, or torchvision:NAME:split; each with
            [start:stop] at its end or without.
        root: the folder of torchvision's data sets.

    Raises:
        SourceError: this source has no labels, or they can't be read.
    """
    if sliced := SLICE.fullmatch(spec):
        stop = int(sliced[3]) if sliced[3] else None
        return read_labels(sliced[1], root=root)[int(sliced[2] or 0) : stop]
    try:
        if ".npz" in spec:
            with np.load(spec.partition(".npz")[0] + ".npz") as arrays:
                return np.asarray(arrays["labels"], dtype=np.int64)
        if "images-idx3-ubyte" in spec:
            return _read_idx(Path(spec.replace("images-idx3-ubyte", "labels-idx1-ubyte")))
    except (OSError, ValueError, KeyError, EOFError, struct.error) as error:
        raise SourceError(f"{spec}: its labels can't be read ({error})") from error
    if spec.startswith("torchvision:"):
        return _torchvision_labels(spec, root)
    raise SourceError(f"{spec} has no labels: need IDX, an .npz with `labels`, or torchvision:")


def _read_idx(path: Path) -> Int[np.ndarray, " n"]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        magic, count = struct.unpack(">2I", file.read(8))
        if magic != IDX_LABELS:
            raise ValueError(f"IDX number {magic}, need {IDX_LABELS}")
        labels = np.frombuffer(file.read(count), np.uint8)
    if len(labels) < count:
        raise ValueError(f"{len(labels)} of {count} labels")
    return labels.astype(np.int64)


def _torchvision_labels(spec: str, root: Path | None) -> Int[np.ndarray, " n"]:
    from liftmap.images.datasets import open_torchvision
    from liftmap.images.entry import Request

    data = open_torchvision(Request(spec, root))
    labels = getattr(data, "targets", getattr(data, "labels", None))
    if labels is None:
        raise SourceError(f"{spec}: torchvision's class keeps no labels that can be read at once")
    return np.asarray(labels, dtype=np.int64)
