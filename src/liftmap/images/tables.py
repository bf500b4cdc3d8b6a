"""Images in a Parquet column: as bytes, as {bytes, path} as `datasets` writes, or as paths."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from liftmap.errors import ImageError, SourceError
from liftmap.images.decode import decode
from liftmap.images.entry import Entry, Request, Stream, printable, reading, stamp_of
from liftmap.images.picture import Decoded
from liftmap.images.tally import Tally

# what columns of images, and of paths to them, are customarily called
NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "pixels")
PATHS = ("image_path", "img_path", "path", "file_path", "filepath", "file_name",
         "filename", "file")  # fmt: skip
AT_ONCE = 64  # rows


def parquet_source(request: Request) -> Stream:
    """Images in a Parquet column, found by its type and name, or named by `--column`.

    Bytes, {bytes, path}, or paths, which are followed from the file's folder and never out of it.
    Ids come from a column `id` where there is one, and are row numbers otherwise.

    Raises:
        SourceError: no such column, several that could be it, or the file can't be read.
    """
    import pyarrow.parquet as pq

    path = Path(request.spec)
    with reading(path, "Parquet"), pq.ParquetFile(path) as file:
        schema, count = file.schema_arrow, file.metadata.num_rows
        column = request.column or _image_column(schema)
    if column is None or column not in schema.names:
        raise SourceError(
            f"{path}: no column {column or 'of images'}: it has {', '.join(schema.names)}; name "
            "the one with --column"
        )
    has_id = "id" in schema.names and column != "id"
    return Stream(
        f"{request.spec}:{column}" if request.column else request.spec,
        lambda tally: _rows(path, column, has_id, request, tally),
        lambda: count,
        ids_repeat=has_id,
    )


def _image_column(schema: Any) -> str | None:
    """The column that holds the images: marked as such, of a customary name, or the only one.

    Raises:
        SourceError: several could.
    """
    both, data, text = (
        _of_type(schema, holds) for holds in (_holds_both, _holds_bytes, _holds_text)
    )
    marked = _marked(schema)
    if named := marked or [n for found in (both, data, text) for n in NAMES if n in found]:
        return named[0]
    found = both or data
    if len(found) > 1:
        raise SourceError(
            f"several columns may hold the images: {', '.join(found)}; name one with --column"
        )
    return next(iter(found or [name for name in PATHS if name in text]), None)


def _of_type(schema: Any, holds: Callable[[Any], bool]) -> list[str]:
    return [field.name for field in schema if holds(field.type)]


def _marked(schema: Any) -> list[str]:
    """The columns that the `datasets` library marks as images, in the schema's metadata."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        features = about["info"]["features"]
        marked = [name for name, kind in features.items() if kind.get("_type") == "Image"]
    except (KeyError, ValueError, TypeError, AttributeError):
        return []
    return [name for name in marked if name in schema.names]


def _holds_both(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind})


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    types, kind = pa.types, getattr(kind, "value_type", kind)  # of a dictionary
    fixed, view = types.is_fixed_size_binary(kind), types.is_binary_view(kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or fixed or view)


def _holds_text(kind: Any) -> bool:
    import pyarrow as pa

    types, kind = pa.types, getattr(kind, "value_type", kind)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _rows(path: Path, column: str, has_id: bool, request: Request, tally: Tally) -> Iterator[Entry]:
    import pyarrow.parquet as pq

    row, stamp = 0, stamp_of(path)
    with reading(path, "Parquet"), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(AT_ONCE, columns=["id", column] if has_id else [column]):
            for record in batch.to_pylist():
                id = record["id"] if has_id else row
                if id is None:
                    tally.notes["the id is empty: the row's number stands for it"] += 1
                    id = f"row {row}"
                load = partial(_load, record[column], path.parent, request.most_pixels)
                inside = _bytes_of(record[column]) is not None
                yield Entry(printable(str(id)), load, f"{stamp} {column}" if inside else None)
                row += 1


def _bytes_of(value: Any) -> bytes | None:
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes) else None


def _load(value: Any, folder: Path, most_pixels: int) -> Decoded:
    data = _bytes_of(value)
    if data is not None:
        return decode(data, most_pixels=most_pixels)
    name = value.get("path") if isinstance(value, dict) else value
    if not isinstance(name, str) or not name:
        raise ImageError("neither image bytes nor a path in this row")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ImageError(f"the path {name!r} leads out of {folder}: it is not followed")
    return decode(path, most_pixels=most_pixels)
