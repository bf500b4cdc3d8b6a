"""What all baselines share: answers to an image, compared by what was learnt in-domain."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from liftmap.diffusion.noise import ImageNoise, attempt_seed
from liftmap.errors import CalibrationError, ModelError, SettingsError
from liftmap.files import atomic_path
from liftmap.images.prepare import Preparation, fingerprint
from liftmap.images.store import PreparedImages

LEARNT = "baseline.safetensors"
ABOUT = "baseline.json"
OnBatch = Callable[[int, int], None]


class Baseline(ABC):
    """A `Scorer` in two steps: `answers` describe an image, `compare` turns them into a score.

    learnt: what `learn` found, by name; empty before.
    """

    needs_learning: ClassVar[bool] = True

    def __init__(
        self, preparation: Preparation, *, device: str | torch.device | None = None
    ) -> None:
        self.preparation = preparation
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.learnt: dict[str, Tensor] = {}

    @property
    def evaluations(self) -> int:
        """Evaluations of a diffusion model's network, an image."""
        return 0

    @property
    def batch(self) -> int:
        """Images that are best scored at once."""
        return max(1, 256 * 1024 // (self.preparation.height * self.preparation.width))

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's further arguments that change scores: saved, and given again."""
        return {}

    @abstractmethod
    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """What describes each image, on the CPU."""

    @abstractmethod
    def learn(
        self, train: PreparedImages, held_out: PreparedImages, *, on_batch: OnBatch | None = None
    ) -> None:
        """See `Scorer.learn`."""

    @abstractmethod
    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Scores of the answers by what was learnt."""

    def scores(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """See `Scorer.scores`.

        Raises:
            CalibrationError: nothing was learnt yet.
        """
        self._check()
        return self.compare(self.answers(pixels)).float()

    def save(self, folder: str | Path) -> None:
        """Write what was learnt, and how images are prepared."""
        self.save_learnt(Path(folder))

    def save_learnt(self, folder: Path) -> None:
        """Write what `read_learnt` reads."""
        from safetensors.torch import save_file

        self._check()
        with atomic_path(folder / LEARNT) as path:
            save_file({name: part.contiguous() for name, part in self.learnt.items()}, path)
        with atomic_path(folder / ABOUT) as path:
            about = {"preparation": asdict(self.preparation), "settings": self.settings}
            path.write_text(json.dumps(about) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "Baseline":
        """Read what `save` wrote.

        Raises:
            ModelError: it is not there, or damaged.
        """
        about = read_about(Path(model))
        try:
            made = cls(Preparation(**about["preparation"]), **about["settings"] | options)
        except (KeyError, TypeError, SettingsError) as error:
            raise ModelError(f"{Path(model) / ABOUT} is damaged ({error}): learn again") from error
        made.read_learnt(Path(model))
        return made

    def read_learnt(self, folder: Path) -> None:
        """Take what was learnt from a folder that `save` or `save_learnt` wrote.

        Raises:
            ModelError: the file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not self.needs_learning:
            return
        try:
            self.take_learnt(load_file(folder / LEARNT))
        except (SafetensorError, OSError, KeyError, RuntimeError) as error:
            raise ModelError(f"{folder / LEARNT} is damaged ({error}): learn again") from error

    def take_learnt(self, learnt: dict[str, Tensor]) -> None:
        """Go on with what an earlier `learn` found."""
        self.learnt = learnt

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


def noise_of(
    pixels: UInt8[Tensor, "b c h w"],
    seed: int,
    attempt: int,
    shape: tuple[int, int, int],
    device: torch.device,
) -> ImageNoise:
    """Noise of a shape, whose row i depends on the image, the seed and the attempt alone."""
    seeds = [attempt_seed(fingerprint(image), seed, attempt) for image in pixels]
    return ImageNoise(seeds, shape, device)


def read_about(folder: Path) -> dict[str, Any]:
    """What `save` wrote beside the tensors.

    Raises:
        ModelError: it is not there, or no JSON object.
    """
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read ({error}): learn again") from error
    if not isinstance(about, dict):
        raise ModelError(f"{path} holds a {type(about).__name__}: learn again")
    return about
