"""Published data sets by name, through torchvision and the `datasets` library."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from liftmap.errors import ImageError, MissingExtraError, SourceError
from liftmap.images.decode import decode
from liftmap.images.entry import Entry, Request, Stream
from liftmap.images.picture import Decoded
from liftmap.images.prepare import decoded


def torchvision_source(request: Request) -> Stream:
    """`torchvision:NAME:split` by torchvision's own class, read below `root`; ids are indices."""
    data = open_torchvision(request)
    return Stream(
        request.spec,
        lambda tally: (Entry(str(i), partial(_item, data, i)) for i in range(len(data))),
        lambda: len(data),
    )


def open_torchvision(request: Request) -> Any:
    """torchvision's own object for `torchvision:NAME:split`.

    Raises:
        SourceError: no such data set, or it is not below `root`.
    """
    import torchvision.datasets

    _, name, split = _three(request.spec)
    made = getattr(torchvision.datasets, name, None)
    if not isinstance(made, type):
        raise SourceError(f"{request.spec}: torchvision has no data set {name!r}")
    if request.root is None:
        raise SourceError(f"{request.spec}: say where the data lie with --root (root=)")
    options: dict[str, Any] = {"download": True} if request.download else {}
    try:
        return _make(made, str(request.root), split, options)
    except Exception as error:  # each class complains in its own way
        raise SourceError(
            f"{request.spec} below {request.root}: {error}; --download lets torchvision fetch it"
        ) from error


def _make(made: type, root: str, split: str, options: dict[str, Any]) -> Any:
    """Classes with train=True/False and classes with split=NAME."""
    from inspect import signature

    known = signature(made).parameters
    if "train" in known:
        if split not in ("train", "test"):
            raise SourceError(f"split {split!r}: need train or test")
        return made(root, train=split == "train", **options)
    return made(root, split=split, **options)


def _item(data: Any, index: int) -> Decoded:
    try:
        return decoded(data[index][0])
    except OSError as error:
        raise ImageError(f"can't be read ({error})") from error


def hub_source(request: Request) -> Stream:
    """`hf:NAME:split`, streamed by the `datasets` library; ids are row numbers."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "hub") from error

    _, name, split = _three(request.spec)
    try:
        data = datasets.load_dataset(name, split=split, streaming=True)
    except Exception as error:  # the library raises whatever its transport raises
        raise SourceError(f"{request.spec}: {type(error).__name__}: {error}") from error
    features = data.features or {}
    images = [k for k, v in features.items() if isinstance(v, datasets.Image)]
    column = request.column or next(iter(images), None)
    if column is None:
        raise SourceError(f"{request.spec}: no image column among {list(features)}")
    plain = data.cast_column(column, datasets.Image(decode=False))
    return Stream(request.spec, lambda tally: _hub_rows(plain, column))


def _hub_rows(data: Any, column: str) -> Iterator[Entry]:
    for row, record in enumerate(data):
        yield Entry(str(row), partial(_load, record[column]))


def _load(value: dict[str, Any]) -> Decoded:
    if value.get("bytes"):
        return decode(value["bytes"])
    if value.get("path"):
        return decode(value["path"])
    raise ImageError("no image bytes in this row")


def _three(spec: str) -> tuple[str, str, str]:
    kind, _, rest = spec.partition(":")
    name, _, split = rest.rpartition(":")
    if not name or not split:
        raise SourceError(f"{spec}: need {kind}:NAME:split, such as {kind}:MNIST:test")
    return kind, name, split
