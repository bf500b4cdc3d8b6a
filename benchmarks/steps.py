"""How few steps separate as well as the paper's 1,000: a chain of paired comparisons.

`paper` (1,000 Euler-Maruyama steps) against the same sampler with 100 steps on a few images, then
that against stochastic DDIM with fewer steps on many. All on validation images and synthetic
shifts of them, never on test images.

    python benchmarks/steps.py --source torchvision:FashionMNIST:train --root DATA --work DIR
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from validation import SHIFTS, write_validation

from liftmap.detector import Detector
from liftmap.diffusion.samplers import SamplerSettings
from liftmap.engines.local import score_source
from liftmap.engines.tables import read_scores
from liftmap.evaluation.metrics import auroc, paired_auroc_difference
from liftmap.images.sources import open_source
from liftmap.terminal import ScoreProgress

CANDIDATES = ["time-10", "time-20", "quadratic-10", "quadratic-20", "quadratic-30"]
REFERENCE_NAME = "euler-maruyama-100"
REFERENCE = replace(METHODS["paper"], sampler=SamplerSettings("euler-maruyama", steps=100))


def candidate(name: str) -> Method:
    """Stochastic DDIM from SPACING-STEPS, such as quadratic-20."""
    spacing, _, steps = name.rpartition("-")
    return replace(METHODS["fast"], sampler=SamplerSettings("ddim", int(steps), spacing))


def scores(model: str, name: str, method: Method, spec: str, work: Path) -> np.ndarray:
    table = work / f"{Path(spec).name.replace(':', '-')}-{name}.parquet"
    if not table.exists():
        detector = Detector.from_pretrained(model, method=method)
        source = open_source(spec)
        with ScoreProgress(Console(stderr=True), source.count(), table.stem) as on_batch:
            score_source(detector, source, table, to="distances", on_batch=on_batch)
    return read_scores(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--source", required=True, help="what the model was trained on")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--few", type=int, default=60, help="images a side, paper's link; 0: none")
    parser.add_argument("--many", type=int, default=1000, help="images a side, candidates' link")
    parser.add_argument("--candidates", nargs="+", default=CANDIDATES, help="SPACING-STEPS")
    asked = parser.parse_args()
    detector = Detector.from_pretrained(asked.model)

    def side(name: str, method: Method, count: int) -> tuple[np.ndarray, np.ndarray]:
        specs = write_validation(detector, asked.source, asked.root, asked.work, count)
        normal, shifted = (scores(asked.model, name, method, s, asked.work) for s in specs)
        return normal, shifted

    links = [(f"ddim-{name}", candidate(name), asked.many) for name in asked.candidates]
    if asked.few:
        links.append(("paper", METHODS["paper"], asked.few))
    # the cheap side of every link first: what a stopped run has finished is worth most
    compared = [(name, count, side(name, method, count)) for name, method, count in links]
    references = {count: side(REFERENCE_NAME, REFERENCE, count) for _, count, _ in compared}
    print("| a | b | images | AUROC a | AUROC b | a - b (95% interval) | correlation of scores |")
    print("|---|---|---|---|---|---|---|")
    for name, count, a in compared:
        b = references[count]
        found = paired_auroc_difference(*a, *b)
        together = np.corrcoef(np.concatenate(a), np.concatenate(b))[0, 1]
        print(
            f"| {name} | {REFERENCE_NAME} | {count} + {count} | {auroc(*a):.4f} | {auroc(*b):.4f}"
            f" | {found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f}) | {together:.3f} |"
        )
    print(f"\n| AUROC by shift | {' | '.join(SHIFTS)} |\n|---{'|---' * len(SHIFTS)}|")
    many = [(name, a) for name, count, a in compared if count == asked.many]
    for name, (normal, shifted) in [*many, (REFERENCE_NAME, references[asked.many])]:
        kinds = (auroc(normal, shifted[i :: len(SHIFTS)]) for i in range(len(SHIFTS)))
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in kinds)} |")


if __name__ == "__main__":
    main()
