"""The paper's tables and figures on your models and data."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from liftmap.cli.base import (
    DownloadOption,
    MethodOption,
    RootOption,
    SeedsOption,
    complaints,
    console,
    open_images,
)
from liftmap.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from liftmap.evaluation.paper import Pair
    from liftmap.evaluation.reproduce import Agenda
    from liftmap.images.entry import Source


def reproduce(
    what: Annotated[
        str,
        typer.Argument(
            help="table1 to table4, table256 (the pairs at 256x256), inpainters (section 3.4.5), "
            "figure4 to figure11."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the table and all cells.")],
    models: Annotated[
        Path,
        typer.Option(help="Folder with the models cifar10, cifar100, svhn, mnist, kmnist, ..."),
    ] = Path("models"),
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            help="DATASET:SPLIT=SOURCE, as KMNIST:test=k.npz[8000:]; torchvision's by default.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Columns to fill; all by default.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Images a test set; all by default.")] = None,
    fewer: Annotated[
        list[str] | None,
        typer.Option("--fewer", help="COLUMN=IMAGES for a slow method; may be repeated."),
    ] = None,
    seeds: SeedsOption = None,
    method: MethodOption = "redraws",
    generator: Annotated[
        Path | None,
        typer.Option(help="LaMa's, as its authors export it, for figure10; else a stand-in."),
    ] = None,
    root: RootOption = None,
    download: DownloadOption = False,
) -> None:
    """A table of the paper on your models and data, beside the published values; or a figure."""
    from liftmap.evaluation.figures import FIGURES, draw_masks
    from liftmap.evaluation.paper import ARTEFACTS

    if what == "figure8":
        console.print(f"written: {draw_masks(output)}")
        return
    if what not in ARTEFACTS | FIGURES:
        known = ", ".join([*ARTEFACTS, *FIGURES, "figure8"])
        raise SettingsError(f"{what!r}: need one of {known}")
    pairs = (ARTEFACTS.get(what) or FIGURES[what]).pairs
    found = _Sources(sources or [], root, download)
    agenda_of = partial(_agenda, pairs, models, found)
    planned = agenda_of(images)
    _print_left_out({" > ".join(pair): reason for pair, reason in planned.missing.items()})
    if what in FIGURES:
        _draw_figure(what, method, planned, output, root=root, generator=generator)
    else:
        counts = _counts(fewer or [])
        _fill_table(what, method, agenda_of, output, only, seeds, images=images, fewer=counts)


def _draw_figure(
    what: str,
    method: str,
    planned: "Agenda",
    output: Path,
    *,
    root: Path | None,
    generator: Path | None,
) -> None:
    from liftmap.cli.progress import BenchmarkProgress, ScoreProgress
    from liftmap.evaluation.figures import FIGURES, Tools
    from liftmap.images.labels import read_labels
    from liftmap.stages.method import find_method

    tools = Tools(
        labels=lambda source: read_labels(source.name, root=root),
        names=planned.names,
        progress=lambda: BenchmarkProgress(complaints),
        scoring=lambda source: ScoreProgress(complaints, source.count(), source.name),
        generator=generator,
    )
    for task in planned.tasks:
        made = FIGURES[what].draw(task, find_method(method), output, tools)
        console.print(f"written: {', '.join(map(str, made))}", soft_wrap=True)


def _fill_table(
    what: str,
    method: str,
    agenda_of: "Callable[[int | None], Agenda]",
    output: Path,
    only: list[str] | None,
    seeds: list[int] | None,
    *,
    images: int | None,
    fewer: dict[str, int],
) -> None:
    from liftmap.cli.progress import BenchmarkProgress
    from liftmap.cli.terminal import rows_table
    from liftmap.evaluation.paper import ARTEFACTS, entrants_of
    from liftmap.evaluation.reproduce import fillable, reproduce_table

    columns, left_out = fillable(entrants_of(ARTEFACTS[what], method), only)
    _print_left_out(left_out)
    if unknown := [name for name in fewer if name not in columns]:
        raise SettingsError(f"--fewer {unknown[0]}: need COLUMN=IMAGES, of {', '.join(columns)}")
    counts = {name: fewer.get(name, images) for name in columns}
    with BenchmarkProgress(complaints) as listener:
        rows = reproduce_table(
            what, columns, agenda_of, output, images=counts, seeds=seeds, listener=listener
        )
    title = f"{ARTEFACTS[what].title}: AUROC, and in brackets less the published"
    console.print(rows_table(rows, title))
    console.print(f"written: {output}/{what}.md, {what}-intervals.md")


def _print_left_out(reasons: dict[str, str]) -> None:
    for name, reason in reasons.items():
        complaints.print(f"[yellow]left out[/] {escape(name)}: {escape(reason)}")


class _Sources:
    """The paper's data sets: torchvision's, or DATASET:SPLIT=SOURCE."""

    def __init__(self, given: list[str], root: Path | None, download: bool) -> None:
        self._root, self._download = root, download
        self._given: dict[tuple[str, str], str] = {}
        for text in given:
            where, equals, spec = text.partition("=")
            name, colon, split = where.partition(":")
            if not (name and colon and equals and spec) or split not in ("train", "test"):
                raise SettingsError(
                    f"--source {text}: need DATASET:train=SOURCE or DATASET:test=SOURCE"
                )
            self._given[name, split] = spec

    def open(self, name: str, split: str, most: int | None) -> "Source":
        """A data set's split; of a test split at most so many images."""
        spec = self._given.get((name, split), f"torchvision:{name}:{split}")
        return open_images(spec, self._root, self._download, most if split == "test" else None)


def _agenda(pairs: "tuple[Pair, ...]", models: Path, found: _Sources, most: int | None) -> "Agenda":
    from liftmap.evaluation.reproduce import agenda

    return agenda(pairs, models, lambda name, split: found.open(name, split, most))


def _counts(given: list[str]) -> dict[str, int]:
    """COLUMN=IMAGES, taken apart."""
    found = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if not name or not number.isdigit() or int(number) < 1:
            raise SettingsError(f"--fewer {text}: need COLUMN=IMAGES")
        found[name] = int(number)
    return found
