"""Look at models, and bring in others'."""

from pathlib import Path
from typing import Annotated

import typer

from liftmap.cli.base import RateOption, console, load_detector, method_of, print_about


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the table and the picture.")] = Path(
        "demo-output"
    ),
    false_alarms: RateOption = 0.05,
) -> None:
    """The whole job on packaged images: clothes are normal, digits are not. No network, no data."""
    from liftmap.cli.demo import run_demo

    run_demo(console, output, false_alarms)


def info(
    model: Annotated[str, typer.Argument(help="Model folder, packaged name or hub id.")],
) -> None:
    """What a model is, how it was trained, and which false-alarm rates its calibration supports."""
    print_about(load_detector(model, method_of("fast", None, None, None), "cpu", None, None))


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
