"""Noise norms: how large the noise is that the network sees in the clean image, at ten levels.

Mahmood et al. 2021 (MSMA) call them norms of the score.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from liftmap.diffusion.denoiser import Denoiser
from liftmap.diffusion.process import time_of_log_snr

LEVELS = 10
# MSMA's noise levels, 0.01 to 1 on images in [0, 1], on ours in [-1, 1]
SMALLEST, LARGEST = 0.02, 2.0


def noise_norms(denoiser: Denoiser, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b levels"]:
    """The Euclidean norms of sigma times the score at ten levels in geometric progression.

    The network is asked about the clean image x, nothing added, as if it were noisy (section 3.1).
    A variance-preserving model is shown alpha x, at the noise times whose noise-to-signal ratio is
    MSMA's. Costs LEVELS evaluations of the network.
    """
    process, norms = denoiser.process, []
    ratios = torch.logspace(0, 1, LEVELS, base=LARGEST / SMALLEST, dtype=torch.float64)
    for t in time_of_log_snr(process, -2 * (SMALLEST * ratios).log()):
        noise = denoiser(process.alpha(t).item() * x, t.item()).noise
        norms.append(torch.linalg.vector_norm(noise, dim=(1, 2, 3)))
    return torch.stack(norms, 1).cpu()
