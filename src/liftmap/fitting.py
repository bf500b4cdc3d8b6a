"""Learn the in-domain images: prepare them once, hold some out, train, keep the model folder whole.

What lies in the model folder beside the model itself: `images.u8`, the prepared images,
`training.json`, what was asked for, and `training.safetensors`, from which `--resume` continues.
All three may be deleted afterwards.
"""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from liftmap.diffusion.checkpoints import Checkpoint
from liftmap.diffusion.denoiser import Parametrisation, Precision, fast_bf16
from liftmap.diffusion.network import Patched, build_unet, find_preset
from liftmap.diffusion.process import PROCESSES
from liftmap.diffusion.schedule import Progress, TrainingSettings
from liftmap.diffusion.training import Trainer
from liftmap.errors import ModelError, OutputError, SettingsError
from liftmap.files import Run, held, read_object
from liftmap.images.entry import Source
from liftmap.images.prepare import Preparation
from liftmap.images.store import HoldOut, PreparedImages, store_source
from liftmap.model import Initial, Model, Training

IMAGES = "images.u8"
STATE = "training.safetensors"
RECIPE = "training.json"


@dataclass
class FitListener:
    """What a fit calls while it works; each does nothing by default.

    on_image: an image was prepared. on_skip(id, reason): one could not be read.
    on_step(progress): a training step is done. on_note(text): something to tell.
    on_calibrated(done, total): held-out images measured.
    """

    on_image: Callable[[], None] = lambda: None
    on_skip: Callable[[str, str], None] = lambda id, reason: None
    on_step: Callable[[Progress], None] = lambda progress: None
    on_note: Callable[[str], None] = lambda text: None
    on_calibrated: Callable[[int, int], None] = lambda done, total: None


def fit_model(
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
) -> tuple[Model, PreparedImages, PreparedImages]:
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
    training = Training(source.name, preparation, hold_out, settings, preset)
    if initial is None:
        checkpoint = _fresh(preset, preparation)
    else:
        model = _loaded(initial, preparation)
        checkpoint, training = model.checkpoint, _started_from(training, str(initial), model)
    trainer = _trainer(checkpoint, settings)
    with held(folder) if trainer.main else nullcontext():
        _claim(folder, _run(training), resume)
        images = _prepared_once(trainer, source, preparation, folder / IMAGES, listener)
        rest, kept = training.split(images)
        training = replace(training, images=len(rest))
        listener.on_note(f"{len(rest)} images to train on, {len(kept)} held out for calibration")
        if resume:
            trainer.load_state(folder / STATE)

        def trained() -> Model:
            made = _averaged(checkpoint, trainer)
            return Model(made, preparation, _so_far(training, trainer.progress))

        def save() -> None:
            trainer.save_state(folder / STATE)
            trained().save(folder)

        def try_to_save() -> None:
            try:
                save()
            except OutputError as error:
                listener.on_note(f"not saved, training goes on: {error}")

        trainer.run(rest, on_step=listener.on_step, on_save=try_to_save)
        if trainer.main:
            save()
        return trained(), rest, kept


def is_main_process() -> bool:
    """Whether this process writes files and prints, of those that train together."""
    from accelerate import PartialState

    return bool(PartialState(cpu=not torch.cuda.is_available()).is_main_process)


def _trainer(checkpoint: Checkpoint, settings: TrainingSettings) -> Trainer:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision: Precision = "bf16" if fast_bf16(device) else "float32"
    network = Patched(checkpoint.unet, checkpoint.patch)
    return Trainer(network, checkpoint.process, checkpoint.by, settings, precision=precision)


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


def _loaded(initial: str | Path, preparation: Preparation) -> Model:
    """The model to start from, which must take images of the prepared shape."""
    model = Model.load(initial)
    asked = (preparation.channels, preparation.height, preparation.width)
    if model.checkpoint.image_shape != asked:
        channels, height, width = model.checkpoint.image_shape
        raise SettingsError(
            f"images of {asked[1]}x{asked[2]} with {asked[0]} channel(s), but {initial} takes "
            f"{height}x{width} with {channels}: give --size {height}x{width} --channels {channels}"
        )
    return model


def _started_from(training: Training, initial: str, model: Model) -> Training:
    """With what the record says of the model that the training started from."""
    before = model.training
    if before is None:
        return replace(training, preset=None, initial=Initial(initial))
    known = Initial(initial, before.source, before.steps, before.minutes, before.initial)
    return replace(training, preset=before.preset, initial=known)


def _prepared_once(
    trainer: Trainer, source: Source, preparation: Preparation, path: Path, listener: FitListener
) -> PreparedImages:
    """The images, prepared on the main process; the others wait for the file."""
    p = preparation
    if trainer.main and not path.exists():
        store_source(source, p, path, on_image=listener.on_image, on_skip=listener.on_skip)
    trainer.accelerator.wait_for_everyone()
    return PreparedImages(path, (p.channels, p.height, p.width))


def _run(training: Training) -> Run:
    """What must be as it was to resume: above all, whatever decides which images are held out."""
    asked = asdict(training)
    kept = ("source", "preset", "initial", "preparation", "hold_out")
    return Run({name: asked[name] for name in kept} | {"seed": training.settings.seed})


def _claim(folder: Path, run: Run, resume: bool) -> None:
    """Refuse to train over another run, or to resume one that was set up otherwise."""
    path = folder / RECIPE
    if not resume:
        if (folder / STATE).exists():
            raise ModelError(f"{folder} holds a training: add --resume, or choose a new folder")
        for left in (folder / IMAGES, path):
            left.unlink(missing_ok=True)
        run.begin(path)
        return
    before = read_object(path)
    if before is None:
        raise ModelError(f"{path} is missing or can't be read: nothing to resume")
    if "settings" in before:  # as liftmap 0.1 kept it
        before |= {"initial": before.get("initial"), "seed": before["settings"]["seed"]}
    run.check(before, path)


def _so_far(training: Training, progress: Progress) -> Training:
    """With what came of it: steps, minutes, and the loss curve thinned to some hundred means.

    The few steps that don't fill a last mean are left out: it would be noisier than the others.
    """
    width = max(1, len(progress.losses) // 100)
    whole = range(0, len(progress.losses) - width + 1, width)
    return replace(
        training,
        steps=progress.step,
        minutes=round(progress.seconds / 60, 2),
        loss_curve=tuple(round(sum(progress.losses[i : i + width]) / width, 5) for i in whole),
        loss_curve_steps_a_point=width,
    )


def _averaged(checkpoint: Checkpoint, trainer: Trainer) -> Checkpoint:
    """The checkpoint with the moving average's weights, on a network of its own."""
    unet = deepcopy(checkpoint.unet)
    weights = trainer.averaged_weights()
    unet.load_state_dict({k.removeprefix("unet."): v for k, v in weights.items()})
    return replace(checkpoint, unet=unet)
