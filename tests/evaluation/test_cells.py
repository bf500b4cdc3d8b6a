from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from liftmap.errors import OutputError
from liftmap.evaluation import cells
from liftmap.evaluation.cells import SCHEMA, Cell, Cells

CELL = Cell(
    name="msma", method="MSMA", seed=0, model="m", trained_on="t", source="s", images=3, skipped=1,
    seconds=0.5, evaluations=10, scores=np.array([[1.0, 2.5], [0.1, -3.0]], dtype=np.float32),
)  # fmt: skip


def test_a_cell_comes_back_by_its_key(tmp_path: Path) -> None:
    kept = Cells(tmp_path / "b")
    assert kept.find("a") is None
    for i in range(20):  # more than a group of rows
        kept.add(f"key {i}", replace(CELL, seed=i, scores=CELL.scores + i))
    found = kept.find("key 17")
    assert found is not None
    assert np.array_equal(found.scores, CELL.scores + 17)
    assert replace(found, scores=CELL.scores, seed=0) == replace(CELL, scores=CELL.scores)
    assert kept.find("key 20") is None


def test_a_cell_takes_the_place_of_its_elder(tmp_path: Path) -> None:
    kept = Cells(tmp_path)
    for seconds in (1.0, 2.0):
        kept.add("a", replace(CELL, seconds=seconds))
    assert pq.read_table(kept.path)["seconds"].to_pylist() == [2.0]


def test_runs_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """As of processes: each opens the folder, and so locks it, by itself."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: Cells(tmp_path).add(str(i), CELL), range(24)))
    assert sorted(map(int, pq.read_table(tmp_path / "cells.parquet")["key"].to_pylist())) == [
        *range(24)
    ]


def test_a_run_that_fails_as_it_writes_leaves_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Cells(tmp_path)
    kept.add("a", CELL)

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cells.pq, "write_table", full)
    with pytest.raises(OutputError, match=r"cells.parquet can't be written .*No space left"):
        kept.add("b", CELL)
    assert kept.find("a") is not None and kept.find("b") is None
    assert [path.name for path in tmp_path.iterdir()] == ["cells.parquet"]


def spoilt(path: Path) -> Iterator[None]:
    path.write_bytes(path.read_bytes()[:40])
    yield
    path.write_text("no table")
    yield
    pq.write_table(pa.table({"key": ["a"]}), path)
    yield
    path.unlink()
    path.mkdir()
    yield


def test_a_damaged_table_is_named_and_kept(tmp_path: Path) -> None:
    kept = Cells(tmp_path)
    kept.add("a", CELL)
    for _ in spoilt(kept.path):
        for ask in (lambda: kept.find("a"), lambda: kept.add("b", CELL)):
            with pytest.raises(OutputError, match=r"cells.parquet is damaged, or no table"):
                ask()


def test_the_committed_cells_are_such_a_table() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "cells.parquet"
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    assert len(set(table["key"].to_pylist())) == len(table) > 300
    for row in table.select(["images", "skipped", "scores"]).to_pylist():
        assert {len(column) for column in row["scores"]} == {row["images"] - row["skipped"]}
