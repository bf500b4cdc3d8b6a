import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import decide_by, pixels, save_images, small_detector, small_method

from liftmap.detector import Detector
from liftmap.engines import arrivals as waiting
from liftmap.engines import watch as module
from liftmap.engines.arrivals import Arrival, from_folder, from_lines
from liftmap.engines.tables import read_rows
from liftmap.engines.watch import Watch, Watched, watch
from liftmap.errors import OutputError, SourceError
from liftmap.images.sources import open_source


@pytest.fixture(scope="module")
def detector() -> Detector:
    made = small_detector(small_method(attempts=2, steps=1), at_once=8)  # batches of 4 images
    decide_by(made, made.score_pixels(pixels(60, seed=9)).scores.tolist())
    return made


@pytest.fixture
def entries(tmp_path: Path) -> list[Arrival]:
    return [Arrival(entry) for entry in open_source(save_images(tmp_path / "images", 18))]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 5)


def ids(output: Path) -> list[str]:
    return [row["id"] for row in read_rows(output)]


def names(arrivals: list[Arrival]) -> list[str]:
    return [arrival.entry.id for arrival in arrivals]


FLUSH = Watch._flush


class Clock:
    """Time that passes when it is told to; files keep the real one."""

    def __init__(self) -> None:
        self.passed = self.set_back = 0.0

    def pass_by(self, seconds: float) -> None:
        self.passed += seconds

    def time(self) -> float:
        return time.time() + self.passed - self.set_back

    def monotonic(self) -> float:
        return time.monotonic() + self.passed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(waiting, "time", made)
    return made


class Killed(BaseException):
    """Stands for a signal that ends the process."""


def test_what_arrives_is_scored_once_in_parts(
    detector: Detector, entries: list[Arrival], tmp_path: Path
) -> None:
    seen = watch(detector, [entries[:3], [], entries[:12], entries], tmp_path / "w")
    assert (seen.images, seen.skipped) == (18, 0)
    assert ids(tmp_path / "w") == [e.entry.id for e in entries]
    parts = sorted((tmp_path / "w").glob("part-*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [5, 5, 5, 3]
    scores = [row["score"] for row in read_rows(tmp_path / "w")]
    expected = detector.score_pixels(pixels(18)).scores.tolist()
    assert scores == pytest.approx(expected, rel=1e-5)
    assert seen.flagged == sum(row["p_value"] <= 0.05 for row in read_rows(tmp_path / "w"))


def test_a_restart_goes_on_with_the_same_knowledge(
    detector: Detector, entries: list[Arrival], tmp_path: Path
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
    entries: list[Arrival],
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
        assert ids(output) == [e.entry.id for e in entries], kill_at


def test_bad_images_cost_themselves(
    detector: Detector, entries: list[Arrival], tmp_path: Path
) -> None:
    (tmp_path / "images" / "004.png").write_text("no image")
    seen = watch(detector, [entries], tmp_path / "w")
    assert (seen.images, seen.skipped) == (18, 1)
    reasons = {row["id"]: row["reason"] for row in read_rows(tmp_path / "w") if row["reason"]}
    assert list(reasons) == ["004.png"]


def test_a_drift_is_announced_once_even_over_a_restart(
    detector: Detector, entries: list[Arrival], tmp_path: Path
) -> None:
    alone = Detector(detector.model, method=detector.method, device="cpu", at_once=8)
    lowest = detector.score_pixels(pixels(18)).scores.min().item()
    decide_by(alone, [lowest - 1 + i * 1e-3 for i in range(200)])  # all images are odd
    seen = watch(alone, [entries[:10]], tmp_path / "w", run=1e3)
    alarms = (tmp_path / "w" / "alarms.jsonl").read_text().splitlines()
    assert seen.alarms == len(alarms) >= 1
    first = json.loads(alarms[0])
    assert first["id"] == entries[first["image"] - 1].entry.id
    watch(alone, [entries[:10]], tmp_path / "w", run=1e3)
    assert (tmp_path / "w" / "alarms.jsonl").read_text().splitlines() == alarms


def test_two_at_once_and_another_models_output_are_refused(
    detector: Detector, entries: list[Arrival], tmp_path: Path
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
    detector: Detector, entries: list[Arrival], tmp_path: Path
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
    assert names(next(looks)) == ["001.png", "000.png"]
    stop.set()
    assert list(looks) == []
    empty = tmp_path / "empty"
    empty.mkdir()
    assert next(from_folder(empty, threading.Event(), every=0.0)) == [], "not yet"
    with pytest.raises(SourceError):
        next(from_folder(tmp_path / "nowhere", threading.Event(), every=0.0))


def test_a_clock_that_is_set_back_holds_nothing_up(clock: Clock, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", 2)
    clock.set_back = 86_400
    looks = from_folder(folder, threading.Event(), every=0.0, settle=1.0, patience=10.0)
    assert next(looks) == [], "their times lie ahead: perhaps still being written"
    tomorrow = time.time() + 3600
    os.utime(folder / "001.png", (tomorrow, tomorrow))
    clock.pass_by(1.5)
    assert names(next(looks)) == ["000.png"], "the other one was changed in between"
    clock.pass_by(1.5)
    assert names(next(looks)) == ["001.png"]
    clock.pass_by(7.5)
    assert [a.unreadable for a in next(looks)] == ["record"], "the first has waited ten seconds"
    clock.pass_by(1.5)
    assert names(next(looks)) == ["001.png"], "a last time too, though its time lies ahead"
    clock.pass_by(100.0)
    assert next(looks) == []


class Eyes:
    """A folder that is watched look by look."""

    def __init__(self, detector: Detector, folder: Path, output: Path, clock: Clock) -> None:
        self._parts = (detector, output, clock)
        self._looks = from_folder(folder, threading.Event(), every=0.0)
        self.folder, self.output = folder, output

    def after(self, seconds: float, watching: Watch) -> tuple[int, int]:
        """Images and skipped ones, when so much time has passed and another look was taken."""
        self._parts[2].pass_by(seconds)
        if fresh := watching.fresh(next(self._looks)):
            watching.score(fresh)
        return watching.seen.images, watching.seen.skipped

    def reasons(self) -> list[tuple[str, bool]]:
        return [(row["id"], row["reason"] is None) for row in read_rows(self.output)]


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    return (save_images(tmp_path / "one", 1) / "000.png").read_bytes()


@pytest.fixture
def eyes(detector: Detector, tmp_path: Path, clock: Clock) -> Callable[[], Eyes]:
    (tmp_path / "in").mkdir()
    return lambda: Eyes(detector, tmp_path / "in", tmp_path / "w", clock)


def test_a_slow_upload_is_scored_once_it_is_whole(
    detector: Detector, eyes: Callable[[], Eyes], picture: bytes
) -> None:
    looking = eyes()
    with Watch(detector, looking.output) as watching:
        with (looking.folder / "a.png").open("wb") as file:
            assert looking.after(0.0, watching) == (0, 0), "zero bytes, just created"
            assert looking.after(2.0, watching) == (0, 0), "still none"
            file.write(picture[: len(picture) // 2])
            file.flush()
            assert looking.after(2.0, watching) == (0, 0)
            assert looking.after(5.0, watching) == (0, 0), "it stalls"
            file.write(picture[len(picture) // 2 :])
        assert looking.after(2.0, watching) == (1, 0)
        assert looking.after(100.0, watching) == (1, 0)
    assert looking.reasons() == [("a.png", True)]


def test_an_upload_that_a_stop_interrupts_is_scored_after_the_restart(
    detector: Detector, eyes: Callable[[], Eyes], picture: bytes
) -> None:
    first, path = eyes(), eyes().folder / "a.png"
    path.write_bytes(picture[:100])
    with Watch(detector, first.output) as watching:
        assert first.after(2.0, watching) == (0, 0)
        watching.give_up()  # a folder's files are seen again
    assert list(first.output.glob("part-*")) == []
    path.write_bytes(picture)
    again = eyes()
    with Watch(detector, again.output) as watching:
        assert again.after(2.0, watching) == (1, 0)
    assert again.reasons() == [("a.png", True)]


def test_what_stays_unreadable_has_one_row_whatever_the_restarts(
    detector: Detector, eyes: Callable[[], Eyes]
) -> None:
    first = eyes()
    (first.folder / "a.png").write_bytes(b"no image")
    with Watch(detector, first.output) as watching:
        assert first.after(59.0, watching) == (0, 0)
        assert first.after(2.0, watching) == (1, 1)
    for _ in range(2):
        again = eyes()
        with Watch(detector, again.output) as watching:
            assert (watching.seen.images, watching.seen.skipped) == (1, 1)
            assert again.after(100.0, watching) == (1, 1), "it is old now: offered at once"
    assert again.reasons() == [("a.png", False)]


@pytest.mark.parametrize("others", [0, 3, 4, 9])  # the rows end in the journal, or in a part
def test_an_unreadable_image_that_is_whole_later_has_a_second_row(
    detector: Detector, eyes: Callable[[], Eyes], picture: bytes, tmp_path: Path, others: int
) -> None:
    first = eyes()
    (first.folder / "a.png").write_bytes(picture[:100])
    with Watch(detector, first.output) as watching:
        assert first.after(100.0, watching) == (1, 1)
        save_images(first.folder, others)
        assert first.after(100.0, watching) == (1 + others, 1)
    replacement = tmp_path / "whole"
    replacement.write_bytes(picture)
    replacement.replace(first.folder / "a.png")  # as atomic writers do, while nobody watched
    again = eyes()
    with Watch(detector, again.output) as watching:
        assert again.after(2.0, watching) == (1 + others, 0)
        assert again.after(100.0, watching) == (1 + others, 0)
    with Watch(detector, again.output) as watching:
        assert (watching.seen.images, watching.seen.skipped) == (1 + others, 0), "read back"
    rows = [row for row in again.reasons() if row[0] == "a.png"]
    assert rows == [("a.png", False), ("a.png", True)]
    assert len(again.reasons()) == others + 2


def test_a_file_that_is_replaced_is_offered_again_whatever_its_time_says(
    eyes: Callable[[], Eyes], clock: Clock, tmp_path: Path, picture: bytes
) -> None:
    folder = eyes().folder
    looks = from_folder(folder, threading.Event(), every=0.0, settle=1.0, patience=10.0)
    for content in (b"\0" * len(picture), picture):
        (tmp_path / "new").write_bytes(content)
        os.utime(tmp_path / "new", (1e9, 1e9))
        (tmp_path / "new").replace(folder / "a.png")
        assert names(next(looks)) == ["a.png"]
        assert next(looks) == []
    clock.pass_by(11.0)
    assert [a.unreadable for a in next(looks)] == ["record"]
    (folder / "a.png").chmod(0o400)  # perhaps it can be read now
    assert names(next(looks)) == ["a.png"]


def test_files_that_vanish_cost_nothing_unless_they_had_stayed_for_long(
    detector: Detector, eyes: Callable[[], Eyes], clock: Clock, picture: bytes
) -> None:
    looking = eyes()
    looks = from_folder(looking.folder, threading.Event(), every=0.0)
    with Watch(detector, looking.output) as watching:
        for name, stays in (("a.tmp.png", 2.0), ("b.png", 100.0)):
            (looking.folder / name).write_bytes(picture)
            clock.pass_by(stays)
            offered = next(looks)
            assert names(offered) == [name]
            (looking.folder / name).unlink()
            watching.score(watching.fresh(offered))
        assert (watching.seen.images, watching.seen.skipped) == (1, 1)
    rows = list(read_rows(looking.output))
    assert [row["id"] for row in rows] == ["b.png"] and "No such file" in rows[0]["reason"]


def test_a_file_with_the_name_of_an_unfinished_one_waits_for_its_own(
    detector: Detector, eyes: Callable[[], Eyes], picture: bytes
) -> None:
    looking = eyes()
    with Watch(detector, looking.output) as watching:
        for temporary in ("a.png.part", ".b.png", "c.tmp"):
            (looking.folder / temporary).write_bytes(picture)
            assert looking.after(100.0, watching) == (0, 0), temporary
        (looking.folder / "a.png.part").rename(looking.folder / "a.png")
        assert looking.after(2.0, watching) == (1, 0)
    assert looking.reasons() == [("a.png", True)]


def test_folders_and_pipes_with_an_images_name_hold_nothing_up(
    detector: Detector, eyes: Callable[[], Eyes], tmp_path: Path
) -> None:
    looking = eyes()
    save_images(looking.folder, 1)
    os.mkfifo(looking.folder / "pipe.png")
    (looking.folder / "folder.png").mkdir()
    with Watch(detector, looking.output) as watching:
        assert looking.after(100.0, watching) == (1, 0)
        assert looking.after(100.0, watching) == (2, 1), "the pipe has had its time"
    with pytest.raises(SourceError, match="is no folder"):
        next(from_folder(looking.folder / "000.png", threading.Event()))
    lines = [str(looking.folder / name) for name in ("pipe.png", "folder.png", "bad\0.png")]
    seen = watch(detector, from_lines(lines, threading.Event()), tmp_path / "lines")
    assert (seen.images, seen.skipped) == (3, 3)


def test_names_that_are_not_utf_8_are_scored_and_known_again(
    detector: Detector, eyes: Callable[[], Eyes], picture: bytes, tmp_path: Path
) -> None:
    strange = [b"caf\xe9.png", b"line\nbreak.png", b"\\x41.png", "grün.png".encode()]
    expected = [r"\x5cx41.png", r"caf\xe9.png", "grün.png", r"line\x0abreak.png"]
    for name in strange:
        (eyes().folder / os.fsdecode(name)).write_bytes(picture)
    for _ in range(2):
        looking = eyes()
        with Watch(detector, looking.output) as watching:
            assert looking.after(100.0, watching) == (4, 0)
    assert sorted(ids(looking.output)) == expected
    lines = [os.fsdecode(os.fsencode(looking.folder) + b"/" + strange[0])] * 2
    watch(detector, from_lines(lines, threading.Event()), tmp_path / "lines")
    assert ids(tmp_path / "lines") == [f"{looking.folder}/{expected[1]}"]


def test_lines_are_gathered_and_bad_paths_told(detector: Detector, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", 2)
    lines = [f"{folder}/000.png\n", "\n", f"{folder}/001.png\n", "nowhere.png\n"]
    seen = watch(detector, from_lines(lines, threading.Event()), tmp_path / "w")
    assert (seen.images, seen.skipped) == (3, 1)
    again = watch(detector, from_lines(lines, threading.Event()), tmp_path / "w")
    assert again == seen and len(ids(tmp_path / "w")) == 3


class Lines:
    """Lines that come when they are given."""

    def __init__(self) -> None:
        self._given: queue.Queue[str | None] = queue.Queue()
        self.give = self._given.put

    def __iter__(self) -> Iterator[str]:
        return iter(self._given.get, None)


def test_a_line_that_comes_again_is_scored_once_its_file_is_whole(
    detector: Detector, tmp_path: Path, picture: bytes
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture[:100])
    for content, counts in ((picture[:100], (1, 1)), (picture, (1, 0)), (picture, (1, 0))):
        path.write_bytes(content)
        seen = watch(detector, from_lines([str(path)], threading.Event()), tmp_path / "w")
        assert (seen.images, seen.skipped) == counts
    assert [row["reason"] is None for row in read_rows(tmp_path / "w")] == [False, True]


def test_a_line_whose_file_is_still_on_its_way_need_not_come_again(
    detector: Detector, tmp_path: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "TOGETHER", 0.02)
    lines, late, half, never = Lines(), *(tmp_path / f"{name}.png" for name in "abc")
    half.write_bytes(picture[:100])
    for path in (late, half, never):
        lines.give(str(path))
    groups = from_lines(lines, threading.Event(), settle=0.0, patience=0.5)
    with Watch(detector, tmp_path / "w") as watching:

        def until(*counts: int) -> None:
            while (watching.seen.images, watching.seen.skipped) != counts:
                if fresh := watching.fresh(next(groups)):
                    watching.score(fresh)

        assert len(watching.fresh(next(groups))) == 3
        for path in (late, half, never):
            lines.give(str(path))
        watching.score(next(groups))
        assert watching.seen.images == 0, "held back"
        late.write_bytes(picture)
        half.write_bytes(picture)
        until(2, 0)
        until(3, 1)  # the third has had its time
        never.write_bytes(picture)
        lines.give(str(never))
        until(3, 0)


@pytest.mark.parametrize(("from_pipe", "expected"), [(True, (1, 1)), (False, (0, 0))])
def test_at_a_stop_what_comes_again_is_left_and_what_does_not_is_told(
    detector: Detector, tmp_path: Path, from_pipe: bool, expected: tuple[int, int]
) -> None:
    stop, lines = threading.Event(), Lines()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "half.png").write_bytes(b"half")
    lines.give(str(tmp_path / "in" / "half.png"))
    batches = iter([lambda: None, stop.set])  # told to stop once the file has been tried
    arrivals = (
        from_lines(lines, stop)
        if from_pipe
        else from_folder(tmp_path / "in", stop, every=0.0, settle=0.0)
    )
    seen = watch(
        detector,
        arrivals,
        tmp_path / "w",
        stop=stop,
        on_batch=lambda seen: next(batches, lambda: None)(),
    )
    assert (seen.images, seen.skipped) == expected
    lines.give(None)


def test_a_kill_loses_and_doubles_no_image_that_is_whole_later(
    detector: Detector, entries: list[Arrival], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above; at first four images are unreadable."""
    bad = [entries[i].entry.id for i in (0, 4, 5, 17)]
    for kill_at in range(0, 16, 3):
        output, left = tmp_path / f"w{kill_at}", [kill_at]
        contents = {id: (tmp_path / "images" / id).read_bytes() for id in bad}
        for id in bad:
            (tmp_path / "images" / id).write_bytes(b"")
        watch(detector, [entries[:9]], output)
        for id in bad:
            (tmp_path / "images" / id).write_bytes(contents[id])

        def flush(watching: Watch, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            FLUSH(watching)

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(Watch, "_flush", flush)
            watch(detector, [entries], output)
        seen = watch(detector, [entries], output)
        assert (seen.images, seen.skipped) == (18, 0)
        scored = [row["id"] for row in read_rows(output) if row["reason"] is None]
        assert sorted(scored) == names(entries), kill_at
        assert len(ids(output)) == 18 + 3, "three of the four were among the first nine"
