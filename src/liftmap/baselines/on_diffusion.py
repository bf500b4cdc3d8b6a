"""Baselines that ask a trained diffusion model about an image."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from liftmap.baselines.base import LEARNT, Baseline, OnBatch, read_about
from liftmap.diffusion.denoiser import Precision
from liftmap.images.store import PreparedImages
from liftmap.model import Model
from liftmap.stages.mixture import MOST, Candidate, Mixture


class OnDiffusion(Baseline):
    """Saved as the model's folder with what was learnt beside the weights."""

    def __init__(
        self,
        model: Model,
        *,
        device: str | torch.device | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(model.preparation, device=device)
        self.model = model
        self.denoiser = model.checkpoint.denoiser(self.device, precision=precision)

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations an image."""

    def save(self, folder: str | Path) -> None:
        """Write the diffusion model and what was learnt."""
        super().save(folder)
        self.model.save(folder)

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "OnDiffusion":
        """Read what `save` wrote; in any other model's folder nothing is learnt yet.

        Raises:
            ModelError: the model, or what was learnt, can't be used.
        """
        folder, settings = Path(model), {}
        if (folder / LEARNT).exists():
            settings = read_about(folder).get("settings", {})
        made = cls(Model.load(model), **settings | options)
        if (folder / LEARNT).exists():
            made.read_learnt(folder)
        return made


class ByDensity(OnDiffusion):
    """A score is minus the log-density of an image's answers among in-domain training images'."""

    candidates: ClassVar[Sequence[Candidate]]

    def learn(
        self, train: PreparedImages, held_out: PreparedImages, *, on_batch: OnBatch | None = None
    ) -> None:
        """Fit a mixture to training images, as these papers do; the held-out ones are not used."""
        answers = self._all_answers(train, MOST, on_batch)
        self.learnt = Mixture.fit(answers, self.candidates)._asdict()

    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return -Mixture(**self.learnt).log_density(answers)
