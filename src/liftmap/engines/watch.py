"""Scores images as they arrive, for months: each once, whatever stops it in between.

The output is a folder: `part-NNNNNNNNN.parquet` hold PART rows each, in the order of arrival, the
last of them fewer; `journal.jsonl` holds the last part's rows, each on disk as soon as its batch is
scored; `alarms.jsonl` has a line an alarm. What was seen, and what the drift test knows of it, is
read back from them.

An image has one row. If it couldn't be read, and later can, it has a second one: with its score.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO

from liftmap.detector import Detector
from liftmap.engines.arrivals import Arrival
from liftmap.engines.drift import DriftTest
from liftmap.engines.local import Scoring
from liftmap.engines.tables import Row, read_rows, write_table
from liftmap.errors import MissingExtraError, OutputError
from liftmap.files import hold

PART = 10_000  # rows a Parquet file
REWRITE = 60.0  # seconds after which the last part is written anew, at most


@dataclass
class Watched:
    """What has been seen so far, earlier runs included; `evidence` of a drift, `run` rings.

    skipped: of the images, those that could not be read so far.
    """

    run: float
    images: int = 0
    skipped: int = 0
    flagged: int = 0
    alarms: int = 0
    evidence: float = 0.0


class Watch:
    """An output folder that is being added to; a context manager, which holds it alone."""

    def __init__(
        self, detector: Detector, folder: Path, *, false_alarms: float = 0.05, run: float = 1e5
    ) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            false_alarms: the rate at which single images are flagged.
            run: images that pass on average before drift is announced by mistake, at least.

        Raises:
            CalibrationError: no calibration for this method, or too small for the rate.
        """
        self.detector, self.folder = detector, folder
        self._scoring = Scoring(detector, "decisions", false_alarms)
        scores = detector.judge.decides_by.scores
        self._test = DriftTest(scores, run=run, seed=detector.method.seed)
        self._run = self._scoring.run(run=run)
        self.seen = Watched(run)
        self.scored: set[str] = set()  # ids
        self.unreadable: set[str] = set()  # ids of those that have a row, though no score
        self._held: dict[str, Row] = {}  # rows of unreadable images, not added yet
        self._rows: list[Row] = []  # of the last part
        self._first = 0  # number of the last part's first row
        self._written = time.monotonic()

    def __enter__(self) -> "Watch":
        """Read back what earlier runs left.

        Raises:
            OutputError: the folder belongs to another model, is in use, or can't be written.
        """
        path = self.folder / "journal.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal: TextIO = path.open("a+", encoding="utf-8")
            hold(self._journal)
            self._restore()
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not isinstance(error, OutputError):
                self.rewrite()
        finally:
            self._journal.close()

    def fresh(self, arrivals: list[Arrival]) -> list[Arrival]:
        """Those without a score yet, each once."""
        return list({a.entry.id: a for a in arrivals if a.entry.id not in self.scored}.values())

    def score(self, arrivals: list[Arrival]) -> None:
        """Score them all at once, and add them; see `Arrival` for those that can't be read."""
        added = []
        for arrival, row in zip(
            arrivals, self._scoring.rows([a.entry for a in arrivals]), strict=True
        ):
            self._held.pop(row["id"], None)
            if row["reason"] is None:
                added.append(row)
            elif row["id"] in self.unreadable:
                continue  # it has its row
            elif arrival.unreadable == "record":
                added.append(row)
            elif arrival.unreadable == "hold":
                self._held[row["id"]] = row
        self._append(added)

    def give_up(self) -> None:
        """Add the rows of images that were held back and won't be offered again."""
        held, self._held = self._held, {}
        self._append(list(held.values()))

    def rewrite(self) -> None:
        """Write the last part, which is in the journal already, as Parquet."""
        self._written = time.monotonic()
        if self._rows:
            path = self.folder / f"part-{self._first:09}.parquet"
            kinds = list(self.detector.redraw.distances)
            write_table(self._rows, path, kinds, self.detector.method.attempts)

    def rewrite_if_late(self) -> None:
        """The same, unless it was done within the last minute."""
        if time.monotonic() - self._written > REWRITE:
            self.rewrite()

    def _append(self, rows: list[Row]) -> None:
        """Add rows: to the journal at once, and whole parts to Parquet."""
        while rows:
            room = PART - len(self._rows)
            some, rows = rows[:room], rows[room:]
            try:
                self._journal.write("".join(json.dumps(row) + "\n" for row in some))
                self._flush()
            except OSError as error:
                raise self._unwritable(error) from error
            self._rows += some
            for row in some:
                self._count(row)
            if len(self._rows) == PART:
                self.rewrite()
                self._begin(self._first + PART)

    def _flush(self) -> None:
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _count(self, row: Row, *, told: int = 0) -> None:
        """Take a row into account; alarms up to number `told` are in their file already."""
        id = row["id"]
        if row["reason"] is None:
            self.scored.add(id)
            self.unreadable.discard(id)
        else:
            self.unreadable.add(id)
        self.seen.images = len(self.scored) + len(self.unreadable)
        self.seen.skipped = len(self.unreadable)
        self.seen.flagged += bool(row["is_ood"])
        if row["score"] is not None and self._test.update(row["score"]):
            self.seen.alarms += 1
            if self.seen.alarms > told:
                self._tell(id)
        self.seen.evidence = self._test.evidence

    def _tell(self, id: str) -> None:
        line = {"image": self.seen.images, "id": id, "time": datetime.now(UTC).isoformat()}
        with (self.folder / "alarms.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _restore(self) -> None:
        told = 0
        if (self.folder / "alarms.jsonl").exists():
            told = len((self.folder / "alarms.jsonl").read_text(encoding="utf-8").splitlines())
        whole = [
            path for path in sorted(self.folder.glob("part-*.parquet")) if _rows_of(path) == PART
        ]
        for path in whole:
            for row in read_rows(path):
                self._count(row, told=told)
        first = PART * len(whole)
        rows = self._read_journal()
        if rows is None or rows[0] != first:
            if rows is not None and rows[0] != first - PART:
                raise OutputError(
                    f"{self.folder}: its journal begins at row {rows[0]}, its parts end at {first}:"
                    " a part is missing; put it back, or choose another --output"
                )
            self._begin(first)  # the part was written, and a new journal not yet begun
            return
        self._first, self._rows = rows
        for row in self._rows:
            self._count(row, told=told)

    def _read_journal(self) -> tuple[int, list[Row]] | None:
        """(first row's number, rows) in the journal, a torn last line cut off; None if none."""
        self._journal.seek(0)
        lines = self._journal.read().splitlines(keepends=True)
        self._journal.seek(0, os.SEEK_END)
        if not lines or not lines[0].endswith("\n"):
            return None
        if not lines[-1].endswith("\n"):
            lines.pop()
            whole = sum(len(line.encode()) for line in lines)
            os.truncate(self._journal.name, whole)
        try:
            header, rows = json.loads(lines[0]), [json.loads(line) for line in lines[1:]]
            about, first = header["about"], int(header["first"])
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{self._journal.name} is damaged ({error}): choose another --output"
            ) from error
        self._run.check(about, self.folder)
        return first, rows

    def _begin(self, first: int) -> None:
        """Begin the journal of a new part."""
        self._first, self._rows = first, []
        try:
            os.truncate(self._journal.name, 0)
            self._journal.write(json.dumps({"first": first, "about": self._run.about}) + "\n")
            self._flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.folder} can't be written ({error.strerror or error}): free space or choose "
            "another --output; what is in it is kept, run again to go on"
        )


def _rows_of(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def watch(
    detector: Detector,
    arrivals: Iterable[list[Arrival]],
    output: Path,
    *,
    false_alarms: float = 0.05,
    run: float = 1e5,
    stop: threading.Event | None = None,
    on_batch: Callable[[Watched], None] = lambda seen: None,
) -> Watched:
    """Score what arrives until nothing more does, or until told to stop; see `Watch`.

    Args:
        arrivals: groups of images, some of them perhaps seen before; an empty one for a pause.
        on_batch: called with what earlier runs saw, then after each batch.
    """
    stop = stop or threading.Event()
    with Watch(detector, output, false_alarms=false_alarms, run=run) as watching:
        on_batch(watching.seen)
        for batch in _batches(watching, arrivals, detector.batch):
            if stop.is_set():
                break
            watching.score(batch)
            on_batch(watching.seen)
        watching.give_up()
        on_batch(watching.seen)
    return watching.seen


def _batches(
    watching: Watch, arrivals: Iterable[list[Arrival]], most: int
) -> Iterator[list[Arrival]]:
    for group in arrivals:
        fresh = watching.fresh(group)
        for begin in range(0, len(fresh), most):
            yield fresh[begin : begin + most]
            watching.rewrite_if_late()
        watching.rewrite_if_late()


def expose(port: int) -> Callable[[Watched], None]:
    """Serve what was seen to Prometheus on this port of this machine; call it with each news.

    Raises:
        MissingExtraError: the extra `serve` is not installed.
        OutputError: the port is taken.
    """
    try:
        from prometheus_client import Gauge, start_http_server
    except ImportError as error:
        raise MissingExtraError("prometheus_client", "serve") from error
    told = {
        "images": "images seen",
        "skipped": "images that could not be read",
        "flagged": "images flagged as out-of-distribution",
        "alarms": "alarms of drift",
        "evidence": "evidence of drift since the last alarm",
        "run": "evidence at which the alarm rings",
    }
    gauges = {name: Gauge(f"liftmap_watch_{name}", words) for name, words in told.items()}
    try:
        start_http_server(port, addr="127.0.0.1")
    except OSError as error:
        raise OutputError(
            f"port {port}: {error.strerror}; choose another --metrics-port"
        ) from error

    def tell(seen: Watched) -> None:
        for name, gauge in gauges.items():
            gauge.set(getattr(seen, name))

    return tell
