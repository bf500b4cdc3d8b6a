"""The scores table as Parquet, CSV or JSONL, streamed from rows and replaced whole."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from liftmap.errors import OutputError, SourceError
from liftmap.files import atomic_path
from liftmap.images.entry import reading

Row = dict[str, Any]
CHUNK = 8192  # rows a Parquet row group
TABLE = "a Parquet table of scores"


def _parquet(rows: Iterable[Row], path: Path, kinds: list[str], attempts: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("id", pa.string()),
            ("score", pa.float64()),
            ("p_value", pa.float64()),
            ("is_ood", pa.bool_()),
            ("attempts", pa.int32()),
            ("distances", pa.struct([(kind, pa.list_(pa.float32())) for kind in kinds])),
            ("norms", pa.list_(pa.float32())),
            ("reason", pa.string()),
            ("notes", pa.list_(pa.string())),
        ]
    )
    stream = iter(rows)
    with pq.ParquetWriter(path, schema) as writer:
        while chunk := list(islice(stream, CHUNK)):
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))


def _csv(rows: Iterable[Row], path: Path, kinds: list[str], attempts: int) -> None:
    names = [f"{kind}_{i}" for kind in kinds for i in range(attempts)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        firsts = ["id", "score", "p_value", "is_ood", "attempts"]
        writer.writerow([*firsts, *names, "reason", "notes"])
        for row in rows:
            by_kind = row["distances"] or {kind: [] for kind in kinds}
            blank = [None] * (attempts - (row["attempts"] or 0))
            distances = [x for kind in kinds for x in (*by_kind[kind], *blank)]
            last = row["reason"], "; ".join(row.get("notes") or ())
            writer.writerow([*(row[name] for name in firsts), *distances, *last])


def _jsonl(rows: Iterable[Row], path: Path, kinds: list[str], attempts: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


FORMATS: dict[str, Callable[[Iterable[Row], Path, list[str], int], None]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _jsonl,
}


def check_format(path: Path) -> None:
    """Refuse an output whose ending names no known format.

    Raises:
        OutputError: the message lists the endings that work.
    """
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"output {path}: need a name that ends in {', '.join(FORMATS)}")


def write_table(rows: Iterable[Row], path: Path, kinds: list[str], attempts: int) -> None:
    """Write rows in the format that the path's ending names; replaces an old file when done.

    `distances` holds, for each kind by its name, one value for each attempt that the image took; in
    CSV these are columns such as lpips_0.

    Raises:
        OutputError: unknown ending, or the file can't be written.
    """
    check_format(path)
    with atomic_path(path) as temporary:
        FORMATS[path.suffix.lower()](rows, temporary, kinds, attempts)


def read_scores(path: Path) -> np.ndarray:
    """The scores of a Parquet table as float64 (n,), skipped images left out.

    Args:
        path: a file, or a folder of parts, which are read in their order; so take all readers here.

    Raises:
        SourceError: it can't be read, or is no table of scores; so do all readers here.
    """
    column = _columns(path, ["score"])["score"].drop_null()
    with reading(path, TABLE):
        return np.asarray(column.to_numpy(), dtype=np.float64)


def read_distances(path: Path, *, without: str | None = None) -> tuple[list[str], np.ndarray]:
    """The kinds of a Parquet table and its distances (n, attempts, kinds), skipped left out.

    Each image must have taken all attempts, as in a table of distances alone.

    Args:
        without: leave out the images that have this note.
    """
    column = _measured(path, ["distances"], without)["distances"]
    with reading(path, TABLE):
        column = column.combine_chunks()
        kinds = [field.name for field in column.type]
        parts = [np.array(column.field(kind).to_pylist(), dtype=np.float32) for kind in kinds]
        return kinds, np.stack(parts, axis=-1)


def read_norms(path: Path, *, without: str | None = None) -> np.ndarray:
    """The norms of a Parquet table (n, levels), skipped left out; no levels if it has none."""
    column = _measured(path, ["distances", "norms"], without)["norms"]
    with reading(path, TABLE):
        return np.array([norms or [] for norms in column.to_pylist()], dtype=np.float32)


def _measured(path: Path, names: list[str], without: str | None) -> Any:
    """The rows that have distances, without those that have a note."""
    import pyarrow as pa

    table = _columns(path, names if without is None else [*names, "notes"])
    with reading(path, TABLE):
        kept = table["distances"].is_valid().to_pylist()
        if without is not None:
            notes = table["notes"].to_pylist()
            kept = [k and without not in (n or ()) for k, n in zip(kept, notes, strict=True)]
        return table.filter(pa.array(kept, pa.bool_()))


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet table without their distances, a few thousand at a time."""
    import pyarrow.parquet as pq

    if path.is_dir():
        for part in _parts(path):
            yield from read_rows(part)
        return
    columns = ["id", "score", "p_value", "is_ood", "attempts", "reason"]
    with reading(path, TABLE), pq.ParquetFile(path) as file:
        missing = set(columns) - set(file.schema_arrow.names)
        if missing:
            raise SourceError(f"{path} is no table of scores: it has no {sorted(missing)}")
        columns += (
            ["notes"] if "notes" in file.schema_arrow.names else []
        )  # younger than the format
        for batch in file.iter_batches(CHUNK, columns=columns):
            yield from batch.to_pylist()


def odd_rows(path: Path, most: int) -> Iterator[Row]:
    """The `most` rows of a Parquet table with the highest scores, highest first."""
    table = _columns(path, ["id", "score", "p_value", "is_ood"])
    with reading(path, TABLE):
        order = table.filter(table["score"].is_valid()).sort_by([("score", "descending")])
        yield from order.slice(0, most).to_pylist()


def _columns(path: Path, names: list[str]) -> Any:
    """Some columns of a table, whole; a pyarrow table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path, TABLE):
        return pa.concat_tables([pq.read_table(part, columns=names) for part in _parts(path)])


def _parts(path: Path) -> list[Path]:
    """The file, or a folder's parts in their order."""
    if not path.is_dir():
        return [path]
    parts = sorted(path.glob("part-*.parquet"))
    if not parts:
        raise SourceError(f"{path}: no part-*.parquet in it")
    return parts
