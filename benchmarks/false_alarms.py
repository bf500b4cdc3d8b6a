"""Whether fresh in-domain images are flagged as often as promised.

python benchmarks/false_alarms.py --model fashion-mnist --scores scores-0-test.parquet
"""

import argparse
from pathlib import Path

import torch
from scipy.stats import betabinom, binom

from liftmap.detector import Detector
from liftmap.engines.tables import read_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--scores", type=Path, required=True, help="table of in-domain test images")
    parser.add_argument("--method", default="fast")
    asked = parser.parse_args()
    calibration = Detector.from_pretrained(asked.model, method=asked.method).judge.decides_by
    scores = torch.tensor(read_scores(asked.scores))
    n, known = len(scores), len(calibration.scores)
    print(f"{n} test images against {known} calibration scores\n")
    print(
        "| rate asked for | flagged | observed | binomial 95% | with the calibration's own draw |"
    )
    print("|---|---|---|---|---|")
    for rate in (0.01, 0.05, 0.1):
        flagged = int(calibration.flagged(calibration.p_values(scores), rate).sum())
        low, high = binom.interval(0.95, n, rate)
        k = int(rate * (known + 1))
        low_b, high_b = betabinom.interval(0.95, n, k, known + 1 - k)
        print(
            f"| {rate:.0%} | {flagged} | {flagged / n:.4f} | {low / n:.4f} to {high / n:.4f} "
            f"| {low_b / n:.4f} to {high_b / n:.4f} |"
        )


if __name__ == "__main__":
    main()
