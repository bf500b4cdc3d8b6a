"""Scoring on a Ray cluster of this machine, with a network that is small."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import decide_by, pixels, save_images, small_detector, small_method

from liftmap.detector import Detector
from liftmap.engines.local import Summary, score_source
from liftmap.engines.ray import Cluster, _Diary, _Job, _list, _Worker, score_on_ray
from liftmap.engines.tables import read_rows
from liftmap.errors import OutputError
from liftmap.files import Run, held, read_object
from liftmap.images.entry import Entry, Source, Stream
from liftmap.images.sources import open_source

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def detector() -> Detector:
    made = small_detector(small_method(attempts=2, steps=1), at_once=8)  # batches of 4 images
    decide_by(made, made.score_pixels(pixels(40, seed=9)).scores.tolist())
    return made


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield Cluster(workers=2)
    ray.shutdown()


@pytest.fixture
def images(tmp_path: Path) -> Source:
    folder = save_images(tmp_path / "images", 22)
    (folder / "004.png").write_text("no image")
    return open_source(folder)


def test_the_parts_are_the_local_table(
    detector: Detector, cluster: Cluster, images: Source, tmp_path: Path
) -> None:
    told: list[int] = []
    found = score_on_ray(
        detector,
        images,
        tmp_path / "r",
        cluster,
        images_a_part=5,
        on_part=lambda s: told.append(s.images),
    )
    local = score_source(detector, images, tmp_path / "s.parquet")
    rows, expected = list(read_rows(tmp_path / "r")), list(read_rows(tmp_path / "s.parquet"))
    assert [r["id"] for r in rows] == [r["id"] for r in expected]
    assert [r["reason"] for r in rows] == [r["reason"] for r in expected]
    scored = [(r["score"], e["score"]) for r, e in zip(rows, expected, strict=True) if r["score"]]
    assert len(scored) == 21
    for got, want in scored:
        assert got == pytest.approx(want, rel=1e-3)
    assert (found.images, found.skipped, found.flagged) == (22, 1, local.flagged)
    assert found.reasons == local.reasons and found.p_values == local.p_values
    assert told[0] == 0 and told[-1] == 22 and len(told) == 6

    path = tmp_path / "r" / "part-000000005.parquet"
    path.unlink()
    before = (tmp_path / "r" / "part-000000000.parquet").stat().st_mtime_ns
    again = score_on_ray(detector, images, tmp_path / "r", cluster, images_a_part=5)
    assert (again.images, again.computed) == (22, 5), "only what was missing"
    assert (tmp_path / "r" / "part-000000000.parquet").stat().st_mtime_ns == before
    (tmp_path / "images" / "011.png").write_bytes((tmp_path / "images" / "000.png").read_bytes())
    changed = score_on_ray(detector, images, tmp_path / "r", cluster, images_a_part=5)
    assert (changed.images, changed.computed, changed.changed_from) == (22, 5, 12)
    after = list(read_rows(tmp_path / "r"))
    assert after[11]["score"] == pytest.approx(after[0]["score"], rel=1e-3)
    with pytest.raises(OutputError, match=r"another run \(false_alarms was 0.05, is now 0.1\)"):
        score_on_ray(detector, images, tmp_path / "r", cluster, images_a_part=5, false_alarms=0.1)


# what happens to a folder of 22 images whose parts of 5 are all there: which parts stay, and the
# number of the first image that is another
CHANGES: dict[str, tuple[Callable[[Path], object], list[int], int | None]] = {
    "nothing": (lambda folder: None, [0, 5, 10, 15, 20], None),
    "another": (lambda folder: (folder / "011.png").write_text("x"), [0, 5, 15, 20], 12),
    "one less at the end": (lambda folder: (folder / "021.png").unlink(), [0, 5, 10, 15], 22),
    "one more at the end": (lambda folder: save(folder / "x.png"), [0, 5, 10, 15], 23),
    "one less": (lambda folder: (folder / "006.png").unlink(), [0], 7),
    "one more in front": (lambda folder: save(folder / "000a.png"), [], 2),
    "a part less": (lambda folder: remove(folder, 20), [0, 5, 10, 15], 21),
}


def save(path: Path) -> None:
    path.write_bytes((path.parent / "000.png").read_bytes())


def remove(folder: Path, first: int) -> None:
    for path in sorted(folder.iterdir())[first:]:
        path.unlink()


def listed(source: Source, output: Path) -> tuple[int, int, int | None]:
    return _list(Run({"images_a_part": 5}), source, output)


def write_parts(output: Path) -> None:
    for number in range(5):
        (output / f"part-{5 * number:09}.parquet").touch()
        (output / f".part-{number}.diary").touch()


def parts(output: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in output.glob("part-*.parquet"))


@pytest.mark.parametrize("change", CHANGES)
def test_parts_whose_images_changed_are_dropped(change: str, tmp_path: Path) -> None:
    folder, output = save_images(tmp_path / "images", 22), tmp_path / "r"
    source = open_source(folder)
    assert listed(source, output) == (5, 22, None)
    write_parts(output)
    happen, kept, changed_from = CHANGES[change]
    happen(folder)
    images = len(list(folder.iterdir()))
    assert listed(source, output) == (-(-images // 5), images, changed_from)
    assert parts(output) == kept
    diaries = sorted(5 * int(path.stem[6:]) for path in output.glob(".part-*.diary"))
    assert diaries == kept, "what workers died at may have been mended"
    assert listed(source, output)[2] is None, "it is known from here on"


def test_parts_of_a_listing_without_stamps_are_dropped(tmp_path: Path) -> None:
    """As earlier versions listed a source; their settings lacked some too."""
    import pyarrow as pa

    source, output = open_source(save_images(tmp_path / "images", 22)), tmp_path / "r"
    run = Run({"images_a_part": 5, "precision": "bf16"}, formerly={"precision": None})
    Run({"images_a_part": 5}).begin(output / "run.json")
    ids = pa.table({"id": [entry.id for entry in source]})
    pq.write_table(ids, output / "listing.parquet", row_group_size=5)
    write_parts(output)
    assert _list(run, source, output) == (5, 22, 1)
    assert parts(output) == []
    assert read_object(output / "run.json") == run.about


def test_published_sets_are_known_by_their_names_ids_and_order(tmp_path: Path) -> None:
    """They have no stamps."""
    ids, output = [str(i) for i in range(22)], tmp_path / "r"
    source = Stream(
        "torchvision:X:test", lambda tally: iter([Entry(id, lambda: None) for id in ids])
    )  # type: ignore[arg-type,return-value]
    listed(source, output)
    write_parts(output)
    assert listed(source, output) == (5, 22, None)
    ids.append("22")
    assert listed(source, output) == (5, 23, 23)
    assert parts(output) == [0, 5, 10, 15]


def test_a_source_that_is_no_folder_is_read_by_place(
    detector: Detector, cluster: Cluster, tmp_path: Path
) -> None:
    import numpy as np

    np.save(tmp_path / "images.npy", pixels(7)[:, 0].numpy())
    source = open_source(tmp_path / "images.npy")
    found = score_on_ray(detector, source, tmp_path / "r", cluster, images_a_part=3)
    assert found.images == 7
    assert [row["id"] for row in read_rows(tmp_path / "r")] == [str(i) for i in range(7)]


def test_a_folder_in_use_is_refused(detector: Detector, cluster: Cluster, tmp_path: Path) -> None:
    source = open_source(save_images(tmp_path / "images", 3))
    with held(tmp_path / "r"), pytest.raises(OutputError, match="written by another run"):
        score_on_ray(detector, source, tmp_path / "r", cluster)
    assert not list((tmp_path / "r").iterdir())


def test_a_worker_that_is_killed_costs_nothing(
    detector: Detector, cluster: Cluster, tmp_path: Path
) -> None:
    folder = save_images(tmp_path / "many", 400)
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            for line in os.popen("pgrep -f 'ray::.*_Worker'").read().split():
                if list((tmp_path / "r").glob("part-*.parquet")):
                    os.kill(int(line), signal.SIGKILL)
                    killed.append(int(line))
                    return
            time.sleep(0.01)

    threading.Thread(target=kill, daemon=True).start()
    found = score_on_ray(detector, open_source(folder), tmp_path / "r", cluster, images_a_part=20)
    assert killed and found.images == 400
    ids = [row["id"] for row in read_rows(tmp_path / "r")]
    assert ids == [f"{i:03}.png" for i in range(400)]
    assert not list((tmp_path / "r").glob(".part-*.diary"))


class Died(BaseException):
    """Stands for a decoder that takes its process along."""


def test_an_image_at_which_workers_die_is_given_up(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = save_images(tmp_path / "images", 10), tmp_path / "r"
    output.mkdir()
    import pyarrow as pa

    pq.write_table(pa.table({"id": [f"{i:03}.png" for i in range(10)]}), output / "listing.parquet")
    job = _Job(
        detector.model, detector.method, "float32", 8, open_source(folder).reopen, output,
        0.05, "decisions", 10, 1,
    )  # fmt: skip

    def deadly(self: _Worker, number: int) -> list[Entry]:
        def die() -> None:
            raise Died

        entries = list(open_source(folder))
        entries[6] = Entry(entries[6].id, die)  # type: ignore[arg-type]
        return entries

    monkeypatch.setattr(_Worker, "_entries", deadly)
    deaths = 0
    for _ in range(10):
        try:
            summary = _Worker(job).score(0)
            break
        except Died:
            deaths += 1
    assert deaths == 3, "once with its batch, twice alone"
    assert isinstance(summary, Summary) and summary.images == 10
    assert summary.reasons == {"006.png": "2 workers died at it: given up"}


def test_a_diary_tells_deaths_from_progress(tmp_path: Path) -> None:
    path = tmp_path / "diary"
    first = _Diary(path)
    for begin, end in list(first.ranges(10, 4))[:2]:
        first.enter(begin, end)  # dies in the second
    second = _Diary(path)
    assert second.careful == [(4, 8)] and not second.crashes
    assert list(second.ranges(10, 4)) == [(0, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 10)]
    for begin, end in list(second.ranges(10, 4))[:3]:
        second.enter(begin, end)  # dies at 5
    with path.open("a") as file:
        file.write("6")  # torn: the disk was full
    third = _Diary(path)
    assert third.crashes == {5: 1}
    third.close()
    assert not path.exists()
