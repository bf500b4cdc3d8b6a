"""Measure and compare: evaluation, benchmarks, the paper."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from liftmap.cli.base import (
    AddressOption,
    AttemptsOption,
    DeviceOption,
    DistanceOption,
    DownloadOption,
    Engine,
    EngineOption,
    GpusOption,
    LimitOption,
    MethodOption,
    ModelOption,
    PrecisionOption,
    RootOption,
    RowsOption,
    StepsOption,
    WorkersOption,
    complaints,
    console,
    load_detector,
    method_of,
    open_images,
)
from liftmap.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    from liftmap.evaluation.entrants import Entrant
    from liftmap.evaluation.paper import Agenda
    from liftmap.images.entry import Source


class ListsMethods(typer.core.TyperCommand):
    """Its help lists the methods of detection, which are imported only when somebody asks."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
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
    limit: LimitOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    rows: RowsOption = None,
) -> None:
    """AUROC, AUPR and FPR@95TPR with bootstrap intervals, ROC curves and histograms."""
    from liftmap.cli.terminal import ScoreProgress, evaluation_table
    from liftmap.engines.tables import read_scores
    from liftmap.evaluation.evaluate import Compared, write_evaluation

    chosen = method_of(method, steps, attempts, distance)
    detector = load_detector(model, chosen, device, precision, rows)
    compared, scoring = [], Engine(engine, address, workers, gpus_per_worker)
    for number, spec in enumerate([in_domain, *out]):
        opened = open_images(spec, root, download, limit)
        table = scoring.table(output, f"scores-{number}-{_slug(spec)}")
        with ScoreProgress(console, opened.count(), spec) as on_batch:
            summary = scoring.score(detector, opened, table, "scores", on_batch, root=root)
        spent = chosen.evaluations_of(summary.attempts_an_image)
        scores, skipped = read_scores(table), summary.skipped
        compared.append(Compared(spec, scores, spent, summary.computed, summary.seconds, skipped))
    name = method if chosen == method_of(method, None, None, None) else f"{method}, changed"
    records = write_evaluation(compared, output, name)
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
) -> None:
    """Compare methods on one model and the same images; a rerun computes only what is missing."""
    from liftmap.cli.terminal import BenchmarkProgress, rows_table
    from liftmap.evaluation.benchmark import (
        Task,
        run_benchmark,
        table_rows,
        write_benchmark,
    )
    from liftmap.evaluation.entrants import find_entrants

    entrants = find_entrants(methods or ["combined", "lmd", "msma", "diffpath", "ddpm-ood"])
    inside, *outside = (open_images(spec, root, download, limit) for spec in (in_domain, *out))
    task = Task(model, open_images(train_source, root, download, None), inside, outside)
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
    from liftmap.cli.terminal import BenchmarkProgress, ScoreProgress, rows_table
    from liftmap.evaluation.benchmark import run_benchmark, write_rows
    from liftmap.evaluation.figures import FIGURES, Tools, draw_masks
    from liftmap.evaluation.paper import (
        ARTEFACTS,
        agenda,
        beside_the_paper,
        by_data_set,
        entrants_of,
        every_figure,
    )
    from liftmap.images.labels import read_labels
    from liftmap.stages.method import find_method

    given = _sources(sources or [])
    if what == "figure8":
        console.print(f"written: {draw_masks(output)}")
        return
    if what not in ARTEFACTS | FIGURES:
        known = ", ".join([*ARTEFACTS, *FIGURES, "figure8"])
        raise SettingsError(f"{what!r}: need one of {known}")
    artefact = ARTEFACTS.get(what) or FIGURES[what]

    def planned_for(most: int | None) -> "Agenda":
        def find_source(name: str, split: str) -> "Source":
            spec = given.get((name, split), f"torchvision:{name}:{split}")
            return open_images(spec, root, download, most if split == "test" else None)

        return agenda(artefact.pairs, models, find_source)

    planned = planned_for(images)
    for pair, reason in planned.missing.items():
        complaints.print(f"[yellow]left out[/] {' > '.join(pair)}: {escape(reason)}")
    if what in FIGURES:
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
        return
    entrants = _entrants(entrants_of(ARTEFACTS[what], method), only)
    counts = dict.fromkeys(entrants, images) | _counts(fewer or [], list(entrants))
    records = []
    with BenchmarkProgress(complaints) as listener:
        for name, entrant in entrants.items():
            planned = planned_for(counts[name])
            row = run_benchmark(
                planned.tasks, {name: entrant}, output, seeds=seeds, listener=listener
            )
            records += by_data_set(row, planned.pairs)
    rows = list(beside_the_paper(ARTEFACTS[what], records))
    write_rows(rows, output / f"{what}.md")
    write_rows(list(every_figure(ARTEFACTS[what], records)), output / f"{what}-intervals.md")
    console.print(rows_table(rows, f"{artefact.title}: AUROC, and in brackets less the published"))
    console.print(f"written: {output}/{what}.md, {what}-intervals.md")


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
    rows: RowsOption = None,
) -> None:
    """What scoring costs here: seconds an image, latency, memory, use of the hardware."""
    import torch

    from liftmap.cli.terminal import RoundProgress, speed_table
    from liftmap.evaluation.speed import latency, measure_speed

    names = methods or ["fast", "paper"]
    options = (device, precision, rows)
    detectors = [load_detector(model, method_of(n, None, None, None), *options) for n in names]
    count = images or max(d.batch for d in detectors)
    if source:
        opened = open_images(source, root, download, count)
        pixels = torch.stack([detectors[0].preparation(entry.load()) for entry in opened])
    else:
        shape = (count, *detectors[0].checkpoint.image_shape)
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    with RoundProgress(console, rounds * len(names)) as on_round:
        speeds = measure_speed(detectors, pixels, rounds=rounds, whole=whole, on_round=on_round)
    alone = latency(detectors[0], pixels)
    console.print(speed_table(dict(zip(names, speeds, strict=True)), alone, len(pixels)))


def _sources(given: list[str]) -> dict[tuple[str, str], str]:
    """DATASET:SPLIT=SOURCE, taken apart."""
    found = {}
    for text in given:
        where, equals, spec = text.partition("=")
        name, colon, split = where.partition(":")
        if not (name and colon and equals and spec) or split not in ("train", "test"):
            raise SettingsError(
                f"--source {text}: need DATASET:train=SOURCE or DATASET:test=SOURCE"
            )
        found[name, split] = spec
    return found


def _entrants(found: "dict[str, Entrant]", only: list[str] | None) -> "dict[str, Entrant]":
    """A table's columns, or those asked for; without those whose extra is missing."""
    unknown = [name for name in only or [] if name not in found]
    if unknown:
        raise SettingsError(f"--only {unknown[0]}: need some of {', '.join(found)}")
    kept = {}
    for name in only or found:
        try:
            found[name].check()
            kept[name] = found[name]
        except MissingExtraError as error:
            complaints.print(f"[yellow]left out[/] {escape(name)}: {escape(str(error))}")
    if not kept:
        raise SettingsError("none of the table's columns can be filled")
    return kept


def _counts(given: list[str], columns: list[str]) -> dict[str, int]:
    """COLUMN=IMAGES, taken apart."""
    found = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if name not in columns or not number.isdigit() or int(number) < 1:
            raise SettingsError(f"--fewer {text}: need COLUMN=IMAGES, of {', '.join(columns)}")
        found[name] = int(number)
    return found


def _slug(spec: str) -> str:
    """A source's name as part of a file name."""
    tail = spec.rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in tail).strip("-") or "source"
