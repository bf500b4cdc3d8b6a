"""Scores a source on this machine into a table; a killed run goes on where it stopped.

While it runs, finished batches are appended to a journal beside the output (`NAME.part`, one JSON
line an image). At the end the journal becomes the table, and goes. A rerun reads the journal back,
checks that it belongs to the same run, and continues after its last whole batch.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from heapq import nlargest
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from torch import Tensor

from liftmap.detector import Detector
from liftmap.engines.tables import check_format, write_table
from liftmap.errors import OutputError
from liftmap.files import hold
from liftmap.images.entry import Entry, Source
from liftmap.images.prepare import prepare_entries

Upto = Literal["distances", "scores", "decisions"]
BINS, ODDEST = 20, 5  # of the summary: p-values' histogram, images named


@dataclass
class Summary:
    """What a run did. `computed` images took `seconds`; the others came from an earlier run."""

    images: int = 0
    skipped: int = 0
    flagged: int = 0
    computed: int = 0
    seconds: float = 0.0
    attempts: int = 0
    reasons: dict[str, str] = field(default_factory=dict)  # the first few skipped ids
    p_values: list[int] = field(default_factory=lambda: [0] * BINS)  # images by p-value, 0 to 1
    oddest: list[tuple[float, str, float | None]] = field(default_factory=list)  # score, id, p

    @property
    def scored(self) -> int:
        """Images that have a score."""
        return self.images - self.skipped

    @property
    def attempts_an_image(self) -> float:
        """Of the images that have a score; 0 when there are none."""
        return self.attempts / self.scored if self.scored else 0.0

    @property
    def images_per_second(self) -> float:
        """Of the images computed in this run; 0 when there were none."""
        return self.computed / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """What a script may want to know."""
        return {
            "images": self.images,
            "scored": self.scored,
            "skipped": self.skipped,
            "flagged": self.flagged,
            "attempts_an_image": self.attempts_an_image,
            "images_per_second": self.images_per_second,
            "oddest": [{"id": id, "score": score, "p_value": p} for score, id, p in self.oddest],
        }

    def count(self, row: dict[str, Any]) -> None:
        """Take one row of the table into account."""
        self.images += 1
        if row["reason"]:
            self.skipped += 1
            if len(self.reasons) < 10:
                self.reasons[row["id"]] = row["reason"]
        self.flagged += bool(row["is_ood"])
        self.attempts += row["attempts"] or 0
        if row["p_value"] is not None:
            self.p_values[min(BINS - 1, int(BINS * row["p_value"]))] += 1
        if row["score"] is not None:
            self._keep_oddest([(row["score"], row["id"], row["p_value"])])

    def merge(self, other: "Summary") -> None:
        """Take what another part of the same run did into account; `seconds` are added."""
        for name in ("images", "skipped", "flagged", "computed", "seconds", "attempts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.reasons = dict(islice((self.reasons | other.reasons).items(), 10))
        self.p_values = [a + b for a, b in zip(self.p_values, other.p_values, strict=True)]
        self._keep_oddest(other.oddest)

    def _keep_oddest(self, more: list[tuple[float, str, float | None]]) -> None:
        self.oddest = nlargest(ODDEST, [*self.oddest, *more], key=lambda image: image[0])


def score_source(
    detector: Detector,
    source: Source,
    output: Path,
    *,
    false_alarms: float = 0.05,
    to: Upto = "decisions",
    on_batch: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Score every image of a source into a Parquet, CSV or JSONL table, in the source's order.

    Columns: id, score, p_value, is_ood, attempts (how many it took), distances (of each kind, one
    an attempt), norms (of the score, if the method asks for them; not in CSV), reason (of a skipped
    image, whose other columns are empty).

    Args:
        to: how far each image is taken. "scores" leaves p_value and is_ood empty and needs no
            calibration if the method has a single distance; "distances" leaves the score empty too.

    Raises:
        CalibrationError: no calibration for this method, or too small for the false-alarm rate.
        OutputError: the output can't be written, or its journal belongs to another run.
    """
    check_format(output)
    decide = Decide(detector, to, false_alarms)
    batch = detector.batch
    run = {
        "source": source.name,
        "method": detector.method.key,
        "weights": detector.checkpoint.weights_key,
        "attempts": detector.method.attempts,
        "batch": batch,
        **decide.run,
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
            rows = score_batch(detector, pending, decide)
            journal.append(file, rows)
            summary.seconds += time.monotonic() - begun
            summary.computed += len(rows)
            for row in rows:
                summary.count(row)
            on_batch(summary)
    write_table(journal.rows(), output, list(detector.distances), detector.method.attempts)
    journal.path.unlink()
    return summary


class Decide:
    """From images to the table's distances, score, p-value and decision, as far as was asked."""

    def __init__(self, detector: Detector, to: Upto, false_alarms: float) -> None:
        self._detector, self._to, self._rate = detector, to, false_alarms
        self._calibration = detector.calibration if to == "decisions" else None
        self.run: dict[str, Any] = {"to": to, "false_alarms": None, "calibration": None}
        if self._calibration:
            self._calibration.threshold(false_alarms)  # refuses a rate it can't support
            self.run |= {"false_alarms": false_alarms, "calibration": self._calibration.key}
        if to != "distances":
            rule = detector.rule
            method = detector.method
            rule.check(method.distance, norms=method.norms)  # refuses before the work
            self.run["rule"] = asdict(rule)

    def __call__(self, pixels: Tensor) -> Iterator[dict[str, Any]]:
        kinds = list(self._detector.distances)
        blank = [None] * len(pixels)
        scores, p_values, flags = blank, blank, blank
        if self._to == "distances":
            distances, norms = self._detector.measure(pixels)
            took = [self._detector.method.attempts] * len(pixels)
        else:
            found = self._detector.score_pixels(pixels)
            distances, norms, took = found.distances, found.norms, found.attempts.tolist()
            scores = found.scores.tolist()
            if self._calibration:
                p_values = self._calibration.p_values(found.scores).tolist()
                flags = self._calibration.is_ood(found.scores, self._rate).tolist()
        for i, attempts in enumerate(took):
            by_kind = zip(kinds, distances[i, :attempts].T.tolist(), strict=True)
            yield {
                "score": scores[i],
                "p_value": p_values[i],
                "is_ood": flags[i],
                "attempts": attempts,
                "distances": dict(by_kind),
                "norms": norms[i].tolist() or None,
            }


def score_batch(detector: Detector, entries: list[Entry], decide: Decide) -> list[dict[str, Any]]:
    """The table's rows of a few images; one that can't be read costs itself alone."""
    pixels, reasons = prepare_entries(detector.preparation, entries)
    values = decide(torch.stack(pixels)) if pixels else iter(())
    empty = dict.fromkeys(("score", "p_value", "is_ood", "attempts", "distances", "norms"))
    return [
        {"id": entry.id, **(empty if i in reasons else next(values)), "reason": reasons.get(i)}
        for i, entry in enumerate(entries)
    ]


class Journal:
    """Finished batches as JSON lines, after a first line that says which run they belong to."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path = path
        self.run = json.loads(json.dumps(run))  # as the first line gives it back

    def open(self) -> TextIO:
        """Open to append; starts the file, or cuts it back to its last whole batch."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a", encoding="utf-8")
            hold(file)
            if self.path.stat().st_size:
                self._cut()
            if not self.path.stat().st_size:
                file.write(json.dumps(self.run) + "\n")
                file.flush()
            return file
        except OSError as error:
            raise self._unwritable(error) from error

    def _cut(self) -> None:
        with self.path.open("rb") as file:
            header = file.readline()
            if not header.endswith(b"\n"):
                os.truncate(self.path, 0)
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
