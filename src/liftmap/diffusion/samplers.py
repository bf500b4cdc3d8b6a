"""Samplers: where the noise levels lie (a grid) and how to go from one to the next (a step).

A step is a function over plain tensors. Each ends noise-free when it arrives at time 0: the last
step returns its mean, as score_sde does with `denoise=True`.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from liftmap.diffusion.denoiser import Denoiser, Prediction
from liftmap.diffusion.process import Process, log_snr, time_of_log_snr
from liftmap.errors import SettingsError

Draw = Callable[[], Tensor]
SPACINGS = ("time", "quadratic", "log-snr")


@dataclass(frozen=True)
class SamplerSettings:
    """Which sampler, in how many steps.

    name: "ddim", "renoise", "euler-maruyama", "reverse-diffusion" or "dpm-solver++".
    steps: levels visited before time 0; each costs one network evaluation.
    spacing: levels uniform in "time", in its square root ("quadratic") or in "log-snr".
    start: the noise time in (0, 1] that the path begins at. Below 1 the first levels are left out,
        where next to nothing of an image is seen: all steps go where it takes shape.
    eta: DDIM's stochasticity, 0 deterministic to 1 ancestral.
    clip: clamp the predicted image to [-1, 1] before each step.
    corrector_snr: Langevin corrector's signal-to-noise ratio; 0 leaves the corrector out. One
        corrector step a level doubles the network evaluations.
    """

    name: str = "ddim"
    steps: int = 10
    spacing: str = "time"
    start: float = 1.0
    eta: float = 1.0
    clip: bool = False
    corrector_snr: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in STEPS:
            raise SettingsError(f"sampler {self.name!r}: need one of {', '.join(STEPS)}")
        if self.steps < 1:
            raise SettingsError(f"steps={self.steps}: need at least 1")
        if self.spacing not in SPACINGS:
            raise SettingsError(f"spacing {self.spacing!r}: need one of {', '.join(SPACINGS)}")
        if not 0 < self.start <= 1:
            raise SettingsError(f"start={self.start}: need more than 0 and at most 1")
        if not 0 <= self.eta <= 1:
            raise SettingsError(f"eta={self.eta}: need 0 (deterministic) to 1 (ancestral)")
        if self.corrector_snr < 0:
            raise SettingsError(f"corrector_snr={self.corrector_snr}: need 0 (none) or more")

    @property
    def evaluations(self) -> int:
        """Network evaluations that one redraw costs."""
        return self.steps * (2 if self.corrector_snr else 1)


class Levels(NamedTuple):
    """Process coefficients at a step's start t and end s, as floats."""

    t: float
    s: float
    alpha_t: float
    sigma_t: float
    alpha_s: float
    sigma_s: float
    drift: float
    diffusion: float

    @property
    def ratio(self) -> float:
        """alpha(t) / alpha(s): what the image shrinks by on its way from s back to t."""
        return self.alpha_t / self.alpha_s

    @property
    def added(self) -> float:
        """Standard deviation of the noise added on the way from s back to t."""
        return math.sqrt(max(0.0, self.sigma_t**2 - self.ratio**2 * self.sigma_s**2))


def levels_of(process: Process, t: float, s: float) -> Levels:
    """The coefficients of a step from t to s; time 0 counts as noise-free for every process."""
    at = torch.tensor([t, s], dtype=torch.float64)
    alpha, sigma = process.alpha(at).tolist(), process.sigma(at).tolist()
    drift, diffusion = process.drift(at)[0].item(), process.diffusion(at)[0].item()
    end = sigma[1] if s > 0 else 0.0
    return Levels(t, s, alpha[0], sigma[0], alpha[1], end, drift, diffusion)


def grid(
    process: Process, steps: int, spacing: str = "time", *, start: float = 1.0
) -> Float[Tensor, " levels"]:
    """steps + 1 noise times from `start` down to 0.

    "time": uniform, so 1000 steps are 1, 0.999, ..., 0.001, 0, the authors' grid. "quadratic":
    uniform in the square root of time, finer where there is little noise (Song et al. 2021, DDIM,
    appendix D.2). "log-snr": uniform in log-SNR from `start` to 0.001 (Lu et al. 2022, DPM-Solver,
    section 3.4), then 0.

    >>> from liftmap.diffusion.process import VP
    >>> grid(VP(), 4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if spacing == "log-snr" and steps > 1:
        ends = torch.tensor([start, min(1e-3, start)], dtype=torch.float64)
        low, high = log_snr(process, ends)
        levels = torch.linspace(low, high, steps, dtype=torch.float64)
        times = torch.cat([time_of_log_snr(process, levels), levels.new_zeros(1)])
    else:
        power = 2.0 if spacing == "quadratic" else 1.0
        times = start * torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64) ** power
    times[0] = start
    return times


class Memory:
    """What a multistep solver remembers of the step before; forgotten when the path jumps."""

    def __init__(self) -> None:
        self.image: Tensor | None = None
        self.half_log_snr_step = 0.0


Step = Callable[[Tensor, Prediction, Levels, Draw, Memory, SamplerSettings], Tensor]


def ddim(
    x: Tensor,
    prediction: Prediction,
    at: Levels,
    draw: Draw,
    memory: Memory,
    settings: SamplerSettings,
) -> Tensor:
    """Song et al. 2021, DDIM, eq. 12 and 16, for any alpha and sigma; eta = 1 is ancestral DDPM."""
    fresh = settings.eta * at.sigma_s / at.sigma_t * at.added
    kept = math.sqrt(max(0.0, at.sigma_s**2 - fresh**2))
    mean = at.alpha_s * prediction.image + kept * prediction.noise
    return mean + fresh * draw() if fresh > 0 else mean


def renoise(
    x: Tensor,
    prediction: Prediction,
    at: Levels,
    draw: Draw,
    memory: Memory,
    settings: SamplerSettings,
) -> Tensor:
    """DDIM's step with all its noise fresh: sigma of its eq. 12 at the most, beyond eta = 1.

    So consistency models are sampled (Song et al. 2023, Algorithm 1). With a denoiser's mean in
    place of a sample, redraws come out closer to the mean of what fits, and vary less, than the
    model's own distribution asks: as evidence they are better (docs/results/steps.md).
    """
    mean: Tensor = at.alpha_s * prediction.image
    return mean + at.sigma_s * draw() if at.sigma_s > 0 else mean


def euler_maruyama(
    x: Tensor,
    prediction: Prediction,
    at: Levels,
    draw: Draw,
    memory: Memory,
    settings: SamplerSettings,
) -> Tensor:
    """One Euler-Maruyama step of the reverse SDE (Song et al. 2021, eq. 6)."""
    dt = at.t - at.s
    score = -prediction.noise / at.sigma_t
    mean: Tensor = x - (at.drift * x - at.diffusion**2 * score) * dt
    return mean + at.diffusion * dt**0.5 * draw() if at.s > 0 else mean


def reverse_diffusion(
    x: Tensor,
    prediction: Prediction,
    at: Levels,
    draw: Draw,
    memory: Memory,
    settings: SamplerSettings,
) -> Tensor:
    """Reverse-diffusion predictor (Song et al. 2021, appendix E, eq. 46): the forward step, undone.

    Departure: the forward step is the exact transition between the two levels, for any process.
    """
    score = -prediction.noise / at.sigma_t
    mean = (2.0 - at.ratio) * x + at.added**2 * score
    return mean + at.added * draw() if at.s > 0 else mean


def dpm_solver_pp(
    x: Tensor,
    prediction: Prediction,
    at: Levels,
    draw: Draw,
    memory: Memory,
    settings: SamplerSettings,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2); first order at the first and last step."""
    if at.s == 0:
        return at.alpha_s * prediction.image
    step = _half_log_snr(at.alpha_s, at.sigma_s) - _half_log_snr(at.alpha_t, at.sigma_t)
    image = prediction.image
    if memory.image is not None:
        weight = 0.5 * step / memory.half_log_snr_step
        image = (1.0 + weight) * image - weight * memory.image
    memory.image, memory.half_log_snr_step = prediction.image, step
    shrink = at.sigma_s / at.sigma_t
    # alpha_s (1 - e^-step) = alpha_s - shrink alpha_t: eq. 9's coefficient without cancellation
    return shrink * x + (at.alpha_s - shrink * at.alpha_t) * image


def _half_log_snr(alpha: float, sigma: float) -> float:
    return float(torch.tensor(alpha / sigma, dtype=torch.float64).log())


STEPS: dict[str, Step] = {
    "ddim": ddim,
    "renoise": renoise,
    "euler-maruyama": euler_maruyama,
    "reverse-diffusion": reverse_diffusion,
    "dpm-solver++": dpm_solver_pp,
}


def langevin(x: Tensor, prediction: Prediction, at: Levels, draw: Draw, snr: float) -> Tensor:
    """One Langevin corrector step at level t (Song et al. 2021, Algorithm 4 and 5).

    Departure: the step size comes from each image's own norms instead of their batch mean, so that
    a result doesn't depend on the batch.
    """
    score, noise = -prediction.noise / at.sigma_t, draw()
    step = 2.0 * at.ratio**2 * (snr * _norm(noise) / _norm(score)).square()
    corrected: Tensor = x + step * score + (2.0 * step).sqrt() * noise
    return corrected


def _norm(v: Tensor) -> Tensor:
    """Each image's Euclidean norm, (n, 1, 1, 1)."""
    norm: Tensor = torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True)
    return norm


def denoise_step(
    denoiser: Denoiser,
    x: Float[Tensor, "n c h w"],
    t: float,
    s: float,
    draw: Draw,
    memory: Memory,
    settings: SamplerSettings,
) -> Float[Tensor, "n c h w"]:
    """Evaluate the network at t and take one sampler step to s."""
    at = levels_of(denoiser.process, t, s)
    prediction = _predict(denoiser, x, at, settings)
    return STEPS[settings.name](x, prediction, at, draw, memory, settings)


def correct_step(
    denoiser: Denoiser, x: Tensor, t: float, s: float, draw: Draw, settings: SamplerSettings
) -> Float[Tensor, "n c h w"]:
    """Evaluate the network at t and take one Langevin step there; s is the grid's next level."""
    at = levels_of(denoiser.process, t, s)
    return langevin(x, _predict(denoiser, x, at, settings), at, draw, settings.corrector_snr)


def _predict(denoiser: Denoiser, x: Tensor, at: Levels, settings: SamplerSettings) -> Prediction:
    prediction = denoiser(x, at.t)
    if not settings.clip:
        return prediction
    image = prediction.image.clamp(-1, 1)
    return Prediction(image, (x - at.alpha_t * image) / at.sigma_t)


def sample(
    denoiser: Denoiser, x: Float[Tensor, "n c h w"], draw: Draw, settings: SamplerSettings
) -> Float[Tensor, "n c h w"]:
    """Unconditional samples from x, noise at time `start` (standard deviation sigma(start))."""
    times = grid(denoiser.process, settings.steps, settings.spacing, start=settings.start).tolist()
    memory = Memory()
    for t, s in itertools.pairwise(times):
        if settings.corrector_snr:
            x = correct_step(denoiser, x, t, s, draw, settings)
        x = denoise_step(denoiser, x, t, s, draw, memory, settings)
    return x
