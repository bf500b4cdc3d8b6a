"""Methods side by side on pairs of data sets: a table that fills cell by cell and can be resumed.

A cell is one method's scores of one source with one seed (`cells.py`).
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
from liftmap.errors import CalibrationError, SourceError
from liftmap.evaluation.cells import Cell, Cells
from liftmap.evaluation.entrants import Entrant
from liftmap.evaluation.keys import data_key
from liftmap.evaluation.metrics import evaluate_scores
from liftmap.files import atomic_path
from liftmap.images.entry import Source, stamp_of
from liftmap.images.prepare import Preparation, prepare_entries
from liftmap.images.store import PreparedImages, store_source
from liftmap.model import Model, find_model
from liftmap.scorer import Scorer


@dataclass(frozen=True)
class Task:
    """An in-domain set with its model, and the sets to tell from it.

    train: what the model was trained on. Methods that learn do so from it, never from `inside`,
    which is for testing.
    """

    model: str
    train: Source
    inside: Source
    outside: list[Source]


@dataclass
class BenchmarkListener:
    """What a benchmark calls while it works; each does nothing by default.

    on_cell(method, source, images): a cell begins; images is None if unknown.
    on_image(done): so many more are done.
    """

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
        folder: where cells and what was learnt are kept, for this run and others.

    Raises:
        ModelError: a model that does not say which of its images were held out.
        SourceError: images that change while they are scored.
        OutputError: the cells can't be written, or are damaged.
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
    """An entrant on one task's model, with one seed.

    The scorer is made, and learns, only when a cell is missing.
    """

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
        """Its scores of a source, from the table if they are there."""
        cells = Cells(self.folder)
        key = self._key(self.entrant.key, self.task.train, source)
        found = cells.find(key)
        if found is None:
            _ = self.scorer  # made and taught first, which is told of by itself
            self.listener.on_cell(self.name, source.name, source.count())
            found = self._score(source)
            if self._key(self.entrant.key, self.task.train, source) != key:
                raise SourceError(f"{source.name}: its images have changed meanwhile: run again")
            cells.add(key, found)
        return found

    def _key(self, method: str, *sources: Source) -> str:
        used = _used(self.entrant, *_state(self.task.model), self.seed)
        return cell_key(method, self.seed, used, *map(data_key, sources))

    def _score(self, source: Source) -> Cell:
        scorer, entrant = self.scorer, self.entrant
        found = [torch.empty(0, entrant.column + 1)]
        images, begun, entries = 0, time.monotonic(), iter(source)
        while pending := list(islice(entries, scorer.batch)):
            pixels, *_ = prepare_entries(scorer.preparation, pending)
            if pixels:
                found.append(entrant.columns(scorer, torch.stack(pixels)))
            images += len(pending)
            self.listener.on_image(len(pending))
        scores = torch.cat(found[1:] or found)
        return Cell(
            name=self.name,
            method=entrant.key,
            seed=self.seed,
            model=self.task.model,
            trained_on=self.task.train.name,
            source=source.name,
            images=images,
            skipped=images - len(scores),
            seconds=time.monotonic() - begun,
            evaluations=scorer.evaluations,
            scores=scores.T.float().double().numpy(),  # as the table keeps them
        )

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
            blank = torch.zeros(1, p.channels, p.height, p.width, dtype=torch.uint8)
            self.entrant.columns(scorer, blank)
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
        path = self._place(p)
        if path.exists():
            return PreparedImages(path, (p.channels, p.height, p.width))
        self.listener.on_cell("preparing", source.name, source.count())
        made = store_source(source, p, path, on_image=lambda: self.listener.on_image(1))
        if self._place(p) != path:
            path.unlink()
            raise SourceError(f"{source.name}: its images have changed meanwhile: run again")
        return made

    def _place(self, preparation: Preparation) -> Path:
        """Where the training images are kept as the model takes them."""
        of = repr((data_key(self.task.train), preparation))
        return self.folder / "prepared" / f"{hashlib.sha256(of.encode()).hexdigest()[:16]}.u8"

    def _on_batch(self) -> Callable[[int, int], None]:
        before = 0

        def on_batch(done: int, total: int) -> None:
            nonlocal before
            if not before:  # only the method knows how many of the images it learns from
                self.listener.on_cell(f"{self.name} learns", self.task.train.name, total)
            self.listener.on_image(done - before)
            before = done

        return on_batch


def cell_key(method: str, seed: int, used: list[Any], *sources: list[Any]) -> str:
    """A name for all that determines a cell, or what was learnt for some.

    Args:
        used: what of the model the method uses (`Entrant.used`).
        sources: the data's keys, those to learn from first.
    """
    determines = [liftmap.__version__, method, seed, used, *sources]
    return hashlib.sha256(json.dumps(determines).encode()).hexdigest()[:16]


State = tuple[tuple[str, str | None], ...]


def _state(model: str) -> tuple[Path, State]:
    """A model's folder, and the names, sizes and times of the files below it."""
    folder = find_model(model)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return folder, tuple((p.relative_to(folder).as_posix(), stamp_of(p)) for p in files)


@lru_cache(maxsize=1024)
def _used(entrant: Entrant, folder: Path, state: State, seed: int) -> list[Any]:
    """What a method uses of a model; computed again only when a file of the folder has changed."""
    return entrant.used(Model.load(folder), seed)


def _record(row: Participant, other: str, inside: Cell, outside: Cell) -> dict[str, Any]:
    column = row.entrant.column
    found = evaluate_scores(inside.scores[column], outside.scores[column])
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
