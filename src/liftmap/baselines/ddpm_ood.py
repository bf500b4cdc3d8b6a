"""DDPM-OOD: reconstructions from several noise levels, z-scored (Graham et al. 2023)."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from liftmap.baselines.base import OnBatch, noise_of
from liftmap.baselines.on_diffusion import OnDiffusion
from liftmap.diffusion.samplers import SamplerSettings
from liftmap.images.prepare import to_model_range
from liftmap.images.store import PreparedImages
from liftmap.model import Model
from liftmap.stages.distances import load_distances
from liftmap.stages.inpaint import noise_and_denoise

SAMPLER = SamplerSettings("dpm-solver++", steps=100)
STARTS = tuple(range(2, 100, 16))  # steps back from each level: 350 evaluations in all
MOST = 100  # held-out images that the z-scores come from: each takes 350 evaluations


class DDPMOOD(OnDiffusion):
    """Graham et al. 2023, "Denoising diffusion models for out-of-distribution detection".

    The image is noised to seven levels and denoised from each, deterministically, on a path of 100
    steps. Each reconstruction's LPIPS and MSE become z-scores by the mean and deviation over
    held-out in-domain images at that level; a score is the mean over levels of their sum.

    Departure: DPM-Solver++(2M) in place of PLMS, two multistep solvers of the same ordinary
    differential equation.

    learnt: centre and spread (14,) of the distances, level by level.
    """

    def __init__(self, model: Model, *, seed: int = 0, **options: Any) -> None:
        super().__init__(model, **options)
        self.seed = seed
        self._distances = load_distances("lpips+mse")

    @property
    def evaluations(self) -> int:
        return sum(STARTS)

    @property
    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """LPIPS and MSE of the reconstruction from each level."""
        x = to_model_range(pixels).to(self.device)
        channels, height, width = x.shape[1:]
        images = torch.arange(len(x), device=x.device)
        references = {name: d.reference(x) for name, d in self._distances.items()}
        found = []
        for level, steps in enumerate(STARTS):
            noise = noise_of(pixels, self.seed, level, (channels, height, width), x.device)
            start = steps / SAMPLER.steps
            redraw = noise_and_denoise(self.denoiser, x, noise, SAMPLER, start).clamp(-1, 1)
            for name, distance in self._distances.items():
                found.append(distance.values(references[name], redraw, images).float().cpu())
        return torch.stack(found, 1)

    def learn(
        self, train: PreparedImages, held_out: PreparedImages, *, on_batch: OnBatch | None = None
    ) -> None:
        """Take the z-scores' centre and spread from held-out images."""
        answers = self._all_answers(held_out, MOST, on_batch)
        self.learnt = {"centre": answers.mean(0), "spread": answers.std(0).clamp_min(1e-9)}

    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        z = (answers - self.learnt["centre"]) / self.learnt["spread"]
        return z.sum(1) / len(STARTS)
