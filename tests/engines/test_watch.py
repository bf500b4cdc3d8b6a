import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import decide_by, pixels, save_images, small_detector, small_method

from liftmap.detector import Detector
from liftmap.engines import watch as module
from liftmap.engines.arrivals import from_folder, from_lines
from liftmap.engines.tables import read_rows
from liftmap.engines.watch import Watch, Watched, watch
from liftmap.errors import OutputError, SourceError
from liftmap.images.entry import Entry
from liftmap.images.sources import open_source


@pytest.fixture(scope="module")
def detector() -> Detector:
    made = small_detector(small_method(attempts=2, steps=1), at_once=8)  # batches of 4 images
    decide_by(made, made.score_pixels(pixels(60, seed=9)).scores.tolist())
    return made


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    return list(open_source(save_images(tmp_path / "images", 18)))


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 5)


def ids(output: Path) -> list[str]:
    return [row["id"] for row in read_rows(output)]


class Killed(BaseException):
    """Stands for a signal that ends the process."""


def test_what_arrives_is_scored_once_in_parts(
    detector: Detector, entries: list[Entry], tmp_path: Path
) -> None:
    seen = watch(detector, [entries[:3], [], entries[:12], entries], tmp_path / "w")
    assert (seen.images, seen.skipped) == (18, 0)
    assert ids(tmp_path / "w") == [e.id for e in entries]
    parts = sorted((tmp_path / "w").glob("part-*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [5, 5, 5, 3]
    scores = [row["score"] for row in read_rows(tmp_path / "w")]
    expected = detector.score_pixels(pixels(18)).scores.tolist()
    assert scores == pytest.approx(expected, rel=1e-5)
    assert seen.flagged == sum(row["p_value"] <= 0.05 for row in read_rows(tmp_path / "w"))


def test_a_restart_goes_on_with_the_same_knowledge(
    detector: Detector, entries: list[Entry], tmp_path: Path
) -> None:
    whole = watch(detector, [entries], tmp_path / "whole")
    watch(detector, [entries[:7]], tmp_path / "w")
    told: list[Watched] = []
    again = watch(
        detector, [entries], tmp_path / "w", on_batch=lambda s: told.append(Watched(**vars(s)))
    )
    assert told[0].images == 7
    assert again == whole, "evidence and counts too"
    assert ids(tmp_path / "w") == ids(tmp_path / "whole")


@pytest.mark.parametrize("torn", ["", '{"id": "01'])
def test_a_kill_between_any_two_writes_loses_and_doubles_nothing(
    detector: Detector,
    entries: list[Entry],
    tmp_path: Path,
    torn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At each file that is written or cut: before it, the process ends."""
    places = ("write_table", "_begin", "_flush")
    for kill_at in range(14):
        output, left = tmp_path / f"w{kill_at}-{len(torn)}", [kill_at]

        def dying(original: object, left: list[int] = left) -> object:
            def call(*args: object, **options: object) -> object:
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return original(*args, **options)  # type: ignore[operator]

            return call

        with monkeypatch.context() as patch:
            patch.setattr(module, "write_table", dying(module.write_table))
            for name in places[1:]:
                patch.setattr(Watch, name, dying(getattr(Watch, name)))
            with suppress(Killed):
                watch(detector, [entries], output)
        if torn and (output / "journal.jsonl").exists():
            with (output / "journal.jsonl").open("a") as file:
                file.write(torn)
        seen = watch(detector, [entries], output)
        assert seen.images == 18
        assert ids(output) == [e.id for e in entries], kill_at


def test_bad_images_cost_themselves(
    detector: Detector, entries: list[Entry], tmp_path: Path
) -> None:
    (tmp_path / "images" / "004.png").write_text("no image")
    seen = watch(detector, [entries], tmp_path / "w")
    assert (seen.images, seen.skipped) == (18, 1)
    reasons = {row["id"]: row["reason"] for row in read_rows(tmp_path / "w") if row["reason"]}
    assert list(reasons) == ["004.png"]


def test_a_drift_is_announced_once_even_over_a_restart(
    detector: Detector, entries: list[Entry], tmp_path: Path
) -> None:
    alone = Detector(detector.model, method=detector.method, device="cpu", at_once=8)
    lowest = detector.score_pixels(pixels(18)).scores.min().item()
    decide_by(alone, [lowest - 1 + i * 1e-3 for i in range(200)])  # all images are odd
    seen = watch(alone, [entries[:10]], tmp_path / "w", run=1e3)
    alarms = (tmp_path / "w" / "alarms.jsonl").read_text().splitlines()
    assert seen.alarms == len(alarms) >= 1
    first = json.loads(alarms[0])
    assert first["id"] == entries[first["image"] - 1].id
    watch(alone, [entries[:10]], tmp_path / "w", run=1e3)
    assert (tmp_path / "w" / "alarms.jsonl").read_text().splitlines() == alarms


def test_two_at_once_and_another_models_output_are_refused(
    detector: Detector, entries: list[Entry], tmp_path: Path
) -> None:
    with (
        Watch(detector, tmp_path / "w"),
        pytest.raises(OutputError, match="written by another run"),
        Watch(detector, tmp_path / "w"),
    ):
        pass
    with pytest.raises(OutputError, match=r"another run .*false_alarms"):
        watch(detector, [entries], tmp_path / "w", false_alarms=0.1)
    (tmp_path / "w" / "journal.jsonl").write_text("no journal\n")
    with pytest.raises(OutputError, match="is damaged"):
        watch(detector, [entries], tmp_path / "w")


def test_a_missing_part_is_noticed(
    detector: Detector, entries: list[Entry], tmp_path: Path
) -> None:
    watch(detector, [entries], tmp_path / "w")
    (tmp_path / "w" / "part-000000005.parquet").unlink()
    with pytest.raises(OutputError, match="a part is missing"):
        watch(detector, [entries], tmp_path / "w")


def test_files_come_in_the_order_of_their_times_once_they_have_settled(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", 3)
    now = time.time()
    for name, age in (("000.png", 50), ("001.png", 90), ("002.png", 0)):
        os.utime(folder / name, (now - age, now - age))
    stop = threading.Event()
    looks = from_folder(folder, stop, every=0.0, settle=30.0)
    assert [e.id for e in next(looks)] == ["001.png", "000.png"]
    stop.set()
    assert list(looks) == []
    empty = tmp_path / "empty"
    empty.mkdir()
    assert next(from_folder(empty, threading.Event(), every=0.0)) == [], "not yet"
    with pytest.raises(SourceError):
        next(from_folder(tmp_path / "nowhere", threading.Event(), every=0.0))


def test_a_clock_that_is_set_back_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_images(tmp_path / "images", 2)
    day_before = time.time() - 86_400
    monkeypatch.setattr(time, "time", lambda: day_before)
    looks = from_folder(folder, threading.Event(), every=0.0, settle=0.2)
    assert next(looks) == [], "their times lie ahead: perhaps still being written"
    os.utime(folder / "001.png", (day_before + 90_000, day_before + 90_000))
    time.sleep(0.25)
    assert [e.id for e in next(looks)] == ["000.png"], "the other one was changed in between"
    time.sleep(0.25)
    assert [e.id for e in next(looks)] == ["000.png", "001.png"]


def test_lines_are_gathered_and_bad_paths_told(detector: Detector, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", 2)
    lines = [f"{folder}/000.png\n", "\n", f"{folder}/001.png\n", "nowhere.png\n"]
    seen = watch(detector, from_lines(lines, threading.Event()), tmp_path / "w")
    assert (seen.images, seen.skipped) == (3, 1)
