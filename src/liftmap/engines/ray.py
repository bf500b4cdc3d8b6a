"""Scores a source on the machines of a Ray cluster, into one folder of Parquet parts.

The folder, which all machines must see, holds `listing.parquet`, ids and stamps in the source's
order, one row group a part; `run.json`, what the parts belong to; and `part-NNNNNNNNN.parquet`,
each written whole by whichever worker scored it. A rerun lists the source again, drops the parts
whose images have changed, and computes those that are missing, so that each image has exactly one
row whatever was lost on the way.

Images without stamps, those of published data sets, are taken for unchanged where ids and order
are: such sets are known by their names.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from liftmap.detector import Detector
from liftmap.diffusion.denoiser import Precision
from liftmap.engines.local import Scoring, Summary, Upto
from liftmap.engines.memory import keep_freed_memory
from liftmap.engines.tables import read_rows, write_table
from liftmap.errors import ImageError, MissingExtraError, OutputError, SettingsError, SourceError
from liftmap.files import Run, atomic_path, held
from liftmap.images.entry import Entry, Source, part
from liftmap.model import Model
from liftmap.stages.method import Method

PART = 2000  # images that a worker takes at a time
CRASHES = 2  # of a worker at one image alone, after which the image is given up


@dataclass(frozen=True)
class Cluster:
    """Where to run.

    address: of a running cluster, "auto" for the one of this machine; None starts one here.
    workers: processes that each load the model once. gpus_per_worker: 0 for the CPU.
    """

    address: str | None = None
    workers: int = 2
    gpus_per_worker: float = 0.0


@dataclass(frozen=True)
class _Job:
    """All that a worker needs to know; sent to each."""

    model: Model
    method: Method
    precision: Precision | None
    at_once: int
    reopen: Callable[[], Source]
    output: Path
    false_alarms: float
    to: Upto
    part: int
    threads: int


def score_on_ray(
    detector: Detector,
    source: Source,
    output: Path,
    cluster: Cluster,
    *,
    false_alarms: float = 0.05,
    to: Upto = "decisions",
    images_a_part: int = PART,
    on_part: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Score every image of a source; the same scores as `score_source` gives.

    Args:
        detector: what each worker gets a copy of; its device is the worker's own.
        source: opened again on each machine, as it was opened here.
        on_part: called with what is done so far, first with what was there already.

    Raises:
        MissingExtraError: the extra `ray` is not installed.
        SettingsError: the source can't be opened again.
        OutputError: the folder holds another run, is in use, or can't be written.
        and as `score_source`. Of images that have changed since an earlier run, the whole parts
        are scored anew.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    scoring = Scoring(detector, to, false_alarms)  # refuses before the work
    reopen = getattr(source, "reopen", None)
    if reopen is None:
        raise SettingsError(f"{source.name}: Ray's workers need a source that has a name")
    run = scoring.run(source=source.name, images_a_part=images_a_part)
    with held(output):
        parts, images, changed_from = _list(run, source, output)
        summary, missing = Summary(changed_from=changed_from), []
        for number in range(parts):
            path = _part_path(output, number, images_a_part)
            if path.exists():
                for row in read_rows(path):
                    summary.count(row)
            else:
                missing.append(number)
        on_part(summary)
        if missing:
            ray.init(address=cluster.address, ignore_reinit_error=True, include_dashboard=False)
            cores = int(ray.cluster_resources().get("CPU", 1))
            threads = max(1, cores // cluster.workers)
            precision, at_once = detector.denoiser.precision, detector.redraw.at_once
            job = _Job(
                detector.model, detector.method, precision, at_once, reopen,
                output.absolute(), false_alarms, to, images_a_part, threads,
            )  # fmt: skip
            for done in _results(job, missing, cluster):
                summary.merge(done)
                on_part(summary)
        if summary.images != images:
            raise OutputError(
                f"{output}: {summary.images} rows for {images} images; run again to go on"
            )
        return summary


def _results(job: _Job, missing: list[int], cluster: Cluster) -> Iterator[Summary]:
    """What each part gave, as workers finish them; a lost worker's part goes to another."""
    import ray

    gpus = cluster.gpus_per_worker
    done = ray.data.from_items([{"part": number} for number in missing]).map_batches(
        _Worker,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=cluster.workers, max_tasks_in_flight_per_actor=1),
        num_cpus=None if gpus else job.threads,
        num_gpus=gpus or None,
        max_restarts=-1,
        max_task_retries=-1,
    )
    for row in done.iter_rows():
        told = json.loads(row["summary"])
        yield Summary(**told | {"oddest": [tuple(image) for image in told["oddest"]]})


class _Worker:
    """Loads the model once, then scores one part after the other."""

    def __init__(self, job: _Job) -> None:
        import torch

        keep_freed_memory()
        torch.set_num_threads(job.threads)
        self.job = job
        self.detector = Detector(
            job.model, method=job.method, precision=job.precision, at_once=job.at_once
        )
        self.scoring = Scoring(self.detector, job.to, job.false_alarms)
        self.source = job.reopen()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"summary": [json.dumps(asdict(self.score(int(n)))) for n in batch["part"]]}

    def score(self, number: int) -> Summary:
        """Score a part into its file."""
        begun, summary, rows = time.monotonic(), Summary(), []
        diary = _Diary(self.job.output / f".part-{number}.diary")
        entries = self._entries(number)
        for first, last in diary.ranges(len(entries), self.detector.batch):
            diary.enter(first, last)
            some = [diary.unless_given_up(first + i, e) for i, e in enumerate(entries[first:last])]
            rows += self.scoring.rows(some)
        path = _part_path(self.job.output, number, self.job.part)
        method = self.detector.method
        write_table(rows, path, list(self.detector.redraw.distances), method.attempts)
        diary.close()
        for row in rows:
            summary.count(row)
        summary.computed, summary.seconds = len(rows), time.monotonic() - begun
        return summary

    def _entries(self, number: int) -> list[Entry]:
        """The images of a part, found by their ids, or by their places in the source."""
        ids = _ids(self.job.output / "listing.parquet", number)
        find = getattr(self.source, "find", None)
        if find is not None:
            return [find(id) for id in ids]
        first = number * self.job.part
        found = list(part(self.source, first, first + len(ids), name=self.source.name))
        if [entry.id for entry in found] != ids:
            raise SourceError(
                f"{self.source.name} has changed since it was listed: run again to list it anew"
            )
        return found


class _Diary:
    """What a worker is at within a part, so that the next one knows where it died.

    A worker that dies in a batch leaves the batch to be done image by image; one image at which
    workers die CRASHES times is given up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.careful: list[tuple[int, int]] = []
        self.crashes: Counter[int] = Counter()
        if path.exists() and (lines := path.read_text(encoding="utf-8").splitlines()):
            whole = [parts for line in lines if len(parts := line.split()) == 2]  # one may be torn
            begun = [(int(first), int(last)) for first, last in whole]
            # all but the last range of each life was survived; a life ends with a line "-1 -1"
            for before, (first, last) in zip(begun, [*begun[1:], (-1, -1)], strict=True):
                if (first, last) == (-1, -1) and before != (-1, -1):
                    self._died_in(*before)
            self._write(-1, -1)

    def _died_in(self, first: int, last: int) -> None:
        if last - first == 1:
            self.crashes[first] += 1
        self.careful.append((first, last))

    def ranges(self, count: int, batch: int) -> Iterator[tuple[int, int]]:
        """Batches of places; single ones where a worker died before."""
        for first in range(0, count, batch):
            last = min(count, first + batch)
            if any(a < last and first < b for a, b in self.careful):
                yield from ((i, i + 1) for i in range(first, last))
            else:
                yield first, last

    def enter(self, first: int, last: int) -> None:
        """Note which places are next."""
        self._write(first, last)

    def unless_given_up(self, place: int, entry: Entry) -> Entry:
        """The image, or one that can't be read in its place."""
        if self.crashes[place] < CRASHES:
            return entry
        return Entry(entry.id, _give_up)

    def _write(self, first: int, last: int) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{first} {last}\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """The part is written."""
        self.path.unlink(missing_ok=True)


def _give_up() -> Any:
    raise ImageError(f"{CRASHES} workers died at it: given up")


Listed = tuple[str, str | None]  # an image's id and stamp


def _list(run: Run, source: Source, output: Path) -> tuple[int, int, int | None]:
    """List the source as it is now, and drop the parts that are of other images.

    Returns parts, images, and the number, from 1, of the first image that a dropped part had and
    that has changed; None if no part was dropped.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, size = output / "listing.parquet", run.about["images_a_part"]
    run.begin(output / "run.json")
    entries = iter(source)
    schema = pa.schema([("id", pa.string()), ("stamp", pa.string())])
    number, changed = 0, []
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while chunk := [(entry.id, entry.stamp) for entry in islice(entries, size)]:
            ids, stamps = zip(*chunk, strict=True)
            writer.write_table(pa.table({"id": ids, "stamp": stamps}, schema=schema))
            changed += _drop(output, number, size, _first_other(_listed(path, number), chunk))
            number += 1
        for beyond in sorted(output.glob("part-*.parquet")):  # of a source that was longer
            place = int(beyond.stem.removeprefix("part-"))
            if place >= number * size:
                changed += _drop(output, place // size, size, 0)
    if not any(output.glob("part-*.parquet")):
        run.keep(output / "run.json")  # what an earlier version left out is known from here on
    return number, pq.read_metadata(path).num_rows, min(changed, default=None)


def _first_other(before: list[Listed] | None, now: list[Listed]) -> int | None:
    """The place of the first image that isn't as it was listed; None if all are."""
    if before == now:
        return None
    pairs = enumerate(zip(before or [], now, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(before or []), len(now)))


def _drop(output: Path, number: int, size: int, other: int | None) -> list[int]:
    """Remove a part, unless no image of it is another; the number of the first, from 1, if so."""
    if other is None:
        return []
    (output / f".part-{number}.diary").unlink(missing_ok=True)
    part_path = _part_path(output, number, size)
    was_there = part_path.exists()
    part_path.unlink(missing_ok=True)
    return [number * size + other + 1] if was_there else []


def _listed(path: Path, number: int) -> list[Listed] | None:
    """A part's ids and stamps; None if they weren't listed, or without stamps as once was done."""
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    with pq.ParquetFile(path) as file:
        if "stamp" not in file.schema_arrow.names or number >= file.num_row_groups:
            return None
        rows = file.read_row_group(number)
    return list(zip(rows["id"].to_pylist(), rows["stamp"].to_pylist(), strict=True))


def _ids(path: Path, number: int) -> list[str]:
    return [id for id, _ in _listed(path, number) or []]


def _part_path(output: Path, number: int, images_a_part: int) -> Path:
    return output / f"part-{number * images_a_part:09}.parquet"
