"""Trains a denoiser on prepared images: loss, plan of a step, the loop, its exact resumption.

Everything random in a step (which images, noise times, noise, flips) is a pure function of seed and
step number, drawn for the whole batch; each process works on its rows. So a resumed run and a run
on another number of processes continue to the same loss curve.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from liftmap.diffusion.denoiser import Parametrisation, Precision, autocast, time_input
from liftmap.diffusion.group_norm import use_channels_last
from liftmap.diffusion.process import Process
from liftmap.diffusion.schedule import Progress, TrainingSettings, learning_rate, noise_times
from liftmap.errors import ModelError, SettingsError
from liftmap.files import atomic_path


@runtime_checkable
class TrainingImages(Protocol):
    """Prepared images by row number, wherever they lie."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""

    def __len__(self) -> int:
        """How many there are."""

    def take(self, rows: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Those rows, in [-1, 1]."""


class StepPlan(NamedTuple):
    """One step's randomness for the whole batch."""

    rows: Int[Tensor, " b"]
    t: Float[Tensor, " b"]
    noise: Float[Tensor, "b c h w"]
    flipped: Tensor


def plan_step(
    step: int,
    count: int,
    shape: tuple[int, int, int],
    settings: TrainingSettings,
    process: Process,
) -> StepPlan:
    """Everything random in a step, from the seed and the step's number alone.

    Images come in a fresh random order each epoch. Noise times are stratified: one uniform offset
    moves a regular grid over their ranks, which lowers the loss's variance (Kingma et al. 2021,
    "Variational Diffusion Models", appendix I.1).
    """
    batch = settings.batch
    draw = torch.Generator().manual_seed(_mix(settings.seed, 1, step))
    positions = torch.arange(step * batch, (step + 1) * batch)
    rows = torch.empty(batch, dtype=torch.long)
    for epoch in range(step * batch // count, (step * batch + batch - 1) // count + 1):
        here = positions // count == epoch
        rows[here] = _epoch_order(count, settings.seed, epoch)[positions[here] % count]
    ranks = (torch.rand((), generator=draw) + torch.arange(batch) / batch) % 1.0
    ranks = ranks[torch.randperm(batch, generator=draw)]
    t = noise_times(ranks, process, settings.noise_times)
    noise = torch.randn((batch, *shape), generator=draw)
    flipped = torch.rand(batch, generator=draw) < (0.5 if settings.flip else 0.0)
    return StepPlan(rows, t, noise, flipped)


_last_order: dict[tuple[int, int, int], Tensor] = {}


def _epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The epoch's permutation; the newest is kept, since many steps in a row ask for it."""
    key = (count, seed, epoch)
    if key not in _last_order:
        _last_order.clear()
        draw = torch.Generator().manual_seed(_mix(seed, 2, epoch))
        _last_order[key] = torch.randperm(count, generator=draw)
    return _last_order[key]


def _mix(seed: int, stream: int, number: int) -> int:
    """One 63-bit seed from three numbers, without collisions between streams."""
    return int(np.random.SeedSequence([seed, stream, number]).generate_state(1, np.uint64)[0] >> 1)


def loss_of(
    network: nn.Module,
    process: Process,
    by: Parametrisation,
    images: Float[Tensor, "b c h w"],
    t: Float[Tensor, " b"],
    noise: Float[Tensor, "b c h w"],
) -> Float[Tensor, ""]:
    """Mean squared error of the network's answer to its target (Ho et al. 2020, eq. 14).

    A score is compared as sigma * score with -noise, the weighting of Song et al. 2021, eq. 7.
    """
    alpha, sigma = process.alpha(t.double()), process.sigma(t.double())
    told = time_input(t.double(), sigma, by).float()
    alpha, sigma = alpha.float()[:, None, None, None], sigma.float()[:, None, None, None]
    x = (alpha * images + sigma * noise).contiguous(memory_format=torch.channels_last)
    answer = network(x, told).float()
    if by.target == "score":
        answer = -sigma * answer
    target = {"v": alpha * noise - sigma * images, "image": images}.get(by.target, noise)
    return torch.nn.functional.mse_loss(answer, target)


class Trainer:
    """The training loop's state: network, its moving average, optimiser, progress."""

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        by: Parametrisation,
        settings: TrainingSettings,
        *,
        precision: Precision = "bf16",
    ) -> None:
        from accelerate import Accelerator
        from diffusers.training_utils import EMAModel

        self.process, self.by, self.settings = process, by, settings
        # accelerate's own mixed precision is one for the whole interpreter: ours is the trainer's
        # on CPUs it must be told, or each process of torchrun takes itself for the only one
        self.accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
        self.precision = precision
        self.network = use_channels_last(network).train().to(self.accelerator.device)
        parameters = list(self.network.parameters())
        self.ema = EMAModel(
            parameters, decay=settings.ema, use_ema_warmup=True, power=0.75, foreach=True
        )
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, weight_decay=0.0, foreach=True
        )
        self.progress = Progress()
        self.wrapped, self.optimizer = self.accelerator.prepare(self.network, optimizer)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return bool(self.accelerator.is_main_process)

    def step(self, images: TrainingImages) -> float:
        """One optimiser step; the loss, averaged over all processes."""
        settings, accelerator = self.settings, self.accelerator
        plan = plan_step(self.progress.step, len(images), images.shape, settings, self.process)
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        batch = images.take(plan.rows[mine])
        batch = torch.where(plan.flipped[mine, None, None, None], batch.flip(3), batch)
        device = accelerator.device
        torch.manual_seed(_mix(settings.seed, 3, self.progress.step) + accelerator.process_index)
        with autocast(device, self.precision):
            loss = loss_of(
                self.wrapped,
                self.process,
                self.by,
                batch.to(device),
                plan.t[mine].to(device),
                plan.noise[mine].to(device),
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress, settings)
        self.optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(self.wrapped.parameters(), settings.gradient_clip)
        self.optimizer.step()
        self.ema.step(self.network.parameters())
        mean: float = accelerator.reduce(loss.detach(), reduction="mean").item()
        return mean

    def run(
        self,
        images: TrainingImages,
        *,
        on_step: Callable[[Progress], None] = lambda progress: None,
        on_save: Callable[[], None] = lambda: None,
    ) -> Progress:
        """Train until the budget is spent; `on_save` runs now and then, and on Ctrl-C.

        Raises:
            ModelError: the loss is no longer a number; the last saved state is left alone.
            SettingsError: the batch doesn't divide among the processes.
        """
        self._check(images)
        saved = time.monotonic()
        try:
            while self._budget_left():
                begun = time.monotonic()
                loss = self.step(images)
                if not math.isfinite(loss):
                    raise ModelError(
                        f"loss {loss} at step {self.progress.step}: lower --learning-rate "
                        "and --resume from the last saved state"
                    )
                self.progress.step += 1
                self.progress.losses.append(loss)
                self.progress.seconds += time.monotonic() - begun
                on_step(self.progress)
                if self.main and time.monotonic() - saved > 60 * self.settings.save_every_minutes:
                    on_save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if self.main:
                on_save()
            raise
        self.accelerator.wait_for_everyone()
        return self.progress

    def _check(self, images: TrainingImages) -> None:
        if not len(images):
            raise SettingsError("0 images to train on: need at least 1")
        processes = self.accelerator.num_processes
        if self.settings.batch % processes:
            raise SettingsError(
                f"batch={self.settings.batch} on {processes} processes: need a multiple of them"
            )

    def _budget_left(self) -> bool:
        """The same answer on every process: the main one's clock decides."""
        left = torch.tensor(float(self.progress.share(self.settings) < 1))
        if self.accelerator.num_processes > 1:
            torch.distributed.broadcast(left, src=0)
        return bool(left.item())

    def averaged_weights(self) -> dict[str, Tensor]:
        """The moving average's weights by the network's names; what is saved as the model."""
        names = [name for name, _ in self.network.named_parameters()]
        weights = {k: v.detach() for k, v in self.network.state_dict().items()}
        weights.update(zip(names, self.ema.shadow_params, strict=True))
        return {k: v.clone().contiguous() for k, v in weights.items()}

    def save_state(self, path: Path) -> None:
        """Write all that resuming needs into one safetensors file, atomically."""
        from safetensors.torch import save_file

        tensors = {"losses": torch.tensor(self.progress.losses, dtype=torch.float32)}
        moments = self.optimizer.state_dict()["state"]
        for i, (name, parameter) in enumerate(self.network.named_parameters()):
            tensors[f"network.{name}"] = parameter.detach().contiguous()
            tensors[f"ema.{name}"] = self.ema.shadow_params[i].contiguous()
            for key, value in moments.get(i, {}).items():
                tensors[f"adam.{key}.{name}"] = torch.as_tensor(value).contiguous()
        about = {
            "step": self.progress.step,
            "seconds": self.progress.seconds,
            "ema_step": self.ema.optimization_step,
            "settings": asdict(self.settings),
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"liftmap": json.dumps(about)})

    def load_state(self, path: Path) -> None:
        """Continue from `save_state`'s file.

        Raises:
            ModelError: the file is damaged or belongs to another network.
        """
        tensors, about = _read_state(path)
        try:
            self._restore(tensors, about)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"{path} is of another network ({error}): train into a new folder"
            ) from error

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for i, (name, parameter) in enumerate(self.network.named_parameters()):
                parameter.copy_(tensors[f"network.{name}"])
                self.ema.shadow_params[i].copy_(tensors[f"ema.{name}"])
                keys = ("step", "exp_avg", "exp_avg_sq")
                if f"adam.step.{name}" in tensors:
                    state[i] = {k: tensors[f"adam.{k}.{name}"].clone() for k in keys}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.ema.optimization_step = about["ema_step"]
        self.progress = Progress(about["step"], about["seconds"], tensors["losses"].tolist())


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["liftmap"])
            return {key: file.get_tensor(key) for key in file.keys()}, about  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist: nothing to resume; leave out --resume") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ModelError(f"{path} can't be read as a training state ({error})") from error
