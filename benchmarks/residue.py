"""What LPIPS makes of the fine noise that few steps leave in a redraw of a smooth image.

For each number of steps, the AUROC of LPIPS, of LPIPS after both images were blurred (a Gaussian
of one pixel), which takes such noise away, and of MSE. Then what LPIPS and MSE say of an image and
itself with a little noise added, which is the same for all images but for what LPIPS makes of it.

    python benchmarks/residue.py --model models/svhn --inside svhn_crops_test.npz:images \\
        --outside cifar10_test.npz:images
"""

import argparse
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from liftmap.baselines.base import noise_of
from liftmap.diffusion.checkpoints import Checkpoint
from liftmap.evaluation.metrics import auroc
from liftmap.images.prepare import to_model_range
from liftmap.images.sources import open_source
from liftmap.model import Model
from liftmap.stages.distances import load_distances
from liftmap.stages.inpaint import inpaint
from liftmap.stages.masks import hidden_masks
from liftmap.stages.method import find_method

METHOD = find_method("redraws")
ATTEMPTS, ADDED = 2, 0.1
LPIPS, MSE = load_distances("lpips+mse").values()
KINDS = ("LPIPS", "LPIPS of blurred", "MSE")


def blurred(x: Tensor) -> Tensor:
    out: Tensor = gaussian_blur(x, [5, 5], [1.0, 1.0])
    return out


def differences(x: Tensor, other: Tensor) -> Tensor:
    """(3, n): LPIPS, LPIPS after blurring both, MSE."""
    rows = torch.arange(len(x))
    found = [LPIPS.values(LPIPS.reference(x), other, rows)]
    found += [LPIPS.values(LPIPS.reference(blurred(x)), blurred(other), rows)]
    return torch.stack([*found, (other - x).square().mean((1, 2, 3))])


def of_redraws(checkpoint: Checkpoint, pixels: Tensor, steps: int, start: float) -> Tensor:
    """(3, n): means over attempts."""
    denoiser, x = checkpoint.denoiser("cpu"), to_model_range(pixels)
    shape = (x.shape[1], x.shape[2], x.shape[3])
    hidden = hidden_masks(METHOD.mask, shape[1], shape[2], ATTEMPTS)
    sampler = replace(METHOD.sampler, steps=steps, start=start)
    found = []
    for attempt in range(ATTEMPTS):
        noise = noise_of(pixels, 0, attempt, shape, x.device)
        drawn = inpaint(denoiser, x, hidden[attempt : attempt + 1], noise, sampler)
        found.append(differences(x, drawn.clamp(-1, 1)))
    return torch.stack(found).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--inside", required=True)
    parser.add_argument("--outside", required=True)
    parser.add_argument("--images", type=int, default=128, help="of each")
    parser.add_argument("--steps", type=int, nargs="+", default=[METHOD.sampler.steps, 20, 50])
    parser.add_argument("--start", type=float, default=METHOD.sampler.start, help="noise time")
    asked = parser.parse_args()
    model = Model.load(asked.model)
    checkpoint, prepare = model.checkpoint, model.preparation
    sides = [
        torch.stack([prepare(entry.load()) for entry in open_source(f"{name}[:{asked.images}]")])
        for name in (asked.inside, asked.outside)
    ]
    print(f"| redraws of | {' | '.join(f'AUROC of {kind}' for kind in KINDS)} |")
    print("|---|---|---|---|")
    for steps in asked.steps:
        inside, outside = (
            of_redraws(checkpoint, pixels, steps, asked.start).double() for pixels in sides
        )
        cells = [f"{auroc(i.numpy(), o.numpy()):.3f}" for i, o in zip(inside, outside, strict=True)]
        print(f"| {steps} steps from {asked.start:g} | {' | '.join(cells)} |", flush=True)
    print(
        f"\n| an image and itself with noise of {ADDED} | {' | '.join(KINDS)} |\n|---|---|---|---|"
    )
    for name, pixels in zip((asked.inside, asked.outside), sides, strict=True):
        x = to_model_range(pixels)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        medians = differences(x, (x + ADDED * noise).clamp(-1, 1)).median(1).values.tolist()
        print(f"| {name} | {' | '.join(f'{value:.4f}' for value in medians)} |")


if __name__ == "__main__":
    main()
