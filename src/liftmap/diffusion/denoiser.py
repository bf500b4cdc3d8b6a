"""A network and its noise process together: predicts the clean image, the noise and the score."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from liftmap.diffusion.process import Process
from liftmap.errors import SettingsError

Target = Literal["noise", "v", "image", "score"]
TimeInput = Literal["scaled", "step", "sigma"]
ImageRange = Literal["signed", "unit"]
Precision = Literal["bf16", "float32"]


@dataclass(frozen=True)
class Parametrisation:
    """What the network is asked and what it answers.

    target: "noise" (Ho et al. 2020), "v" = alpha noise - sigma image (Salimans & Ho 2022),
        "image", or "score" (Song et al. 2021).
    time_input: "scaled" gives the network 999 t (score_sde's convention), "step" the index in
        0..T-1 of a T-step table (diffusers' DDPM), "sigma" the noise level (NCSN++).
    steps: T of the table, for "step".
    image_range: of the network's images, "signed" [-1, 1] or "unit" [0, 1] (score_sde with
        data.centered = False). The process is about [-1, 1] either way.
    """

    target: str = "v"
    time_input: str = "scaled"
    steps: int = 1000
    image_range: str = "signed"

    def __post_init__(self) -> None:
        literals = (("target", Target), ("time_input", TimeInput), ("image_range", ImageRange))
        for name, choices in literals:
            if getattr(self, name) not in get_args(choices):
                known = ", ".join(get_args(choices))
                raise SettingsError(f"{name} {getattr(self, name)!r}: need one of {known}")


class Prediction(NamedTuple):
    """What the network makes of a noisy image; x = alpha image + sigma noise holds exactly."""

    image: Float[Tensor, "n c h w"]
    noise: Float[Tensor, "n c h w"]


def split(x: Tensor, answer: Tensor, alpha: Tensor, sigma: Tensor, target: str) -> Prediction:
    """The network's answer as image and noise; alpha and sigma broadcast against x.

    "v": with v = alpha noise - sigma image, alpha x - sigma v = (alpha^2 + sigma^2) image
    (Salimans & Ho 2022, appendix D, where the sum of squares is 1).
    """
    if target == "noise":
        return Prediction((x - sigma * answer) / alpha, answer)
    if target == "score":
        noise = -sigma * answer
        return Prediction((x - sigma * noise) / alpha, noise)
    if target == "image":
        return Prediction(answer, (x - alpha * answer) / sigma)
    power = alpha.square() + sigma.square()
    return Prediction((alpha * x - sigma * answer) / power, (sigma * x + alpha * answer) / power)


def time_input(
    t: Float[Tensor, "*n"], sigma: Float[Tensor, "*n"], by: Parametrisation
) -> Float[Tensor, "*n"]:
    """What the network is told about the noise level; sigma in its own range of images."""
    if by.time_input == "sigma":
        return sigma
    if by.time_input == "step":
        return t * by.steps - 1
    return t * 999.0


def as_seen(x: Tensor, alpha: Tensor, sigma: Tensor, by: Parametrisation) -> tuple[Tensor, Tensor]:
    """The noisy image and its noise level in the network's range of images.

    With u = (image + 1) / 2, (x + alpha) / 2 = alpha u + sigma / 2 noise: the same alpha and the
    same noise at half the level.
    """
    if by.image_range == "signed":
        return x, sigma
    return 0.5 * (x + alpha.to(x)), 0.5 * sigma


def fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in has)


def native_precision(device: torch.device) -> Precision:
    """What the device is fast in: bf16 where it has it, float32 otherwise."""
    return "bf16" if fast_bf16(device) else "float32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """bfloat16 matrix work under "bf16", nothing under "float32"."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _round_weights(network: nn.Module) -> None:
    """Keep in bfloat16, in place, what autocast would otherwise round at each evaluation."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)


class Denoiser:
    """Network, process and parametrisation as one function from a noisy image to a clean one.

    It owns the network: under "bf16" the matrices and filters are rounded in place.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        by: Parametrisation,
        *,
        precision: Precision | None = None,
    ) -> None:
        self.network = network
        self.process = process
        self.by = by
        device = next(network.parameters()).device
        self.precision: Precision = precision or native_precision(device)
        if self.precision == "bf16":
            _round_weights(network)

    @property
    def device(self) -> torch.device:
        """Where the network's weights lie."""
        return next(self.network.parameters()).device

    def __call__(self, x: Float[Tensor, "n c h w"], t: float) -> Prediction:
        """Predict image and noise from x, all of it at noise time t in (0, 1]; no gradients."""
        with torch.inference_mode():
            return self.predict(x, t)

    def predict(self, x: Float[Tensor, "n c h w"], t: float) -> Prediction:
        """The same with gradients to x, where they are enabled."""
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = self.process.alpha(time), self.process.sigma(time)
        seen, level = as_seen(x, alpha, sigma, self.by)
        told = time_input(time, level, self.by).float().to(x.device).expand(len(x))
        with autocast(x.device, self.precision):
            answer = self.network(seen.contiguous(memory_format=torch.channels_last), told)
        image, noise = split(seen, answer.float(), alpha.to(x), level.to(x), self.by.target)
        return Prediction(image if self.by.image_range == "signed" else 2.0 * image - 1.0, noise)
