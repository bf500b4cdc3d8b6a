"""What each kind of evidence sees of synthetic shifts: redraws, noise norms, features, and sums.

Features are the Mahalanobis distance of AlexNet's last activations, which LPIPS computes anyway.

On images held out of the model's training and shifted versions of others (`validation.py`), by one
method with all attempts. A fifth of the normal images, at most 200, sets the scales.

    python benchmarks/shifts.py --model cifar10 --source cifar10_train.npz:images --work DIR
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from validation import SHIFTS, known_split, shifted

from liftmap.baselines.mahalanobis import Mahalanobis
from liftmap.cli.progress import CountProgress
from liftmap.detector import Detector
from liftmap.evaluation.metrics import auroc
from liftmap.images.entry import readable
from liftmap.images.sources import open_source
from liftmap.stages.aggregate import aggregate
from liftmap.stages.judge import scale_images
from liftmap.stages.method import find_method
from liftmap.stages.redraw import Measured
from liftmap.stages.scales import Scale, Scales


def measured(detector: Detector, pixels: Tensor, name: str) -> Measured:
    from rich.console import Console

    found = []
    with CountProgress(Console(stderr=True), name) as on_batch:
        for part in torch.split(pixels, detector.batch):
            found.append(detector.measure(part))
            on_batch(sum(len(m.distances) for m in found), len(pixels))
    return Measured(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--source", required=True, help="what the model was trained on")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--method", default="fast")
    parser.add_argument("--steps", type=int, help="other than the method's")
    parser.add_argument("--attempts", type=int, help="other than the method's")
    parser.add_argument("--images", type=int, default=500, help="a side")
    parser.add_argument("--others", nargs="*", default=[], help="OOD sources, not for tests")
    asked = parser.parse_args()
    base = find_method(asked.method)
    method = replace(
        base,
        sampler=replace(base.sampler, steps=asked.steps or base.sampler.steps),
        attempts=asked.attempts or base.attempts,
        norms=True,
        early_stop=None,
    )
    detector = Detector.from_pretrained(asked.model, method=method)
    train, held = known_split(detector, asked.source, asked.root, asked.work / "images.u8")
    count = min(asked.images, len(held) // 2)
    pixels = held.pixels(torch.arange(2 * count))
    sides = {"normal": pixels[:count], "shifted": shifted(pixels[count:])}
    for spec in asked.others:
        some = [detector.preparation(image) for _, image in readable(open_source(spec))]
        sides[Path(spec).stem] = torch.stack(some)
    found = {name: measured(detector, images, name) for name, images in sides.items()}
    for_rule = scale_images(count)
    rest = torch.ones(count, dtype=torch.bool)
    rest[for_rule] = False
    density = detector.model.density
    if density is None:
        raise SystemExit("the model has no density of noise norms: calibrate it")
    features = Mahalanobis(detector.preparation)
    features.learn(train, held)
    extras = {
        "norms": {name: -density.log_density(m.norms) for name, m in found.items()},
        "features": {name: features.scores(images) for name, images in sides.items()},
    }
    kinds = method.distance.split("+")

    def scores(name: str, columns: list[int], added: list[str]) -> np.ndarray:
        total = torch.zeros(len(found[name].distances), dtype=torch.float64)
        if columns:
            usual = found["normal"].distances[for_rule][..., columns]
            distances = found[name].distances[..., columns]
            several = len(columns) > 1
            evidence = Scales.from_distances(usual).strongest(distances) if several else distances
            total += aggregate(evidence if several else evidence[..., 0], method.aggregate)
        for extra in added:
            scale = Scale.from_values(extras[extra]["normal"][for_rule])
            total += scale.standard(extras[extra][name])
        return total.numpy()

    every = list(range(len(kinds)))
    variants: dict[str, tuple[list[int], list[str]]] = {k: ([i], []) for i, k in enumerate(kinds)}
    variants |= {"redraws": (every, []), "norms": ([], ["norms"]), "features": ([], ["features"])}
    variants |= {f"redraws + {name}": (every, [name]) for name in extras}
    variants["norms + features"] = ([], [*extras])
    variants["redraws + norms + features"] = (every, [*extras])
    others = [name for name in sides if name not in ("normal", "shifted")]
    settings = f"{asked.method}, {method.sampler.steps} steps, {method.attempts} attempts"
    print(f"{int(rest.sum())} + {count} images, {settings}\n")
    print(f"| evidence | AUROC | {' | '.join([*SHIFTS, *others])} |")
    print("|---" * (2 + len(SHIFTS) + len(others)) + "|")
    for name, (columns, added) in variants.items():
        inside = scores("normal", columns, added)[rest.numpy()]
        odd = scores("shifted", columns, added)
        cells = [auroc(inside, odd[i :: len(SHIFTS)]) for i in range(len(SHIFTS))]
        cells += [auroc(inside, scores(other, columns, added)) for other in others]
        told = " | ".join(f"{value:.3f}" for value in cells)
        print(f"| {name} | {auroc(inside, odd):.4f} | {told} |")


if __name__ == "__main__":
    main()
