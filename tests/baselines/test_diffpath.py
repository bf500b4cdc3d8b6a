"""On data with a closed form: N(0, 1) by pixel under VP, where the path turns by known angles."""

import math

import torch
from tiny import pixels, small_model

from liftmap.baselines.diffpath import DiffPath
from liftmap.diffusion.denoiser import Prediction
from liftmap.diffusion.process import VP
from liftmap.images.prepare import to_model_range


def test_the_six_sums_of_a_path_with_a_closed_form() -> None:
    """With alpha = cos a, sigma = sin a: image = cos a x, noise = sin a x, x' = cos(a' - a) x."""
    scorer = DiffPath(small_model(), device="cpu")
    process, asked = VP(), []

    def denoiser(x: torch.Tensor, t: float) -> Prediction:
        asked.append(t)
        at = torch.tensor(t, dtype=torch.float64)
        return Prediction((process.alpha(at) * x).float(), (process.sigma(at) * x).float())

    denoiser.device, denoiser.process = torch.device("cpu"), process  # type: ignore[attr-defined]
    scorer.denoiser = denoiser  # type: ignore[assignment]
    images = pixels(2)
    found = scorer.answers(images)

    times = [1e-3, *(i / 10 for i in range(1, 10))]
    angles = [math.asin(process.sigma(torch.tensor(t, dtype=torch.float64)).item()) for t in times]
    size, sizes = math.cos(angles[0]), []
    for i, angle in enumerate(angles):
        size *= math.cos(angle - angles[i - 1]) if i else 1.0
        sizes.append(math.sin(angle) * size)
    x = to_model_range(images).double().flatten(1)
    noises = torch.stack([s * x for s in sizes], 1)
    changes = 10 * noises.diff(dim=1)
    expected = [part.pow(n).sum((1, 2)) for part in (noises, changes) for n in (1, 2, 3)]
    assert torch.allclose(found.double(), torch.stack(expected, 1), rtol=1e-3, atol=1e-2)
    assert asked == times and scorer.evaluations == 10
