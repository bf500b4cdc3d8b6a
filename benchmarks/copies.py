"""How many copies are known again, and how many distinct images are called copies.

python benchmarks/copies.py cifar10.npz:images photos/ --size 32
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from PIL import Image, ImageEnhance

from liftmap.images.copies import Copy, Seen
from liftmap.images.entry import readable
from liftmap.images.prepare import Preparation
from liftmap.images.sources import open_source
from liftmap.images.store import store_source

COPIED = 2000  # images of which copies are made, spread over the source


def compressed(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=60)
    return Image.open(io.BytesIO(file.getvalue()))


def smaller(picture: Image.Image) -> Image.Image:
    sides = [max(2, round(0.9 * side)) for side in picture.size]
    return picture.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)


def brighter(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(1.05)


CHANGES: tuple[Callable[[Image.Image], Image.Image], ...] = (compressed, smaller, brighter)


def measure(spec: str, preparation: Preparation) -> None:
    source = open_source(spec)
    with tempfile.TemporaryDirectory() as folder:
        images = store_source(source, preparation, Path(folder) / "images.u8")
        nothing, everything = images.hold_out(len(images))
        begun = time.perf_counter()
        seen = Seen.of(everything, nothing)
        copies = seen.copies()
        seconds = time.perf_counter() - begun
    step = max(1, len(images) // COPIED)
    chosen = [picture for _, picture in islice(readable(source), 0, None, step)]
    told = [f"{len(images):,}", str(copies.exact[0]), f"{copies.near[0] / len(images):.2%}"]
    for change in CHANGES:
        found = seen.compare(torch.stack([preparation(change(picture)) for picture in chosen]))
        told.append(f"{(found != Copy.NONE).float().mean().item():.1%}")
    print("|", " | ".join([Path(spec).name, *told, f"{seconds:.1f}"]), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| set | images | exact | called near | compressed | smaller | brighter | seconds |")
    for spec in asked.sources:
        measure(spec, Preparation(asked.size, asked.size, asked.channels))


if __name__ == "__main__":
    main()
