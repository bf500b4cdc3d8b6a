"""How likely a diffusion model finds an image: the probability-flow ODE, solved exactly enough.

Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 4.3 and appendix D.2.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from liftmap.diffusion.denoiser import Denoiser
from liftmap.diffusion.schedule import T_MIN


def log_likelihood(
    denoiser: Denoiser,
    x: Float[Tensor, "b c h w"],
    probe: Float[Tensor, "b c h w"],
    *,
    tolerance: float = 1e-5,
) -> tuple[Float[Tensor, " b"], int]:
    """Natural log-densities of images (b,), and how often the network was evaluated.

    The ODE dx/dt = drift x - diffusion^2 score / 2 carries each image to noise; along the way its
    divergence is estimated with one random probe (Skilling-Hutchinson). scipy's adaptive RK45
    solves it for the whole batch at once, so that a density moves with the batch by about as much
    as the tolerance.

    Args:
        x: images in [-1, 1], with what noise is needed to make them continuous.
        probe: -1 or 1 by pixel, independent of each other.
        tolerance: of the solver, absolute and relative.
    """
    from scipy.integrate import solve_ivp

    process, shape, count = denoiser.process, x.shape, x.numel()
    size = count // len(x)
    probe = probe.to(x)
    evaluations = 0

    def flow(t: float, state: np.ndarray) -> np.ndarray:
        nonlocal evaluations
        evaluations += 1
        at = torch.tensor(t, dtype=torch.float64)
        drift, sigma = process.drift(at).item(), process.sigma(at).item()
        pull = 0.5 * process.diffusion(at).item() ** 2 / sigma
        here = torch.from_numpy(state[:count]).to(x).view(shape)
        with torch.enable_grad():
            here = here.detach().requires_grad_()
            noise = denoiser.predict(here, t).noise
            [along] = torch.autograd.grad((noise * probe).sum(), here)
        change = drift * here.detach() + pull * noise.detach()
        divergence = drift * size + pull * (along * probe).flatten(1).sum(1)
        return np.concatenate([part.double().cpu().flatten() for part in (change, divergence)])

    first = np.concatenate([x.double().cpu().flatten().numpy(), np.zeros(len(x))])
    found = solve_ivp(flow, (T_MIN, 1.0), first, method="RK45", rtol=tolerance, atol=tolerance)
    last = torch.from_numpy(found.y[:, -1])
    sigma = process.sigma(torch.tensor(1.0, dtype=torch.float64)).item()
    squares = last[:count].view(len(x), size).square().sum(1) / sigma**2
    prior = -0.5 * (squares + size * math.log(2 * math.pi * sigma**2))
    return prior + last[count:], evaluations
