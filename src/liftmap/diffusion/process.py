"""Noise processes as two functions of time, alpha(t) and sigma(t), t from 0 (image) to 1 (noise).

A noisy image is x_t = alpha(t) x_0 + sigma(t) noise. The drift and diffusion of the matching SDE,
dx = drift(t) x dt + diffusion(t) dw, follow from these two (Song et al. 2021, "Score-Based
Generative Modeling through SDEs", eq. 29); VP, sub-VP and VE differ in nothing else.

Coefficients are float64 whatever the images are: schedules span ten orders of magnitude.
"""

import itertools
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from liftmap.errors import SettingsError


@runtime_checkable
class Process(Protocol):
    """What samplers and training need to know of the noise; every method maps t elementwise."""

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """How much of the image is left at time t."""

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Standard deviation of the noise at time t."""

    def drift(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """d log alpha / dt: the SDE's linear drift coefficient."""

    def diffusion(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The SDE's noise rate; its square is d(sigma^2)/dt - 2 drift sigma^2."""


def _check_betas(beta_min: float, beta_max: float) -> None:
    if not 0 < beta_min <= beta_max:
        raise SettingsError(
            f"beta_min={beta_min}, beta_max={beta_max}: need 0 < beta_min <= beta_max, like 0.1, 20"
        )


@dataclass(frozen=True)
class VP:
    """Variance-preserving: alpha^2 + sigma^2 = 1 (Song et al. 2021, eq. 11 and 33).

    >>> p = VP()
    >>> t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    >>> [round(v, 4) for v in (p.alpha(t) ** 2 + p.sigma(t) ** 2).tolist()]
    [1.0, 1.0]
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_betas(self.beta_min, self.beta_max)

    def beta(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The linear noise rate."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Integral of beta from 0 to t."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.exp(-0.5 * self.integral(t))

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.sqrt(-torch.expm1(-self.integral(t)))

    def drift(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -0.5 * self.beta(t)

    def diffusion(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.sqrt(self.beta(t))


@dataclass(frozen=True)
class SubVP(VP):
    """VP's drift with less noise: sigma = 1 - alpha^2 (Song et al. 2021, eq. 14 and 33)."""

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -torch.expm1(-self.integral(t))

    def diffusion(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.sqrt(self.beta(t) * -torch.expm1(-2.0 * self.integral(t)))


@dataclass(frozen=True)
class VE:
    """Variance-exploding: the image stays, noise grows geometrically (Song et al. 2021, eq. 30).

    sigma(0) = sigma_min, not 0: noise that small is taken to be part of the images.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise SettingsError(
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: "
                "need 0 < sigma_min < sigma_max, as 0.01 and 50"
            )

    @property
    def _rate(self) -> Tensor:
        return torch.log(torch.tensor(self.sigma_max / self.sigma_min, dtype=torch.float64))

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.ones_like(t)

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.sigma_min * torch.exp(self._rate.to(t) * t)

    def drift(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.zeros_like(t)

    def diffusion(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.sigma(t) * torch.sqrt(2.0 * self._rate).to(t)


@dataclass(frozen=True)
class Tabulated:
    """A variance-preserving schedule given at T discrete steps, as DDPM checkpoints have it.

    Step k (from 0) of the table is time (k + 1) / T. Between steps log alpha is interpolated
    linearly, that is, the noise rate is constant within a step.
    """

    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        table = (1.0, *self.alphas_cumprod)
        falls = all(a > b > 0 for a, b in itertools.pairwise(table))
        if len(table) < 3 or not falls:
            raise SettingsError(
                f"alphas_cumprod of {len(table) - 1} steps: "
                "need at least 2 values in (0, 1), each below the one before"
            )

    @cached_property
    def _log_alpha(self) -> Tensor:
        steps = torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        return torch.cat([steps.new_zeros(1), 0.5 * steps.log()])

    def _step(self, t: Tensor) -> Tensor:
        """Index of the table's interval that holds t."""
        steps = len(self.alphas_cumprod)
        return (t.double() * steps).floor().long().clamp(0, steps - 1)

    def _log_alpha_at(self, t: Tensor) -> Tensor:
        table, k = self._log_alpha.to(t.device), self._step(t)
        return table[k] + (t.double() * len(self.alphas_cumprod) - k) * (table[k + 1] - table[k])

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self._log_alpha_at(t).exp().to(t)

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (-torch.expm1(2.0 * self._log_alpha_at(t))).sqrt().to(t)

    def drift(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        table, k = self._log_alpha.to(t.device), self._step(t)
        return ((table[k + 1] - table[k]) * len(self.alphas_cumprod)).to(t)

    def diffusion(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.sqrt(-2.0 * self.drift(t))


PROCESSES: dict[str, type[VP] | type[SubVP] | type[VE] | type[Tabulated]] = {
    "vp": VP,
    "sub-vp": SubVP,
    "ve": VE,
    "tabulated": Tabulated,
}


def log_snr(process: Process, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Log signal-to-noise ratio, log(alpha^2 / sigma^2); falls as t grows."""
    return 2.0 * (process.alpha(t).log() - process.sigma(t).log())


def time_of_log_snr(process: Process, wanted: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The times in [0, 1] at which the log signal-to-noise ratio takes the given values.

    By bisection, since it falls monotonically for every process; values out of reach give 0 or 1.
    """
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(60):  # halves [0, 1] down to float64's resolution
        middle = 0.5 * (low + high)
        above = log_snr(process, middle) > wanted
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return 0.5 * (low + high)


def process_to_json(process: Process) -> dict[str, Any]:
    """The process as plain data: its kind and its parameters."""
    for kind, cls in PROCESSES.items():
        if type(process) is cls:
            return {"kind": kind, **asdict(process)}
    raise SettingsError(f"{type(process).__name__} can't be saved; known: {', '.join(PROCESSES)}")


def process_from_json(data: dict[str, Any]) -> Process:
    """The inverse of `process_to_json`; unknown kinds and parameters are refused."""
    parameters = dict(data)
    kind = parameters.pop("kind", None)
    if kind not in PROCESSES:
        raise SettingsError(f"process kind {kind!r}: need one of {', '.join(PROCESSES)}")
    if "alphas_cumprod" in parameters:
        parameters["alphas_cumprod"] = tuple(parameters["alphas_cumprod"])
    try:
        return PROCESSES[kind](**parameters)
    except TypeError as error:
        raise SettingsError(f"process {kind!r}: {error}") from error
