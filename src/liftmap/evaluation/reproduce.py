"""Fills a table of the paper from the models and data at hand, beside the published values."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from liftmap.errors import LiftmapError, MissingExtraError, SettingsError
from liftmap.evaluation.benchmark import BenchmarkListener, Task, run_benchmark, write_rows
from liftmap.evaluation.entrants import Entrant
from liftmap.evaluation.paper import ARTEFACTS, MODELS, Artefact, Pair, published
from liftmap.images.entry import Source
from liftmap.model import Model


@dataclass(frozen=True)
class Agenda:
    """What can be run of the wanted pairs.

    tasks: for `run_benchmark`. pairs: the names of the two sources, by pair. missing: why a pair
    can't be run, by pair.
    """

    tasks: list[Task]
    pairs: dict[Pair, tuple[str, str]]
    missing: dict[Pair, str]

    @property
    def names(self) -> dict[str, str]:
        """Of data sets, by their test sources' names."""
        both = (zip(self.pairs[pair], pair, strict=True) for pair in self.pairs)
        return dict(chain.from_iterable(both))


def agenda(
    wanted: tuple[Pair, ...], models: Path, find_source: Callable[[str, str], Source]
) -> Agenda:
    """Match pairs of data sets with the models and data that there are.

    Args:
        models: a folder with a model for each data set, named as in MODELS; what is packaged serves
            where none is.
        find_source: from a data set's name and "train" or "test" to its images; raises
            LiftmapError if there are none.

    Raises:
        SettingsError: none of the pairs can be run; the message says what is missing.
    """
    made = Agenda([], {}, {})
    for inside in dict.fromkeys(pair[0] for pair in wanted):
        others = {pair: pair[1] for pair in wanted if pair[0] == inside}
        try:
            folder = models / MODELS[inside]
            model = str(folder) if folder.is_dir() else MODELS[inside]
            Model.load(model)
            train, test = find_source(inside, "train"), find_source(inside, "test")
        except LiftmapError as error:
            made.missing.update(dict.fromkeys(others, str(error)))
            continue
        outside = []
        for pair, name in others.items():
            try:
                outside.append(find_source(name, "test"))
                made.pairs[pair] = (test.name, outside[-1].name)
            except LiftmapError as error:
                made.missing[pair] = str(error)
        if outside:
            made.tasks.append(Task(model, train, test, outside))
    if not made.tasks:
        reasons = "; ".join(dict.fromkeys(made.missing.values()))
        raise SettingsError(f"none of these pairs can be run: {reasons}")
    return made


def by_data_set(
    records: list[dict[str, Any]], pairs: dict[Pair, tuple[str, str]]
) -> list[dict[str, Any]]:
    """The records of `run_benchmark` with the data sets' names in place of the sources'."""
    names = {sources: pair for pair, sources in pairs.items()}
    found = []
    for record in records:
        inside, outside = names[record["in"], record["out"]]
        found.append(record | {"in": inside, "out": outside})
    return found


def beside_the_paper(artefact: Artefact, records: list[dict[str, Any]]) -> Iterator[list[str]]:
    """A heading, a row a pair, then averages and costs; in brackets less what was published.

    With several seeds a value is their mean. An average stands beside a published one only where
    each of its pairs was published.

    Args:
        records: with the names of data sets (`by_data_set`), whose methods are the columns' names.
    """
    columns = {name: [r for r in records if r["method"] == name] for name in _names(records)}
    yield ["pair", *columns]
    pairs = list(dict.fromkeys((r["in"], r["out"]) for r in records))
    for pair in pairs:
        cells = []
        for name, mine in columns.items():
            values = [r["auroc"] for r in mine if (r["in"], r["out"]) == pair]
            cells.append(_beside(sum(values) / len(values), published(artefact, name, pair)))
        yield [f"{pair[0]} > {pair[1]}", *cells]
    averages = []
    for name, mine in columns.items():
        papers = [published(artefact, name, pair) for pair in pairs]
        known = [value for value in papers if value is not None]
        paper = sum(known) / len(known) if len(known) == len(papers) else None
        averages.append(_beside(sum(r["auroc"] for r in mine) / len(mine), paper))
    yield ["average", *averages]
    costs = columns.values()
    yield ["images of a set, at most", *(str(max(_images(mine))) for mine in costs)]
    yield ["ms an image", *(f"{_milliseconds(mine):.1f}" for mine in costs)]
    yield ["network evaluations, at most", *(str(mine[0]["network_evaluations"]) for mine in costs)]


def every_figure(artefact: Artefact, records: list[dict[str, Any]]) -> Iterator[list[str]]:
    """A heading, then a row a pair, column and seed: AUROC and FPR95 with their 95% intervals."""
    yield ["pair", "method", "seed", "AUROC (95%)", "published", "FPR95 (95%)", "images", "skipped"]
    for r in sorted(records, key=lambda r: artefact.pairs.index((r["in"], r["out"]))):
        paper = published(artefact, r["method"], (r["in"], r["out"]))
        yield [
            f"{r['in']} > {r['out']}",
            r["method"],
            str(r["seed"]),
            f"{r['auroc']:.4f} ({r['auroc_low']:.4f} to {r['auroc_high']:.4f})",
            "" if paper is None else f"{paper:.3f}",
            f"{r['fpr95']:.4f} ({r['fpr95_low']:.4f} to {r['fpr95_high']:.4f})",
            f"{r['n_in']} + {r['n_out']}",
            str(r["skipped"]),
        ]


def _names(records: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(r["method"] for r in records))


def _beside(value: float, paper: float | None) -> str:
    return f"{value:.3f}" if paper is None else f"{value:.3f} ({value - paper:+.3f})"


def _images(records: list[dict[str, Any]]) -> list[int]:
    return [r[side] for r in records for side in ("n_in", "n_out")]


def _milliseconds(records: list[dict[str, Any]]) -> float:
    """Of an image, each pair's images counted as often as they were scored."""
    images = sum(_images(records))
    seconds: float = sum((r["n_in"] + r["n_out"]) / r["images_per_second"] for r in records)
    return 1000 * seconds / images


def fillable(
    columns: dict[str, Entrant], only: list[str] | None
) -> tuple[dict[str, Entrant], dict[str, str]]:
    """A table's columns, or those asked for; and why some can't be filled.

    Raises:
        SettingsError: no such column, or none that can be filled.
    """
    unknown = [name for name in only or [] if name not in columns]
    if unknown:
        raise SettingsError(f"--only {unknown[0]}: need some of {', '.join(columns)}")
    kept, left_out = {}, {}
    for name in only or columns:
        try:
            columns[name].check()
            kept[name] = columns[name]
        except MissingExtraError as error:
            left_out[name] = str(error)
    if not kept:
        raise SettingsError("none of the table's columns can be filled")
    return kept, left_out


def reproduce_table(
    name: str,
    columns: dict[str, Entrant],
    agenda_of: Callable[[int | None], Agenda],
    output: Path,
    *,
    images: dict[str, int | None],
    seeds: list[int] | None = None,
    listener: BenchmarkListener | None = None,
) -> list[list[str]]:
    """Fill the columns, write NAME.md and NAME-intervals.md, and give the table's rows.

    Args:
        agenda_of: what can be run with so many images of each test set.
        images: of each test set, by column; None for all.

    Raises:
        as `run_benchmark`, and OutputError.
    """
    artefact, records = ARTEFACTS[name], []
    for column, entrant in columns.items():
        planned = agenda_of(images[column])
        found = run_benchmark(
            planned.tasks, {column: entrant}, output, seeds=seeds, listener=listener
        )
        records += by_data_set(found, planned.pairs)
    rows = list(beside_the_paper(artefact, records))
    write_rows(rows, output / f"{name}.md")
    write_rows(list(every_figure(artefact, records)), output / f"{name}-intervals.md")
    return rows
