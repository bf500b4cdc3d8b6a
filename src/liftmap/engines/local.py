"""Scores a source on this machine into a table; a killed run goes on where it stopped.

While it runs, finished batches are appended to a journal beside the output (`NAME.part`, one JSON
line an image). At the end the journal becomes the table, and goes. A rerun reads the journal back,
checks that it belongs to the same run, and continues after its last whole batch.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from liftmap.calibrate import Calibration
from liftmap.detector import Detector
from liftmap.engines.tables import check_format, write_table
from liftmap.errors import ImageError, OutputError
from liftmap.images.sources import Entry, Source


@dataclass
class Summary:
    """What a run did. `computed` images took `seconds`; the others came from an earlier run."""

    images: int = 0
    skipped: int = 0
    flagged: int = 0
    computed: int = 0
    seconds: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)  # the first few skipped ids

    @property
    def images_per_second(self) -> float:
        """Of the images computed in this run; 0 when there were none."""
        return self.computed / self.seconds if self.seconds else 0.0

    def count(self, row: dict[str, Any]) -> None:
        """Take one row of the table into account."""
        self.images += 1
        if row["reason"]:
            self.skipped += 1
            if len(self.reasons) < 10:
                self.reasons[row["id"]] = row["reason"]
        self.flagged += bool(row["is_ood"])


def score_source(
    detector: Detector,
    source: Source,
    output: Path,
    *,
    false_alarms: float = 0.05,
    uncalibrated: bool = False,
    on_batch: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Score every image of a source into a Parquet, CSV or JSONL table, in the source's order.

    Columns: id, score, p_value, is_ood, distances (one an attempt), reason (of a skipped image,
    whose other columns are empty). `p_value` and `is_ood` are empty too when `uncalibrated`.

    Raises:
        CalibrationError: no calibration for this method, or too small for the false-alarm rate.
        OutputError: the output can't be written, or its journal belongs to another run.
    """
    check_format(output)
    calibration = None if uncalibrated else detector.calibration
    if calibration:
        calibration.threshold(false_alarms)
    batch = detector.batch
    run = {
        "source": source.name,
        "method": detector.method.key,
        "weights": detector.weights_key,
        "attempts": detector.method.attempts,
        "batch": batch,
        "false_alarms": None if uncalibrated else false_alarms,
        "calibration": calibration.key if calibration else None,
    }
    journal = Journal(output.with_name(output.name + ".part"), run)
    summary = Summary()
    entries = iter(source)
    with journal.open() as file:
        for row in journal.rows():
            journal.check(row, next(entries, None))
            summary.count(row)
        on_batch(summary)
        while pending := list(islice(entries, batch)):
            begun = time.monotonic()
            rows = _score_batch(detector, pending, calibration, false_alarms)
            journal.append(file, rows)
            summary.seconds += time.monotonic() - begun
            summary.computed += len(rows)
            for row in rows:
                summary.count(row)
            on_batch(summary)
    write_table(journal.rows(), output, detector.method.attempts)
    journal.path.unlink()
    return summary


def _score_batch(
    detector: Detector,
    entries: list[Entry],
    calibration: Calibration | None,
    false_alarms: float,
) -> list[dict[str, Any]]:
    """The table's rows of a few images; one that can't be read costs itself alone."""
    pixels: list[Tensor] = []
    reasons: dict[int, str] = {}
    for i, entry in enumerate(entries):
        try:
            pixels.append(detector.preparation(entry.load()))
        except ImageError as error:
            reasons[i] = str(error)
    values = _values(detector, pixels, calibration, false_alarms)
    empty: dict[str, Any] = {"score": None, "p_value": None, "is_ood": None, "distances": None}
    return [
        {"id": entry.id, **(empty if i in reasons else next(values)), "reason": reasons.get(i)}
        for i, entry in enumerate(entries)
    ]


def _values(
    detector: Detector,
    pixels: list[Tensor],
    calibration: Calibration | None,
    false_alarms: float,
) -> Iterator[dict[str, Any]]:
    if not pixels:
        return
    scored = detector.score_pixels(torch.stack(pixels))
    p_values = calibration.p_values(scored.scores) if calibration else None
    flags = calibration.is_ood(scored.scores, false_alarms) if calibration else None
    for i, score in enumerate(scored.scores.tolist()):
        yield {
            "score": score,
            "p_value": None if p_values is None else p_values[i].item(),
            "is_ood": None if flags is None else bool(flags[i]),
            "distances": scored.distances[i].tolist(),
        }


class Journal:
    """Finished batches as JSON lines, after a first line that says which run they belong to."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path, self.run = path, run

    def open(self) -> TextIO:
        """Open to append; starts the file, or cuts it back to its last whole batch."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size:
                self._cut()
            if not self.path.exists() or not self.path.stat().st_size:
                self.path.write_text(json.dumps(self.run) + "\n", encoding="utf-8")
            return self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error

    def _cut(self) -> None:
        with self.path.open("rb") as file:
            header = file.readline()
            if not header.endswith(b"\n"):
                self.path.write_text("", encoding="utf-8")
                return
            self._check_run(header)
            whole = file.tell()
            for lines, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                if lines % self.run["batch"] == 0:
                    whole = file.tell()
        os.truncate(self.path, whole)

    def _check_run(self, header: bytes) -> None:
        try:
            before = json.loads(header)
            differs = [key for key in self.run if before.get(key) != self.run[key]]
        except (ValueError, AttributeError):
            differs = ["its first line"]
        if differs:
            raise OutputError(
                f"{self.path} is of another run ({', '.join(differs)} differ): "
                "delete it to start anew, or choose another --output"
            )

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows that are in it, one by one."""
        with self.path.open(encoding="utf-8") as file:
            next(file, None)
            for line in file:
                yield json.loads(line)

    def check(self, row: dict[str, Any], entry: Entry | None) -> None:
        """The source must still give the same images in the same order."""
        if entry is None or entry.id != row["id"]:
            now = "its end" if entry is None else repr(entry.id)
            raise OutputError(
                f"{self.path} goes on with {row['id']!r} where the source now has {now}: "
                "the source has changed; delete the file to start anew"
            )

    def append(self, file: TextIO, rows: list[dict[str, Any]]) -> None:
        """Add a batch; it is on disk when this returns."""
        try:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path} can't be written ({error.strerror}): free space or choose another "
            "--output; a rerun continues after the last whole batch"
        )
