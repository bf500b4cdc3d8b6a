"""Trains with everything on one device: images, noise, moving average; a step is one CUDA graph.

A small network's step is over a thousand kernels of some microseconds each. Launched one by one, or
fed from the host, they leave a card idle most of the time. Here several trainers may share a card,
each on a stream of its own. Randomness is the device's: unlike `Trainer`'s, a run can't be resumed.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from liftmap.diffusion.denoiser import Parametrisation, Precision, autocast
from liftmap.diffusion.group_norm import use_channels_last
from liftmap.diffusion.process import Process
from liftmap.diffusion.schedule import Progress, TrainingSettings, learning_rate, noise_times
from liftmap.diffusion.training import loss_of

RANKS = 1 << 16  # noise times are looked up by their rank, in so many steps
LOOKS = 4096  # noisy images that the loss on held-out images is a mean of, at least
WARM = 3  # steps before a graph is recorded, as torch's manual asks

LossOf = Callable[..., Tensor]


@dataclass(frozen=True)
class Augmentation:
    """What may change in an image each time it is drawn, without leading out of its domain.

    shift: pixels up, down, left or right at most; the border is repeated. flip: left and right
    change places, half the time. colours: channels change places, and half the time light is dark.
    """

    shift: int = 0
    flip: bool = False
    colours: bool = False


def draw_images(
    images: Float[Tensor, "n c h w"], count: int, by: Augmentation
) -> Float[Tensor, "count c h w"]:
    """Random images, with replacement, changed at random; drawn where the images lie."""
    n, c, h, w = images.shape
    on = images.device

    def places(side: int) -> Tensor:
        shift = torch.randint(-by.shift, by.shift + 1, (count, 1), device=on)
        return (torch.arange(side, device=on) + shift).clamp(0, side - 1)

    rows, ys, xs = torch.randint(n, (count, 1), device=on), places(h), places(w)
    channels = torch.arange(c, device=on).expand(count, c)
    if by.flip:
        xs = torch.where(torch.rand(count, 1, device=on) < 0.5, w - 1 - xs, xs)
    if by.colours:
        channels = torch.rand(count, c, device=on).argsort(1)
    drawn = images[
        rows[:, :, None, None], channels[:, :, None, None], ys[:, None, :, None], xs[:, None, None]
    ]
    if by.colours:
        drawn = torch.where(torch.rand(count, 1, 1, 1, device=on) < 0.5, -drawn, drawn)
    return drawn


@dataclass(frozen=True)
class Look:
    """How far a training on a card had come, by both losses; `images` were seen."""

    seconds: float
    images: int
    loss: float
    held_out: float


class CardTrainer:
    """Trains a network on images in [-1, 1] that lie on its device; `averaged` is the model.

    `progress` is the caller's to advance in time; steps are counted here.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        by: Parametrisation,
        settings: TrainingSettings,
        images: Float[Tensor, "n c h w"],
        *,
        augmentation: Augmentation | None = None,
        precision: Precision = "bf16",
        loss: LossOf = loss_of,
    ) -> None:
        """Put the network on the images' device, in place.

        Args:
            loss: `loss_of`, or what torch.compile made of it.
        """
        self.process, self.by, self.settings, self.images = process, by, settings, images
        self.augmentation = augmentation or Augmentation(flip=settings.flip)
        self.precision, self._loss_of = precision, loss
        self.device, self.progress = images.device, Progress()
        self.network = use_channels_last(network).train().to(self.device)
        self.averaged = deepcopy(self.network).eval().requires_grad_(False)
        ranks = (torch.arange(RANKS, dtype=torch.float64) + 0.5) / RANKS
        self._times = noise_times(ranks, process, settings.noise_times).float().to(self.device)
        self._rate, self._new, self._loss = torch.zeros(3, device=self.device).unbind()
        self._on_card = self.device.type == "cuda"
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=self._rate,
            weight_decay=0.0,
            fused=True,
            capturable=self._on_card,
        )
        self._stream = _stream(self.device) if self._on_card else None
        self._graph: torch.cuda.CUDAGraph | None = None

    def record(self) -> None:
        """Record a step as a CUDA graph, on a card; `step` then replays it. Weights stay."""
        if self._stream is None:
            return
        self._rate.zero_()
        self._new.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            for _ in range(WARM):
                self._step()
        torch.cuda.synchronize()
        self._optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._step()
        self._graph = graph

    def step(self) -> None:
        """One optimiser step; on a card it is only asked for, on the trainer's own stream."""
        with torch.cuda.stream(self._stream):
            self._rate.fill_(learning_rate(self.progress, self.settings))
            # as the moving average of `Trainer`: short at first, then as long as the settings say
            self._new.fill_(max(1 - self.settings.ema, (1 + self.progress.step) ** -0.75))
            self._step() if self._graph is None else self._graph.replay()
        self.progress.step += 1

    def loss(self) -> float:
        """The newest step's loss; waits for it."""
        with torch.cuda.stream(self._stream):
            return self._loss.item()

    def _step(self) -> None:
        settings = self.settings
        parameters: list[Tensor] = list(self.network.parameters())
        images = draw_images(self.images, settings.batch, self.augmentation)
        grid = torch.arange(settings.batch, device=self.device) / settings.batch
        ranks = (grid + torch.rand((), device=self.device)) % 1.0
        t, noise = self._times[(ranks * RANKS).long()], torch.randn_like(images)
        self._optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            loss = self._loss_of(self.network, self.process, self.by, images, t, noise)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, settings.gradient_clip, foreach=True)
        self._optimizer.step()
        with torch.no_grad():
            averaged: list[Tensor] = list(self.averaged.parameters())
            change: Any = torch._foreach_sub(parameters, averaged)
            torch._foreach_mul_(change, self._new)
            torch._foreach_add_(averaged, change)
            self._loss.copy_(loss)

    @torch.no_grad()
    def held_out_loss(self, images: Float[Tensor, "n c h w"]) -> float:
        """The averaged network's loss on images not trained on, each time with the same noise."""
        if self._stream is not None:
            self._stream.synchronize()
        draw = torch.Generator().manual_seed(0)
        many = images.repeat(-(-LOOKS // len(images)), 1, 1, 1)
        ranks = torch.randperm(len(many), generator=draw) * RANKS // len(many)
        losses = []
        for rows in torch.split(torch.arange(len(many)), 1024):
            noise = torch.randn(len(rows), *images.shape[1:], generator=draw).to(self.device)
            t = self._times[ranks[rows].to(self.device)]
            with autocast(self.device, self.precision):
                loss = loss_of(self.averaged, self.process, self.by, many[rows], t, noise)
            losses.append(loss * len(rows))
        return float(torch.stack(losses).sum() / len(many))


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
