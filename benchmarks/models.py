"""Models of one set side by side on the same images: AUROC of each, and less the first's, paired.

Scores are kept as `liftmap benchmark` keeps them, in WORK/cells.parquet. Without --in, the
in-domain images are those that the training held out: for choosing, not for reporting.

    python benchmarks/models.py --models models/kmnist runs/kmnist --work DIR \\
        --train "KMNIST/t10k-images-idx3-ubyte.gz[:8000]" --out characters_28.npz:images
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from validation import known_split

from liftmap.detector import Detector
from liftmap.evaluation.benchmark import BenchmarkListener, Participant, Task
from liftmap.evaluation.entrants import find_entrants
from liftmap.evaluation.metrics import Interval, evaluate_scores, paired_auroc_difference
from liftmap.images.entry import Source, take
from liftmap.images.sources import open_source


def written(found: Interval, sign: str = "") -> str:
    """The value and its interval in brackets."""
    low, high = (f"{x:{sign}.4f}" for x in (found.low, found.high))
    return f"{found.value:{sign}.4f} ({low} to {high})"


def held_out(model: str, train: str, work: Path) -> Source:
    """The images that the model's training held out, as a source."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{Path(model).name}-held-out.npz"
    if not path.exists():
        detector = Detector.from_pretrained(model)
        _, held = known_split(detector, train, None, work / f"{Path(model).name}.u8")
        np.savez(path, images=held.pixels(torch.arange(len(held))).permute(0, 2, 3, 1).numpy())
    return open_source(f"{path}:images")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", required=True, help="the first: what others replace")
    parser.add_argument("--train", required=True, help="source that all were trained on")
    parser.add_argument("--in", dest="inside", help="source; the held-out images by default")
    parser.add_argument("--out", nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", default=["combined", "lmd"])
    parser.add_argument("--limit", type=int, default=1000, help="images a source")
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    opened = (
        open_source(asked.inside)
        if asked.inside
        else held_out(asked.models[0], asked.train, asked.work)
    )
    inside, *outside = (take(s, asked.limit) for s in (opened, *map(open_source, asked.out)))
    print("| method | OOD | model | images | AUROC (95%) | less the first's (95%) | FPR95 (95%) |")
    print("|---|---|---|---|---|---|---|")
    for name, entrant in find_entrants(asked.methods).items():
        tasks = [Task(m, open_source(asked.train), inside, outside) for m in asked.models]
        rows = [
            Participant(task, name, entrant, 0, asked.work, BenchmarkListener()) for task in tasks
        ]
        for other in outside:
            sides = [(row.cell(inside).scores, row.cell(other).scores) for row in rows]
            pairs = [(a[entrant.column], b[entrant.column]) for a, b in sides]
            for model, pair in zip(asked.models, pairs, strict=True):
                found, apart = evaluate_scores(*pair), paired_auroc_difference(*pair, *pairs[0])
                print(
                    f"| {name} | {Path(other.name).name} | {model} | {found.n_in} + {found.n_out} "
                    f"| {written(found.auroc)} | {written(apart, '+')} | {written(found.fpr95)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
