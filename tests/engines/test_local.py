import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import decide_by, pixels, save_images, small_detector, small_method

from liftmap.detector import Detector
from liftmap.engines.local import Summary, score_source
from liftmap.engines.tables import read_distances, read_rows, read_scores
from liftmap.errors import CalibrationError, OutputError
from liftmap.images.copies import Seen
from liftmap.images.entry import Entry, Source, Stream, take
from liftmap.images.sources import open_source
from liftmap.images.store import store_source


def detector() -> Detector:
    made = small_detector(small_method(attempts=2, steps=1), at_once=8)  # batches of 4 images
    decide_by(made, (i / 40 for i in range(1, 41)))
    return made


@pytest.fixture
def images(tmp_path: Path) -> Source:
    return open_source(save_images(tmp_path / "images", 18))


class Killed(BaseException):
    """Stands for a signal that ends the process."""


def kill_after(batches: int) -> object:
    seen = []

    def on_batch(summary: Summary) -> None:
        seen.append(summary.images)
        if len(seen) > batches:
            raise Killed

    return on_batch


def test_the_table_holds_every_image_once_in_order(tmp_path: Path, images: Source) -> None:
    made = detector()
    summary = score_source(made, images, tmp_path / "s.parquet")
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert [r["id"] for r in rows] == [f"{i:03}.png" for i in range(18)]
    expected = made.score_pixels(pixels(18)).scores
    assert [r["score"] for r in rows] == pytest.approx(expected.tolist(), rel=1e-5)
    assert [r["p_value"] for r in rows] == made.judge.decides_by.p_values(expected).tolist()
    assert all(r["is_ood"] == (r["p_value"] <= 0.05) for r in rows)
    assert all(len(r["distances"]["lpips"]) == 2 and r["reason"] is None for r in rows)
    assert (summary.images, summary.skipped, summary.computed) == (18, 0, 18)
    assert summary.flagged == sum(r["is_ood"] for r in rows)
    assert not (tmp_path / "s.parquet.part").exists()


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("torn", [b"", b'{"id": "01'])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, images: Source, ending: str, torn: bytes
) -> None:
    whole, broken = tmp_path / f"whole{ending}", tmp_path / f"broken{ending}"
    score_source(detector(), images, whole)
    with pytest.raises(Killed):
        score_source(detector(), images, broken, on_batch=kill_after(2))  # type: ignore[arg-type]
    journal = tmp_path / f"broken{ending}.part"
    assert not broken.exists()
    with journal.open("ab") as file:
        file.write(torn)  # what a kill in the middle of a write leaves
    summary = score_source(detector(), images, broken)
    assert summary.computed == 10, "two batches of four were there already"
    assert broken.read_bytes() == whole.read_bytes()


def test_a_batch_cut_in_its_middle_is_done_again_whole(tmp_path: Path, images: Source) -> None:
    output = tmp_path / "s.csv"
    with pytest.raises(Killed):
        score_source(detector(), images, output, on_batch=kill_after(2))  # type: ignore[arg-type]
    journal = tmp_path / "s.csv.part"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:7]))  # a header, four rows, and two of the next batch
    assert score_source(detector(), images, output).computed == 14


def test_a_journal_of_another_run_is_not_continued(tmp_path: Path, images: Source) -> None:
    output = tmp_path / "s.parquet"
    with pytest.raises(Killed):
        score_source(detector(), images, output, on_batch=kill_after(1))  # type: ignore[arg-type]
    with pytest.raises(OutputError, match=r"was 0.05, is now 0.1.*delete it to start anew"):
        score_source(detector(), images, output, false_alarms=0.1)
    other = small_detector(small_method(attempts=4, steps=1), at_once=16)
    with pytest.raises(OutputError, match=r"method was .*attempts was 2, is now 4"):
        score_source(other, images, output, to="scores")


def other(path: Path) -> None:
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def touch(path: Path) -> None:
    path.write_bytes(path.read_bytes())
    os.utime(path, (1, 1))


# of the 8 images of two batches that were scored: what happens to the folder, the number from which
# it is noticed, and how many images of that are there afterwards and scored by the second run
CHANGES: dict[str, tuple[Callable[[Path], object], int | None, int]] = {
    "nothing": (lambda folder: None, None, 10),
    "touched": (lambda folder: touch(folder / "001.png"), None, 10),
    "another in the first batch": (lambda folder: other(folder / "001.png"), 2, 18),
    "another in the second": (lambda folder: other(folder / "006.png"), 7, 14),
    "another further on": (lambda folder: other(folder / "009.png"), None, 10),
    "damaged": (lambda folder: (folder / "004.png").write_text("no image"), 5, 14),
    "bad for the same reason": (lambda folder: (folder / "005.png").write_text("text"), None, 10),
    "mended": (lambda folder: other_at(folder / "005.png", folder / "000.png"), 6, 14),
    "one less": (lambda folder: (folder / "000.png").unlink(), 1, 17),
    "one more": (lambda folder: other_at(folder / "003b.png", folder / "000.png"), 5, 15),
    "two exchanged": (lambda folder: exchange(folder / "001.png", folder / "002.png"), 2, 18),
    "shorter than what was scored": (lambda folder: keep_first(folder, 6), 7, 2),
    "as short as what was scored": (lambda folder: keep_first(folder, 8), None, 0),
}


def other_at(path: Path, like: Path) -> None:
    path.write_bytes(like.read_bytes())
    other(path)


def exchange(a: Path, b: Path) -> None:
    for old, new in ((a, a.with_suffix(".x")), (b, a), (a.with_suffix(".x"), b)):
        old.rename(new)


def keep_first(folder: Path, count: int) -> None:
    for path in sorted(folder.iterdir())[count:]:
        path.unlink()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stamped", [True, False])
def test_images_that_changed_since_are_scored_anew(
    tmp_path: Path, change: str, stamped: bool
) -> None:
    """The table is that of a run that was never stopped, whatever happened in between."""
    folder, output = save_images(tmp_path / "images", 18), tmp_path / "s.jsonl"
    (folder / "005.png").write_text("no image")
    images = open_source(folder) if stamped else without_stamps(open_source(folder))
    with pytest.raises(Killed):
        score_source(detector(), images, output, on_batch=kill_after(2))  # type: ignore[arg-type]
    happen, changed_from, computed = CHANGES[change]
    happen(folder)
    summary = score_source(detector(), images, output)
    assert (summary.changed_from, summary.computed) == (changed_from, computed)
    score_source(detector(), images, tmp_path / "whole.jsonl")
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert "stamp" not in output.read_text() and "fingerprint" not in output.read_text()


def without_stamps(source: Source) -> Source:
    return Stream(source.name, lambda tally: (Entry(e.id, e.load) for e in source))


def test_images_that_kept_their_stamp_are_not_read_again(tmp_path: Path, images: Source) -> None:
    loaded: list[str] = []

    def load(entry: Entry) -> Image.Image:
        loaded.append(entry.id)
        return entry.load()

    counting = Stream(
        images.name, lambda tally: (Entry(e.id, partial(load, e), e.stamp) for e in images)
    )
    with pytest.raises(Killed):
        score_source(detector(), counting, tmp_path / "s.csv", on_batch=kill_after(2))  # type: ignore[arg-type]
    loaded.clear()
    score_source(detector(), counting, tmp_path / "s.csv")
    assert loaded == [f"{i:03}.png" for i in range(8, 18)]


def test_a_journal_without_fingerprints_is_scored_anew(tmp_path: Path, images: Source) -> None:
    """As earlier versions wrote it: without the precision and the preparation too."""
    output, journal = tmp_path / "s.csv", tmp_path / "s.csv.part"
    with pytest.raises(Killed):
        score_source(detector(), images, output, on_batch=kill_after(2))  # type: ignore[arg-type]
    header, *rows = map(json.loads, journal.read_text().splitlines())
    old = {"stamp", "fingerprint", "precision", "preparation"}
    lines = [{name: d[name] for name in d if name not in old} for d in (header, *rows)]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(Killed):
        score_source(detector(), images, output, on_batch=kill_after(1))  # type: ignore[arg-type]
    assert json.loads(journal.read_text().splitlines()[0]) == header, "written as it is now"
    summary = score_source(detector(), images, output)
    assert (summary.changed_from, summary.computed) == (None, 14)


def test_a_journal_of_another_precision_or_preparation_is_not_continued(
    tmp_path: Path, images: Source
) -> None:
    output, method = tmp_path / "s.csv", small_method(attempts=2, steps=1)
    first = small_detector(method, at_once=8, precision="float32")
    with pytest.raises(Killed):
        score_source(first, images, output, to="scores", on_batch=kill_after(1))  # type: ignore[arg-type]
    second = small_detector(method, at_once=8, precision="bf16")
    with pytest.raises(OutputError, match='precision was "float32", is now "bf16"'):
        score_source(second, images, output, to="scores")
    first.preparation = replace(first.preparation, fit="pad")
    with pytest.raises(OutputError, match="preparation was"):
        score_source(first, images, output, to="scores")


def test_early_stopped_images_have_fewer_distances_and_a_killed_run_the_same_table(
    tmp_path: Path, images: Source
) -> None:
    method = replace(small_method(attempts=4, steps=1), early_stop=0.5)
    made = small_detector(method, at_once=8)
    made.calibrate_on(made.measure(pixels(60, seed=1)))
    summary = score_source(made, images, tmp_path / "s.parquet")
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    took = [r["attempts"] for r in rows]
    assert set(took) == {2, 4}
    assert [len(r["distances"]["lpips"]) for r in rows] == took
    assert summary.attempts_an_image == sum(took) / 18
    with pytest.raises(Killed):
        score_source(made, images, tmp_path / "k.parquet", on_batch=kill_after(2))  # type: ignore[arg-type]
    score_source(made, images, tmp_path / "k.parquet")
    assert (tmp_path / "k.parquet").read_bytes() == (tmp_path / "s.parquet").read_bytes()
    score_source(made, images, tmp_path / "d.parquet", to="distances")
    assert not np.isnan(read_distances(tmp_path / "d.parquet")[1]).any(), "distances are whole"


def test_bad_images_stand_in_the_table_with_their_reason(tmp_path: Path, images: Source) -> None:
    (tmp_path / "images" / "005.png").write_bytes(b"")
    (tmp_path / "images" / "006.png").write_text("text")
    clean = detector().score_pixels(pixels(18)).scores
    summary = score_source(detector(), images, tmp_path / "s.parquet")
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert summary.skipped == 2
    assert set(summary.reasons) == {"005.png", "006.png"}
    assert (
        rows[5]["score"] is rows[5]["p_value"] is rows[5]["is_ood"] is rows[5]["distances"] is None
    )
    assert "empty" in rows[5]["reason"]
    assert rows[7]["score"] == pytest.approx(clean[7].item(), rel=1e-3), "its neighbours are fine"
    assert len(read_scores(tmp_path / "s.parquet")) == 16


def test_images_that_are_all_bad_still_give_a_table(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", 3)
    for path in folder.iterdir():
        path.write_bytes(b"")
    summary = score_source(detector(), open_source(folder), tmp_path / "s.jsonl")
    assert summary.skipped == 3
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 3


def test_no_decision_without_a_calibration_that_supports_it(tmp_path: Path, images: Source) -> None:
    output = tmp_path / "s.parquet"
    bare = small_detector()
    with pytest.raises(CalibrationError, match="liftmap calibrate"):
        score_source(bare, images, output)
    with pytest.raises(CalibrationError, match="needs at least 99"):
        score_source(detector(), images, output, false_alarms=0.01)
    score_source(bare, take(images, 2), output, to="scores")
    rows = pq.read_table(output).to_pylist()
    assert all(r["p_value"] is None and r["is_ood"] is None and r["score"] > 0 for r in rows)


def test_an_unknown_ending_is_refused_before_the_work(tmp_path: Path, images: Source) -> None:
    with pytest.raises(OutputError, match=r"\.parquet, \.csv, \.jsonl"):
        score_source(detector(), images, tmp_path / "s.xlsx")


def test_a_full_disk_is_reported_and_the_finished_batches_stay(
    tmp_path: Path, images: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, calls = tmp_path / "s.csv", []

    def fsync(file: int) -> None:
        calls.append(file)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match=r"No space left.*a rerun continues"):
        score_source(detector(), images, output)
    assert score_source(detector(), images, output).computed == 6


def test_a_damaged_journal_is_named(tmp_path: Path, images: Source) -> None:
    (tmp_path / "s.csv.part").write_text("rubbish\n")
    with pytest.raises(OutputError, match="is damaged: delete it"):
        score_source(detector(), images, tmp_path / "s.csv")
    (tmp_path / "s.csv.part").write_text('{"sour')
    assert score_source(detector(), images, tmp_path / "s.csv").images == 18


def test_jsonl_and_csv_say_the_same_as_parquet(tmp_path: Path, images: Source) -> None:
    for ending in ("parquet", "jsonl", "csv"):
        score_source(detector(), take(images, 3), tmp_path / f"s.{ending}")
    table = pq.read_table(tmp_path / "s.parquet").to_pylist()
    lines = [json.loads(x) for x in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [x["score"] for x in lines] == [x["score"] for x in table]
    first = (tmp_path / "s.csv").read_text().splitlines()
    assert first[0] == "id,score,p_value,is_ood,attempts,lpips_0,lpips_1,reason,notes"
    assert float(first[1].split(",")[1]) == table[0]["score"]


def test_two_runs_on_one_output_are_refused(tmp_path: Path, images: Source) -> None:
    made = detector()

    def second(summary: Summary) -> None:
        with pytest.raises(OutputError, match="written by another run"):
            score_source(made, images, tmp_path / "s.parquet")

    assert score_source(made, images, tmp_path / "s.parquet", on_batch=second).images == 18


def test_images_that_the_model_has_seen_have_notes(tmp_path: Path) -> None:
    """A p-value says nothing of an image that was trained on."""
    made, folder = detector(), save_images(tmp_path / "images", 8)
    stored = store_source(open_source(folder), made.preparation, tmp_path / "images.u8")
    trained, held_out = stored.hold_out(3)
    seen = Seen.of(trained, held_out)
    made.model = replace(made.model, seen=seen)
    Image.new("L", (32, 32), 100).save(folder / "new.png")
    Image.fromarray((np.arange(1024).reshape(32, 32) * 50).astype(np.uint16)).save(
        folder / "dark.png"
    )
    summary = score_source(made, open_source(folder), tmp_path / "s.parquet")
    told = {note.split(":")[0]: count for note, count in summary.notes.items()}
    assert told["an exact copy of those that the model was trained on"] == 5
    assert told["an exact copy of those that the model was calibrated on"] == 3
    rows = {row["id"]: row["notes"] for row in read_rows(tmp_path / "s.parquet")}
    assert rows["new.png"] is None
    assert len(rows["000.png"]) == 1
    assert summary.as_json()["notes"] == summary.notes
    again = score_source(made, open_source(folder), tmp_path / "s.csv")
    assert "an exact copy" in (tmp_path / "s.csv").read_text()
    assert again.notes == summary.notes
