"""A model: all that was learnt of the in-domain images, and the folder that keeps it.

    config.json, diffusion_pytorch_model.safetensors   the network (`diffusion.checkpoints`)
    liftmap.json                                       everything else; only this module reads it
    seen.safetensors                                   `Model.seen`; may be deleted

A folder without liftmap.json is read as an unconditional diffusers checkpoint (`foreign.py`). Once
such a folder is calibrated, its liftmap.json says `"network": "diffusers"`: the network still comes
from diffusers' files, wherever in the folder they lie, and all else from liftmap.json.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional

from torch import nn

from liftmap.diffusion.checkpoints import (
    Checkpoint,
    check_own,
    read_json,
    read_network,
    write_network,
)
from liftmap.diffusion.denoiser import Parametrisation
from liftmap.diffusion.foreign import read_diffusers, read_unet
from liftmap.diffusion.on_card import Augmentation, Look
from liftmap.diffusion.process import process_from_json, process_to_json
from liftmap.diffusion.schedule import TrainingSettings
from liftmap.errors import CalibrationError, LiftmapError, ModelError, SettingsError
from liftmap.files import atomic_path
from liftmap.formats import FORMAT, upgraded
from liftmap.images.copies import Seen
from liftmap.images.prepare import Preparation
from liftmap.images.store import HoldOut, PreparedImages
from liftmap.settings import read_settings
from liftmap.stages.calibrate import Calibration
from liftmap.stages.judge import Judge
from liftmap.stages.method import Method
from liftmap.stages.mixture import Mixture
from liftmap.stages.scales import Scale, Scales

ABOUT = "liftmap.json"
SEEN = "seen.safetensors"
# how the network's files are read, by the name of who wrote them
NETWORKS: dict[str, Callable[[Path], nn.Module]] = {"liftmap": read_network, "diffusers": read_unet}
PACKAGED = Path(__file__).parent / "data" / "models"


@dataclass(frozen=True)
class Initial:
    """The model that a training started from, and what is known of its own training."""

    model: str
    source: str | None = None
    steps: int | None = None
    minutes: float | None = None
    initial: Optional["Initial"] = None


@dataclass(frozen=True)
class Training:
    """How a model was trained: what was asked for, and what came of it.

    images: trained on, without those held out.
    loss_curve: means of so many steps a point.
    dropout, augmentation, held_out_curve: of a training on a card (`diffusion.on_card`).
    """

    source: str
    preparation: Preparation
    hold_out: HoldOut
    settings: TrainingSettings
    preset: str | None = None
    initial: Initial | None = None
    images: int = 0
    steps: int = 0
    minutes: float = 0.0
    loss_curve: tuple[float, ...] = ()
    loss_curve_steps_a_point: int = 1
    device: str = "cpu"
    dropout: float = 0.0
    augmentation: Augmentation | None = None
    held_out_curve: tuple[Look, ...] = ()

    def split(self, images: PreparedImages) -> tuple[PreparedImages, PreparedImages]:
        """(trained on, held out) of the source's images, parted as by the training."""
        count, groups = self.hold_out.count(len(images)), self.hold_out.groups(images)
        return images.hold_out(count, seed=self.settings.seed, groups=groups)


@dataclass(frozen=True)
class Model:
    """All that was learnt of the in-domain images.

    training: None for a model that liftmap did not train. density: of noise norms; it belongs to
    the network's weights and serves every method. judges: by the key of their method. seen: what
    it remembers of the images it was trained on and of those held out; None if it doesn't.
    """

    checkpoint: Checkpoint
    preparation: Preparation
    training: Training | None = None
    density: Mixture | None = None
    judges: Mapping[str, Judge] = field(default_factory=lambda: MappingProxyType({}))
    seen: Seen | None = None

    def __post_init__(self) -> None:
        p, shape = self.preparation, self.checkpoint.image_shape
        if (p.channels, p.height, p.width) != shape:
            raise ModelError(
                f"liftmap.json prepares {(p.channels, p.height, p.width)} (channels, height, "
                f"width), but the network takes {shape}: the folder mixes two models"
            )

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Model":
        """A network of which nothing else is known: images are stretched to its size."""
        channels, height, width = checkpoint.image_shape
        return cls(checkpoint, Preparation(height, width, channels))

    @property
    def trained_on(self) -> str:
        """What the model was trained on, as people say it."""
        return self.training.source if self.training else "unknown images"

    def judge(self, method: Method) -> Judge:
        """What decides by this method.

        Without a calibration of its own a method scores on the scales of another one, its donor
        (`donor`), takes all attempts, and can't decide.
        """
        own = self.judges.get(method.key)
        if own is not None:
            return own
        donor = self.donor(method)
        return Judge(method) if donor is None else donor.lent_to(method)

    def donor(self, method: Method) -> Judge | None:
        """The calibrated method whose scales serve another one.

        Of those with the same distances, and with noise norms if the other has them, the one that
        differs in the fewest settings; among equals the one that costs the fewest evaluations.
        """
        fits = [
            judge
            for judge in self.judges.values()
            if judge.method.distance == method.distance and judge.method.norms >= method.norms
        ]

        def apart(judge: Judge) -> tuple[int, int, str]:
            its = judge.method
            return its.differences(method), its.evaluations, its.key

        return min(fits, key=apart, default=None)

    def with_judge(self, judge: Judge) -> "Model":
        """The model that also decides by this judge's method.

        A density that the judge has learnt serves the other methods, too.
        """
        judges = MappingProxyType({**self.judges, judge.method.key: judge})
        return replace(self, judges=judges, density=self.density or judge.density)

    def with_density(self, density: Mixture) -> "Model":
        """The model with another density; judges that went by the old one go with it."""
        kept = {key: judge for key, judge in self.judges.items() if not judge.method.norms}
        return replace(self, density=density, judges=MappingProxyType(kept))

    def trained_split(self, images: PreparedImages) -> tuple[PreparedImages, PreparedImages]:
        """(trained on, held out) of the training source's images.

        Raises:
            ModelError: the model has no record of its training.
        """
        if self.training is None:
            raise ModelError(
                "the model does not say which images its training held out: train it with liftmap"
            )
        return self.training.split(images)

    @classmethod
    def load(cls, model: str | Path) -> "Model":
        """Read a model: a folder, a packaged model's name, or a hub id as google/ddpm-cifar10-32.

        Raises:
            ModelError: nothing there, a file is missing, truncated or of the wrong shape, settings
                are unknown, or only pickled weights are on offer.
        """
        folder = find_model(model)
        if not (folder / ABOUT).exists():
            checkpoint = read_diffusers(folder)
            checkpoint.check_size(folder)
            return cls.of(checkpoint)
        about = read_json(folder / ABOUT)
        try:
            return _read(folder, about)
        except ModelError:
            raise
        except (LiftmapError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{folder / ABOUT}: {_reason(error)}; is it a liftmap model?"
            ) from error

    def save(self, folder: str | Path, *, weights: bool = True, half: bool = True) -> None:
        """Write a model folder, liftmap.json last.

        Args:
            weights: False replaces liftmap.json alone; the folder keeps the network's files.
            half: as `write_network` takes it.

        Raises:
            OutputError: the folder can't be written to, or is the hub's cache.
        """
        folder = Path(folder)
        check_own(folder)
        if weights:
            write_network(self.checkpoint.unet, folder, half=half)
            self._save_seen(folder / SEEN)
        foreign = self.checkpoint.foreign and not weights
        about = {"format": FORMAT, "network": "diffusers" if foreign else "liftmap"}
        text = json.dumps(about | _as_json(self), indent=1)
        with atomic_path(folder / ABOUT) as path:
            path.write_text(text + "\n", encoding="utf-8")

    def _save_seen(self, path: Path) -> None:
        """Write what was seen; nothing else's is left there."""
        if self.seen is not None:
            self.seen.save(path)
        elif path.exists():
            path.unlink()


def _as_json(model: Model) -> dict[str, Any]:
    checkpoint, density = model.checkpoint, model.density
    return {
        "process": process_to_json(checkpoint.process),
        "parametrisation": asdict(checkpoint.by),
        "patch": checkpoint.patch,
        "preparation": asdict(model.preparation),
        "training": None if model.training is None else asdict(model.training),
        "density": None if density is None else density.to_json(),
        "judges": [_judge_as_json(judge) for judge in model.judges.values()],
    }


def _judge_as_json(judge: Judge) -> dict[str, Any]:
    """A judge without the density, which is the model's."""
    return {
        "method": asdict(judge.method),
        "scales": None if judge.scales is None else asdict(judge.scales),
        "surprise": None if judge.surprise is None else asdict(judge.surprise),
        "settled": judge.settled,
        "map_top": judge.map_top,
        "precision": judge.precision,
        "scores": judge.decides_by.scores,
    }


def _read(folder: Path, about: dict[str, Any]) -> Model:
    """The model of a folder; raises what malformed data raises."""
    version = about["format"]
    if version not in range(1, FORMAT + 1):
        raise ModelError(
            f"{folder / ABOUT}: format {version}, this liftmap reads up to {FORMAT}: update liftmap"
        )
    about = upgraded(about, folder)
    by = read_settings(Parametrisation, about["parametrisation"])
    process, patch = process_from_json(about["process"]), int(about["patch"])
    network = about["network"]
    if network not in NETWORKS:
        raise ModelError(
            f"{folder / ABOUT}: network {network!r}: need one of {', '.join(NETWORKS)}"
        )
    checkpoint = Checkpoint(
        NETWORKS[network](folder), process, by, patch, foreign=network == "diffusers"
    )
    checkpoint.check_size(folder)
    preparation, training = about["preparation"], about["training"]
    density = None if about["density"] is None else Mixture.from_json(about["density"])
    judges = [_read_judge(stored, density) for stored in about["judges"]]
    return Model(
        checkpoint,
        Model.of(checkpoint).preparation
        if preparation is None
        else read_settings(Preparation, preparation),
        None if training is None else read_settings(Training, training),
        density,
        MappingProxyType({judge.method.key: judge for judge in judges}),
        Seen.load(folder / SEEN) if (folder / SEEN).exists() else None,
    )


def _read_judge(stored: dict[str, Any], density: Mixture | None) -> Judge:
    try:
        scales, surprise = stored["scales"], stored["surprise"]
        method = read_settings(Method, stored["method"])
        return Judge(
            method,
            density=density if method.norms else None,
            scales=None if scales is None else read_settings(Scales, scales),
            surprise=None if surprise is None else read_settings(Scale, surprise),
            settled=stored["settled"],
            calibration=Calibration.from_scores(stored["scores"]),
            map_top=stored["map_top"],
            precision=stored["precision"],
        )
    except (SettingsError, CalibrationError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the model's calibration is damaged ({error}): redo it") from error


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def find_model(model: str | Path) -> Path:
    """The folder that a model's name stands for; a hub id is fetched into the hub's cache.

    Raises:
        ModelError: no such folder or packaged model, and not a hub id that can be fetched.
    """
    if str(model) and Path(model).is_dir():
        return Path(model)
    packaged = sorted(p.name for p in PACKAGED.iterdir()) if PACKAGED.is_dir() else []
    if str(model) in packaged:
        return PACKAGED / str(model)
    parts = str(model).split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in {".", ".."}:
        raise ModelError(
            f"model {str(model)!r}: no such folder; packaged models: {', '.join(packaged)}; "
            "or give a hub id such as google/ddpm-cifar10-32"
        )
    return _fetch(str(model))


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.safetensors"]
        return Path(snapshot_download(hub_id, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise ModelError(
            f"model {hub_id!r}: no such folder, and the hub gave {type(error).__name__}: {error}"
        ) from error
