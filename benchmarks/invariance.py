"""Whether a score depends on its batch: alone, in a batch of 7, of 256, in reversed order.

python benchmarks/invariance.py --source torchvision:FashionMNIST:test --root DATA
"""

import argparse
from pathlib import Path

import torch

from liftmap.detector import Detector
from liftmap.images.sources import open_source, take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--source", required=True)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--precision", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--images", type=int, default=256)
    asked = parser.parse_args()
    print("| precision | images | alone | batch of 7 | reversed | largest relative difference |")
    print("|---|---|---|---|---|---|")
    for precision in asked.precision:
        detector = Detector.from_pretrained(asked.model, precision=precision)
        source = take(open_source(asked.source, root=asked.root), asked.images)
        pixels = torch.stack([detector.preparation(entry.load()) for entry in source])
        whole = detector.score_pixels(pixels).scores
        alone = torch.cat([detector.score_pixels(pixels[i : i + 1]).scores for i in range(7)])
        seven = detector.score_pixels(pixels[:7]).scores
        backwards = detector.score_pixels(pixels.flip(0)).scores.flip(0)
        apart = [
            ((other - whole[: len(other)]).abs() / whole[: len(other)]).max().item()
            for other in (alone, seven, backwards)
        ]
        parts = " | ".join(f"{x:.1e}" for x in apart)
        print(f"| {precision} | {len(pixels)} | {parts} | {max(apart):.1e} |", flush=True)


if __name__ == "__main__":
    main()
