"""What scoring costs against the number of images, their size, attempts and steps.

The number of images by `liftmap score` in processes of their own: seconds from start to table, and
peak memory. Sizes by untrained networks of one preset, whose cost is a trained one's. --steps and
--attempts make the first table cheap where memory or start is the question, not time.

    python benchmarks/scaling.py --source torchvision:FashionMNIST:train --root DATA \\
        --images 1 100 2000 60000 --steps 1 --attempts 1
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from liftmap.detector import Detector
from liftmap.diffusion.checkpoints import Checkpoint
from liftmap.diffusion.denoiser import Parametrisation
from liftmap.diffusion.network import build_unet, find_preset
from liftmap.diffusion.process import VP
from liftmap.evaluation.speed import measure_speed
from liftmap.model import Model
from liftmap.stages.method import Method, find_method


def run(words: list[str]) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a command, from the system's account of the child."""
    begun = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "liftmap", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"liftmap {' '.join(words)} failed")
    return time.perf_counter() - begun, usage.ru_maxrss / 1024


def by_images(asked: argparse.Namespace) -> None:
    fixed = ["--model", asked.model, "--uncalibrated", "--method", asked.method]
    for name in ("steps", "attempts", "root"):
        if value := getattr(asked, name):
            fixed += [f"--{name}", str(value)]
    print("| images | seconds | images/s | peak memory, MB |")
    print("|---|---|---|---|")
    with TemporaryDirectory() as folder:
        for count in asked.images:
            output = ["--output", f"{folder}/{count}.parquet", "--limit", str(count)]
            seconds, megabytes = run(["score", asked.source, *fixed, *output])
            row = f"| {count} | {seconds:.1f} | {count / seconds:.2f} | {megabytes:.0f} |"
            print(row, flush=True)


def by_size(sizes: list[int], preset_name: str, channels: int, method: Method) -> None:
    preset = find_preset(preset_name)
    print("\n| pixels a side | images at once | ms an image | of matrix peak |")
    print("|---|---|---|---|")
    for side in sizes:
        unet = build_unet(preset, height=side, width=side, channels=channels)
        made = Checkpoint(unet, VP(), Parametrisation(), preset.patch)
        distance = method.distance if side > 30 else "ssim"  # LPIPS needs 31 pixels
        detector = Detector(Model.of(made), method=replace(method, distance=distance))
        pixels = torch.randint(0, 256, (detector.batch, channels, side, side), dtype=torch.uint8)
        [speed] = measure_speed([detector], pixels)
        print(
            f"| {side} | {len(pixels)} | {1000 * speed.seconds:.1f} | {speed.peak_share:.0%} |",
            flush=True,
        )


def by_work(model: str, method: Method) -> None:
    grid = [(steps, attempts) for steps in (1, 3, 7, 14) for attempts in (1, 2, 4)]
    detectors = [
        Detector.from_pretrained(
            model,
            method=replace(method, attempts=attempts, sampler=replace(method.sampler, steps=steps)),
        )
        for steps, attempts in grid
    ]
    shape = (max(d.batch for d in detectors), *detectors[0].model.checkpoint.image_shape)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    print("\n| steps | attempts | evaluations an image | ms an image | of matrix peak |")
    print("|---|---|---|---|---|")
    for (steps, attempts), speed in zip(grid, measure_speed(detectors, pixels), strict=True):
        print(
            f"| {steps} | {attempts} | {speed.evaluations} | {1000 * speed.seconds:.2f} "
            f"| {speed.peak_share:.0%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--method", default="fast")
    parser.add_argument("--source", required=True)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--images", type=int, nargs="*", default=[1, 100, 2000, 60000])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--attempts", type=int)
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 64, 128, 256])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--no-work", action="store_true", help="leave steps and attempts out")
    asked = parser.parse_args()
    if asked.images:
        by_images(asked)
    if asked.sizes:
        by_size(asked.sizes, asked.preset, asked.channels, find_method(asked.method))
    if not asked.no_work:
        by_work(asked.model, find_method(asked.method))


if __name__ == "__main__":
    main()
