"""Learn the in-domain images: prepare them once, hold some out, train, keep the model folder whole.

What lies in the model folder beside the model itself: `images.u8` and `images.u8.ids`, the prepared
images, `training.json`, what was asked for and what the images were, and `training.safetensors`,
from which `--resume` continues. All four may be deleted afterwards.
"""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from liftmap.diffusion.checkpoints import Checkpoint
from liftmap.diffusion.denoiser import Parametrisation, Precision, fast_bf16
from liftmap.diffusion.network import Patched, build_unet, find_preset
from liftmap.diffusion.process import PROCESSES
from liftmap.diffusion.schedule import Progress, TrainingSettings
from liftmap.diffusion.training import Trainer
from liftmap.errors import OutputError, SettingsError
from liftmap.files import held
from liftmap.images.copies import Seen
from liftmap.images.entry import Source, take
from liftmap.images.prepare import Preparation
from liftmap.images.ranges import range_text
from liftmap.images.store import HoldOut, PreparedImages, store_with_range
from liftmap.model import Initial, Model, Training
from liftmap.recipe import IMAGES, RECIPE, STATE, as_begun, check_same, claim, found_range, run_of
from liftmap.stages.method import METHODS, Method
from liftmap.stages.outlook import Outlook, rehearse

FEWEST = 3  # images: one to train on, one to give scales and one to calibrate on


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
    limit: int | None = None,
    method: Method = METHODS["fast"],
    initial: str | Path | None = None,
    resume: bool = False,
    listener: FitListener | None = None,
) -> tuple[Model, PreparedImages, PreparedImages]:
    """Train a preset, or a model that exists, on a source.

    Returns the model, the images it was trained on, and those held out.

    Args:
        limit: only so many of the source's first images.
        method: what the model is to be calibrated for; refused here if it can't be used.
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
    rehearse(method, checkpoint.process, checkpoint.by, checkpoint.image_shape)
    trainer = _trainer(checkpoint, settings)
    with held(folder) if trainer.main else nullcontext():
        training = as_begun(training, folder, resume)
        if trainer.main:
            claim(folder, run_of(training, limit), resume)
        images = _prepared_once(trainer, take(source, limit), training, folder, listener)
        training = _with_range(training, folder, listener)
        rest, kept, seen = _parted(training, images, method, listener, trainer.main)
        training = replace(training, images=len(rest))
        if resume:
            trainer.load_state(folder / STATE)

        def trained() -> Model:
            made, record = _averaged(checkpoint, trainer), _so_far(training, trainer.progress)
            return Model(made, training.preparation, record, seen=seen)

        _train(trainer, rest, folder, trained, listener)
        return trained(), rest, kept


def _train(
    trainer: Trainer,
    images: PreparedImages,
    folder: Path,
    trained: Callable[[], Model],
    listener: FitListener,
) -> None:
    """Train until the budget is spent; the folder holds the model and the state now and then."""

    def save() -> None:
        trainer.save_state(folder / STATE)
        trained().save(folder)

    def try_to_save() -> None:
        try:
            save()
        except OutputError as error:
            listener.on_note(f"not saved, training goes on: {error}")

    trainer.run(images, on_step=listener.on_step, on_save=try_to_save)
    if trainer.main:
        save()


def _parted(
    training: Training, images: PreparedImages, method: Method, listener: FitListener, main: bool
) -> tuple[PreparedImages, PreparedImages, Seen | None]:
    """(to train on, held out, what is remembered of both), and what there is to say of them.

    Raises:
        SettingsError: too few images, or groups that leave nothing on one side.
    """
    total, asked = len(images), training.hold_out.count(len(images))
    if total < FEWEST:
        raise SettingsError(
            f"{total} images: need at least {FEWEST} to train and calibrate at all, some thousands "
            "for a useful model"
        )
    rest, kept = training.split(images)
    if not len(rest):
        raise SettingsError(
            f"all {total} images are held out, none is left to train on: need a smaller --hold-out"
        )
    if not main:
        return rest, kept, None
    listener.on_note(f"{len(rest)} images to train on, {len(kept)} held out for calibration")
    if training.hold_out.group_by is not None:
        listener.on_note(_groups_told(training.hold_out, images, asked, len(kept)))
    elif len(kept) != asked:
        listener.on_note(
            f"{asked} were to be held out, copies that stay together allow {len(kept)}"
        )
    seen = Seen.of(rest, kept)
    listener.on_note(seen.copies().words(grouped=training.hold_out.group_by is not None))
    listener.on_note(Outlook(method, training.hold_out, total, len(kept)).words)
    return rest, kept, seen


def _groups_told(hold_out: HoldOut, images: PreparedImages, asked: int, kept: int) -> str:
    """What came of the groups, for people."""
    groups = hold_out.groups(images)
    if groups is None:
        return ""
    told = f"{len(groups.sizes)} groups, the largest of {groups.sizes.max()} images"
    if groups.alone:
        told += f"; {groups.alone} images fit no group and stand for themselves"
    return told if kept == asked else f"{told}; {asked} were to be held out, groups allow {kept}"


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
    trainer: Trainer, source: Source, training: Training, folder: Path, listener: FitListener
) -> PreparedImages:
    """The images, prepared on the main process; the others wait for the file.

    Raises:
        OutputError: they are not those that the training began with.
    """
    p, path = training.preparation, folder / IMAGES
    if trainer.main:
        if not path.exists():
            tell: dict[str, Any] = {"on_image": listener.on_image, "on_skip": listener.on_skip}
            p = store_with_range(source, p, path, **tell)[1]
        images = PreparedImages(path, (p.channels, p.height, p.width))
        by_ids = training.hold_out.group_by is not None
        check_same(images, folder / RECIPE, p.value_range, by_ids=by_ids)
    trainer.accelerator.wait_for_everyone()
    return PreparedImages(path, (p.channels, p.height, p.width))


def _with_range(training: Training, folder: Path, listener: FitListener) -> Training:
    """The training with the range that its images turned out to have."""
    found = found_range(folder)
    if found is None or training.preparation.value_range is not None:
        return training
    listener.on_note(
        f"images of more than 8 bits: their values are taken as {range_text(found)}, black to "
        "white, here and of new images; --range says otherwise"
    )
    return replace(training, preparation=replace(training.preparation, value_range=found))


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
    return replace(checkpoint, unet=unet, foreign=False)
