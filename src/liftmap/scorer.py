"""What every method of out-of-distribution detection can do here, Lift, Map, Detect or another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from liftmap.images.prepare import Preparation
from liftmap.images.store import PreparedImages


@runtime_checkable
class Scorer(Protocol):
    """Learns from in-domain images alone, then scores any image: higher = more OOD, always."""

    preparation: Preparation

    @property
    def evaluations(self) -> int:
        """Evaluations of the diffusion model's network, an image; 0 for methods without one."""

    @property
    def batch(self) -> int:
        """Images that are best scored at once."""

    def learn(
        self,
        train: PreparedImages,
        held_out: PreparedImages,
        *,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        """Learn from in-domain images: some to train on, others that nothing was trained on.

        Args:
            on_batch: called with how much is done and how much there is.
        """

    def scores(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """Scores of prepared images; each depends on its image alone."""

    def save(self, folder: str | Path) -> None:
        """Write what was learnt; never pickle."""

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "Scorer":
        """Read what `save` wrote.

        Raises:
            ModelError: nothing there, or what is there can't be used.
        """
