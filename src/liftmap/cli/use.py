"""Learn what is normal, score, explain, report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
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
    RateOption,
    RootOption,
    SourceArgument,
    StepsOption,
    WorkersOption,
    complaints,
    console,
    load_detector,
    method_of,
    native,
    open_images,
    print_about,
    range_of,
    report_on,
    size_of,
)
from liftmap.cli.check import NOT_LOOKED_AT, check_looked_at, look_first
from liftmap.errors import ImageError, SettingsError

if TYPE_CHECKING:
    from liftmap.engines.local import Summary, Upto

InitialOption = Annotated[
    str | None, typer.Option(help="Start from this model's weights, not from a fresh preset.")
]
LeastOption = Annotated[
    int, typer.Option(help="No fewer than so many are kept, up to a fifth of all.")
]
GroupByOption = Annotated[
    str | None,
    typer.Option(
        help="Keep series on one side: folder, or a pattern of ids such as '^(patient[0-9]+)_'."
    ),
]


def train(
    source: SourceArgument,
    output: Annotated[Path, typer.Option(help="Model folder to write.")],
    preset: Annotated[str, typer.Option(help="Network: tiny, small, ddpm, ncsnpp.")] = "tiny",
    minutes: Annotated[float | None, typer.Option(help="Train this long (default 40).")] = None,
    steps: Annotated[int | None, typer.Option(help="Train this many steps instead.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    initial: InitialOption = None,
    size: Annotated[str, typer.Option(help="Pixels: 32, or HEIGHTxWIDTH.")] = "32",
    channels: Annotated[int, typer.Option(help="3 for colour, 1 for grey.")] = 3,
    fit: Annotated[str, typer.Option(help="stretch, crop or pad to the size.")] = "stretch",
    flip: Annotated[bool, typer.Option("--flip", help="Also learn mirrored images.")] = False,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 4e-4,
    hold_out: Annotated[float, typer.Option(help="Share kept for calibration.")] = 0.05,
    hold_out_least: LeastOption = 125,
    hold_out_most: Annotated[int, typer.Option(help="At most so many are kept.")] = 2000,
    value_range: RangeOption = None,
    group_by: GroupByOption = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    save_every: Annotated[float, typer.Option(help="Minutes between saved states.")] = 3.0,
    method: MethodOption = "fast",
    distance: DistanceOption = None,
    limit: LimitOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    column: ColumnOption = None,
    hidden: HiddenOption = False,
    most_pixels: PixelsOption = None,
) -> None:
    """Learn the normal images, and calibrate on some that are kept from training."""
    from liftmap.cli.progress import FitProgress
    from liftmap.detector import Detector
    from liftmap.diffusion.schedule import TrainingSettings
    from liftmap.fitting import is_main_process
    from liftmap.images.prepare import Preparation
    from liftmap.images.store import HoldOut

    height, width = size_of(size)
    minutes = 40.0 if steps is minutes is None else minutes
    settings = TrainingSettings(
        steps, minutes, batch, learning_rate, flip=flip, seed=seed, save_every_minutes=save_every
    )
    opened = open_images(
        source, root, download, limit, column=column, hidden=hidden, most_pixels=most_pixels
    )
    shown = console if is_main_process() else Console(quiet=True)
    preparation = Preparation(height, width, channels, fit, range_of(value_range))
    look_first(opened, preparation, to=shown, training=True)
    with FitProgress(shown, settings, opened.count()) as listener:
        detector = Detector.fit(
            opened,
            output,
            preset=preset,
            preparation=preparation,
            training=settings,
            hold_out=HoldOut(hold_out, hold_out_most, hold_out_least, group_by),
            limit=limit,
            initial=initial,
            resume=resume,
            listener=listener,
            method=method_of(method, None, None, distance),
        )
    if is_main_process():
        print_about(detector.model)
        options = {"method": None if method == "fast" else method, "distance": distance}
        console.print(escape(_next_command(output, options)), soft_wrap=True)
        check_looked_at(opened)


def _next_command(model: Path, options: dict[str, str | None]) -> str:
    asked = "".join(f" --{name} {value}" for name, value in options.items() if value is not None)
    return f"next: liftmap score NEW_IMAGES --model {model} --output scores.parquet{asked}"


def calibrate(
    source: SourceArgument,
    model: Annotated[str, typer.Option(help="Model folder; its liftmap.json is updated.")],
    method: MethodOption = "fast",
    value_range: RangeOption = None,
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
    column: ColumnOption = None,
    hidden: HiddenOption = False,
    most_pixels: PixelsOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    at_once: AtOnceOption = None,
) -> None:
    """Redo the calibration on normal images that were not trained on; resumes like score."""
    from liftmap.cli.progress import ScoreProgress
    from liftmap.engines.calibrate import calibrate_folder
    from liftmap.engines.engine import Engine

    if not Path(model).is_dir():
        raise SettingsError(
            f"--model {model}: need a model folder that can be written; copy the model first"
        )
    chosen, precision = method_of(method, steps, attempts, distance), native(precision, device)
    detector = load_detector(model, chosen, device, precision, at_once, value_range)
    opened = open_images(
        source, root, download, limit, column=column, hidden=hidden, most_pixels=most_pixels
    )
    look_first(opened, detector.preparation, detector=detector)
    scoring = Engine(engine, address, workers, gpus_per_worker)
    with ScoreProgress(console, opened.count()) as on_batch:
        trained = calibrate_folder(detector, opened, Path(model), engine=scoring, on_batch=on_batch)
    if trained:
        console.print(f"[yellow]left out[/] {trained} images that the model was trained on")
    print_about(detector.model)
    check_looked_at(opened)


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
    most_skipped: Annotated[
        float, typer.Option(help="Exit with 5 if more than this share can't be used.", min=0, max=1)
    ] = 0.1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, for scripts.")
    ] = False,
    value_range: RangeOption = None,
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
    column: ColumnOption = None,
    hidden: HiddenOption = False,
    most_pixels: PixelsOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    at_once: AtOnceOption = None,
) -> None:
    """Score images into a table; a stopped run goes on when the same command is run again.

    Exit codes: 0 done, 1 an error, 3 more flagged than --fail-if-flagged allows, 5 more than
    --most-skipped could not be used, or a folder not be listed, 130 interrupted.
    """
    from liftmap.cli.progress import ScoreProgress
    from liftmap.engines.engine import Engine

    if fail_if_flagged is not None and (uncalibrated or not 0 <= fail_if_flagged <= 1):
        raise SettingsError(f"--fail-if-flagged {fail_if_flagged}: need 0 to 1, and decisions")
    scoring = Engine(engine, address, workers, gpus_per_worker)
    tables = (".parquet",) if engine == "local" else ("",)
    if report and (uncalibrated or output.suffix.lower() not in tables):
        raise SettingsError("--report: need a .parquet --output, with decisions")
    chosen = method_of(method, steps, attempts, distance)
    detector = load_detector(model, chosen, device, precision, at_once, value_range)
    opened = open_images(
        source, root, download, limit, column=column, hidden=hidden, most_pixels=most_pixels
    )
    told = complaints if as_json else console
    if output.is_file() and not output.with_name(f"{output.name}.part").exists():
        told.print(f"{escape(str(output))} is there already: scored anew, then replaced")
    look_first(opened, detector.preparation, detector=detector, to=told)
    to: Upto = "scores" if uncalibrated else "decisions"
    with ScoreProgress(told, opened.count()) as on_batch:
        summary = scoring.score(detector, opened, output, to, on_batch, false_alarms=false_alarms)
    _print_summary(summary, output, None if uncalibrated else false_alarms, as_json=as_json)
    if report:
        report_on(output, detector, opened, report, false_alarms, opened.name)
    check_looked_at(opened, summary.scored, summary.skipped, most_skipped, to=told)
    if fail_if_flagged is not None and summary.flagged > fail_if_flagged * summary.scored:
        raise typer.Exit(3)


def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="PNG to write, a row an image.")] = Path(
        "explained.png"
    ),
    method: MethodOption = "fast",
    value_range: RangeOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Why an image was flagged: what was hidden, what the model drew there, where it differs.

    Exit codes: 0 done, 1 an error, 5 an image could not be read.
    """
    from liftmap.stages.explanation import draw_explanations

    chosen = method_of(method, None, None, None)
    detector = load_detector(model, chosen, device, precision, None, value_range)
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
    if len(found) < len(images):
        raise typer.Exit(NOT_LOOKED_AT)


def report(
    scores: Annotated[Path, typer.Argument(help="Table that score wrote: .parquet.")],
    source: Annotated[
        list[str], typer.Option(help="The images that were scored; may be repeated.")
    ],
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
    column: ColumnOption = None,
    hidden: HiddenOption = False,
    most_pixels: PixelsOption = None,
    value_range: RangeOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
) -> None:
    """One HTML file: what was flagged, why and how sure, with pictures, filters and drift."""
    from liftmap.engines.tables import read_scores

    chosen = method_of(method, None, None, None)
    detector = load_detector(model, chosen, device, precision, None, value_range)
    opened = open_images(source, root, column=column, hidden=hidden, most_pixels=most_pixels)
    known = {path.stem: read_scores(path) for path in ood_scores or []}
    labels = {"ood_ids": ood_ids, "ood_scores": known}
    report_on(scores, detector, opened, output, false_alarms, title or opened.name, **labels)


def _print_summary(
    summary: "Summary", output: Path, false_alarms: float | None, *, as_json: bool
) -> None:
    import json

    from liftmap.cli.terminal import summary_lines

    if as_json:
        typer.echo(json.dumps(summary.as_json() | {"output": str(output)}))
        return
    for line in summary_lines(summary, output, false_alarms):
        console.print(line, highlight=False)
