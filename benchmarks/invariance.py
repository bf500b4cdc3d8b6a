"""Whether a score depends on its batch: alone, in a batch of 7, of 256, in reversed order.

Distances are compared relatively, scores absolutely: they count spreads and lie around 0.

python benchmarks/invariance.py --source torchvision:FashionMNIST:test --root DATA
"""

import argparse
from pathlib import Path

import torch

from liftmap.detector import Detector
from liftmap.images.entry import take
from liftmap.images.sources import open_source
from liftmap.stages.judge import Scored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--source", required=True)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--precision", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--images", type=int, default=256)
    asked = parser.parse_args()
    print(
        "| precision | images | distances, relative: alone | batch of 7 | reversed "
        "| scores, in spreads: largest |"
    )
    print("|---|---|---|---|---|---|")
    for precision in asked.precision:
        detector = Detector.from_pretrained(asked.model, precision=precision)
        source = take(open_source(asked.source, root=asked.root), asked.images)
        pixels = torch.stack([detector.preparation(entry.load()) for entry in source])
        whole = detector.score_pixels(pixels)
        alone = [detector.score_pixels(pixels[i : i + 1]) for i in range(7)]
        backwards = detector.score_pixels(pixels.flip(0))
        others = [
            Scored(*(torch.cat(parts) for parts in zip(*alone, strict=True))),
            detector.score_pixels(pixels[:7]),
            Scored(*(part.flip(0) for part in backwards)),
        ]
        relative, absolute = [], []
        for other in others:
            count = len(other.scores)
            known, taken = whole.distances[:count], ~whole.distances[:count].isnan()
            if not torch.equal(other.attempts, whole.attempts[:count]):
                raise SystemExit("images took other numbers of attempts")
            relative.append(((other.distances - known).abs() / known)[taken].max().item())
            absolute.append((other.scores - whole.scores[:count]).abs().max().item())
        parts = " | ".join(f"{x:.1e}" for x in relative)
        print(
            f"| {precision} | {len(pixels)} | {parts} | {max(absolute):.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
