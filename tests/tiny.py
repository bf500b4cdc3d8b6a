"""A detector small enough for tests: a real, untrained 32x32 UNet, and images to feed it."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from liftmap.detector import Detector
from liftmap.diffusion.checkpoints import Checkpoint
from liftmap.diffusion.denoiser import Parametrisation
from liftmap.diffusion.network import Preset, build_unet
from liftmap.diffusion.process import VP
from liftmap.diffusion.samplers import SamplerSettings
from liftmap.diffusion.schedule import TrainingSettings
from liftmap.images.store import HoldOut
from liftmap.model import Model, Training
from liftmap.stages.calibrate import Calibration
from liftmap.stages.judge import Judge
from liftmap.stages.method import Method
from liftmap.stages.mixture import Mixture
from liftmap.stages.scales import Scale, Scales

SMALL = Preset((32, 32), blocks=1, attention=(), patch=4)


def small_method(attempts: int = 3, steps: int = 2) -> Method:
    sampler = SamplerSettings(steps=steps)
    return Method(attempts=attempts, sampler=sampler, distance="lpips")


def small_checkpoint(height: int = 32, width: int = 32, channels: int = 1) -> Checkpoint:
    torch.manual_seed(1)
    unet = build_unet(SMALL, height=height, width=width, channels=channels)
    return Checkpoint(unet, VP(), Parametrisation(), SMALL.patch)


def small_model(height: int = 32, width: int = 32, channels: int = 1) -> Model:
    return Model.of(small_checkpoint(height, width, channels))


def trained(model: Model, hold_out: HoldOut, *, seed: int = 0) -> Model:
    """The model with a record of a training, from which its split is made again."""
    settings = TrainingSettings(steps=1, seed=seed)
    return replace(model, training=Training("images", model.preparation, hold_out, settings))


def small_detector(method: Method | None = None, **options: object) -> Detector:
    height = int(options.pop("height", 32))  # type: ignore[call-overload]
    width = int(options.pop("width", 32))  # type: ignore[call-overload]
    made = small_model(height, width)
    return Detector(made, method=method or small_method(), device="cpu", **options)  # type: ignore[arg-type]


def decide_by(detector: Detector, scores: Iterable[float], **fixed: Any) -> None:
    """Give the detector's model held-out scores of its method, and whatever else is fixed."""
    judge = Judge(detector.method, density=detector.model.density, **fixed)
    calibrated = judge.calibrated(Calibration.from_scores(scores))
    detector.model = detector.model.with_judge(calibrated)


def standard_density() -> Mixture:
    """Ten independent standard normals."""
    one = torch.ones(1, dtype=torch.float64)
    centre, covariance = torch.zeros(10, dtype=torch.float64), torch.eye(10, dtype=torch.float64)
    return Mixture(centre, one.expand(10), one, centre[None], covariance[None])


def calibrated_model(folder: Path, count: int = 40) -> Path:
    """A model folder that `score` takes as it is, calibrated for the method `fast`."""
    detector = Detector(replace(small_model(), density=standard_density()), device="cpu")
    scales, surprise = Scales((-2.0, -1.0), (0.5, 0.5)), Scale(200.0, 200.0)
    scores = [i / count for i in range(1, count + 1)]
    decide_by(detector, scores, scales=scales, surprise=surprise, settled=0.5)
    detector.save(folder)
    return folder


def pixels(count: int, *, seed: int = 0, channels: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    return (smooth * 255).to(torch.uint8)


def save_images(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels(count)):
        Image.fromarray(np.asarray(image[0])).save(folder / f"{i:03}.png")
    return folder


class _Grey(torch.nn.Module):
    """A generator, as LaMa's, that paints what is hidden in middle grey."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return image * (1 - mask) + 0.5 * mask


def save_grey_generator(path: Path) -> Path:
    """A TorchScript file as LaMa's authors export theirs."""
    torch.jit.script(_Grey()).save(str(path))
    return path
