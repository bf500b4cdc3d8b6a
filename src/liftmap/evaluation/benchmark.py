"""Methods side by side on pairs of data sets: a table that fills cell by cell and can be resumed.

A cell is one method's scores of one source with one seed. It is kept in a file named after all that
determines it, so that a rerun, a further method or a further source computes only what is missing.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import liftmap
from liftmap.baselines.base import LEARNT, Baseline
from liftmap.errors import (
    CalibrationError,
    ImageError,
    ModelError,
)
from liftmap.evaluation.entrants import Entrant
from liftmap.evaluation.metrics import evaluate_scores
from liftmap.files import atomic_path
from liftmap.images.entry import Source
from liftmap.images.prepare import Preparation
from liftmap.images.sources import SLICE
from liftmap.images.store import PreparedImages, store_source
from liftmap.model import Model
from liftmap.scorer import Scorer


@dataclass(frozen=True)
class Task:
    """One in-domain set with its model, against several others.

    train: what the model was trained on; methods that learn do so from it, never from `inside`.
    """

    model: str
    train: Source
    inside: Source
    outside: list[Source]


@dataclass(frozen=True)
class Cell:
    """Scores of one source, (n, columns); `seconds` for all, without what was learnt before."""

    scores: np.ndarray
    seconds: float
    skipped: int
    evaluations: int


@dataclass
class BenchmarkListener:
    """Where a benchmark reports to."""

    on_cell: Callable[[str, str, int | None], None] = lambda method, source, images: None
    on_image: Callable[[int], None] = lambda done: None


def run_benchmark(
    tasks: list[Task],
    entrants: dict[str, Entrant],
    folder: Path,
    *,
    seeds: list[int] | None = None,
    listener: BenchmarkListener | None = None,
) -> list[dict[str, Any]]:
    """A record a method, pair and seed: AUROC, FPR95 with intervals, images/s, evaluations.

    Args:
        entrants: by the names that the records and the table give them.

    Raises:
        ModelError: a model that does not say which of its images were held out.
    """
    listener, seeds = listener or BenchmarkListener(), seeds or [0]
    records = []
    for task in tasks:
        for name, entrant in entrants.items():
            for seed in seeds:
                row = Participant(task, name, entrant, seed, folder, listener)
                inside = row.cell(task.inside)
                for other in task.outside:
                    records.append(_record(row, other.name, inside, row.cell(other)))
    return records


class Participant:
    """A method on a task's model; made, and taught, only if a cell of it is missing."""

    def __init__(
        self,
        task: Task,
        name: str,
        entrant: Entrant,
        seed: int,
        folder: Path,
        listener: BenchmarkListener,
    ) -> None:
        self.task, self.name, self.entrant, self.seed = task, name, entrant, seed
        self.folder, self.listener = folder, listener
        self._scorer: Scorer | None = None

    def cell(self, source: Source) -> Cell:
        """Its scores of a source, from the file if there is one."""
        name = self._key(self.entrant.key, self.task.train, source)
        path = self.folder / "cells" / f"{name}.parquet"
        if not path.exists():
            _ = self.scorer  # made and taught first, which is told of by itself
            self.listener.on_cell(self.name, source.name, source.count())
            _write_cell(self._score(source), path, source.name)
        return _read_cell(path)

    def _key(self, method: str, *sources: Source) -> str:
        determines = [
            liftmap.__version__,
            method,
            self.seed,
            _model_key(self.task.model),
            *map(_data_key, sources),
        ]
        return hashlib.sha256(json.dumps(determines).encode()).hexdigest()[:16]

    def _score(self, source: Source) -> Cell:
        scorer = self.scorer
        scores: list[Any] = []
        skipped, begun = 0, time.monotonic()
        entries = iter(source)
        while pending := list(islice(entries, scorer.batch)):
            pixels = []
            for entry in pending:
                try:
                    pixels.append(scorer.preparation(entry.load()))
                except ImageError:
                    skipped += 1
            if pixels:
                scores += scorer.scores(torch.stack(pixels)).tolist()
            self.listener.on_image(len(pending))
        seconds = time.monotonic() - begun
        columns = np.array(scores).reshape(len(scores), -1)
        return Cell(columns, seconds, skipped, scorer.evaluations)

    @property
    def scorer(self) -> Scorer:
        """The method, ready to score."""
        if self._scorer is None:
            self._scorer = self.entrant.make(Model.load(self.task.model), self.seed)
            self._teach(self._scorer)
        return self._scorer

    def _teach(self, scorer: Scorer) -> None:
        """Let it learn, unless it can score as it is: calibrated already, or without the need.

        What a baseline has learnt is kept: learning may take longer than all of its cells.
        """
        p = scorer.preparation
        try:
            scorer.scores(torch.zeros(1, p.channels, p.height, p.width, dtype=torch.uint8))
            return
        except CalibrationError:
            pass
        name = self._key(self.entrant.learns or self.entrant.key, self.task.train)
        kept = self.folder / "learnt" / name
        if isinstance(scorer, Baseline) and (kept / LEARNT).exists():
            scorer.read_learnt(kept)
            return
        train, held_out = Model.load(self.task.model).trained_split(self._prepared(p))
        scorer.learn(train, held_out, on_batch=self._on_batch())
        if isinstance(scorer, Baseline):
            scorer.save_learnt(kept)

    def _prepared(self, preparation: Preparation) -> PreparedImages:
        """The training images as the model takes them, prepared once for all methods."""
        source, p = self.task.train, preparation
        name = hashlib.sha256(repr((_data_key(source), p)).encode()).hexdigest()[:16]
        path = self.folder / "prepared" / f"{name}.u8"
        if path.exists():
            return PreparedImages(path, (p.channels, p.height, p.width))
        self.listener.on_cell("preparing", source.name, source.count())
        return store_source(source, p, path, on_image=lambda: self.listener.on_image(1))

    def _on_batch(self) -> Callable[[int, int], None]:
        before = 0

        def on_batch(done: int, total: int) -> None:
            nonlocal before
            if not before:  # only the method knows how many of the images it learns from
                self.listener.on_cell(f"{self.name} learns", self.task.train.name, total)
            self.listener.on_image(done - before)
            before = done

        return on_batch


def _data_key(source: Source) -> list[Any]:
    """What tells a source's images from others: a file's content, wherever it lies, or the name."""
    sliced = SLICE.fullmatch(source.name)
    whole = sliced[1] if sliced else source.name
    file = Path(whole.rpartition(":")[0] if ".npz:" in whole else whole)
    if not file.is_file():
        return [source.name, source.count()]
    status = file.stat()
    content = _content_key(file, status.st_size, status.st_mtime_ns)
    return [Path(source.name).name, source.count(), content]


@lru_cache
def _content_key(file: Path, size: int, changed: int) -> str:
    """A hash of a file's bytes; computed again only when its size or its time has changed."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _model_key(model: str) -> list[str]:
    """What tells a model from others: its weights, and what its folder says, calibrations too."""
    loaded = Model.load(model)
    judges = sorted(
        (key, judge.calibration.key) for key, judge in loaded.judges.items() if judge.calibration
    )
    return [loaded.checkpoint.weights_key, json.dumps(judges)]


def _write_cell(cell: Cell, path: Path, source: str) -> None:
    about = {
        "source": source,
        "seconds": cell.seconds,
        "skipped": cell.skipped,
        "evaluations": cell.evaluations,
    }
    table = pa.table({f"score_{i}": column for i, column in enumerate(cell.scores.T)})
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({"liftmap": json.dumps(about)}), temporary)


def _read_cell(path: Path) -> Cell:
    try:
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"liftmap"])
        scores = np.stack([column.to_numpy() for column in table.columns], 1)
        return Cell(scores, about["seconds"], about["skipped"], about["evaluations"])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is damaged ({error}): delete it and run again") from error


def _record(row: Participant, other: str, inside: Cell, outside: Cell) -> dict[str, Any]:
    column = row.entrant.column
    found = evaluate_scores(inside.scores[:, column], outside.scores[:, column])
    images = found.n_in + found.n_out
    seconds = inside.seconds + outside.seconds
    return {
        "model": row.task.model,
        "in": row.task.inside.name,
        "out": other,
        "method": row.name,
        "seed": row.seed,
        "n_in": found.n_in,
        "n_out": found.n_out,
        "skipped": inside.skipped + outside.skipped,
        "auroc": found.auroc.value,
        "auroc_low": found.auroc.low,
        "auroc_high": found.auroc.high,
        "fpr95": found.fpr95.value,
        "fpr95_low": found.fpr95.low,
        "fpr95_high": found.fpr95.high,
        "network_evaluations": inside.evaluations,
        "images_per_second": images / seconds if seconds else 0.0,
    }


def write_benchmark(records: list[dict[str, Any]], folder: Path) -> None:
    """Write the records as benchmark.parquet, and the table as benchmark.md and benchmark.tex."""
    with atomic_path(folder / "benchmark.parquet") as path:
        pq.write_table(pa.Table.from_pylist(records), path)
    rows = list(table_rows(records))
    write_rows(rows, folder / "benchmark.md")
    with atomic_path(folder / "benchmark.tex") as path:
        body = [" & ".join(_tex(cell) for cell in row) + r" \\" for row in rows]
        inside = [r"\hline", body[0], r"\hline", *body[1:], r"\hline"]
        head, tail = rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\end{tabular}"
        path.write_text("\n".join([head, *inside, tail]) + "\n", encoding="utf-8")


def write_rows(rows: list[list[str]], path: Path) -> None:
    """Write rows, the first of them the heading, as a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table_rows(records: list[dict[str, Any]]) -> Iterator[list[str]]:
    """A heading, then a row a method: AUROC of each pair with its interval, the average, the cost.

    With several seeds the AUROC is their mean, and the spread of the seeds stands for the interval.
    """
    pairs = list(dict.fromkeys((r["in"], r["out"]) for r in records))
    named = [f"{_short(inside)} > {_short(other)}" for inside, other in pairs]
    yield ["method", *named, "average", "evaluations at most", "images/s"]
    for method in dict.fromkeys(r["method"] for r in records):
        mine = [r for r in records if r["method"] == method]
        cells, means = [], []
        for pair in pairs:
            of_pair = [r for r in mine if (r["in"], r["out"]) == pair]
            values = np.array([r["auroc"] for r in of_pair])
            means.append(values.mean())
            if len(values) > 1:
                cells.append(f"{values.mean():.4f} ± {values.std(ddof=1):.4f}")
            else:
                [only] = of_pair
                cells.append(
                    f"{only['auroc']:.4f} ({only['auroc_low']:.4f} to {only['auroc_high']:.4f})"
                )
        rate = float(np.mean([r["images_per_second"] for r in mine]))
        cost = str(mine[0]["network_evaluations"])
        yield [method, *cells, f"{np.mean(means):.4f}", cost, f"{rate:.1f}"]


def _short(source: str) -> str:
    """A source's name without the folders above its own."""
    return "/".join(source.rstrip("/").split("/")[-2:])


def _tex(text: str) -> str:
    """Text with TeX's special characters escaped."""
    for plain, escaped in (("_", r"\_"), ("%", r"\%"), ("±", r"$\pm$"), (">", r"$>$")):
        text = text.replace(plain, escaped)
    return text
