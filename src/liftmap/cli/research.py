"""Measure and compare: evaluation, benchmarks, the paper."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from liftmap.cli.base import (
    AddressOption,
    AtOnceOption,
    AttemptsOption,
    ColumnOption,
    DeviceOption,
    DistanceOption,
    DownloadOption,
    EngineOption,
    GpusOption,
    HiddenOption,
    LimitOption,
    MethodOption,
    ModelOption,
    PixelsOption,
    PrecisionOption,
    RangeOption,
    RootOption,
    StepsOption,
    WorkersOption,
    complaints,
    console,
    load_detector,
    method_of,
    open_images,
)
from liftmap.cli.check import look_first, say_what_was_passed_over
from liftmap.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from liftmap.evaluation.paper import Pair
    from liftmap.evaluation.reproduce import Agenda
    from liftmap.images.entry import Source


class ListsMethods(typer.core.TyperCommand):
    """Its help lists the methods of detection, which are imported only when somebody asks."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.panel import Panel
        from rich.table import Table

        from liftmap.evaluation.entrants import described

        super().format_help(ctx, formatter)
        table = Table.grid(padding=(0, 2))
        for name, about in described().items():
            table.add_row(f"[bold cyan]{name}[/]", about)
        console.print(Panel(table, title="Methods", title_align="left", border_style="dim"))


SeedsOption = Annotated[
    list[int] | None,
    typer.Option("--seed", help="Of noise, and of what baselines train; may be repeated."),
]


def evaluate(
    in_domain: Annotated[str, typer.Argument(help="In-domain SOURCE, not trained on.")],
    out: Annotated[list[str], typer.Argument(help="Out-of-distribution SOURCEs.")],
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="Folder for evaluation.json, plots and tables.")],
    method: MethodOption = "fast",
    engine: EngineOption = "local",
    address: AddressOption = None,
    workers: WorkersOption = 2,
    gpus_per_worker: GpusOption = 0.0,
    steps: StepsOption = None,
    attempts: AttemptsOption = None,
    distance: DistanceOption = None,
    value_range: RangeOption = None,
    limit: LimitOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    column: ColumnOption = None,
    hidden: HiddenOption = False,
    most_pixels: PixelsOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    at_once: AtOnceOption = None,
) -> None:
    """AUROC, AUPR and FPR@95TPR with bootstrap intervals, ROC curves and histograms."""
    from liftmap.cli.progress import ScoreProgress
    from liftmap.cli.terminal import evaluation_table
    from liftmap.engines.engine import Engine
    from liftmap.evaluation.evaluate import evaluate_sources

    chosen = method_of(method, steps, attempts, distance)
    detector = load_detector(model, chosen, device, precision, at_once, value_range)
    how: dict[str, Any] = {"column": column, "hidden": hidden, "most_pixels": most_pixels}
    sources = [open_images(spec, root, download, limit, **how) for spec in (in_domain, *out)]
    for source in sources:
        look_first(source, detector.preparation, detector=detector)
    records = evaluate_sources(
        detector,
        sources,
        output,
        name=method if chosen == method_of(method, None, None, None) else f"{method}, changed",
        progress=lambda source: ScoreProgress(console, source.count(), source.name),
        engine=Engine(engine, address, workers, gpus_per_worker),
    )
    for source in sources:
        say_what_was_passed_over(source)
    console.print(evaluation_table(records))
    console.print(f"written: {output}/evaluation.json, roc.png, histogram.png, scores-*")


def benchmark(
    in_domain: Annotated[str, typer.Argument(help="In-domain SOURCE, not trained on.")],
    out: Annotated[list[str], typer.Argument(help="Out-of-distribution SOURCEs.")],
    model: ModelOption,
    train_source: Annotated[
        str, typer.Option("--train", help="The SOURCE that the model was trained on.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the tables and all cells.")],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="One of those below; may be repeated.",
        ),
    ] = None,
    seeds: SeedsOption = None,
    limit: LimitOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    column: ColumnOption = None,
    hidden: HiddenOption = False,
    most_pixels: PixelsOption = None,
) -> None:
    """Compare methods on one model and the same images; a rerun computes only what is missing."""
    from liftmap.cli.progress import BenchmarkProgress
    from liftmap.cli.terminal import rows_table
    from liftmap.evaluation.benchmark import (
        Task,
        run_benchmark,
        table_rows,
        write_benchmark,
    )
    from liftmap.evaluation.entrants import find_entrants
    from liftmap.model import Model

    entrants = find_entrants(methods or ["combined", "lmd", "msma", "diffpath", "ddpm-ood"])
    how: dict[str, Any] = {"column": column, "hidden": hidden, "most_pixels": most_pixels}
    tested = [open_images(spec, root, download, limit, **how) for spec in (in_domain, *out)]
    preparation = Model.load(model).preparation
    for source in tested:
        look_first(source, preparation, to=complaints)
    trained_on = open_images(train_source, root, download, None, **how)
    task = Task(model, trained_on, tested[0], tested[1:])
    with BenchmarkProgress(complaints) as listener:
        records = run_benchmark([task], entrants, output, seeds=seeds, listener=listener)
    write_benchmark(records, output)
    caption = "AUROC (95% bootstrap interval over images; over seeds: mean ± spread)"
    console.print(rows_table(list(table_rows(records)), caption))
    console.print(f"written: {output}/benchmark.md, benchmark.tex, benchmark.parquet")


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


def speed(
    model: ModelOption,
    source: Annotated[
        str | None, typer.Argument(help="Images to time on; noise by default.")
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Methods to time; may be repeated.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="How many; one full batch by default.")] = None,
    rounds: Annotated[int, typer.Option(help="Times each is timed, in turn.", min=1)] = 3,
    whole: Annotated[
        bool, typer.Option("--whole", help="Time all steps of a long method, not a share.")
    ] = False,
    root: RootOption = None,
    download: DownloadOption = False,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    at_once: AtOnceOption = None,
) -> None:
    """What scoring costs here: seconds an image, latency, memory, use of the hardware."""
    from liftmap.cli.progress import RoundProgress
    from liftmap.cli.terminal import speed_table
    from liftmap.evaluation.speed import latency, measure_speed, sample_pixels

    names = methods or ["fast", "paper"]
    options = (device, precision, at_once)
    detectors = [load_detector(model, method_of(n, None, None, None), *options) for n in names]
    count = images or max(d.batch for d in detectors)
    opened = open_images(source, root, download, count) if source else None
    pixels = sample_pixels(detectors[0], opened, count)
    with RoundProgress(console, rounds * len(names)) as on_round:
        speeds = measure_speed(detectors, pixels, rounds=rounds, whole=whole, on_round=on_round)
    alone = latency(detectors[0], pixels)
    console.print(speed_table(dict(zip(names, speeds, strict=True)), alone, len(pixels)))


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
