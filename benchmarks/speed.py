"""Methods side by side: AUROC, network evaluations, seconds an image, and the frontier of both.

A method is SAMPLERxATTEMPTS:DISTANCE, the sampler as in `steps.py`: paperx10:lpips is the paper's,
renoise-quadratic-5@0.5x2:lpips+ssim takes two attempts of five steps from noise time 0.5. The first
is what the others are compared with, on the same images. Scales of combined distances are the
model's. Timing is done apart from the scores, all methods in turn in one process, on full batches
of the in-domain images.

    python benchmarks/speed.py --in FashionMNIST/t10k-images-idx3-ubyte.gz \\
        --out MNIST/t10k-images-idx3-ubyte.gz "KMNIST/t10k-images-idx3-ubyte.gz[8000:]" --work DIR
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from redraws import ATTEMPTS, columns, measured, sampler, scores

from liftmap.detector import Detector
from liftmap.evaluation.metrics import evaluate_scores, paired_auroc_difference
from liftmap.evaluation.speed import Speed, latency, matrix_peak, measure_speed
from liftmap.files import atomic_path
from liftmap.images.entry import take
from liftmap.images.sources import open_source
from liftmap.stages.method import Method


class Named(NamedTuple):
    """SAMPLERxATTEMPTS:DISTANCE, taken apart."""

    name: str
    sampler: str
    attempts: int
    distance: str

    @property
    def method(self) -> Method:
        """As the detector takes it."""
        return Method(sampler=sampler(self.sampler), attempts=self.attempts, distance=self.distance)


def named(text: str) -> Named:
    how, _, distance = text.partition(":")
    name, _, attempts = how.rpartition("x")
    if not 0 < int(attempts) <= ATTEMPTS:
        raise SystemExit(f"{text}: need 1 to {ATTEMPTS} attempts")
    return Named(text, name, int(attempts), distance)


def side(model: str, method: Named, spec: str, work: Path, limit: int) -> np.ndarray:
    """Scores of one source's images by one method."""
    distances = measured(model, method.sampler, spec, work, limit)
    scales = None
    if "+" in method.distance:
        scales = Detector.from_pretrained(model, method=method.method).judge.scales
    return scores(columns(distances, method.attempts, method.distance), scales)


def draw_frontier(points: dict[str, dict[str, tuple[float, float]]], path: Path) -> None:
    """AUROC against seconds an image; a colour an OOD source."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for out, by_method in points.items():
        seconds, aurocs = zip(*by_method.values(), strict=True)
        axis.scatter(seconds, aurocs, label="/".join(Path(out).parts[-2:]))
    for name, at in next(iter(points.values())).items():
        axis.annotate(name, at, fontsize=6, xytext=(0, 5), textcoords="offset points", ha="center")
    axis.margins(0.15)
    axis.set(xscale="log", xlabel="seconds an image", ylabel="AUROC")
    axis.grid(alpha=0.3)
    axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--in", dest="inside", required=True)
    parser.add_argument("--out", nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=1000, help="images a source")
    parser.add_argument("--timed", type=int, default=50, help="images timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="time all steps of long methods")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[
            "referencex10:lpips",
            "renoise-quadratic-7@0.5x4:lpips+ssim",
            "renoise-quadratic-5@0.5x2:lpips+ssim",
        ],
    )
    asked = parser.parse_args()
    methods = [named(text) for text in asked.methods]
    found = {
        (m, spec): side(asked.model, m, spec, asked.work, asked.limit)
        for m in methods
        for spec in (asked.inside, *asked.out)
    }
    detectors = [Detector.from_pretrained(asked.model, method=m.method) for m in methods]
    source = take(open_source(asked.inside), asked.timed)
    pixels = torch.stack([detectors[0].preparation(entry.load()) for entry in source])
    speeds = measure_speed(detectors, pixels, rounds=asked.rounds, whole=asked.whole)
    print_costs(methods, detectors, speeds, pixels)
    points: dict[str, dict[str, tuple[float, float]]] = {spec: {} for spec in asked.out}
    print("\n| method | OOD | AUROC (95% interval) | FPR95 | against the first (95% interval) |")
    print("|---|---|---|---|---|")
    for spec in asked.out:
        first = (found[methods[0], asked.inside], found[methods[0], spec])
        for method, speed in zip(methods, speeds, strict=True):
            pair = (found[method, asked.inside], found[method, spec])
            area, against = evaluate_scores(*pair), paired_auroc_difference(*pair, *first)
            points[spec][method.name] = (speed.seconds, area.auroc.value)
            print(
                f"| {method.name} | {spec} | {area.auroc.value:.4f} ({area.auroc.low:.4f} to "
                f"{area.auroc.high:.4f}) | {area.fpr95.value:.4f} | {against.value:+.4f} "
                f"({against.low:+.4f} to {against.high:+.4f}) |"
            )
    draw_frontier(points, asked.work / "frontier.png")


def print_costs(
    methods: list[Named], detectors: list[Detector], speeds: list[Speed], pixels: torch.Tensor
) -> None:
    """The table of costs; the first method is what the others are compared with."""
    peak = matrix_peak(detectors[0].device, detectors[0].denoiser.precision)
    print(f"matrix peak {peak / 1e9:.0f} GFLOP/s; {len(pixels)} images timed\n")
    print(
        "| method | evaluations an image | s an image | images/s | faster | of matrix peak "
        "| memory, MB | one image alone, ms: p50, p95 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for method, detector, speed in zip(methods, detectors, speeds, strict=True):
        alone = ""
        if speed.evaluations <= 500:  # longer ones are not for answering one image at a time
            p50, p95 = latency(detector, pixels)
            alone = f"{1000 * p50:.0f}, {1000 * p95:.0f}"
        timed = "" if speed.share_timed == 1 else f" (from {speed.share_timed:.0%} of its steps)"
        megabytes = "" if speed.megabytes is None else f"{speed.megabytes:.0f}"
        print(
            f"| {method.name}{timed} | {speed.evaluations} | {speed.seconds:.4f} "
            f"| {1 / speed.seconds:.2f} | {speeds[0].seconds / speed.seconds:.1f}x "
            f"| {speed.peak_share:.0%} | {megabytes} | {alone} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
