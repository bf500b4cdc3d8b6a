"""Likelihood and input complexity: how many bits an image takes by the model, and by a compressor.

Bishop 1994, "Novelty detection and neural network validation"; Serra et al. 2020, "Input complexity
and out-of-distribution detection with likelihood-based generative models".
"""

import io
import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from liftmap.baselines.base import OnBatch, noise_of
from liftmap.baselines.on_diffusion import OnDiffusion
from liftmap.diffusion.likelihood import log_likelihood
from liftmap.errors import SettingsError
from liftmap.images.store import PreparedImages
from liftmap.model import Model

LEVELS = 256
# lossless, with what makes each as short as it gets
COMPRESSORS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "optimize": True},
    "jpeg2000": {"format": "JPEG2000", "irreversible": False},
    "webp": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6},
}


class Likelihood(OnDiffusion):
    """A score is the image's negative log-likelihood under the diffusion model, in bits a pixel.

    Of the dequantised image: uniform noise as wide as a grey level makes it continuous. Needs no
    learning beyond the model's own training. In float32 by default, since the solver's tolerance is
    below bfloat16's.
    """

    needs_learning: ClassVar = False

    def __init__(self, model: Model, *, seed: int = 0, **options: Any) -> None:
        super().__init__(model, **{"precision": "float32"} | options)
        self.seed, self._evaluations = seed, 0

    @property
    def evaluations(self) -> int:
        """Of the last batch, each with a gradient; the solver decides how many it takes."""
        return self._evaluations

    @property
    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed}

    @property
    def batch(self) -> int:
        """Half as many as without gradients."""
        return max(1, super().batch // 2)

    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Bits a pixel and channel."""
        device, (channels, height, width) = self.device, pixels.shape[1:]
        noise = noise_of(pixels, self.seed, 0, (channels, height, width), device)
        within = torch.special.ndtr(noise.draw())  # uniform in (0, 1)
        x = 2 * (pixels.to(device) + within) / LEVELS - 1
        nats, self._evaluations = log_likelihood(self.denoiser, x, noise.draw().sign())
        # a density on [-1, 1] is one on [0, 256] after a stretch by 128
        return (math.log2(LEVELS / 2) - nats / (pixels[0].numel() * math.log(2)))[:, None]

    def learn(
        self, train: PreparedImages, held_out: PreparedImages, *, on_batch: OnBatch | None = None
    ) -> None:
        """Nothing to learn."""

    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return answers[:, 0]


class InputComplexity(Likelihood):
    """Serra et al. 2020, eq. 4: the negative log-likelihood less the length of a lossless code.

    A simple image is likely under nearly any model; what counts is how much more the model makes of
    it than a compressor that knows nothing.

    Args:
        compressor: "png" (the one that LMD's authors report), "jpeg2000" or "webp".
    """

    def __init__(
        self, model: Model, *, compressor: str = "png", seed: int = 0, **options: Any
    ) -> None:
        if compressor not in COMPRESSORS:
            raise SettingsError(f"compressor {compressor!r}: need one of {', '.join(COMPRESSORS)}")
        super().__init__(model, seed=seed, **options)
        self.compressor = compressor

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"compressor": self.compressor}

    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Bits a pixel and channel, by the model and by the compressor."""
        coded = [code_length(image, self.compressor) for image in pixels]
        return torch.cat([super().answers(pixels), torch.tensor(coded)[:, None]], 1)

    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return answers[:, 0] - answers[:, 1]


def code_length(image: UInt8[Tensor, "c h w"], compressor: str) -> float:
    """Bits a pixel and channel of an image's lossless code, its header included."""
    array = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    with io.BytesIO() as file:
        Image.fromarray(array).save(file, **COMPRESSORS[compressor])
        return 8 * file.tell() / image.numel()
