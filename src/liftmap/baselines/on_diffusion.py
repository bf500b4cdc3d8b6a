"""What baselines on a diffusion model share: the model, and learning a few numbers in-domain."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from liftmap.baselines.mixture import MOST, Candidate, Mixture
from liftmap.diffusion.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from liftmap.diffusion.denoiser import Precision
from liftmap.errors import CalibrationError, ModelError
from liftmap.files import atomic_path
from liftmap.images.prepare import Preparation
from liftmap.images.store import PreparedImages

LEARNT = "baseline.safetensors"
OnBatch = Callable[[int, int], None]


class OnDiffusion(ABC):
    """A method that asks a trained diffusion model about an image and compares the answers.

    learnt: what `learn` found, by name; empty before.
    """

    needs_learning: ClassVar[bool] = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | torch.device | None = None,
        precision: Precision | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.denoiser = checkpoint.denoiser(device, precision=precision)
        channels, height, width = checkpoint.image_shape
        stored = checkpoint.about.get("preparation")
        self.preparation = Preparation(**stored) if stored else Preparation(height, width, channels)
        self.learnt: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations an image."""

    @abstractmethod
    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """What the method makes of the model's answers to each image, on the CPU."""

    @abstractmethod
    def learn(
        self, train: PreparedImages, held_out: PreparedImages, *, on_batch: OnBatch | None = None
    ) -> None:
        """See `Scorer.learn`."""

    @abstractmethod
    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
        """Scores of the answers by what was learnt."""

    def scores(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
        """See `Scorer.scores`.

        Raises:
            CalibrationError: nothing was learnt yet.
        """
        self._check()
        return self.compare(self.answers(pixels)).float()

    @property
    def batch(self) -> int:
        """Images that fill the network's rows."""
        _, height, width = self.checkpoint.image_shape
        return max(1, 256 * 1024 // (height * width))

    def save(self, folder: str | Path) -> None:
        """Write the diffusion model and what was learnt."""
        from safetensors.torch import save_file

        self._check()
        save_checkpoint(self.checkpoint, Path(folder))
        with atomic_path(Path(folder) / LEARNT) as path:
            save_file({name: part.contiguous() for name, part in self.learnt.items()}, path)

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "OnDiffusion":
        """Read what `save` wrote; in any other model's folder nothing is learnt yet.

        Raises:
            ModelError: the model, or what was learnt, can't be used.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        made, path = cls(load_checkpoint(model), **options), Path(model) / LEARNT
        if path.exists():
            try:
                made.learnt = load_file(path)
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path} is damaged ({error}): learn again") from error
        return made

    def _check(self) -> None:
        if self.needs_learning and not self.learnt:
            raise CalibrationError(f"{type(self).__name__} has learnt nothing yet: call learn")

    def _all_answers(self, images: PreparedImages, most: int, on_batch: OnBatch | None) -> Tensor:
        """The answers to the first of the images, batch by batch."""
        total, found = min(most, len(images)), []
        for first in range(0, total, self.batch):
            rows = torch.arange(first, min(total, first + self.batch))
            found.append(self.answers(images.pixels(rows)))
            if on_batch:
                on_batch(first + len(rows), total)
        return torch.cat(found)


class ByDensity(OnDiffusion):
    """A score is minus the log-density of an image's answers among in-domain training images'."""

    candidates: ClassVar[Sequence[Candidate]]

    def learn(
        self, train: PreparedImages, held_out: PreparedImages, *, on_batch: OnBatch | None = None
    ) -> None:
        """Fit a mixture to training images, as these papers do; the held-out ones are not used."""
        answers = self._all_answers(train, MOST, on_batch)
        self.learnt = Mixture.fit(answers, self.candidates)._asdict()

    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
        return -Mixture(**self.learnt).log_density(answers)
