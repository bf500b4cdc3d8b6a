"""[map] Redraw the hidden pixels with the diffusion model: Algorithm 2, over any sampler.

The path is planned first (`plan`), then walked (`_walk`). After each move the known pixels are the
original's, noised afresh to the level arrived at.
"""

import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from liftmap.diffusion.denoiser import Denoiser
from liftmap.diffusion.noise import ImageNoise
from liftmap.diffusion.process import Process
from liftmap.diffusion.samplers import (
    Memory,
    SamplerSettings,
    correct_step,
    denoise_step,
    grid,
    levels_of,
)
from liftmap.errors import SettingsError


@dataclass(frozen=True)
class Resampling:
    """RePaint's resampling (Lugmayr et al. 2022, Algorithm 1): go back `jump` levels and redo them.

    times: how often each stretch of `jump` levels is walked; 1 is plain Algorithm 2.
    """

    times: int = 1
    jump: int = 1

    def __post_init__(self) -> None:
        if self.times < 1 or self.jump < 1:
            raise SettingsError(f"times={self.times}, jump={self.jump}: need at least 1 each")


class Move(NamedTuple):
    """One move between noise times. A "correct" move stays at start; end is the next level."""

    kind: Literal["denoise", "correct", "renoise"]
    start: float
    end: float


def plan(times: list[float], *, corrector: bool = False, resampling: Resampling) -> list[Move]:
    """The moves along a falling list of noise times.

    >>> [m.kind for m in plan([1.0, 0.5, 0.0], resampling=Resampling(times=2))]
    ['denoise', 'renoise', 'denoise', 'denoise', 'renoise', 'denoise']
    """
    moves: list[Move] = []
    steps = list(itertools.pairwise(times))
    for first in range(0, len(steps), resampling.jump):
        stretch = steps[first : first + resampling.jump]
        for time in range(resampling.times):
            if time:
                moves.append(Move("renoise", stretch[-1][1], stretch[0][0]))
            for t, s in stretch:
                if corrector:
                    moves.append(Move("correct", t, s))
                moves.append(Move("denoise", t, s))
    return moves


def evaluations(settings: SamplerSettings, resampling: Resampling) -> int:
    """Network evaluations that one redraw costs."""
    return settings.evaluations * resampling.times


def inpaint(
    denoiser: Denoiser,
    original: Float[Tensor, "n c h w"],
    hidden: Bool[Tensor, "#n 1 h w"],
    noise: ImageNoise,
    settings: SamplerSettings,
    resampling: Resampling | None = None,
) -> Float[Tensor, "n c h w"]:
    """Redraw the hidden pixels (Algorithm 2 of Liu et al. 2024); known pixels return unchanged.

    Args:
        original: images in [-1, 1].
        hidden: True = to be redrawn; one row an image, or one for all.
        noise: one seed an image.
    """
    times = grid(denoiser.process, settings.steps, settings.spacing, start=settings.start)
    blank = torch.where(hidden, torch.zeros_like(original), original)
    resampling = resampling or Resampling()
    return _walk(denoiser, original, hidden, noise, settings, resampling, blank, times.tolist())


def noise_and_denoise(
    denoiser: Denoiser,
    original: Float[Tensor, "n c h w"],
    noise: ImageNoise,
    settings: SamplerSettings,
    start: float,
) -> Float[Tensor, "n c h w"]:
    """Lift by noise, not by a mask: noise to time `start` in (0, 1], then denoise (section 3.4.4).

    The paper's t = 250, 500, 750 of T = 1000 are start = 0.25, 0.5, 0.75. The sampler's steps
    are taken as those of the whole path, so that a share `start` of them is walked.

    Raises:
        SettingsError: start is outside (0, 1].
    """
    if not 0 < start <= 1:
        raise SettingsError(f"start={start}: need more than 0 and at most 1")
    everywhere = torch.ones(1, 1, *original.shape[2:], dtype=torch.bool, device=original.device)
    steps = max(1, round(settings.steps * start))
    times = grid(denoiser.process, steps, settings.spacing, start=start).tolist()
    return _walk(denoiser, original, everywhere, noise, settings, Resampling(), original, times)


def _walk(
    denoiser: Denoiser,
    original: Tensor,
    hidden: Tensor,
    noise: ImageNoise,
    settings: SamplerSettings,
    resampling: Resampling,
    lifted: Tensor,
    times: list[float],
) -> Tensor:
    """Noise `lifted` to the first of the times, then walk the planned moves down to time 0."""
    process, memory = denoiser.process, Memory()
    x = _noised(process, lifted, times[0], noise.draw())
    moves = plan(times, corrector=settings.corrector_snr > 0, resampling=resampling)
    for move in moves:
        if move.kind == "renoise":
            x, memory = _renoised(process, x, move, noise.draw()), Memory()
            continue
        if move.kind == "correct":
            x = correct_step(denoiser, x, move.start, move.end, noise.draw, settings)
            level = move.start
        else:
            x = denoise_step(denoiser, x, move.start, move.end, noise.draw, memory, settings)
            level = move.end
        known = _noised(process, original, level, noise.draw()) if level > 0 else original
        x = torch.where(hidden, x, known)
    return x


def _noised(process: Process, image: Tensor, t: float, noise: Tensor) -> Tensor:
    """The image diffused to time t."""
    at = torch.tensor(t, dtype=torch.float64)
    return process.alpha(at).item() * image + process.sigma(at).item() * noise


def _renoised(process: Process, x: Tensor, move: Move, noise: Tensor) -> Tensor:
    """RePaint (Lugmayr et al. 2022), Algorithm 1 line 10. Departure: one draw for the jump."""
    back = levels_of(process, move.end, move.start)
    return back.ratio * x + back.added * noise
