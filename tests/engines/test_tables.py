from pathlib import Path

import numpy as np
import pytest

from liftmap.engines.tables import odd_rows, read_scores, write_table
from liftmap.errors import OutputError

ROWS = [
    {"id": "a", "score": 0.2, "p_value": 0.5, "is_ood": False, "distances": [0.1], "reason": None},
    {"id": "b", "score": None, "p_value": None, "is_ood": None, "distances": None, "reason": "x"},
    {"id": "c", "score": 0.9, "p_value": 0.1, "is_ood": True, "distances": [0.9], "reason": None},
]


def test_scores_leave_skipped_images_out(tmp_path: Path) -> None:
    write_table(ROWS, tmp_path / "s.parquet", 1)
    assert np.array_equal(read_scores(tmp_path / "s.parquet"), [0.2, 0.9])
    assert [row["id"] for row in odd_rows(tmp_path / "s.parquet", 5)] == ["c", "a"]
    assert [row["id"] for row in odd_rows(tmp_path / "s.parquet", 1)] == ["c"]


def test_a_table_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    write_table(ROWS, path, 1)
    before = path.read_bytes()

    def rows() -> object:
        yield ROWS[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write_table(rows(), path, 1)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.csv"]
