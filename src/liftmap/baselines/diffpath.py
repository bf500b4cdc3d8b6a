"""DiffPath: six sums along the deterministic path from an image to noise (Heng et al. 2024)."""

import itertools

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from liftmap.baselines.on_diffusion import ByDensity
from liftmap.diffusion.samplers import levels_of
from liftmap.diffusion.schedule import T_MIN
from liftmap.images.prepare import to_model_range
from liftmap.stages.mixture import Candidate

STEPS = 10


class DiffPath(ByDensity):
    """DiffPath-6D of Heng et al. 2024.

    "Out-of-Distribution Detection with a Single Unconditional Diffusion Model". An image is encoded
    by DDIM, run backwards, in ten steps. The network's noise estimates along the path, and their
    differences from step to step, are summed over all pixels and steps, plain, squared and cubed:
    six numbers, whose density among in-domain images is a Gaussian mixture's.

    Theirs is one model of another domain (CelebA or ImageNet) for every task. Here the model is
    whichever is given; in the benchmark it is the in-domain one, as for the other methods.
    """

    candidates = tuple(
        Candidate(k, covariance)
        for k in (50, 100)
        for covariance in ("full", "tied", "diag", "spherical")
    )

    @property
    def evaluations(self) -> int:
        return STEPS

    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        x = to_model_range(pixels).to(self.device)
        process = self.denoiser.process
        times = [T_MIN, *(i / STEPS for i in range(1, STEPS + 1))]
        path: list[Tensor] = []
        for t, later in itertools.pairwise(times):
            at = levels_of(process, later, t)  # t is the less noisy of the two
            image, noise = self.denoiser(at.alpha_s * x if not path else x, t)
            path.append(noise)
            x = at.alpha_t * image + at.sigma_t * noise
        noises = torch.stack(path, 1).flatten(1)
        changes = STEPS * torch.stack(path, 1).diff(dim=1).flatten(1)
        sums = [part.pow(n).sum(1) for part in (noises, changes) for n in (1, 2, 3)]
        return torch.stack(sums, 1).cpu()
