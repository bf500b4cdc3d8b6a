"""Scores a source on this machine into a table; a killed run goes on where it stopped.

While it runs, finished batches are appended to a journal beside the output (`NAME.part`, one JSON
line an image). At the end the journal becomes the table, and goes. A rerun reads the journal back,
checks that it belongs to the same run, and continues after its last whole batch whose images are
still the same.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from heapq import nlargest
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from liftmap.detector import Detector
from liftmap.engines.journal import Journal
from liftmap.engines.tables import Row, check_format, write_table
from liftmap.files import Run
from liftmap.images.copies import Copy
from liftmap.images.entry import Entry, Source
from liftmap.images.prepare import fingerprint, prepare_entries
from liftmap.stages.redraw import Measured

Upto = Literal["distances", "scores", "decisions"]
BINS, ODDEST = 20, 5  # of the summary: p-values' histogram, images named
UNRECORDED = {"precision": None, "preparation": None}  # in what earlier versions left
MARKS = ("stamp", "fingerprint")  # by which a row is known to be of an image that didn't change


@dataclass
class Summary:
    """What came of a run.

    computed: images scored now, in `seconds`; the rest were there from an earlier run.
    changed_from: number, from 1, of the first image that isn't what an earlier run scored; what it
        made of it, and of those behind, was scored anew. None if all were the same.
    """

    images: int = 0
    skipped: int = 0
    flagged: int = 0
    computed: int = 0
    seconds: float = 0.0
    attempts: int = 0
    changed_from: int | None = None
    notes: dict[str, int] = field(default_factory=dict)  # how many images each holds of
    noted: dict[str, str] = field(default_factory=dict)  # and the first id of each
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
            "changed_from": self.changed_from,
            "notes": self.notes,
            "oddest": [{"id": id, "score": score, "p_value": p} for score, id, p in self.oddest],
        }

    def count(self, row: dict[str, Any]) -> None:
        """Take one row of the table into account."""
        self.images += 1
        if row["reason"]:
            self.skipped += 1
            if len(self.reasons) < 10:
                self.reasons[row["id"]] = row["reason"]
        for note in row.get("notes") or ():
            self.notes[note] = self.notes.get(note, 0) + 1
            self.noted.setdefault(note, row["id"])
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
        self.notes = dict(Counter(self.notes) + Counter(other.notes))
        self.noted = other.noted | self.noted
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
    image, whose other columns are empty), notes (what to know of an image, such as that it is a
    copy of one that was trained on).

    Args:
        to: how far each image is taken. "scores" leaves p_value and is_ood empty and needs no
            calibration if the method has a single distance; "distances" leaves the score empty too.

    Raises:
        CalibrationError: no calibration for this method, or too small for the false-alarm rate.
        OutputError: the output can't be written, or its journal belongs to another run.
    """
    check_format(output)
    scoring, batch = Scoring(detector, to, false_alarms), detector.batch
    attempts = detector.method.attempts
    run = scoring.run(source=source.name, attempts=attempts, batch=batch)
    journal = Journal(output.with_name(output.name + ".part"), run)
    summary = Summary()
    entries = iter(source)
    with journal.open() as file:
        again, summary.changed_from = journal.compare(file, entries, scoring.is_same)
        entries = chain(again, entries)
        for row in journal.rows():
            summary.count(row)
        on_batch(summary)
        while pending := list(islice(entries, batch)):
            begun = time.monotonic()
            rows = scoring.marked_rows(pending)
            journal.append(file, rows)
            summary.seconds += time.monotonic() - begun
            summary.computed += len(rows)
            for row in rows:
                summary.count(row)
            on_batch(summary)
    plain = ({name: row[name] for name in row if name not in MARKS} for row in journal.rows())
    write_table(plain, output, list(detector.redraw.distances), attempts)
    journal.path.unlink()
    return summary


class Scoring:
    """From images to a table's rows: distances, score, p-value and decision, as far as asked."""

    def __init__(self, detector: Detector, to: Upto, false_alarms: float) -> None:
        """Refuse before the work what can't be done.

        Raises:
            CalibrationError: no scales or no calibration for this method, or too small for the
                false-alarm rate.
        """
        self.detector, self._to, self._rate = detector, to, false_alarms
        self._judge = judge = detector.judge
        self.about: dict[str, Any] = {
            "method": detector.method.key,
            "weights": detector.model.checkpoint.weights_key,
            "precision": detector.denoiser.precision,
            "preparation": asdict(detector.preparation),
            "to": to,
            "false_alarms": None,
            "calibration": None,
        }
        if to != "distances":
            judge.check()
            self.about["rule"] = {
                "scales": None if judge.scales is None else asdict(judge.scales),
                "surprise": None if judge.surprise is None else asdict(judge.surprise),
                "settled": judge.settled,
            }
        if to == "decisions":
            judge.decides_by.limit(false_alarms)
            self.about |= {"false_alarms": false_alarms, "calibration": judge.decides_by.key}

    def run(self, **more: Any) -> Run:
        """What a table of these rows belongs to."""
        formerly = {"method": self.detector.method.former_key} | UNRECORDED
        return Run(self.about | more, formerly=formerly)

    def rows(self, entries: list[Entry]) -> list[Row]:
        """The rows of a few images; one that can't be read costs itself alone."""
        return [row for row, _ in self._rows(entries)]

    def marked_rows(self, entries: list[Entry]) -> list[Row]:
        """The same with each image's stamp and fingerprint, by which `is_same` knows it."""
        pairs = zip(entries, self._rows(entries), strict=True)
        return [row | dict(zip(MARKS, (e.stamp, mark), strict=True)) for e, (row, mark) in pairs]

    def is_same(self, row: Row, entry: Entry) -> bool:
        """Whether a marked row is what scoring the image would give.

        It is if the image has kept its stamp; else if it is prepared to the same pixels, or can't
        be read for the same reason.
        """
        if row["id"] != entry.id or "fingerprint" not in row:
            return False
        if entry.stamp is not None and row["stamp"] == entry.stamp and not row["reason"]:
            return True
        pixels, reasons, _ = prepare_entries(self.detector.preparation, [entry])
        mark = _mark(pixels[0]) if pixels else None
        return bool(row["fingerprint"] == mark and row["reason"] == reasons.get(0))

    def _rows(self, entries: list[Entry]) -> Iterator[tuple[Row, str | None]]:
        """Rows, and the fingerprints of the images that can be read."""
        pixels, reasons, remarks = prepare_entries(self.detector.preparation, entries)
        values = self._values(torch.stack(pixels)) if pixels else iter(())
        marks, copies = map(_mark, pixels), iter(self._copies(pixels))
        empty = dict.fromkeys(("score", "p_value", "is_ood", "attempts", "distances", "norms"))
        for i, entry in enumerate(entries):
            if i in reasons:
                yield {"id": entry.id, **empty, "reason": reasons[i], "notes": None}, None
                continue
            notes = [*remarks.get(i, ()), *next(copies)]
            row = {"id": entry.id, **next(values), "reason": None, "notes": notes or None}
            yield row, next(marks)

    def _copies(self, pixels: list[Tensor]) -> list[list[str]]:
        """What is to be said of images that the model has seen, for each."""
        seen = self.detector.model.seen
        if seen is None or not pixels:
            return [[] for _ in pixels]
        words = [Copy(kind).words for kind in seen.compare(torch.stack(pixels)).tolist()]
        return [[told] if told else [] for told in words]

    def _values(self, pixels: Tensor) -> Iterator[Row]:
        kinds = list(self.detector.redraw.distances)
        blank = [None] * len(pixels)
        columns = {"score": blank, "p_value": blank, "is_ood": blank}
        if self._to == "distances":
            found = self.detector.measure(pixels)
        else:
            scores, *parts = self.detector.score_pixels(pixels)
            found = Measured(*parts)
            columns["score"] = scores.tolist()
            if self._to == "decisions":
                verdict = self._judge.decide(scores, self._rate)
                columns["p_value"] = verdict.p_values.tolist()
                columns["is_ood"] = verdict.is_ood.tolist()
        for i, attempts in enumerate(found.attempts.tolist()):
            distances = found.distances[i, :attempts].T.tolist()
            yield {
                **{name: column[i] for name, column in columns.items()},
                "attempts": attempts,
                "distances": dict(zip(kinds, distances, strict=True)),
                "norms": found.norms[i].tolist() or None,
            }


def _mark(pixels: Tensor) -> str:
    return f"{fingerprint(pixels):016x}"
