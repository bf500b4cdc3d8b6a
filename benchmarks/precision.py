"""How far p-values move when a model is calibrated in one precision and scores in the other.

Images are measured once in each precision. The first give the calibration, the others are judged.

    python benchmarks/precision.py --source FashionMNIST/t10k-images-idx3-ubyte.gz
"""

import argparse
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from liftmap.detector import Detector
from liftmap.diffusion.denoiser import Precision
from liftmap.images.entry import take
from liftmap.images.sources import open_source
from liftmap.model import Model
from liftmap.stages.judge import Judge
from liftmap.stages.redraw import Measured

PRECISIONS: tuple[Precision, Precision] = ("bf16", "float32")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--method", default="fast")
    parser.add_argument("--source", required=True, help="images not trained on")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--calibrate", type=int, default=1000, help="images that calibrate")
    parser.add_argument("--images", type=int, default=1000, help="images that are judged")
    parser.add_argument("--rate", type=float, default=0.05)
    asked = parser.parse_args()
    source = take(open_source(asked.source, root=asked.root), asked.calibrate + asked.images)
    model = Model.load(asked.model)
    detectors = {p: Detector(model, method=asked.method, precision=p) for p in PRECISIONS}
    method, prepare = detectors["bf16"].method, model.preparation
    pixels = torch.stack([prepare(entry.load()) for entry in source])
    found = {p: measured(detector, pixels) for p, detector in detectors.items()}
    known = torch.arange(asked.calibrate)
    new = torch.arange(asked.calibrate, len(pixels))
    print(
        "| calibrated in | scored in | images | p moves by at most | on average | decisions "
        f"that change at {asked.rate:.0%} | flagged | in the calibration's own precision |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for mine, other in (PRECISIONS, PRECISIONS[::-1]):
        judge = Judge.learn(method, found[mine].of(known), model.density, precision=mine)
        both = [judge.scores(judge.stopped(found[p].of(new))) for p in (mine, other)]
        own, moved = (judge.decide(scores, asked.rate) for scores in both)
        moves = (own.p_values - moved.p_values).abs()
        changed = (own.is_ood != moved.is_ood).double().mean().item()
        print(
            f"| {mine} | {other} | {len(new)} | {moves.max():.3f} | {moves.mean():.4f} | "
            f"{changed:.2%} | {moved.is_ood.double().mean():.1%} | "
            f"{own.is_ood.double().mean():.1%} |",
            flush=True,
        )


def measured(detector: Detector, pixels: UInt8[Tensor, "n c h w"]) -> Measured:
    """What the detector measures of all of them, batch by batch."""
    parts = [detector.measure(some) for some in torch.split(pixels, detector.batch)]
    return Measured(*(torch.cat(part) for part in zip(*parts, strict=True)))


if __name__ == "__main__":
    main()
