"""MSMA: norms of the score at ten noise levels (Mahmood et al. 2021)."""

from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from liftmap.baselines.mixture import Candidate
from liftmap.baselines.on_diffusion import ByDensity
from liftmap.diffusion.process import time_of_log_snr
from liftmap.images.prepare import to_model_range

LEVELS = 10
# their noise levels, 0.01 to 1 on images in [0, 1], on ours in [-1, 1]
SMALLEST, LARGEST = 0.02, 2.0


class MSMA(ByDensity):
    """ "Multiscale Score Matching for Out-of-Distribution Detection", Mahmood et al. 2021.

    The score network is asked about the clean image, nothing added, as if it were noisy: at ten
    noise levels in geometric progression the norm of sigma times the score is taken (their section
    3.1), and a Gaussian mixture of 2, 4, ..., 20 components says how usual the ten norms are.

    Departure: any diffusion model serves, at the noise times whose noise-to-signal ratio is theirs;
    a variance-preserving model is shown the image scaled by alpha.
    """

    candidates: ClassVar = [Candidate(k) for k in range(2, 21, 2)]

    @property
    def evaluations(self) -> int:
        return LEVELS

    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        x = to_model_range(pixels).to(self.device)
        process = self.denoiser.process
        ratios = torch.logspace(0, 1, LEVELS, base=LARGEST / SMALLEST, dtype=torch.float64)
        times = time_of_log_snr(process, -2 * (SMALLEST * ratios).log())
        norms = []
        for t in times:
            noise = self.denoiser(process.alpha(t).item() * x, t.item()).noise
            norms.append(torch.linalg.vector_norm(noise, dim=(1, 2, 3)))
        return torch.stack(norms, 1).cpu()
