"""Every sampler on data with a closed form: a Gaussian, and a mixture of two."""

import itertools
import math

import pytest
import torch
from exact import ExactDenoiser
from torch import Tensor

from liftmap.diffusion.process import VE, VP, Process, SubVP
from liftmap.diffusion.samplers import SamplerSettings, grid, levels_of, sample
from liftmap.errors import SettingsError

MEAN, STD = 0.4, 0.5


SAMPLERS = {
    "ddim": SamplerSettings("ddim", 100, eta=0.0),
    "ddim, ancestral": SamplerSettings("ddim", 200, eta=1.0),
    "ddim, log-snr": SamplerSettings("ddim", 300, "log-snr", eta=1.0),
    "euler-maruyama": SamplerSettings("euler-maruyama", 1000),
    "reverse-diffusion": SamplerSettings("reverse-diffusion", 1000),
    "predictor-corrector": SamplerSettings("reverse-diffusion", 500, corrector_snr=0.1),
    "dpm-solver++": SamplerSettings("dpm-solver++", 40, "log-snr"),
    "dpm-solver++, time": SamplerSettings("dpm-solver++", 80),
}


def draw_samples(denoiser: ExactDenoiser, settings: SamplerSettings, side: int = 110) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (2, 1, side, side)
    sigma = denoiser.process.sigma(torch.tensor(1.0, dtype=torch.float64))

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return sample(denoiser, sigma * draw(), draw, settings)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("process", [VP(), SubVP(), VE(0.01, 20.0)], ids=lambda p: type(p).__name__)
def test_a_gaussian_comes_out_with_its_mean_and_variance(process: Process, name: str) -> None:
    if isinstance(process, VE) and name == "ddim, log-snr":
        pytest.skip("the same levels as uniform time, for VE")
    drawn = draw_samples(ExactDenoiser(process, [MEAN], [STD], [1.0]), SAMPLERS[name])
    # standard error of the mean is STD / sqrt(24200) = 0.003; the rest is discretisation
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert drawn.std().item() == pytest.approx(STD, abs=0.03)
    across = torch.corrcoef(drawn.flatten(2)[:, 0])[0, 1].item()
    assert abs(across) < 0.04, "pixels are independent in the data, so in the samples"


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_mixture_of_two_comes_out_with_its_weights_and_covariance(name: str) -> None:
    denoiser = ExactDenoiser(VP(), [-0.6, 0.5], [0.1, 0.2], [0.3, 0.7])
    drawn = draw_samples(denoiser, SAMPLERS[name])
    mean = 0.3 * -0.6 + 0.7 * 0.5
    second = 0.3 * (0.36 + 0.01) + 0.7 * (0.25 + 0.04)
    assert (drawn < -0.2).double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert drawn.mean().item() == pytest.approx(mean, abs=0.03)
    assert drawn.var().item() == pytest.approx(second - mean**2, abs=0.03)


def test_deterministic_solvers_converge_with_their_order() -> None:
    """For Gaussian data the probability-flow ODE maps x to mean + std / total (x - alpha mean)."""
    process = VP()
    denoiser = ExactDenoiser(process, [MEAN], [STD], [1.0])
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 3, 3)
    alpha = process.alpha(torch.tensor(1.0, dtype=torch.float64)).item()
    sigma = process.sigma(torch.tensor(1.0, dtype=torch.float64)).item()
    exact = MEAN + STD / math.hypot(alpha * STD, sigma) * (x - alpha * MEAN)

    def error(name: str, steps: int) -> float:
        settings = SamplerSettings(name, steps, "log-snr", eta=0.0)
        out = sample(denoiser, x, lambda: torch.zeros_like(x), settings)
        return (out - exact).abs().max().item()

    assert error("ddim", 80) < 0.6 * error("ddim", 40), "first order: halving the step halves it"
    assert error("dpm-solver++", 40) < 0.4 * error("dpm-solver++", 20), "second order quarters it"
    assert error("dpm-solver++", 20) < error("ddim", 40), "and is ahead at half the evaluations"


def test_ancestral_ddim_is_ddpms_posterior() -> None:
    """Ho et al. 2020, eq. 7: with eta = 1 a step has the forward posterior's mean and variance."""
    at = levels_of(VP(), 0.6, 0.5)
    beta = 1 - at.ratio**2
    posterior_variance = at.sigma_s**2 / at.sigma_t**2 * beta
    fresh = at.sigma_s / at.sigma_t * at.added
    assert fresh**2 == pytest.approx(posterior_variance)
    image, x = 0.3, -0.2
    noise = (x - at.alpha_t * image) / at.sigma_t
    mean = at.alpha_s * image + math.sqrt(at.sigma_s**2 - fresh**2) * noise
    published = (
        at.alpha_s * beta / at.sigma_t**2 * image + at.ratio * at.sigma_s**2 / at.sigma_t**2 * x
    )
    assert mean == pytest.approx(published)


def test_renoising_contracts_a_gaussian_as_its_closed_form_says() -> None:
    """Each step predicts the posterior mean, mean + gain (x - alpha mean), and noises it afresh."""
    process, settings = VP(), SamplerSettings("renoise", 5, "quadratic", start=0.5)
    spread = process.sigma(torch.tensor(0.5, dtype=torch.float64)).item()
    variance = spread**2  # of x - alpha mean, if x starts as noise around alpha mean
    times = grid(process, 5, "quadratic", start=0.5).tolist()
    for t, s in itertools.pairwise(times):
        at = levels_of(process, t, s)
        gain = at.alpha_t * STD**2 / (at.alpha_t**2 * STD**2 + at.sigma_t**2)
        variance = at.alpha_s**2 * gain**2 * variance + at.sigma_s**2
    generator = torch.Generator().manual_seed(2)

    def draw() -> Tensor:
        return torch.randn((2, 1, 110, 110), generator=generator, dtype=torch.float64)

    x = process.alpha(torch.tensor(0.5, dtype=torch.float64)) * MEAN + spread * draw()
    drawn = sample(ExactDenoiser(process, [MEAN], [STD], [1.0]), x, draw, settings)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert drawn.std().item() == pytest.approx(math.sqrt(variance), rel=0.02)
    assert drawn.std().item() < 0.8 * STD, "narrower than the distribution itself"


def test_renoising_is_ddim_where_all_noise_is_fresh_anyway() -> None:
    """Where next to nothing is left of the image at t, DDIM's step with eta = 1 is the same."""
    process, still = VP(0.1, 40.0), torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    denoiser = ExactDenoiser(process, [MEAN], [STD], [1.0])
    settings = [SamplerSettings(name, 2) for name in ("renoise", "ddim")]
    ends = [sample(denoiser, still, lambda: still + 0.7, one) for one in settings]
    assert torch.allclose(*ends, atol=1e-3)


@pytest.mark.parametrize("spacing", ["time", "quadratic", "log-snr"])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_grids_fall_from_start_to_zero(spacing: str, steps: int) -> None:
    times = grid(VP(), steps, spacing, start=0.8)
    assert len(times) == steps + 1
    assert times[0] == 0.8
    assert times[-1] == 0
    assert (times.diff() < 0).all()


def test_the_papers_grid_has_its_thousand_evaluations() -> None:
    times = grid(VP(), 1000)
    assert times[999].item() == pytest.approx(1e-3)


def test_clipping_keeps_the_predicted_image_in_range() -> None:
    denoiser = ExactDenoiser(VP(), [3.0], [0.1], [1.0])
    assert draw_samples(denoiser, SamplerSettings(steps=5, clip=True), 4).abs().max() <= 1
    assert draw_samples(denoiser, SamplerSettings(steps=5), 4).max() > 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "heun"}, "need one of ddim, renoise"),
        ({"steps": 0}, "steps=0"),
        ({"eta": 1.5}, "eta=1.5"),
        ({"start": 0.0}, "start=0"),
        ({"start": 1.1}, "start=1.1"),
        ({"spacing": "cosine"}, "cosine"),
        ({"corrector_snr": -1.0}, "corrector_snr=-1"),
    ],
)
def test_bad_settings_name_value_and_need(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SamplerSettings(**settings)
