"""Redraws measured once and scored in many ways: shared by the benchmarks of steps and speed.

A run keeps all attempts' distances by LPIPS, MSE and SSIM, so that it serves every smaller number
of attempts and every combination of distances: the first attempts of ten are those of a shorter
method.
"""

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from liftmap.cli.progress import ScoreProgress
from liftmap.detector import Detector
from liftmap.diffusion.samplers import SamplerSettings
from liftmap.engines.local import score_source
from liftmap.engines.tables import read_distances
from liftmap.images.entry import take
from liftmap.images.sources import open_source
from liftmap.stages.aggregate import aggregate
from liftmap.stages.method import Method
from liftmap.stages.scales import Scales

KINDS = ("lpips", "mse", "ssim")
ATTEMPTS = 10
SAMPLERS = {
    "paper": SamplerSettings("euler-maruyama", 1000),
    "reference": SamplerSettings("euler-maruyama", 100),
}


def sampler(name: str) -> SamplerSettings:
    """The sampler "paper", "reference" or [renoise-]SPACING-STEPS[@START], as quadratic-5@0.5.

    The last is stochastic DDIM unless it says renoise; its path begins at noise time START, or 1.
    """
    if name in SAMPLERS:
        return SAMPLERS[name]
    kind = "renoise" if name.startswith("renoise-") else "ddim"
    path, _, start = name.removeprefix("renoise-").partition("@")
    spacing, _, steps = path.rpartition("-")
    return SamplerSettings(kind, int(steps), spacing, float(start or 1))


def measured(
    model: str,
    name: str,
    spec: str,
    work: Path,
    limit: int | None = None,
    attempts: int = ATTEMPTS,
) -> Tensor:
    """Distances (n, attempts, kinds) of a source's images, from an earlier run or a new one.

    work: a folder of one model's runs.
    """
    place = "-".join(Path(spec).parts[-2:]).replace(":", "-")
    table = work / f"{place}-{limit or 'all'}-{name}x{attempts}.parquet"
    if not table.exists():
        method = Method(sampler=sampler(name), attempts=attempts, distance="+".join(KINDS))
        detector = Detector.from_pretrained(model, method=method)
        source = take(open_source(spec), limit)
        with ScoreProgress(Console(stderr=True), source.count(), table.stem) as on_batch:
            score_source(detector, source, table, to="distances", on_batch=on_batch)
    return torch.from_numpy(read_distances(table)[1])


def columns(distances: Tensor, attempts: int, distance: str) -> Tensor:
    """The first attempts, and the kinds that a method's distance names."""
    return distances[:, :attempts][..., [KINDS.index(kind) for kind in distance.split("+")]]


def evidence(distances: Tensor, scales: Scales | None) -> Tensor:
    """Each attempt's evidence (n, attempts) from chosen columns; scales are for several kinds."""
    return scales.strongest(distances) if scales else distances[..., 0]


def scores(distances: Tensor, scales: Scales | None) -> np.ndarray:
    """Scores of chosen columns, from all their attempts."""
    return aggregate(evidence(distances, scales)).double().numpy()
