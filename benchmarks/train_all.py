"""Train the `tiny` models of all sets at once on one card, each on a CUDA stream of its own.

Images travel to a machine with a card, prepared, as one lossless WebP sheet a set; of each model
the weights with the lowest loss on held-out images travel back, with the record of their training.
The images held out are those of `liftmap fit` with the same source, seed and share.

    python benchmarks/train_all.py pack SHEETS "kmnist=KMNIST/t10k-images-idx3-ubyte.gz[:8000]" ...
    python benchmarks/train_all.py train SHEETS WEIGHTS --minutes 9
    python benchmarks/train_all.py unpack WEIGHTS MODELS
"""

import argparse
import json
import time
import traceback
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from liftmap.diffusion.checkpoints import Checkpoint
from liftmap.diffusion.denoiser import Parametrisation
from liftmap.diffusion.network import PRESETS, Patched, build_unet
from liftmap.diffusion.on_card import Augmentation, CardTrainer
from liftmap.diffusion.process import VP
from liftmap.diffusion.schedule import TrainingSettings
from liftmap.diffusion.training import loss_of
from liftmap.images.prepare import Preparation, to_model_range
from liftmap.images.sources import open_source
from liftmap.images.store import HoldOut
from liftmap.model import Model, Training
from liftmap.settings import read_settings

SIDE, ACROSS = 32, 250  # pixels of an image; images in a row of a sheet
LOOKS = 12  # times that the loss on held-out images is looked at in a run
ROUND = 8  # steps of each model between looks at the clock
SAVING = 6.0  # seconds kept for the last looks
PRESET = PRESETS["tiny"]


@dataclass(frozen=True)
class Job:
    """A model to train: the sheet it learns, what is held out, and how; part: of the minutes."""

    sheet: str
    source: str
    batch: int = 512
    rate: float = 1e-3
    ema: float = 0.9995
    part: float = 1.0
    dropout: float = 0.0
    share: float = 0.05
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def hold_out(self) -> HoldOut:
        """As the set's model of before had it."""
        return HoldOut(share=self.share, most=2000, least=0, copies_together=False)


KMNIST = Job("kmnist", "KMNIST's first 8,000 test images", 256, 6e-4, part=0.7, dropout=0.1)
SVHN = Job(
    "svhn", "554 digits cut from SVHN's training images", 256, 6e-4, 0.999, 0.25, 0.1, share=0.2
)
FLIP = Augmentation(flip=True)
# what gains most comes first
JOBS = {
    "kmnist": KMNIST,
    "kmnist-shift": replace(KMNIST, augmentation=Augmentation(shift=1)),
    "svhn": SVHN,
    "svhn-colours": replace(SVHN, part=0.5, augmentation=Augmentation(shift=2, colours=True)),
    "cifar100": Job("cifar100", "10,000 of CIFAR100's training images", augmentation=FLIP),
    "fashion-mnist": Job("fashion-mnist", "FashionMNIST's training images"),
    "cifar10": Job("cifar10", "20,000 of CIFAR10's training images", augmentation=FLIP),
}


def write_sheet(images: UInt8[np.ndarray, "n side side c"], path: Path) -> None:
    """All images in one lossless picture, ACROSS in a row."""
    n, side, _, channels = images.shape
    whole = np.zeros((-(-n // ACROSS) * ACROSS, side, side, channels), np.uint8)
    whole[:n] = images
    rows = whole.reshape(-1, ACROSS, side, side, channels).swapaxes(1, 2)
    picture = rows.reshape(-1, ACROSS * side, channels).squeeze()
    Image.fromarray(picture).save(path, lossless=True, method=4, quality=80)
    path.with_suffix(".json").write_text(json.dumps({"images": n, "channels": channels}))


def read_sheet(path: Path) -> UInt8[torch.Tensor, "n c side side"]:
    """What `write_sheet` wrote."""
    about = json.loads(path.with_suffix(".json").read_text())
    with Image.open(path) as opened:
        picture = np.asarray(opened.convert("RGB"))[..., : about["channels"]]
    rows = picture.reshape(-1, SIDE, ACROSS, SIDE, about["channels"]).swapaxes(1, 2)
    images = rows.reshape(-1, SIDE, SIDE, about["channels"])[: about["images"]]
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def pack(folder: Path, sources: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for text in sources:
        name, _, spec = text.partition("=")
        source = open_source(spec)
        grey = "mnist" in name
        prepare = Preparation(SIDE, SIDE, 1 if grey else 3)
        images = np.stack([prepare(e.load()).permute(1, 2, 0).numpy() for e in source])
        write_sheet(images, folder / f"{name}.webp")
        size = (folder / f"{name}.webp").stat().st_size
        print(f"{name}: {len(images)} images, {size / 1e6:.1f} MB", flush=True)


def parted(images: torch.Tensor, hold_out: HoldOut) -> tuple[torch.Tensor, torch.Tensor]:
    """(to train on, held out), by the same draw as `PreparedImages.hold_out` with seed 0."""
    chosen = np.random.default_rng(0).permutation(len(images))[: hold_out.count(len(images))]
    held = torch.zeros(len(images), dtype=torch.bool)
    held[torch.from_numpy(chosen)] = True
    return images[~held], images[held]


class Run:
    """A job under way on a device."""

    def __init__(
        self, name: str, job: Job, sheets: Path, output: Path, loss: Any, batch: int | None
    ) -> None:
        on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.name, self.job, self.path = name, job, output / f"{name}.safetensors"
        train, held = parted(read_sheet(sheets / f"{job.sheet}.webp"), job.hold_out)
        self.held = to_model_range(held).to(on)
        torch.manual_seed(0)
        unet = build_unet(
            replace(PRESET, dropout=job.dropout), height=SIDE, width=SIDE, channels=train.shape[1]
        )
        self.settings = TrainingSettings(
            minutes=1.0,  # until `start`
            batch=batch or job.batch,
            learning_rate=job.rate,
            ema=job.ema,
            flip=job.augmentation.flip,
            noise_times="log-normal",
        )
        self.trainer = CardTrainer(
            Patched(unet, PRESET.patch),
            VP(),
            Parametrisation(),
            self.settings,
            to_model_range(train).to(on),
            augmentation=job.augmentation,
            loss=loss,
        )
        self.trainer.record()
        self.best, self.looks = float("inf"), 0
        self.curve: list[dict[str, float]] = []

    def start(self, seconds: float) -> None:
        """Give it so much time."""
        self.settings = replace(self.settings, minutes=self.job.part * seconds / 60)
        self.trainer.settings = self.settings

    def at(self, seconds: float) -> bool:
        """Tell it the time; look at the held-out loss if that is due. False once it is over."""
        progress = self.trainer.progress
        progress.seconds = seconds
        share = progress.share(self.settings)
        if share >= (self.looks + 1) / LOOKS:
            self.looks += 1
            self.look()
        return share < 1

    def look(self) -> None:
        """Print where it stands, and keep the weights if they are the best so far."""
        trainer = self.trainer
        held, step = trainer.held_out_loss(self.held), trainer.progress.step
        now = {
            "seconds": round(trainer.progress.seconds, 1),
            "images": step * self.settings.batch,
            "loss": round(trainer.loss(), 5),
            "held_out": round(held, 5),
        }
        self.curve.append(now)
        print(self.name, json.dumps(now), "best" if held < self.best else "", flush=True)
        if held < self.best:
            self.best = held
            self.save(step)

    def save(self, step: int) -> None:
        """The averaged weights in float16, with the record of their training."""
        from safetensors.torch import save_file

        state = self.trainer.averaged.state_dict()
        weights = {k.removeprefix("unet."): v.cpu().half().contiguous() for k, v in state.items()}
        job, trainer = self.job, self.trainer
        channels = self.held.shape[1]
        about = {
            "source": job.source,
            "preset": "tiny",
            "preparation": asdict(Preparation(SIDE, SIDE, channels)),
            "hold_out": asdict(job.hold_out),
            "settings": asdict(self.settings),
            "dropout": job.dropout,
            "augmentation": asdict(job.augmentation),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "images": len(trainer.images),
            "steps": step,
            "minutes": round(trainer.progress.seconds / 60, 2),
            "held_out_curve": self.curve,
        }
        save_file(weights, self.path, metadata={"training": json.dumps(about)})


def start_runs(
    names: list[str], sheets: Path, output: Path, *, compiled: bool, batch: int | None
) -> list[Run]:
    """All jobs whose sheets are there, ready to step; one that fails is told of and left out."""
    torch.backends.cudnn.benchmark = True
    loss: Any = loss_of
    if compiled:
        torch._dynamo.config.recompile_limit = 64
        loss = torch.compile(loss_of, dynamic=False)
    runs = []
    for name in names:
        begun = time.monotonic()
        if not (sheets / f"{JOBS[name].sheet}.webp").exists():
            print(f"{name}: no sheet", flush=True)
            continue
        try:
            runs.append(Run(name, JOBS[name], sheets, output, loss, batch))
            print(f"{name}: ready after {time.monotonic() - begun:.1f} s", flush=True)
        except Exception:  # the others are worth their time all the same
            traceback.print_exc()
    return runs


def train(runs: list[Run], seconds: float) -> None:
    """Step by step of each in turn, until each has had its part of the time."""
    for run in runs:
        run.start(seconds)
    begun, every = time.monotonic(), list(runs)
    while runs:
        for _ in range(ROUND):
            for run in runs:
                run.trainer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        runs = [run for run in runs if run.at(time.monotonic() - begun)]
    took = time.monotonic() - begun
    seen = sum(run.trainer.progress.step * run.settings.batch for run in every)
    print(f"{seen} images in {took:.1f} s: {seen / took:.0f} images/s", flush=True)


def unpack(weights: Path, models: Path) -> None:
    from safetensors import safe_open

    for path in sorted(weights.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            training = read_settings(Training, json.loads(file.metadata()["training"]))
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        channels = training.preparation.channels
        unet = build_unet(PRESET, height=SIDE, width=SIDE, channels=channels)
        unet.load_state_dict(state)
        checkpoint = Checkpoint(unet, VP(), Parametrisation(), PRESET.patch)
        replace(Model.of(checkpoint), training=training).save(models / path.stem)
        print(f"{models / path.stem}: {training.steps} steps of {training.settings.batch}")


def main() -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("sheets", type=Path)
    packing.add_argument("sources", nargs="+", help="SHEET=SOURCE")
    training = commands.add_parser("train")
    training.add_argument("sheets", type=Path)
    training.add_argument("output", type=Path)
    training.add_argument("--minutes", type=float, required=True, help="in all, set-up included")
    training.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    training.add_argument("--eager", action="store_true", help="without torch.compile")
    training.add_argument("--batch", type=int, help="for a trial: of all jobs")
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("weights", type=Path)
    unpacking.add_argument("models", type=Path)
    asked = parser.parse_args()
    if asked.command == "pack":
        pack(asked.sheets, asked.sources)
    elif asked.command == "unpack":
        unpack(asked.weights, asked.models)
    else:
        asked.output.mkdir(parents=True, exist_ok=True)
        runs = start_runs(
            asked.jobs, asked.sheets, asked.output, compiled=not asked.eager, batch=asked.batch
        )
        train(runs, max(1.0, 60 * asked.minutes - (time.monotonic() - begun) - SAVING))


if __name__ == "__main__":
    main()
