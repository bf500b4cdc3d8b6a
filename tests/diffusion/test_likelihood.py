import math

import pytest
import torch
from exact import ExactDenoiser

from liftmap.diffusion.likelihood import log_likelihood
from liftmap.diffusion.process import VE, VP, Process, SubVP

MEANS, STDS, WEIGHTS = [-0.5, 0.6], [0.2, 0.3], [0.3, 0.7]


def density(x: torch.Tensor, noise: float, alpha: float) -> torch.Tensor:
    """The mixture's log-density by pixel, blurred as it is at the path's beginning."""
    parts = [
        math.log(w)
        + torch.distributions.Normal(alpha * m, math.hypot(alpha * s, noise)).log_prob(x)
        for m, s, w in zip(MEANS, STDS, WEIGHTS, strict=True)
    ]
    return torch.stack(parts).logsumexp(0)


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(sigma_max=200.0)])
def test_the_log_density_of_a_mixture_is_the_closed_forms(process: Process) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 1, 4, 4, generator=draw, dtype=torch.float64) * 0.5
    denoiser = ExactDenoiser(process, MEANS, STDS, WEIGHTS)
    probe = torch.randn(x.shape, generator=draw).sign()
    found, evaluations = log_likelihood(denoiser, x, probe)
    begin = torch.tensor(1e-3, dtype=torch.float64)
    noise, alpha = process.sigma(begin).item(), process.alpha(begin).item()
    expected = density(x, noise, alpha).flatten(1).sum(1)
    # pixels are independent: the probe's estimate of the trace is exact; what is left is the prior
    assert found == pytest.approx(expected, abs=0.02)
    assert 20 < evaluations < 2000


def test_a_tighter_tolerance_costs_more_and_moves_little() -> None:
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    denoiser = ExactDenoiser(VP(), MEANS, STDS, WEIGHTS)
    loose = log_likelihood(denoiser, x, torch.ones_like(x), tolerance=1e-3)
    tight = log_likelihood(denoiser, x, torch.ones_like(x), tolerance=1e-7)
    assert tight[1] > loose[1]
    assert loose[0].item() == pytest.approx(tight[0].item(), abs=0.1)
