"""Baselines that train a network of their own on the in-domain images."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from liftmap.baselines.base import Baseline, OnBatch
from liftmap.errors import SettingsError
from liftmap.images.prepare import Preparation
from liftmap.images.store import PreparedImages

HALVES = 8  # three convolutions that halve the sides


def check_sides(height: int, width: int) -> None:
    """Refuse images whose sides can't be halved three times.

    Raises:
        SettingsError: the message names the sides.
    """
    if height % HALVES or width % HALVES:
        raise SettingsError(
            f"{height}x{width} pixels: this method's network needs multiples of {HALVES}"
        )


class Trained(Baseline):
    """What is learnt are the parameters of `network`, and maybe a few numbers more."""

    def __init__(
        self,
        preparation: Preparation,
        build: Callable[[int, int, int], nn.Module],
        *,
        device: str | torch.device | None = None,
        steps: int,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Build the network from channels, height and width, initialised by the seed."""
        super().__init__(preparation, device=device, **options)
        self.steps, self.seed = steps, seed
        p = preparation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network: Any = build(p.channels, p.height, p.width).to(self.device)
        self.network.eval()

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"steps": self.steps, "seed": self.seed}

    def batches(
        self, train: PreparedImages, size: int, on_batch: OnBatch | None
    ) -> Iterator[Tensor]:
        """As many random batches of training pixels as there are steps; progress is told after."""
        draw = torch.Generator().manual_seed(self.seed)
        self.network.train()
        for step in range(self.steps):
            rows = torch.randint(len(train), (min(size, len(train)),), generator=draw)
            yield train.pixels(rows).to(self.device)
            if on_batch:
                on_batch(step + 1, self.steps)
        self.network.eval()

    def keep(self) -> None:
        """Take the network's state as what was learnt."""
        state = self.network.state_dict()
        self.learnt = {name: part.detach().cpu().clone() for name, part in state.items()}

    def take_learnt(self, learnt: dict[str, Tensor]) -> None:
        super().take_learnt(learnt)
        self.network.load_state_dict({name: learnt[name] for name in self.network.state_dict()})
