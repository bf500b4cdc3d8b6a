"""Methods against a reference on the same images: AUROC of each, and their paired difference.

Each option takes tables in one order: the in-domain source's first, then one of each OOD source.
The reference's are tables of distances that `speed.py` keeps in its --work; a score is then the
median over attempts of one kind. The others are tables of scores that `liftmap evaluate` wrote, of
which the first rows, as many as the reference has, are compared. --plot draws AUROC against seconds
an image, which `evaluate` noted beside its tables.

    python benchmarks/compare.py --reference work/FashionMNIST*x10.parquet work/MNIST*x10.parquet \\
        --scores evaluation-f/scores-0*.parquet evaluation-f/scores-1*.parquet
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from speed import draw_frontier

from liftmap.engines.tables import read_distances, read_scores
from liftmap.evaluation.metrics import evaluate_scores, paired_auroc_difference
from liftmap.stages.aggregate import aggregate


def reference_scores(path: Path, kind: str) -> np.ndarray:
    kinds, distances = read_distances(path)
    return aggregate(torch.from_numpy(distances[..., kinds.index(kind)])).double().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, nargs="+", required=True)
    parser.add_argument("--kind", default="lpips", help="the reference's distance")
    parser.add_argument("--scores", type=Path, nargs="+", action="append", required=True)
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--seconds", type=float, help="an image by the reference, for --plot")
    asked = parser.parse_args()
    reference = [reference_scores(path, asked.kind) for path in asked.reference]
    runs, seconds = {"reference": reference}, {"reference": asked.seconds}
    points: dict[str, dict[str, tuple[float, float]]] = {}
    for paths in asked.scores:
        if len(paths) != len(reference):
            parser.error(f"{len(paths)} tables of scores for {len(reference)} of the reference")
        pairs = zip(paths, reference, strict=True)
        record = json.loads((paths[0].parent / "evaluation.json").read_text())[0]
        seconds[paths[0].parent.name] = 1 / record["images_per_second"]
        runs[paths[0].parent.name] = [read_scores(path)[: len(r)] for path, r in pairs]
    print("| method | OOD table | images | AUROC (95% interval) | against the reference (95%) |")
    print("|---|---|---|---|---|")
    for place in range(1, len(reference)):
        for name, scores in runs.items():
            pair = scores[0], scores[place]
            found = evaluate_scores(*pair).auroc
            if seconds[name]:
                points.setdefault(asked.reference[place].stem, {})[name] = (
                    seconds[name],
                    found.value,
                )
            apart = paired_auroc_difference(*pair, reference[0], reference[place])
            print(
                f"| {name} | {asked.reference[place].stem} | {len(pair[0])} + {len(pair[1])} "
                f"| {found.value:.4f} ({found.low:.4f} to {found.high:.4f}) "
                f"| {apart.value:+.4f} ({apart.low:+.4f} to {apart.high:+.4f}) |"
            )
    if asked.plot:
        draw_frontier(points, asked.plot)


if __name__ == "__main__":
    main()
