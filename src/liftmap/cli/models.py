"""Look at models, and bring in others'."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from liftmap.cli.base import RateOption, console, print_about


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
    from liftmap.model import Model

    print_about(Model.load(model))


def import_score_sde(
    checkpoint: Annotated[Path, typer.Argument(help="score_sde's ddpm_continuous .pth file.")],
    output: Annotated[Path, typer.Option(help="Model folder to write.")],
    sde: Annotated[Literal["sub-vp", "vp"], typer.Option(help="What it was trained with.")] = (
        "sub-vp"
    ),
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 32,
) -> None:
    """Turn a score_sde checkpoint, its averaged (EMA) weights, into a model folder."""
    from liftmap.diffusion.score_sde import import_score_sde as read
    from liftmap.model import Model

    Model.of(read(checkpoint, sde=sde, image_size=size)).save(output)
    console.print(f"written: {output}; next: liftmap calibrate NORMAL_IMAGES --model {output}")
