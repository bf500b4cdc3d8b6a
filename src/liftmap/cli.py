"""The `liftmap` command: parse, call, print. Heavy modules are imported where they are needed."""

import json
import logging
import sys
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from liftmap.errors import ImageError, LiftmapError, MissingExtraError, SettingsError
from liftmap.memory import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from threading import Event

    from numpy import ndarray

    from liftmap.detector import Detector
    from liftmap.engines.local import Summary, Upto
    from liftmap.evaluation.benchmark import Entrant
    from liftmap.evaluation.paper import Plan
    from liftmap.images.sources import Source
    from liftmap.method import Method

console = Console()
complaints = Console(stderr=True)


class _Group(typer.core.TyperGroup):
    """Shows liftmap's own errors as one message, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        keep_freed_memory()
        try:
            return super().invoke(ctx)
        except LiftmapError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _fail(
                "interrupted; what was finished is kept: run the same command to go on "
                "(train: with --resume)",
                code=130,
            )


def _fail(message: str, code: int = 1) -> NoReturn:
    complaints.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise SystemExit(code)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Finds the images that don't belong, from normal images alone.\n\n"
    "SOURCE is a folder, a .zip or .tar, file.npz:key, .npy, IDX .gz, .parquet, "
    "torchvision:NAME:split (with --root) or hf:NAME:split, and any of them with \\[start:stop] "
    "at its end. MODEL is a folder that `train` wrote, a packaged name (fashion-mnist) or a "
    "diffusers hub id.",
    epilog="Start with:  liftmap demo   |   liftmap train NORMAL_IMAGES --output model   |   "
    "liftmap score NEW_IMAGES --model model --output scores.parquet",
)

SourceArgument = Annotated[str, typer.Argument(help="Images: folder, archive, array, name.")]
ModelOption = Annotated[str, typer.Option(help="Model folder, packaged name or hub id.")]
MethodOption = Annotated[
    str,
    typer.Option(
        help="fast (20 to 30 network evaluations an image), redraws (14 to 28), quick (10), or "
        "paper (10,000)."
    ),
]
StepsOption = Annotated[int | None, typer.Option(help="Sampler steps instead of the method's.")]
AttemptsOption = Annotated[int | None, typer.Option(help="Attempts instead of the method's.")]
DistanceOption = Annotated[
    str | None,
    typer.Option(help="lpips, mse, ssim, or several as lpips+ssim, instead of the method's."),
]
LimitOption = Annotated[int | None, typer.Option(help="Only the first N images.", min=1)]
RootOption = Annotated[
    Path | None, typer.Option(help="Folder of torchvision's data sets, for torchvision:NAME:split.")
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Let torchvision download.")]
RateOption = Annotated[
    float, typer.Option(help="Share of normal images that may be flagged by mistake.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, ...; found by itself.")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="bf16 or float32; bf16 where the hardware has it.")
]
RowsOption = Annotated[
    int | None, typer.Option(help="Redraws at once; fewer need less memory.", min=1)
]


@app.command()
def train(
    source: SourceArgument,
    output: Annotated[Path, typer.Option(help="Model folder to write.")],
    preset: Annotated[str, typer.Option(help="Network: tiny, small, ddpm, ncsnpp.")] = "tiny",
    minutes: Annotated[float | None, typer.Option(help="Train this long (default 40).")] = None,
    steps: Annotated[int | None, typer.Option(help="Train this many steps instead.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    initial: Annotated[
        str | None, typer.Option(help="Start from this model's weights, not from a fresh preset.")
    ] = None,
    size: Annotated[str, typer.Option(help="Pixels: 32, or HEIGHTxWIDTH.")] = "32",
    channels: Annotated[int, typer.Option(help="3 for colour, 1 for grey.")] = 3,
    fit: Annotated[str, typer.Option(help="stretch, crop or pad to the size.")] = "stretch",
    flip: Annotated[bool, typer.Option("--flip", help="Also learn mirrored images.")] = False,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 4e-4,
    hold_out: Annotated[float, typer.Option(help="Share kept for calibration.")] = 0.05,
    hold_out_most: Annotated[int, typer.Option(help="At most so many are kept.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    save_every: Annotated[float, typer.Option(help="Minutes between saved states.")] = 3.0,
    method: MethodOption = "fast",
    limit: LimitOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
) -> None:
    """Learn the normal images, and calibrate on some that are kept from training."""
    from liftmap.detector import Detector
    from liftmap.diffusion.training import TrainingSettings
    from liftmap.fitting import HoldOut, is_main_process
    from liftmap.images.prepare import Preparation
    from liftmap.terminal import FitProgress

    if steps is None and minutes is None:
        minutes = 40.0
    height, width = _size(size)
    settings = TrainingSettings(
        steps=steps,
        minutes=minutes,
        batch=batch,
        learning_rate=learning_rate,
        flip=flip,
        seed=seed,
        save_every_minutes=save_every,
    )
    opened = _open(source, root, download, limit)
    with FitProgress(console, settings, opened.count()) as listener:
        detector = Detector.fit(
            opened,
            output,
            preset=preset,
            preparation=Preparation(height, width, channels, fit),
            training=settings,
            hold_out=HoldOut(hold_out, hold_out_most),
            initial=initial,
            resume=resume,
            listener=listener,
            method=method,
        )
    if is_main_process():
        _print_about(detector)
        console.print(f"next: liftmap score NEW_IMAGES --model {output} --output scores.parquet")


@app.command()
def calibrate(
    source: SourceArgument,
    model: Annotated[str, typer.Option(help="Model folder; its liftmap.json is updated.")],
    method: MethodOption = "fast",
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
    """Redo the calibration on normal images that were not trained on; resumes like score."""
    import torch

    from liftmap.detector import MAPPED, Measured
    from liftmap.engines.local import score_source
    from liftmap.engines.tables import read_distances, read_norms
    from liftmap.images.sources import readable
    from liftmap.terminal import ScoreProgress

    if not Path(model).is_dir():
        raise SettingsError(
            f"--model {model}: need a model folder that can be written; copy the model first"
        )
    detector = _detector(model, _method(method, steps, attempts, distance), device, precision, rows)
    opened = _open(source, root, download, limit)
    table = Path(model) / "calibration.parquet"  # there only until it is taken into liftmap.json
    with ScoreProgress(console, opened.count()) as on_batch:
        score_source(detector, opened, table, to="distances", on_batch=on_batch)
    distances, norms = read_distances(table)[1], read_norms(table)
    detector.calibrate_on(Measured(torch.from_numpy(distances), torch.from_numpy(norms)))
    first = [detector.preparation(image) for _, image in islice(readable(opened), MAPPED)]
    detector.fix_colours(torch.stack(first))
    detector.save(model, weights=False)
    table.unlink()
    _print_about(detector)


@app.command()
def score(
    source: SourceArgument,
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="Table to write: .parquet, .csv or .jsonl.")],
    method: MethodOption = "fast",
    false_alarms: RateOption = 0.05,
    uncalibrated: Annotated[
        bool, typer.Option("--uncalibrated", help="Scores alone: no p-values, no decisions.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Also write an HTML report (from a .parquet output).")
    ] = None,
    fail_if_flagged: Annotated[
        float | None, typer.Option(help="Exit with 3 if more than this share is flagged.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, for scripts.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="local, or ray: many processes or machines (extra: ray).")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, or auto; one is started here otherwise.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Of Ray: each loads the model once.", min=1)] = 2,
    gpus_per_worker: Annotated[float, typer.Option(help="Of Ray's workers.")] = 0.0,
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
    """Score images into a table; a stopped run goes on when the same command is run again.

    Exit codes: 0 done, 1 an error, 3 more flagged than --fail-if-flagged allows, 130 interrupted.
    """
    from liftmap.engines.local import score_source
    from liftmap.terminal import ScoreProgress

    if fail_if_flagged is not None and (uncalibrated or not 0 <= fail_if_flagged <= 1):
        raise SettingsError(f"--fail-if-flagged {fail_if_flagged}: need 0 to 1, and decisions")
    if engine not in ("local", "ray"):
        raise SettingsError(f"--engine {engine}: need local or ray")
    tables = (".parquet",) if engine == "local" else ("",)
    if report and (uncalibrated or output.suffix.lower() not in tables):
        raise SettingsError("--report: need a .parquet --output, with decisions")
    if engine == "ray" and output.suffix:
        raise SettingsError(f"--output {output}: Ray's workers write a folder of parts")
    detector = _detector(model, _method(method, steps, attempts, distance), device, precision, rows)
    opened = _open(source, root, download, limit)
    to: Upto = "scores" if uncalibrated else "decisions"
    with ScoreProgress(complaints if as_json else console, opened.count()) as on_batch:
        if engine == "ray":
            from liftmap.engines.ray import Cluster, score_on_ray

            cluster = Cluster(address, workers, gpus_per_worker)
            summary = score_on_ray(
                detector,
                opened,
                output,
                cluster,
                root=root,
                false_alarms=false_alarms,
                to=to,
                on_part=on_batch,
            )
        else:
            summary = score_source(
                detector, opened, output, false_alarms=false_alarms, to=to, on_batch=on_batch
            )
    if as_json:
        typer.echo(json.dumps(summary.as_json() | {"output": str(output)}))
    else:
        _print_summary(summary, output, None if uncalibrated else false_alarms)
    if report:
        _write_report(output, detector, opened, report, false_alarms, opened.name)
    if fail_if_flagged is not None and summary.flagged > fail_if_flagged * summary.scored:
        raise typer.Exit(3)


@app.command()
def watch(
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="Folder for the scores, in Parquet parts.")],
    folder: Annotated[
        Path | None, typer.Argument(help="Folder to watch; without it, paths come from stdin.")
    ] = None,
    false_alarms: RateOption = 0.05,
    images_between: Annotated[
        float,
        typer.Option(
            "--images-between-false-alarms",
            help="Normal images that pass on average, at least, before drift is announced wrongly.",
            min=10.0,
        ),
    ] = 100_000.0,
    every: Annotated[float, typer.Option(help="Seconds between looks at the folder.")] = 2.0,
    stop_at_alarm: Annotated[
        bool, typer.Option("--stop-at-alarm", help="End with exit code 4 when drift is announced.")
    ] = False,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics on this port (extra: serve).")
    ] = None,
    method: MethodOption = "fast",
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    rows: RowsOption = None,
) -> None:
    """Score images as they arrive, each once, and say when the stream as a whole has drifted.

    Stopped and started again, it goes on. A file is looked at once: new images need new names.

    Exit codes: 0 stopped (Ctrl-C, SIGTERM, the end of stdin), 1 an error, 4 --stop-at-alarm.
    """
    from liftmap.engines.watch import Watched, expose, from_folder, from_lines
    from liftmap.engines.watch import watch as run_watch

    tell = expose(metrics_port) if metrics_port is not None else lambda seen: None
    detector = _detector(model, _method(method, None, None, None), device, precision, rows)
    alarms: list[int] = []  # in the beginning, and after the latest batch
    with _until_told_to_stop() as stop:

        def on_batch(seen: Watched) -> None:
            tell(seen)
            if alarms and seen.alarms > alarms[-1]:
                told = f"drift at image {seen.images}: see {output}/alarms.jsonl"
                console.print(f"[bold red]alarm:[/] {escape(told)}")
                if stop_at_alarm:
                    stop.set()
            alarms[1:] = [seen.alarms]

        console.print(f"watching {folder or 'stdin'}; Ctrl-C ends it, the same command goes on")
        seen = run_watch(
            detector,
            from_folder(folder, stop, every=every) if folder else from_lines(sys.stdin, stop),
            output,
            false_alarms=false_alarms,
            run=images_between,
            stop=stop,
            on_batch=on_batch,
        )
    console.print(
        f"{seen.images} images, {seen.flagged} flagged, {seen.skipped} skipped, {seen.alarms} "
        f"alarms; evidence of drift {seen.evidence:.3g} of {seen.run:g}; written: {output}"
    )
    if stop_at_alarm and seen.alarms > alarms[0]:
        raise typer.Exit(4)


@app.command()
def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="PNG to write, a row an image.")] = Path(
        "explained.png"
    ),
    method: MethodOption = "fast",
    device: DeviceOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Why an image was flagged: what was hidden, what the model drew there, where it differs."""
    from liftmap.explanation import draw_explanations

    detector = _detector(model, _method(method, None, None, None), device, precision, None)
    found, titles = [], []
    for path in images:
        try:
            found.append(detector.explain(path))
        except ImageError as error:
            complaints.print(f"[yellow]skipped[/] {escape(str(path))}: {escape(str(error))}")
            continue
        console.print(f"{escape(str(path))}: {found[-1].words}", soft_wrap=True)
        titles.append(path.name)
    if not found:
        raise ImageError("none of the images could be read")
    draw_explanations(found, output, titles=titles)
    console.print(f"written: {output}")


@app.command("report")
def report_command(
    scores: Annotated[Path, typer.Argument(help="Table that score wrote: .parquet.")],
    source: Annotated[str, typer.Option(help="The images that were scored.")],
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    method: MethodOption = "fast",
    false_alarms: RateOption = 0.05,
    title: Annotated[
        str | None, typer.Option(help="Heading; the source's name by default.")
    ] = None,
    ood_ids: Annotated[
        str | None,
        typer.Option(help="Pattern of ids known to be OOD, as 'digits/*': adds their ROC curve."),
    ] = None,
    ood_scores: Annotated[
        list[Path] | None,
        typer.Option(help="Table of scores of images known to be OOD, likewise; may be repeated."),
    ] = None,
    root: RootOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
) -> None:
    """One HTML file: what was flagged, why and how sure, with pictures, filters and drift."""
    from liftmap.engines.tables import read_scores

    detector = _detector(model, _method(method, None, None, None), device, precision, None)
    opened = _open(source, root, False, None)
    known = {path.stem: read_scores(path) for path in ood_scores or []}
    labels = {"ood_ids": ood_ids, "ood_scores": known}
    _write_report(scores, detector, opened, output, false_alarms, title or opened.name, **labels)


@app.command()
def evaluate(
    in_domain: Annotated[str, typer.Argument(help="In-domain SOURCE, not trained on.")],
    out: Annotated[list[str], typer.Argument(help="Out-of-distribution SOURCEs.")],
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="Folder for evaluation.json, plots and tables.")],
    method: MethodOption = "fast",
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
    from liftmap.engines.local import score_source
    from liftmap.engines.tables import read_scores
    from liftmap.evaluation.report import Compared, write_evaluation
    from liftmap.terminal import ScoreProgress, evaluation_table

    chosen = _method(method, steps, attempts, distance)
    detector = _detector(model, chosen, device, precision, rows)
    compared = []
    for number, spec in enumerate([in_domain, *out]):
        opened = _open(spec, root, download, limit)
        table = output / f"scores-{number}-{_slug(spec)}.parquet"
        with ScoreProgress(console, opened.count(), spec) as on_batch:
            summary = score_source(detector, opened, table, to="scores", on_batch=on_batch)
        spent = chosen.evaluations_of(summary.attempts_an_image)
        scores, skipped = read_scores(table), summary.skipped
        compared.append(Compared(spec, scores, spent, summary.computed, summary.seconds, skipped))
    name = method if chosen == _method(method, None, None, None) else f"{method}, changed"
    records = write_evaluation(compared, output, name)
    console.print(evaluation_table(records))
    console.print(f"written: {output}/evaluation.json, roc.png, histogram.png, scores-*.parquet")


@app.command()
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
            help="combined, lmd, lmd-quick, lmd-paper, lmd-mae, lmd-fourier, "
            "lmd-lama:GENERATOR.pt, likelihood, input-complexity, likelihood-regret, ae-mse, "
            "ae-mh, anogan, mahalanobis, mahalanobis-efficientnet, msma, diffpath, ddpm-ood, "
            "projection-regret; may be repeated.",
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Noise seeds; may be repeated.")
    ] = None,
    limit: LimitOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
) -> None:
    """Compare methods on one model and the same images; a rerun computes only what is missing."""
    from liftmap.evaluation.benchmark import (
        Task,
        find_entrants,
        run_benchmark,
        table_rows,
        write_benchmark,
    )
    from liftmap.terminal import BenchmarkProgress, rows_table

    entrants = find_entrants(methods or ["combined", "lmd", "msma", "diffpath", "ddpm-ood"])
    inside, *outside = (_open(spec, root, download, limit) for spec in (in_domain, *out))
    task = Task(model, _open(train_source, root, download, None), inside, outside)
    with BenchmarkProgress(complaints) as listener:
        records = run_benchmark([task], entrants, output, seeds=seeds, listener=listener)
    write_benchmark(records, output)
    caption = "AUROC (95% bootstrap interval over images; over seeds: mean ± spread)"
    console.print(rows_table(list(table_rows(records)), caption))
    console.print(f"written: {output}/benchmark.md, benchmark.tex, benchmark.parquet")


@app.command()
def reproduce(
    what: Annotated[
        str,
        typer.Argument(
            help="table1 to table4, table256 (the pairs at 256x256), figure4 to figure11 but 10."
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
    method: MethodOption = "redraws",
    root: RootOption = None,
    download: DownloadOption = False,
) -> None:
    """A table of the paper on your models and data, beside the published values; or a figure."""
    from liftmap.engines.local import score_source
    from liftmap.engines.tables import read_distances
    from liftmap.evaluation.benchmark import run_benchmark, write_rows
    from liftmap.evaluation.figures import FIGURES, Tools, draw_masks
    from liftmap.evaluation.paper import (
        ARTEFACTS,
        beside_the_paper,
        by_data_set,
        entrants_of,
        every_figure,
        plan,
    )
    from liftmap.images.labels import read_labels
    from liftmap.method import find_method
    from liftmap.terminal import BenchmarkProgress, ScoreProgress, rows_table

    given = _sources(sources or [])
    if what == "figure8":
        console.print(f"written: {draw_masks(output)}")
        return
    if what not in ARTEFACTS | FIGURES:
        known = ", ".join([*ARTEFACTS, *FIGURES, "figure8"])
        raise SettingsError(f"{what!r}: need one of {known}")
    artefact = ARTEFACTS.get(what) or FIGURES[what]

    def planned_for(most: int | None) -> "Plan":
        def find_source(name: str, split: str) -> "Source":
            spec = given.get((name, split), f"torchvision:{name}:{split}")
            return _open(spec, root, download, most if split == "test" else None)

        return plan(artefact.pairs, models, find_source)

    planned = planned_for(images)
    for pair, reason in planned.missing.items():
        complaints.print(f"[yellow]left out[/] {' > '.join(pair)}: {escape(reason)}")
    if what in FIGURES:

        def measure(detector: "Detector", source: "Source", table: Path) -> "ndarray":
            if not table.exists():
                with ScoreProgress(complaints, source.count(), source.name) as on_batch:
                    score_source(detector, source, table, to="distances", on_batch=on_batch)
            return read_distances(table)[1]

        tools = Tools(measure, lambda source: read_labels(source.name, root=root))
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
            row = run_benchmark(planned.tasks, {name: entrant}, output, listener=listener)
            records += by_data_set(row, planned.pairs)
    rows = list(beside_the_paper(ARTEFACTS[what], records))
    write_rows(rows, output / f"{what}.md")
    write_rows(list(every_figure(ARTEFACTS[what], records)), output / f"{what}-intervals.md")
    console.print(rows_table(rows, f"{artefact.title}: AUROC, and in brackets less the paper's"))
    console.print(f"written: {output}/{what}.md, {what}-intervals.md")


@app.command()
def bench(
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

    from liftmap.evaluation.speed import latency, measure_speed
    from liftmap.terminal import RoundProgress, bench_table

    names = methods or ["fast", "paper"]
    options = (device, precision, rows)
    detectors = [_detector(model, _method(n, None, None, None), *options) for n in names]
    count = images or max(d.batch for d in detectors)
    if source:
        opened = _open(source, root, download, count)
        pixels = torch.stack([detectors[0].preparation(entry.load()) for entry in opened])
    else:
        shape = (count, *detectors[0].checkpoint.image_shape)
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    with RoundProgress(console, rounds * len(names)) as on_round:
        speeds = measure_speed(detectors, pixels, rounds=rounds, whole=whole, on_round=on_round)
    alone = latency(detectors[0], pixels)
    console.print(bench_table(dict(zip(names, speeds, strict=True)), alone, len(pixels)))


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Model folder, packaged name or hub id.")],
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 8000,
    method: MethodOption = "fast",
    false_alarms: RateOption = 0.05,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="LIFTMAP_API_KEY", help="Clients must send it as X-API-Key.", show_envvar=True
        ),
    ] = None,
    compare_with: Annotated[
        str | None, typer.Option(help="SOURCE of normal images: the page shows its first twelve.")
    ] = None,
    most_bytes: Annotated[int, typer.Option(help="Of a request.")] = 20_000_000,
    most_images: Annotated[int, typer.Option(help="In a request.")] = 64,
    most_waiting: Annotated[int, typer.Option(help="Images in the queue.")] = 256,
    seconds: Annotated[float, typer.Option(help="A request is given up after.")] = 60.0,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
) -> None:
    """An HTTP service and a page that score and explain images (extra: serve)."""
    try:
        import uvicorn

        from liftmap.images.sources import readable
        from liftmap.serve.app import ServiceSettings, create_app
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from error
    settings = ServiceSettings(
        false_alarms, api_key, most_bytes, most_images, most_waiting, seconds
    )
    detector = _detector(model, _method(method, None, None, None), device, precision, None)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    typical = []
    if compare_with:
        typical = list(islice(readable(_open(compare_with, None, False, None)), 12))
    served = create_app(detector, settings, typical)
    console.print(f"http://{host}:{port}  (description of the interface: /openapi.json)")
    # the model's thread waits for Python's lock after each step: not for long
    sys.setswitchinterval(5e-4)
    uvicorn.run(served, host=host, port=port, log_level="warning")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the table and the picture.")] = Path(
        "demo-output"
    ),
    false_alarms: RateOption = 0.05,
) -> None:
    """The whole job on packaged images: clothes are normal, digits are not. No network, no data."""
    from liftmap.demo import run_demo

    run_demo(console, output, false_alarms)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="Model folder, packaged name or hub id.")],
) -> None:
    """What a model is, how it was trained, and which false-alarm rates its calibration supports."""
    _print_about(_detector(model, _method("fast", None, None, None), "cpu", None, None))


@app.command("import-score-sde")
def import_score_sde(
    checkpoint: Annotated[Path, typer.Argument(help="score_sde's ddpm_continuous .pth file.")],
    output: Annotated[Path, typer.Option(help="Model folder to write.")],
    sde: Annotated[str, typer.Option(help="sub-vp or vp.")] = "sub-vp",
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 32,
) -> None:
    """Turn a score_sde checkpoint, its averaged (EMA) weights, into a model folder."""
    from liftmap.diffusion.checkpoints import Checkpoint, save_checkpoint
    from liftmap.diffusion.score_sde import import_score_sde as read

    imported = Checkpoint(**read(checkpoint, sde=sde, image_size=size))  # type: ignore[arg-type]
    save_checkpoint(imported, output)
    console.print(f"written: {output}; next: liftmap calibrate NORMAL_IMAGES --model {output}")


@contextmanager
def _until_told_to_stop() -> "Iterator[Event]":
    """An event that Ctrl-C and SIGTERM set, in place of what they do otherwise."""
    import signal
    from threading import Event

    stop = Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _method(name: str, steps: int | None, attempts: int | None, distance: str | None) -> "Method":
    """The named method with what the command line changes in it."""
    from dataclasses import replace

    from liftmap.method import find_method

    method = find_method(name)
    if steps is not None:
        method = replace(method, sampler=replace(method.sampler, steps=steps))
    if attempts is not None:
        method = replace(method, attempts=attempts)
    if distance is not None:
        method = replace(method, distance=distance)
    return method


def _detector(
    model: str, method: "Method", device: str | None, precision: str | None, rows: int | None
) -> "Detector":
    from liftmap.detector import Detector

    if precision not in (None, "bf16", "float32"):
        raise SettingsError(f"--precision {precision}: need bf16 or float32")
    return Detector.from_pretrained(
        model, method=method, device=device, precision=precision, rows=rows
    )


def _open(spec: str, root: Path | None, download: bool, limit: int | None) -> "Source":
    from liftmap.images.sources import open_source, take

    return take(open_source(spec, root=root, download=download), limit)


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


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise SettingsError(f"--size {text}: need pixels such as 32, or HEIGHTxWIDTH such as 32x64")
    return int(parts[0]), int(parts[-1])


def _slug(spec: str) -> str:
    """A source's name as part of a file name."""
    tail = spec.rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in tail).strip("-") or "source"


def _write_report(
    table: Path,
    detector: "Detector",
    source: "Source",
    output: Path,
    rate: float,
    title: str,
    **labels: Any,
) -> None:
    from liftmap.engines.tables import read_rows
    from liftmap.report.collect import collect
    from liftmap.report.page import write_report
    from liftmap.terminal import CountProgress

    rows = read_rows(table)
    with CountProgress(complaints, "explaining") as on_image:
        page = collect(rows, detector, source, title=title, rate=rate, on_image=on_image, **labels)
    write_report(page, output)
    complaints.print(f"{page.flagged} of {len(page.rows)} flagged; written: {output}")


def _print_about(detector: "Detector") -> None:
    from liftmap.terminal import about_table

    console.print(about_table(detector))


def _print_summary(summary: "Summary", output: Path, false_alarms: float | None) -> None:
    from liftmap.terminal import summary_lines

    for line in summary_lines(summary, output, false_alarms):
        console.print(line, highlight=False)


def main() -> None:
    """Entry point of `python -m liftmap`."""
    app(prog_name="liftmap")


if __name__ == "__main__":
    main()
