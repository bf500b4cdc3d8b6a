"""A benchmark's cells: one table, `cells.parquet`, a row for each method's scores of a source.

A row is found by a key made of all that determines it (`benchmark.py`), so that a rerun, a further
method or a further source computes only what is missing. The other columns are for people.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from liftmap.errors import OutputError
from liftmap.files import atomic_path, held

TABLE = "cells.parquet"
GROUP = 16  # rows that are read to see one of them
PATIENCE = 60.0  # seconds that a run waits for others, each of which takes a fraction of one
SCHEMA = pa.schema([
    ("key", pa.string()),
    ("name", pa.string()),
    ("method", pa.string()),
    ("seed", pa.int64()),
    ("model", pa.string()),
    ("trained_on", pa.string()),
    ("source", pa.string()),
    ("images", pa.int64()),
    ("skipped", pa.int64()),
    ("seconds", pa.float64()),
    ("evaluations", pa.int64()),
    ("scores", pa.list_(pa.list_(pa.float32()))),
])  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """Scores of one source by one method.

    name: what the run that made it called the method. method: its key, which says the settings.
    images: how many the source gave, of which `skipped` could not be read.
    seconds: for all of them, without what was learnt before. evaluations: of the network, an image.
    scores: (columns, n), since some methods give several scores by the same work.
    """

    name: str
    method: str
    seed: int
    model: str
    trained_on: str
    source: str
    images: int
    skipped: int
    seconds: float
    evaluations: int
    scores: np.ndarray


class Cells:
    """The cells that a folder keeps; several processes may add to them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / TABLE

    def find(self, key: str) -> Cell | None:
        """The cell of that key, if it is there.

        Raises:
            OutputError: the table is damaged, or something else.
        """
        if not self.path.exists():
            return None
        with self._opened() as file:
            for group in range(file.num_row_groups):
                keys = file.read_row_group(group, columns=["key"])["key"].to_pylist()
                if key in keys:
                    row = file.read_row_group(group).slice(keys.index(key), 1).to_pylist()[0]
                    return _cell(row)
        return None

    def add(self, key: str, cell: Cell) -> None:
        """Keep a cell, in place of an older one of that key.

        Raises:
            OutputError: the table can't be written, or is damaged.
        """
        row = asdict(cell) | {"key": key, "scores": list(cell.scores)}
        with held(self.path.parent, patience=PATIENCE):
            others = self._others(key)
            write_cells(pa.concat_tables([others, pa.Table.from_pylist([row], SCHEMA)]), self.path)

    def _others(self, key: str) -> Any:
        """All other cells, as they are by now."""
        if not self.path.exists():
            return SCHEMA.empty_table()
        with self._opened() as file:
            return file.read().filter(pc.field("key") != key)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with pq.ParquetFile(self.path) as file:
                if not file.schema_arrow.equals(SCHEMA):
                    raise ValueError(f"its columns are {', '.join(file.schema_arrow.names)}")
                yield file
        except (OSError, pa.ArrowException, ValueError) as error:
            raise OutputError(
                f"{self.path} is damaged, or no table of cells ({error}): put a copy of it back, "
                "or delete it and run again, which scores anew"
            ) from error


def write_cells(table: Any, path: Path) -> None:
    """Write a pyarrow table of cells, in small groups of rows; replaces an old file when done."""
    with atomic_path(path) as temporary:
        pq.write_table(
            table, temporary, row_group_size=GROUP, compression="zstd", compression_level=9
        )


def _cell(row: dict[str, Any]) -> Cell:
    scores = np.array(row["scores"], dtype=np.float64)
    return Cell(**{name: row[name] for name in Cell.__dataclass_fields__} | {"scores": scores})
