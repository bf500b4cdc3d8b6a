"""Projection Regret: how far an image moves to the domain, less how far what it became moves on."""

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

SAMPLER = SamplerSettings("renoise", steps=10, spacing="quadratic")
STARTS = (0.2, 0.3, 0.4)  # noise times that the image is projected from
PROJECTIONS = 2  # of each, averaged


class ProjectionRegret(OnDiffusion):
    """Choi et al. 2023, "Projection Regret: reducing background bias for novelty detection".

    An image's projection is the image noised to an intermediate level and brought back by few
    evaluations. The score is the LPIPS between the image and its projection, less that between the
    projection and its own projection: a cluttered background counts in both and cancels out. Both
    are averaged over projections and summed over levels.

    Departures: our few-step sampler of a diffusion model in place of a consistency model; three
    levels, each with two projections, whose own projection starts at the same level.
    """

    needs_learning = False

    def __init__(self, model: Model, *, seed: int = 0, **options: Any) -> None:
        super().__init__(model, **options)
        self.seed = seed
        self._lpips = load_distances("lpips")["lpips"]

    @property
    def evaluations(self) -> int:
        return sum(2 * PROJECTIONS * round(SAMPLER.steps * start) for start in STARTS)

    @property
    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """(b, 2): summed over levels, the mean LPIPS to the projection, and from there onwards."""
        x = to_model_range(pixels).to(self.device)
        channels, height, width = x.shape[1:]
        images = torch.arange(len(x), device=x.device)
        reference = self._lpips.reference(x)
        moved = torch.zeros(len(x), 2)
        for level, start in enumerate(STARTS):
            for attempt in range(PROJECTIONS):
                number = level * PROJECTIONS + attempt
                noise = noise_of(pixels, self.seed, number, (channels, height, width), x.device)
                once = noise_and_denoise(self.denoiser, x, noise, SAMPLER, start).clamp(-1, 1)
                twice = noise_and_denoise(self.denoiser, once, noise, SAMPLER, start).clamp(-1, 1)
                first = self._lpips.values(reference, once, images)
                second = self._lpips.values(self._lpips.reference(once), twice, images)
                moved += torch.stack([first, second], 1).float().cpu() / PROJECTIONS
        return moved

    def learn(
        self, train: PreparedImages, held_out: PreparedImages, *, on_batch: OnBatch | None = None
    ) -> None:
        """Nothing to learn beyond the diffusion model."""

    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return answers[:, 0] - answers[:, 1]
