"""Gaussian noise that belongs to an image, not to the batch it happens to be in."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def attempt_seed(image_seed: int, user_seed: int, attempt: int) -> int:
    """One 63-bit seed for an image's attempt; different in all three numbers.

    >>> attempt_seed(1, 0, 0) != attempt_seed(1, 0, 1)
    True
    """
    entropy = [image_seed & (2**64 - 1), user_seed & (2**64 - 1), attempt]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


class ImageNoise:
    """Standard Gaussian noise in which row i depends on seeds[i] alone.

    Drawn on the CPU whatever the device, so that a score doesn't depend on where it was computed.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape = shape
        self._device = torch.device(device)

    def draw(self) -> Float[Tensor, "n c h w"]:
        """The next draw: independent of the earlier ones and between rows."""
        noise = torch.empty(len(self._generators), *self._shape)
        for row, generator in zip(noise, self._generators, strict=True):
            row.normal_(generator=generator)
        return noise.to(self._device, non_blocking=True)
