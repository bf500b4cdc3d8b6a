"""Scores of an in-domain and several OOD sources as evaluation.json, ROC plot and histogram."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liftmap.detector import Detector
from liftmap.engines.engine import Engine
from liftmap.engines.local import Summary
from liftmap.engines.tables import read_scores
from liftmap.evaluation.metrics import evaluate_scores
from liftmap.evaluation.plots import draw_histogram, draw_roc
from liftmap.files import atomic_path
from liftmap.images.entry import Source

Progress = Callable[[Source], AbstractContextManager[Callable[[Summary], None]]]


@dataclass(frozen=True)
class Compared:
    """A source's scores; `computed` of them took `seconds` in this run.

    evaluations: of the network, an image, on average.
    """

    name: str
    scores: np.ndarray
    evaluations: float
    computed: int = 0
    seconds: float = 0.0
    skipped: int = 0


def evaluate_sources(
    detector: Detector,
    sources: Sequence[Source],
    folder: Path,
    *,
    name: str,
    progress: Progress,
    engine: Engine | None = None,
) -> list[dict[str, Any]]:
    """Score an in-domain source and others, which are not, and compare; give the records.

    Args:
        name: of the method, in the records.
        progress: opens what shows how far a source is scored.

    Raises:
        as `score_source` and `write_evaluation`.
    """
    engine, compared = engine or Engine(), []
    for number, source in enumerate(sources):
        table = engine.table(folder, f"scores-{number}-{_slug(source.name)}")
        with progress(source) as on_batch:
            done = engine.score(detector, source, table, "scores", on_batch)
        spent = detector.method.evaluations_of(done.attempts_an_image)
        scores = read_scores(table)
        compared.append(
            Compared(source.name, scores, spent, done.computed, done.seconds, done.skipped)
        )
    return write_evaluation(compared, folder, name)


def _slug(name: str) -> str:
    """A source's name as part of a file name."""
    tail = name.rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in tail).strip("-") or "source"


def write_evaluation(compared: list[Compared], folder: Path, method: str) -> list[dict[str, Any]]:
    """Compare the first source (in-domain) with each other one; write the files, give the records.

    Raises:
        SettingsError: a source has no score at all.
        OutputError: the folder can't be written to.
    """
    inside, *others = compared
    seconds = sum(c.seconds for c in compared)
    rate = sum(c.computed for c in compared) / seconds if seconds else 0.0
    records = [_record(inside, other, method, rate) for other in others]
    with atomic_path(folder / "evaluation.json") as path:
        path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    by_name = {other.name: other.scores for other in others}
    draw_roc(inside.scores, by_name, folder / "roc.png")
    draw_histogram(inside.name, inside.scores, by_name, folder / "histogram.png")
    return records


def _record(inside: Compared, other: Compared, method: str, rate: float) -> dict[str, Any]:
    spent = sum(c.evaluations * len(c.scores) for c in (inside, other))
    found = evaluate_scores(inside.scores, other.scores)
    return {
        "in": inside.name,
        "out": other.name,
        "n_in": found.n_in,
        "n_out": found.n_out,
        "skipped_in": inside.skipped,
        "skipped_out": other.skipped,
        "auroc": found.auroc.value,
        "auroc_low": found.auroc.low,
        "auroc_high": found.auroc.high,
        "aupr_in": found.aupr_in.value,
        "aupr_out": found.aupr_out.value,
        "fpr95": found.fpr95.value,
        "fpr95_low": found.fpr95.low,
        "fpr95_high": found.fpr95.high,
        "method": method,
        "network_evaluations": round(spent / (found.n_in + found.n_out), 1),
        "images_per_second": rate,
    }
