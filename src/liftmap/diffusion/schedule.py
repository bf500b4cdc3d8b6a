"""How long and how to train: settings, the budget, the learning rate, the noise times drawn."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from liftmap.diffusion.process import Process, time_of_log_snr
from liftmap.errors import SettingsError

T_MIN = 1e-3  # smallest noise time trained on: LMD's samplers go no lower (score_sde's eps)
# of ln(sigma / alpha), mean and deviation (Karras et al. 2022, "EDM", table 1): 95% of it lie in
# 0.03 to 3.2, where redraws from t = 0.5 and score norms ask the network
LOG_RATIO = -1.2, 1.2
ALL_TIMES = 0.1  # share of such draws that stays uniform, so that the network knows all times

NoiseTimes = Literal["uniform", "log-normal"]


@dataclass(frozen=True)
class TrainingSettings:
    """How long and how to train; defaults are for the `tiny` preset on two CPU cores.

    noise_times: "uniform" in t, or "log-normal" in the noise-to-signal ratio, mostly.
    """

    steps: int | None = None
    minutes: float | None = None
    batch: int = 128
    learning_rate: float = 4e-4
    warm_up: int = 200
    ema: float = 0.999
    gradient_clip: float = 1.0
    flip: bool = False
    seed: int = 0
    save_every_minutes: float = 3.0
    noise_times: str = "uniform"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise SettingsError(
                f"steps={self.steps}, minutes={self.minutes}: give one of the two, not both"
            )
        for name in ("steps", "minutes", "batch", "learning_rate", "gradient_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"{name}={value}: need more than 0")
        if not 0 <= self.ema < 1:
            raise SettingsError(f"ema={self.ema}: need at least 0 and less than 1")
        if self.noise_times not in get_args(NoiseTimes):
            known = ", ".join(get_args(NoiseTimes))
            raise SettingsError(f"noise_times {self.noise_times!r}: need one of {known}")


@dataclass
class Progress:
    """How far training has come; `losses` has one value a step."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def share(self, settings: TrainingSettings) -> float:
        """Share of the budget that is spent, 0 to 1."""
        if settings.steps is not None:
            return min(1.0, self.step / settings.steps)
        return min(1.0, self.seconds / (60 * (settings.minutes or math.inf)))


def noise_times(
    ranks: Float[Tensor, " n"], process: Process, kind: str = "uniform"
) -> Float[Tensor, " n"]:
    """The noise times in [T_MIN, 1] whose ranks in their distribution are in [0, 1).

    "log-normal" gives the lowest ranks to times uniform in t, the others to EDM's distribution.
    """
    if kind == "uniform":
        return T_MIN + (1 - T_MIN) * ranks
    mean, deviation = LOG_RATIO
    normal = (ranks.double() - ALL_TIMES) / (1 - ALL_TIMES)
    log_ratio = mean + deviation * torch.special.ndtri(normal.clamp(1e-6, 1 - 1e-6))
    drawn = time_of_log_snr(process, -2 * log_ratio).clamp(T_MIN, 1).to(ranks)
    return torch.where(ranks < ALL_TIMES, T_MIN + (1 - T_MIN) * ranks / ALL_TIMES, drawn)


def learning_rate(progress: Progress, settings: TrainingSettings) -> float:
    """Linear warm-up over the first steps, then a half cosine down to 0 at the budget's end."""
    warm = min(1.0, (progress.step + 1) / max(1, settings.warm_up))
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * progress.share(settings)))
