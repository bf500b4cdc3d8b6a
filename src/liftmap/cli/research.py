"""Measure and compare: evaluation, benchmarks, the paper."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    SeedsOption,
    StepsOption,
    WorkersOption,
    complaints,
    console,
    load_detector,
    method_of,
    open_images,
)
from liftmap.cli.check import check_looked_at, look_first

if TYPE_CHECKING:
    pass


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
    console.print(evaluation_table(records))
    console.print(f"written: {output}/evaluation.json, roc.png, histogram.png, scores-*")
    for source in sources:
        check_looked_at(source)


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
