"""How often `watch` announces drift by mistake in a month, and how soon when it is there.

Streams are drawn from real scores: normal images' from a table of in-domain test images and the
model's calibration together, of which the calibration of each month is drawn as well; strange ones'
from a table of theirs.
    python benchmarks/watch.py --model fashion-mnist --inside scores-0-test.parquet \
        --outside scores-1-digits.parquet
"""

import argparse
from pathlib import Path

import numpy as np

from liftmap.detector import Detector
from liftmap.engines.drift import DriftTest
from liftmap.engines.tables import read_scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--inside", type=Path, required=True)
    parser.add_argument("--outside", type=Path, nargs="+", required=True)
    parser.add_argument("--months", type=int, default=50)
    parser.add_argument("--images", type=int, default=30_000, help="a month")
    parser.add_argument("--runs", type=float, nargs="+", default=[1e4, 1e5])
    parser.add_argument("--method", default="fast")
    asked = parser.parse_args()
    calibration = Detector.from_pretrained(asked.model, method=asked.method).judge.decides_by.scores
    pool = np.concatenate([calibration, read_scores(asked.inside)])
    size = len(calibration)
    print(f"{asked.months} months of {asked.images} images, calibrated on {size}, seed 0\n")
    print("| promised: images to a false alarm | observed | false alarms | months with none |")
    print("|---|---|---|---|")
    draw = np.random.default_rng(0)
    for run in asked.runs:
        counts = []
        for month in range(asked.months):
            test = DriftTest(draw.choice(pool, size).tolist(), run=run, seed=month)
            counts.append(len(list(test.alarms(draw.choice(pool, asked.images).tolist()))))
        total = sum(counts)
        watched = asked.months * asked.images
        between = f"{watched / total:,.0f}" if total else f"more than {watched:,}"
        print(f"| {run:,.0f} | {between} | {total} | {sum(count == 0 for count in counts)} |")
    print("\n| strange images | share | run | delay in images: median | 90% quantile | missed |")
    print("|---|---|---|---|---|---|")
    for path in asked.outside:
        strange = read_scores(path)
        for share in (0.01, 0.05, 0.2, 1.0):
            for run in asked.runs:
                delays = [
                    delay(pool, strange, size, share, run, asked.images, draw, month)
                    for month in range(asked.months)
                ]
                missed = sum(d is None for d in delays)
                known = [asked.images if d is None else d for d in delays]
                p50, p90 = np.quantile(known, [0.5, 0.9])
                name = path.stem.removeprefix("scores-")
                print(f"| {name} | {share:.0%} | {run:,.0f} | {p50:,.0f} | {p90:,.0f} | {missed} |")


def delay(
    pool: np.ndarray,
    strange: np.ndarray,
    size: int,
    share: float,
    run: float,
    images: int,
    draw: np.random.Generator,
    seed: int,
) -> int | None:
    """Images from the tenth day, when strange ones begin to come, to the alarm; None if never."""
    test = DriftTest(draw.choice(pool, size).tolist(), run=run, seed=seed)
    for _ in test.alarms(draw.choice(pool, images // 3).tolist()):
        pass  # a false one: it starts anew
    rest = images - images // 3
    mixed = np.where(draw.random(rest) < share, draw.choice(strange, rest), draw.choice(pool, rest))
    found = next(test.alarms(mixed.tolist()), None)
    return None if found is None else found + 1


if __name__ == "__main__":
    main()
