from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liftmap.engines.tables import odd_rows, read_distances, read_norms, read_scores, write_table
from liftmap.errors import OutputError

KINDS = ["lpips", "ssim"]


def row(id: str, score: float | None, is_ood: bool | None, reason: str | None) -> dict[str, Any]:
    distances = None if score is None else {"lpips": [score, 0.5], "ssim": [0.25, score]}
    p_value = None if score is None else 1 - score
    return {
        "id": id,
        "score": score,
        "p_value": p_value,
        "is_ood": is_ood,
        "attempts": None if score is None else 2,
        "distances": distances,
        "norms": None if score is None else [1.0, score],
        "reason": reason,
    }


ROWS = [row("a", 0.2, False, None), row("b", None, None, "x"), row("c", 0.9, True, None)]


def test_scores_leave_skipped_images_out(tmp_path: Path) -> None:
    write_table(ROWS, tmp_path / "s.parquet", KINDS, 2)
    assert np.array_equal(read_scores(tmp_path / "s.parquet"), [0.2, 0.9])
    assert [row["id"] for row in odd_rows(tmp_path / "s.parquet", 5)] == ["c", "a"]
    assert [row["id"] for row in odd_rows(tmp_path / "s.parquet", 1)] == ["c"]


def test_norms_are_read_back_without_skipped_images(tmp_path: Path) -> None:
    write_table(ROWS, tmp_path / "s.parquet", KINDS, 2)
    assert read_norms(tmp_path / "s.parquet") == pytest.approx(np.array([[1.0, 0.2], [1.0, 0.9]]))
    without = [row | {"norms": None} for row in ROWS]
    write_table(without, tmp_path / "w.parquet", KINDS, 2)
    assert read_norms(tmp_path / "w.parquet").shape == (2, 0)


def test_distances_are_kept_by_kind(tmp_path: Path) -> None:
    write_table(ROWS, tmp_path / "s.parquet", KINDS, 2)
    kinds, distances = read_distances(tmp_path / "s.parquet")
    assert kinds == KINDS
    assert distances[..., 0] == pytest.approx(np.array([[0.2, 0.5], [0.9, 0.5]]))
    assert distances[..., 1] == pytest.approx(np.array([[0.25, 0.2], [0.25, 0.9]]))
    write_table(ROWS, tmp_path / "s.csv", KINDS, 2)
    header, first, skipped, _ = (tmp_path / "s.csv").read_text().splitlines()
    assert header == "id,score,p_value,is_ood,attempts,lpips_0,lpips_1,ssim_0,ssim_1,reason,notes"
    assert first == "a,0.2,0.8,False,2,0.2,0.5,0.25,0.2,,"
    assert skipped == "b,,,,,,,,,x,"


def test_an_image_may_have_taken_fewer_attempts(tmp_path: Path) -> None:
    short = row("d", 0.1, False, None) | {"attempts": 1, "distances": {"lpips": [0.1], "ssim": [0]}}
    write_table([short], tmp_path / "s.csv", KINDS, 2)
    assert (tmp_path / "s.csv").read_text().splitlines()[1] == "d,0.1,0.9,False,1,0.1,,0,,,"


def test_a_table_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    write_table(ROWS, path, KINDS, 2)
    before = path.read_bytes()

    def rows() -> object:
        yield ROWS[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write_table(rows(), path, KINDS, 2)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.csv"]
