"""Validation images without test data: those held out of training, and synthetic shifts of them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from liftmap.detector import Detector
from liftmap.images.sources import open_source
from liftmap.images.store import PreparedImages, store_source

# the kinds of shift, which the shifted images go through in turn
SHIFTS = ("inverted", "upside down", "quadrants", "halves", "blur", "noise")


def shifted(pixels: Tensor) -> Tensor:
    """Each image changed in one of the SHIFTS in turn; uint8 (n, c, h, w) in and out."""
    draw = torch.Generator().manual_seed(0)
    out = pixels.clone()
    width = pixels.shape[3]
    other = pixels.roll(1, 0)
    noise = 25.0 * torch.randn(pixels.shape, generator=draw)
    changed = (
        255 - pixels,
        pixels.flip(2),
        pixels.roll((pixels.shape[2] // 2, width // 2), (2, 3)),  # quadrants change places
        torch.cat([pixels[..., : width // 2], other[..., width // 2 :]], 3),  # halves of two
        gaussian_blur(pixels, [7, 7]),
        (pixels + noise).clamp(0, 255).to(torch.uint8),
    )
    for i, images in enumerate(changed):
        out[i :: len(changed)] = images[i :: len(changed)]
    return out


def known_split(
    detector: Detector, source: str, root: Path | None, store: Path
) -> tuple[PreparedImages, PreparedImages]:
    """Images that the model was trained on, and held out; all are prepared into `store`, once."""
    if store.exists():
        p = detector.preparation
        images = PreparedImages(store, (p.channels, p.height, p.width))
    else:
        images = store_source(open_source(source, root=root), detector.preparation, store)
    return detector.model.trained_split(images)


def write_validation(
    detector: Detector, source: str, root: Path | None, folder: Path, count: int
) -> tuple[str, str]:
    """Sources of `count` held-out images and of `count` other held-out ones, shifted."""
    _, held = known_split(detector, source, root, folder / "images.u8")
    if len(held) < 2 * count:
        raise SystemExit(f"{len(held)} images were held out: need {2 * count}")
    pixels = held.pixels(torch.arange(2 * count))
    path = folder / f"validation-{count}.npz"
    normal, odd = (x.permute(0, 2, 3, 1) for x in (pixels[:count], shifted(pixels[count:])))
    np.savez(path, normal=normal.numpy(), shifted=odd.numpy())
    return f"{path}:normal", f"{path}:shifted"
