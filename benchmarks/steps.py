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
from redraws import columns, evidence, measured, sampler, scores
from torch import Tensor
from validation import SHIFTS, write_validation

from liftmap.detector import Detector
from liftmap.evaluation.metrics import auroc, paired_auroc_difference
from liftmap.stages.aggregate import aggregate
from liftmap.stages.judge import Judge, scale_images
from liftmap.stages.method import METHODS, PAIR, Method
from liftmap.stages.redraw import Measured
from liftmap.stages.scales import Scales


class Sides(NamedTuple):
    """Distances (n, attempts, kinds) of the normal and shifted images, and of other sources."""

    normal: Tensor
    shifted: Tensor
    others: dict[str, Tensor]


class Scored(NamedTuple):
    """Scores of the normal and shifted images, and of other sources."""

    normal: np.ndarray
    shifted: np.ndarray
    others: dict[str, np.ndarray]

    def kinds(self) -> Iterator[float]:
        """AUROC of each kind of shift, then of each other source."""
        for i in range(len(SHIFTS)):
            yield auroc(self.normal, self.shifted[i :: len(SHIFTS)])
        for other in self.others.values():
            yield auroc(self.normal, other)


class Split(NamedTuple):
    """Normal images that set the rule (scales, settled score), and those that are scored by it."""

    rule: Tensor
    rest: Tensor
    scales: Scales | None


def split(normal: Tensor, distance: str) -> Split:
    """Chosen columns of the normal images, as a calibration parts them."""
    for_rule = scale_images(len(normal))
    kept = torch.ones(len(normal), dtype=torch.bool)
    kept[for_rule] = False
    scales = Scales.from_distances(normal[for_rule]) if "+" in distance else None
    return Split(normal[for_rule], normal[kept], scales)


def scored(sides: Sides, attempts: int, distance: str) -> Scored:
    """Scores without the normal images that set the scales."""
    normal = split(columns(sides.normal, attempts, distance), distance)
    others = {
        name: scores(columns(x, attempts, distance), normal.scales)
        for name, x in sides.others.items()
    }
    shifted = scores(columns(sides.shifted, attempts, distance), normal.scales)
    return Scored(scores(normal.rest, normal.scales), shifted, others)


def stopped(evidence: Tensor, settled: float | None) -> tuple[Tensor, Tensor]:
    """Scores of evidence (n, attempts), and how many attempts each took until it settled."""
    method = Method(attempts=evidence.shape[1], distance="mse", early_stop=0.5)
    judge = Judge(method, settled=settled)
    found = Measured.whole(evidence[..., None], torch.empty(len(evidence), 0))
    took = judge.stopped(found)
    return judge.scores(took), took.attempts


def early_stops(
    sides: dict[str, Sides], attempts: list[int], distance: str, quantiles: list[float]
) -> Iterator[str]:
    """A Markdown row for each sampler, most attempts and quantile at which images stop early."""
    yield (
        "| sampler, steps | attempts at most | stops below | AUROC | shifted flagged at 1%, 5% "
        "| attempts of a normal image | of a shifted one |"
    )
    yield "|---" * 7 + "|"
    for name, side in sides.items():
        for count in attempts:
            normal = split(columns(side.normal, count, distance), distance)
            rule, rest = (evidence(x, normal.scales) for x in (normal.rule, normal.rest))
            shifted = evidence(columns(side.shifted, count, distance), normal.scales)
            for quantile in [None, *quantiles]:
                settled = None if quantile is None else aggregate(rule).quantile(quantile).item()
                (inside, took), (outside, took_outside) = (
                    stopped(e, settled) for e in (rest, shifted)
                )
                flagged = [(outside > inside.quantile(1 - r)).float().mean() for r in (0.01, 0.05)]
                yield (
                    f"| {name} | {count} | {quantile or 'never'} "
                    f"| {auroc(inside.double().numpy(), outside.double().numpy()):.4f} "
                    f"| {flagged[0]:.3f}, {flagged[1]:.3f} "
                    f"| {took.float().mean():.2f} | {took_outside.float().mean():.2f} |"
                )


def table(sides: dict[str, Sides], attempts: list[int], distances: list[str]) -> Iterator[str]:
    """A Markdown row for each sampler, number of attempts and distance."""
    reference = sides.get("reference")
    base = scored(reference, 10, "lpips") if reference else None
    names = [*SHIFTS, *next(iter(sides.values())).others]
    yield (
        "| sampler, steps | attempts | evaluations an image | distance | AUROC "
        f"| against the reference (95% interval) | {' | '.join(names)} |"
    )
    yield "|---" * (6 + len(names)) + "|"
    for name, side in sides.items():
        for count in attempts:
            for distance in distances:
                found = scored(side, count, distance)
                against = ""
                if base:
                    apart = paired_auroc_difference(*found[:2], *base[:2])
                    against = f"{apart.value:+.4f} ({apart.low:+.4f} to {apart.high:+.4f})"
                yield (
                    f"| {name} | {count} | {count * sampler(name).evaluations} | {distance} "
                    f"| {auroc(*found[:2]):.4f} | {against} "
                    f"| {' | '.join(f'{value:.3f}' for value in found.kinds())} |"
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
        default=["renoise-quadratic-7@0.5", "renoise-quadratic-5@0.5", "quadratic-10", "reference"],
        help="[renoise-]SPACING-STEPS[@START], or reference",
    )
    parser.add_argument("--attempts", type=int, nargs="+", default=[10, 4, 2])
    parser.add_argument("--distances", nargs="+", default=["lpips", "mse", "ssim", "lpips+ssim"])
    parser.add_argument(
        "--early-stop", type=float, nargs="*", default=[0.5, 0.7, 0.8], help="quantiles"
    )
    parser.add_argument(
        "--others", nargs="*", default=[], help="further OOD sources, not for tests"
    )
    asked = parser.parse_args()
    detector = Detector.from_pretrained(asked.model)

    def sides(names: list[str], count: int, attempts: int, others: list[str]) -> dict[str, Sides]:
        specs = write_validation(detector, asked.source, asked.root, asked.work, count)

        def distances(name: str, spec: str) -> Tensor:
            return measured(asked.model, name, spec, asked.work, attempts=attempts)

        found = {}
        for name in names:
            normal, shifted = (distances(name, spec) for spec in specs)
            more = {Path(spec).stem: distances(name, spec) for spec in others}
            found[name] = Sides(normal, shifted, more)
        return found

    print(f"{asked.many} + {asked.many} images")
    many = sides(asked.samplers, asked.many, max(asked.attempts), asked.others)
    print("\n".join(table(many, asked.attempts, asked.distances)))
    if asked.early_stop:
        most, distance = [n for n in asked.attempts if n > PAIR], METHODS["fast"].distance
        print(f"\nstopping early after a pair of attempts, {distance}")
        print("\n".join(early_stops(many, most, distance, asked.early_stop)))
    if asked.few:
        few = sides(["paper", "reference"], asked.few, 10, [])
        paper, reference = (np.concatenate(scored(few[n], 10, "lpips")[:2]) for n in few)
        together = np.corrcoef(paper, reference)[0, 1]
        print(f"\n{asked.few} + {asked.few} images; paper and reference correlate {together:.3f}")
        print("\n".join(table(few, [10], ["lpips"])))


if __name__ == "__main__":
    main()
