from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from liftmap.diffusion.denoiser import (
    Denoiser,
    ImageRange,
    Parametrisation,
    Precision,
    Target,
    TimeInput,
    as_seen,
    autocast,
    fast_bf16,
    split,
    time_input,
)
from liftmap.diffusion.process import VE, VP, Process, SubVP, Tabulated
from liftmap.errors import SettingsError

TABLE = Tabulated(tuple(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0).tolist()))
PROCESSES: list[Process] = [VP(), SubVP(), VE(), TABLE]
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
EVERY_TARGET = pytest.mark.parametrize("target", get_args(Target))


def answer_of(target: Target, image: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network that knows image and noise would answer."""
    return {
        "noise": noise,
        "score": -noise / sigma,
        "image": image,
        "v": alpha * noise - sigma * image,
    }[target]


@EVERY_PROCESS
@EVERY_TARGET
@given(t=st.floats(1e-3, 1.0), seed=st.integers(0, 100))
def test_splitting_the_exact_answer_gives_image_and_noise(
    process: Process, target: Target, t: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 1, 3, 3, generator=draw, dtype=torch.float64) * 2 - 1
    noise = torch.randn(2, 1, 3, 3, generator=draw, dtype=torch.float64)
    at = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = process.alpha(at), process.sigma(at)
    x = alpha * image + sigma * noise
    got = split(x, answer_of(target, image, noise, alpha, sigma), alpha, sigma, target)
    assert torch.allclose(got.image, image, atol=1e-9)
    assert torch.allclose(got.noise, noise, atol=1e-7)


@EVERY_PROCESS
@EVERY_TARGET
@given(t=st.floats(1e-3, 1.0))
def test_image_and_noise_always_add_up_to_the_noisy_image(
    process: Process, target: Target, t: float
) -> None:
    """Whatever the network answers: x = alpha image + sigma noise."""
    x, answer = torch.randn(2, 2, 1, 3, 3, dtype=torch.float64)
    at = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = process.alpha(at), process.sigma(at)
    got = split(x, answer, alpha, sigma, target)
    assert torch.allclose(alpha * got.image + sigma * got.noise, x, atol=1e-9)


class Oracle(nn.Module):
    """Knows image and noise, sees them in its own range, and notes what it was told."""

    def __init__(self, image: Tensor, noise: Tensor, process: Process, by: Parametrisation) -> None:
        super().__init__()
        self.image, self.noise, self.process, self.by = image, noise, process, by
        self.weight = nn.Parameter(torch.zeros(1))
        self.t = torch.tensor(0.0)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        unit = self.by.image_range == "unit"
        image = (self.image + 1) / 2 if unit else self.image
        alpha = self.process.alpha(self.t).float()
        sigma = self.process.sigma(self.t).float() / (2 if unit else 1)
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(x, alpha * image + sigma * self.noise, rtol=1e-4, atol=1e-4)
        expected = {"sigma": sigma, "scaled": 999 * self.t, "step": 1000 * self.t - 1}
        assert torch.allclose(told, expected[self.by.time_input].float().expand(len(x)))
        return answer_of(self.by.target, image, self.noise, alpha, sigma)


@EVERY_PROCESS
@EVERY_TARGET
@pytest.mark.parametrize("image_range", get_args(ImageRange))
@pytest.mark.parametrize("told", get_args(TimeInput))
def test_the_denoiser_speaks_the_networks_language(
    process: Process, target: Target, image_range: ImageRange, told: TimeInput
) -> None:
    by = Parametrisation(target, told, image_range=image_range)
    image, noise = torch.rand(2, 3, 4, 4) * 2 - 1, torch.randn(2, 3, 4, 4)
    oracle = Oracle(image, noise, process, by)
    denoiser = Denoiser(oracle, process, by, precision="float32")
    for t in (0.1, 0.5):
        oracle.t = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = process.alpha(oracle.t).float(), process.sigma(oracle.t).float()
        got = denoiser(alpha * image + sigma * noise, t)
        assert torch.allclose(got.image, image, atol=1e-3)
        assert torch.allclose(got.noise, noise, atol=1e-3)


def test_unit_range_sees_the_image_between_0_and_1() -> None:
    alpha, sigma = torch.tensor(0.5).double(), torch.tensor(0.2).double()
    by = Parametrisation(image_range="unit")
    black, white = -torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    assert as_seen(alpha.float() * black, alpha, sigma, by)[0].item() == 0.0
    assert as_seen(alpha.float() * white, alpha, sigma, by)[0].item() == 0.5
    assert as_seen(white, alpha, sigma, by)[1].item() == pytest.approx(0.1)


def test_time_inputs() -> None:
    t, sigma = torch.tensor([1e-3, 0.5, 1.0]).double(), torch.tensor([0.1, 1.0, 50.0]).double()
    step = time_input(t, sigma, Parametrisation(time_input="step", steps=1000))
    assert step.tolist() == pytest.approx([0, 499, 999], abs=1e-6)
    scaled = time_input(t, sigma, Parametrisation(time_input="scaled"))
    assert scaled.tolist() == pytest.approx([0.999, 499.5, 999])
    assert torch.equal(time_input(t, sigma, Parametrisation(time_input="sigma")), sigma)


@pytest.mark.parametrize("name", ["target", "time_input", "image_range"])
def test_unknown_words_list_the_known(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} 'other': need one of"):
        Parametrisation(**{name: "other"})


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Conv2d(3, 3, 1)
        self.seen = torch.float32

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        self.seen = out.dtype
        return out


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("float32", "float32")])
def test_precision_is_the_networks_alone(precision: Precision, dtype: str) -> None:
    network = Constant()
    denoiser = Denoiser(network, VP(), Parametrisation(), precision=precision)
    prediction = denoiser(torch.randn(1, 3, 4, 4), 0.5)
    assert network.seen == getattr(torch, dtype)
    assert prediction.image.dtype == prediction.noise.dtype == torch.float32
    assert not prediction.image.requires_grad
    assert denoiser.device == torch.device("cpu")


def test_precision_follows_the_hardware_unless_named() -> None:
    chosen = Denoiser(Constant(), VP(), Parametrisation()).precision
    assert chosen == ("bf16" if fast_bf16(torch.device("cpu")) else "float32")
    with autocast(torch.device("cpu"), "float32"):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(torch.device("cpu"), "bf16"):
        assert torch.is_autocast_enabled("cpu")
