"""Learn the in-domain images: prepare them once, hold some out, train, keep the model folder whole.

What lies in the model folder beside the model itself: `images.u8`, the prepared images, and
`training.safetensors`, from which `--resume` continues. Both may be deleted afterwards.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from liftmap.diffusion.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from liftmap.diffusion.denoiser import Parametrisation, Precision, fast_bf16
from liftmap.diffusion.network import Patched, build_unet, find_preset
from liftmap.diffusion.process import PROCESSES
from liftmap.diffusion.training import Progress, Trainer, TrainingSettings
from liftmap.errors import ModelError, OutputError, SettingsError
from liftmap.files import atomic_path, held
from liftmap.images.entry import Source
from liftmap.images.prepare import Preparation
from liftmap.images.store import PreparedImages, store_source

IMAGES = "images.u8"
STATE = "training.safetensors"
RECIPE = "training.json"


@dataclass(frozen=True)
class HoldOut:
    """Images kept from training for calibration.

    share: of all images. least: no fewer than so many, as long as those are at most a fifth of all;
    the 125 support a false-alarm rate of 1%. most: at most so many, since each costs a score.
    """

    share: float = 0.05
    most: int = 2000
    least: int = 125

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or self.most < 0 or self.least < 0:
            raise SettingsError(
                f"hold-out share={self.share}, most={self.most}, least={self.least}: "
                "need 0 <= share < 1, most >= 0 and least >= 0"
            )

    def count(self, images: int) -> int:
        """How many of so many images are kept; none if the share is 0."""
        floor = min(self.least, images // 5) if self.share else 0
        return min(self.most, max(floor, round(self.share * images)))


@dataclass
class FitListener:
    """Where a long fit reports to; the command draws progress bars from it."""

    on_image: Callable[[], None] = lambda: None
    on_skip: Callable[[str, str], None] = lambda id, reason: None
    on_step: Callable[[Progress], None] = lambda progress: None
    on_note: Callable[[str], None] = lambda text: None
    on_calibrated: Callable[[int, int], None] = lambda done, total: None


def fit_checkpoint(
    source: Source,
    folder: Path,
    *,
    preset: str,
    preparation: Preparation,
    settings: TrainingSettings,
    hold_out: HoldOut,
    initial: str | Path | None = None,
    resume: bool = False,
    listener: FitListener | None = None,
) -> tuple[Checkpoint, PreparedImages, PreparedImages]:
    """Train a preset, or a model that exists, on a source.

    Returns the model, the images it was trained on, and those held out.

    Args:
        initial: a model to start from instead of the preset's fresh weights. If it was trained on
            the same source, the same seed and hold-out keep the same images from both trainings.

    Raises:
        SettingsError, SourceError, ModelError, OutputError: see the parts.
    """
    listener = listener or FitListener()
    torch.manual_seed(settings.seed)
    checkpoint = _fresh(preset, preparation) if initial is None else _loaded(initial, preparation)
    network = Patched(checkpoint.unet, checkpoint.patch)
    precision: Precision = "bf16" if fast_bf16(_device()) else "float32"
    trainer = Trainer(network, checkpoint.process, checkpoint.by, settings, precision=precision)
    recipe = _recipe(source, preset, preparation, settings, hold_out)
    if initial is not None:
        recipe |= _before(str(initial), checkpoint)
    with held(folder) if trainer.main else nullcontext():
        _check_folder(folder, recipe, resume)
        prepare = _Once(folder, source, preparation, listener)
        images = prepare.images(trainer)
        rest, kept = images.hold_out(hold_out.count(len(images)), seed=settings.seed)
        listener.on_note(f"{len(rest)} images to train on, {len(kept)} held out for calibration")
        if resume:
            trainer.load_state(folder / STATE)
        about = {"preparation": asdict(preparation), "training": recipe}
        checkpoint.about = about

        def save() -> None:
            trainer.save_state(folder / STATE)
            about["training"] = recipe | _so_far(trainer.progress, len(rest))
            save_checkpoint(_averaged(checkpoint, trainer), folder)

        def try_to_save() -> None:
            try:
                save()
            except OutputError as error:
                listener.on_note(f"not saved, training goes on: {error}")

        trainer.run(rest, on_step=listener.on_step, on_save=try_to_save)
        if trainer.main:
            save()
        return _averaged(checkpoint, trainer), rest, kept


def is_main_process() -> bool:
    """Whether this process writes files and prints, of those that train together."""
    from accelerate import PartialState

    return bool(PartialState(cpu=not torch.cuda.is_available()).is_main_process)


def _fresh(preset: str, preparation: Preparation) -> Checkpoint:
    """The preset with random weights."""
    shape = find_preset(preset)
    p = preparation
    unet = build_unet(shape, height=p.height, width=p.width, channels=p.channels)
    by = Parametrisation(
        target=shape.prediction,
        time_input="sigma" if shape.skip else "scaled",
    )
    process = PROCESSES[shape.process]()  # type: ignore[call-arg]
    return Checkpoint(unet, process, by, shape.patch)


def _loaded(initial: str | Path, preparation: Preparation) -> Checkpoint:
    """The model to start from, which must take images of the prepared shape."""
    checkpoint = load_checkpoint(initial)
    asked = (preparation.channels, preparation.height, preparation.width)
    if checkpoint.image_shape != asked:
        channels, height, width = checkpoint.image_shape
        raise SettingsError(
            f"images of {asked[1]}x{asked[2]} with {asked[0]} channel(s), but {initial} takes "
            f"{height}x{width} with {channels}: give --size {height}x{width} --channels {channels}"
        )
    return checkpoint


def _before(initial: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the recipe says of the model that a training started from."""
    training = checkpoint.about.get("training", {})
    known = {key: training.get(key) for key in ("source", "steps", "minutes", "initial")}
    return {
        "preset": training.get("preset"),
        "initial": {"model": initial} | {k: v for k, v in known.items() if v is not None},
    }


class _Once:
    """Prepares the images on the main process; the others wait for the file."""

    def __init__(
        self, folder: Path, source: Source, preparation: Preparation, listener: FitListener
    ) -> None:
        self.folder, self.source = folder, source
        self.preparation, self.listener = preparation, listener

    def images(self, trainer: Trainer) -> PreparedImages:
        path = self.folder / IMAGES
        p = self.preparation
        if trainer.main and not path.exists():
            listener = self.listener
            store_source(self.source, p, path, on_image=listener.on_image, on_skip=listener.on_skip)
        trainer.accelerator.wait_for_everyone()
        return PreparedImages(path, (p.channels, p.height, p.width))


def _check_folder(folder: Path, recipe: dict[str, Any], resume: bool) -> None:
    """Refuse to train over another run, or to resume one that was set up otherwise."""
    path = folder / RECIPE
    if not resume:
        if (folder / STATE).exists():
            raise ModelError(f"{folder} holds a training: add --resume, or choose a new folder")
        (folder / IMAGES).unlink(missing_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read ({error}): nothing to resume") from error
    for key in ("source", "preset", "initial", "preparation", "hold_out"):
        if before.get(key) != recipe.get(key):
            raise ModelError(
                f"{key} is {recipe.get(key)!r}, but {folder} was trained with {before.get(key)!r}: "
                "use the same, or a new folder"
            )


def _recipe(
    source: Source,
    preset: str,
    preparation: Preparation,
    settings: TrainingSettings,
    hold_out: HoldOut,
) -> dict[str, Any]:
    """What was asked for: kept with the model, compared on resume."""
    return {
        "source": source.name,
        "preset": preset,
        "preparation": asdict(preparation),
        "hold_out": asdict(hold_out),
        "settings": asdict(settings),
    }


def _so_far(progress: Progress, images: int) -> dict[str, Any]:
    """What came of it: steps, minutes, and the loss curve thinned to some hundred means.

    The few steps that don't fill a last mean are left out: it would be noisier than the others.
    """
    width = max(1, len(progress.losses) // 100)
    whole = range(0, len(progress.losses) - width + 1, width)
    curve = [round(sum(progress.losses[i : i + width]) / width, 5) for i in whole]
    return {
        "images": images,
        "steps": progress.step,
        "minutes": round(progress.seconds / 60, 2),
        "loss_curve": curve,
        "loss_curve_steps_a_point": width,
    }


def _averaged(checkpoint: Checkpoint, trainer: Trainer) -> Checkpoint:
    """The checkpoint with the moving average's weights, on a network of its own."""
    unet = deepcopy(checkpoint.unet)
    weights = trainer.averaged_weights()
    unet.load_state_dict({k.removeprefix("unet."): v for k, v in weights.items()})
    return Checkpoint(unet, checkpoint.process, checkpoint.by, checkpoint.patch, checkpoint.about)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
