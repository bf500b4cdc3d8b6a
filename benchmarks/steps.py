"""What fewer steps, fewer attempts and other distances cost and gain, beside the paper's method.

On validation images and synthetic shifts of them (`validation.py`), never on test images. A fifth
of the normal images, at most 200, sets the scales of combined distances and is left out.

The reference is the paper's sampler with 100 steps, ten attempts, LPIPS. `paper` itself, 1,000
steps, stands beside it on a few images: --few.

    python benchmarks/steps.py --source torchvision:FashionMNIST:train --root DATA --work DIR
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from redraws import columns, measured, sampler, scores
from torch import Tensor
from validation import SHIFTS, write_validation

from liftmap.aggregate import Scales, scale_rows
from liftmap.detector import Detector
from liftmap.evaluation.metrics import auroc, paired_auroc_difference


class Side(NamedTuple):
    """Distances (n, attempts, kinds) of the normal and of the shifted images."""

    normal: Tensor
    shifted: Tensor


def scored(side: Side, attempts: int, distance: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of both sides, without the normal images that set the scales."""
    normal, shifted = (columns(x, attempts, distance) for x in side)
    for_scales = scale_rows(len(normal))
    rest = torch.ones(len(normal), dtype=torch.bool)
    rest[for_scales] = False
    scales = Scales.from_distances(normal[for_scales]) if "+" in distance else None
    return scores(normal[rest], scales), scores(shifted, scales)


def table(sides: dict[str, Side], attempts: list[int], distances: list[str]) -> Iterator[str]:
    """A Markdown row for each sampler, number of attempts and distance."""
    reference = sides.get("reference")
    yield (
        "| sampler, steps | attempts | evaluations an image | distance | AUROC "
        f"| against the reference (95% interval) | {' | '.join(SHIFTS)} |"
    )
    yield "|---" * (6 + len(SHIFTS)) + "|"
    for name, side in sides.items():
        for count in attempts:
            for distance in distances:
                normal, shifted = scored(side, count, distance)
                against = ""
                if reference:
                    found = paired_auroc_difference(
                        normal, shifted, *scored(reference, 10, "lpips")
                    )
                    against = f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
                kinds = (auroc(normal, shifted[i :: len(SHIFTS)]) for i in range(len(SHIFTS)))
                yield (
                    f"| {name} | {count} | {count * sampler(name).evaluations} | {distance} "
                    f"| {auroc(normal, shifted):.4f} | {against} "
                    f"| {' | '.join(f'{value:.3f}' for value in kinds)} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--source", required=True, help="what the model was trained on")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--few", type=int, default=60, help="images a side of paper; 0: without")
    parser.add_argument("--many", type=int, default=1000, help="images a side of the others")
    parser.add_argument(
        "--samplers",
        nargs="+",
        default=["time-10", "quadratic-5", "quadratic-10", "quadratic-20", "reference"],
        help="SPACING-STEPS, or reference",
    )
    parser.add_argument("--attempts", type=int, nargs="+", default=[10, 4, 2])
    parser.add_argument("--distances", nargs="+", default=["lpips", "mse", "ssim", "lpips+ssim"])
    asked = parser.parse_args()
    detector = Detector.from_pretrained(asked.model)

    def sides(names: list[str], count: int) -> dict[str, Side]:
        specs = write_validation(detector, asked.source, asked.root, asked.work, count)
        return {n: Side(*(measured(asked.model, n, s, asked.work) for s in specs)) for n in names}

    print(f"{asked.many} + {asked.many} images")
    print("\n".join(table(sides(asked.samplers, asked.many), asked.attempts, asked.distances)))
    if asked.few:
        few = sides(["paper", "reference"], asked.few)
        paper, reference = (np.concatenate(scored(few[n], 10, "lpips")) for n in few)
        print(
            f"\n{asked.few} + {asked.few} images; scores of paper and reference correlate: "
            f"{np.corrcoef(paper, reference)[0, 1]:.3f}"
        )
        print("\n".join(table(few, [10], ["lpips"])))


if __name__ == "__main__":
    main()
