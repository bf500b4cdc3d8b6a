"""What all commands share: the group, their options, and how they open what those name."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from liftmap.cli.streams import make_lasting
from liftmap.engines.memory import keep_freed_memory
from liftmap.errors import LiftmapError, SettingsError

if TYPE_CHECKING:
    from liftmap.detector import Detector
    from liftmap.images.entry import Source
    from liftmap.model import Model
    from liftmap.stages.method import Method

console = Console(emoji=False)  # names of files may hold :car:
complaints = Console(stderr=True, emoji=False)


class _Group(typer.core.TyperGroup):
    """Shows liftmap's own errors as one message, without a traceback; prints to any stream."""

    def main(self, *args: Any, **options: Any) -> Any:
        make_lasting()
        return super().main(*args, **options)

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
    "SOURCE is a folder, an image, a zip or tar archive, file.npz:key, .npy, IDX, Parquet (each "
    "under any name), 'a pattern/*.png', @a_list_of_names.txt, torchvision:NAME:split (with "
    "--root) or hf:NAME:split, and any of them with \\[start:stop] at its end. MODEL is a folder "
    "that `train` wrote, a packaged name (fashion-mnist) or a diffusers hub id.",
    epilog="Start with:  liftmap demo   |   liftmap check IMAGES   |   "
    "liftmap train NORMAL_IMAGES --output model   |   "
    "liftmap score NEW_IMAGES --model model --output scores.parquet",
)

SourceArgument = Annotated[
    list[str],
    typer.Argument(
        help="Images: folders, files, archives, arrays, 'patterns/*.png', @a_list_of_names.txt."
    ),
]
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
ColumnOption = Annotated[
    str | None, typer.Option(help="Parquet column of the images; found by its type and name.")
]
HiddenOption = Annotated[
    bool, typer.Option("--hidden", help="Also hidden files, and what systems leave behind.")
]
PixelsOption = Annotated[
    int | None,
    typer.Option("--most-pixels", help="Of an image, where Pillow's limit is too low.", min=4),
]
RangeOption = Annotated[
    str | None,
    typer.Option(
        "--range",
        help="LOW:HIGH, the values of black and white in images of more than 8 bits, as 0:4095; "
        "kept with the model.",
    ),
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Let torchvision download.")]
RateOption = Annotated[
    float, typer.Option(help="Share of normal images that may be flagged by mistake.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, ...; found by itself.")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="bf16 or float32; the calibration's, or what the machine has.")
]
AtOnceOption = Annotated[
    int | None, typer.Option(help="Redraws at once; fewer need less memory.", min=1)
]

SeedsOption = Annotated[
    list[int] | None,
    typer.Option("--seed", help="Of noise, and of what baselines train; may be repeated."),
]

EngineOption = Annotated[
    str, typer.Option(help="local, or ray: many processes or machines (extra: ray).")
]
AddressOption = Annotated[
    str | None, typer.Option(help="Of a Ray cluster, or auto; one is started here otherwise.")
]
WorkersOption = Annotated[int, typer.Option(help="Of Ray: each loads the model once.", min=1)]
GpusOption = Annotated[float, typer.Option(help="Of each of Ray's workers.")]


def method_of(name: str, steps: int | None, attempts: int | None, distance: str | None) -> "Method":
    """The named method with what the command line changes in it."""
    from liftmap.stages.method import find_method

    method = find_method(name)
    if steps is not None:
        method = replace(method, sampler=replace(method.sampler, steps=steps))
    if attempts is not None:
        method = replace(method, attempts=attempts)
    if distance is not None:
        method = replace(method, distance=distance)
    return method


def load_detector(
    model: str,
    method: "Method",
    device: str | None,
    precision: str | None,
    at_once: int | None,
    value_range: str | None = None,
) -> "Detector":
    from liftmap.detector import Detector
    from liftmap.diffusion.denoiser import fast_bf16
    from liftmap.model import Model

    if precision not in (None, "bf16", "float32"):
        raise SettingsError(f"--precision {precision}: need bf16 or float32")
    loaded = Model.load(model)
    if value_range is not None:
        preparation = replace(loaded.preparation, value_range=range_of(value_range))
        loaded = replace(loaded, preparation=preparation)
    options: dict[str, Any] = {"device": device, "precision": precision, "at_once": at_once}
    made = Detector(loaded, method=method, **options)
    if made.denoiser.precision == "bf16" and not fast_bf16(made.device):
        complaints.print(
            "[yellow]slow:[/] bf16, in which the model was calibrated or which was asked for, is "
            "emulated on this machine; `liftmap calibrate` redoes the calibration in float32"
        )
    return made


def native(precision: str | None, device: str | None) -> str:
    """The precision that was asked for, or what the device is fast in, for a new calibration."""
    import torch

    from liftmap.diffusion.denoiser import native_precision

    found = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return precision or native_precision(torch.device(found))


def size_of(text: str) -> tuple[int, int]:
    """--size taken apart: (height, width)."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise SettingsError(f"--size {text}: need pixels such as 32, or HEIGHTxWIDTH such as 32x64")
    return int(parts[0]), int(parts[-1])


def range_of(text: str | None) -> "tuple[float, float] | None":
    """LOW:HIGH, taken apart."""
    if text is None:
        return None
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError as error:
        raise SettingsError(f"--range {text}: need LOW:HIGH, such as 0:4095") from error


def open_images(
    spec: str | list[str],
    root: Path | None = None,
    download: bool = False,
    limit: int | None = None,
    *,
    column: str | None = None,
    hidden: bool = False,
    most_pixels: int | None = None,
) -> "Source":
    from liftmap.images.decode import MOST_PIXELS
    from liftmap.images.entry import take
    from liftmap.images.sources import open_source

    opened = open_source(
        spec,
        root=root,
        download=download,
        column=column,
        hidden=hidden,
        most_pixels=most_pixels or MOST_PIXELS,
    )
    return take(opened, limit)


def report_on(
    table: Path,
    detector: "Detector",
    source: "Source",
    output: Path,
    rate: float,
    title: str,
    **labels: Any,
) -> None:
    from liftmap.cli.progress import CountProgress
    from liftmap.engines.tables import read_rows
    from liftmap.report.collect import collect
    from liftmap.report.page import write_report

    rows = read_rows(table)
    with CountProgress(complaints, "explaining") as on_image:
        page = collect(rows, detector, source, title=title, rate=rate, on_image=on_image, **labels)
    write_report(page, output)
    complaints.print(f"{page.flagged} of {len(page.rows)} flagged; written: {output}")


def print_about(model: "Model") -> None:
    from liftmap.cli.terminal import about_table

    console.print(about_table(model))
