"""Inpainting with a denoiser whose answer is known in closed form: correlated Gaussian images."""

import pytest
import torch
from torch import Tensor

from liftmap.diffusion.denoiser import Denoiser, Parametrisation, Prediction
from liftmap.diffusion.noise import ImageNoise, attempt_seed
from liftmap.diffusion.process import VE, VP, Process
from liftmap.diffusion.samplers import SamplerSettings
from liftmap.errors import SettingsError
from liftmap.stages.inpaint import Move, Resampling, evaluations, inpaint, noise_and_denoise, plan

SIDE = 4


class GaussianDenoiser(Denoiser):
    """Posterior mean for images N(0, cov) of SIDE x SIDE pixels (counts its evaluations)."""

    def __init__(self, cov: Tensor, process: Process) -> None:
        super().__init__(torch.nn.Linear(1, 1), process, Parametrisation(), precision="float32")
        self.cov, self.calls = cov, 0

    def __call__(self, x: Tensor, t: float) -> Prediction:
        self.calls += 1
        at = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = self.process.alpha(at), self.process.sigma(at)
        noisy = alpha**2 * self.cov + sigma**2 * torch.eye(len(self.cov), dtype=torch.float64)
        gain = alpha * self.cov @ torch.linalg.inv(noisy)
        image = (x.double().flatten(1) @ gain.T).view_as(x)
        return Prediction(image.float(), ((x - alpha * image) / sigma).float())


def covariance(correlation: float = 0.95) -> Tensor:
    """Pixels whose correlation falls with their distance along the flattened image."""
    i = torch.arange(SIDE * SIDE, dtype=torch.float64)
    return 0.25 * correlation ** (i[:, None] - i[None, :]).abs()


def noise(count: int, offset: int = 0) -> ImageNoise:
    return ImageNoise([offset + i for i in range(count)], (1, SIDE, SIDE))


def stripes() -> Tensor:
    hidden = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
    hidden[..., ::2] = True
    return hidden


@pytest.mark.parametrize(
    "name", ["ddim", "renoise", "euler-maruyama", "reverse-diffusion", "dpm-solver++"]
)
@pytest.mark.parametrize("process", [VP(), VE(0.01, 10.0)], ids=["vp", "ve"])
def test_known_pixels_return_unchanged(name: str, process: Process) -> None:
    original = torch.rand(3, 1, SIDE, SIDE) * 2 - 1
    settings = SamplerSettings(name, 5)
    redraw = inpaint(
        GaussianDenoiser(covariance(), process), original, stripes(), noise(3), settings
    )
    known = ~stripes().expand_as(original)
    assert torch.equal(redraw[known], original[known])
    assert (redraw[~known] != original[~known]).all()


def test_redraws_follow_the_conditional_distribution() -> None:
    """Hidden pixels given known ones: mean C_hk C_kk^-1 x_k (Algorithm 2 comes from below)."""
    cov, count = covariance(), 1500
    original = (
        torch.linspace(-0.8, 0.8, SIDE * SIDE).view(1, 1, SIDE, SIDE).expand(count, -1, -1, -1)
    )
    hidden = stripes()
    h, k = hidden.flatten(), ~hidden.flatten()
    exact = cov[h][:, k] @ torch.linalg.inv(cov[k][:, k]) @ original[0].flatten()[k].double()
    settings = SamplerSettings("ddim", 200)
    redraw = inpaint(
        GaussianDenoiser(cov, VP()), original, hidden, noise(count), settings, Resampling(5, 5)
    )
    mean = redraw.flatten(1)[:, h].mean(0).double()
    assert torch.allclose(mean, exact, atol=0.06)


def test_a_path_may_begin_where_an_image_first_takes_shape() -> None:
    """All levels lie below `start`, so each step is finer; the redraw follows the same mean."""

    class Watched(GaussianDenoiser):
        def __call__(self, x: Tensor, t: float) -> Prediction:
            times.append(t)
            return super().__call__(x, t)

    times: list[float] = []
    cov, count = covariance(), 1500
    original = torch.linspace(-0.8, 0.8, SIDE * SIDE).view(1, 1, SIDE, SIDE)
    original = original.expand(count, -1, -1, -1)
    hidden = stripes().flatten()
    means = []
    for start in (1.0, 0.5):
        settings = SamplerSettings("ddim", 100, start=start)
        redraw = inpaint(Watched(cov, VP()), original, stripes(), noise(count), settings)
        means.append(redraw.flatten(1)[:, hidden].mean(0))
        assert max(times) == start
        assert len(times) == 100
        times.clear()
    assert torch.allclose(means[0], means[1], atol=0.06)


def test_resampling_brings_redraws_nearer_to_the_known_pixels() -> None:
    """RePaint's point: the plain walk harmonises less with what is known."""
    cov, count = covariance(), 2000
    original = torch.linalg.cholesky(cov).float() @ torch.randn(count, SIDE * SIDE, 1)
    original = original.view(count, 1, SIDE, SIDE)
    settings = SamplerSettings("ddim", 20)

    def error(resampling: Resampling) -> float:
        denoiser = GaussianDenoiser(cov, VP())
        redraw = inpaint(denoiser, original, stripes(), noise(count), settings, resampling)
        return (redraw - original).square().mean().item()

    assert error(Resampling(times=4)) < 0.95 * error(Resampling())


def test_an_image_is_redrawn_alike_alone_and_in_any_batch() -> None:
    original = torch.rand(7, 1, SIDE, SIDE)
    denoiser, settings = GaussianDenoiser(covariance(), VP()), SamplerSettings(steps=6)
    together = inpaint(denoiser, original, stripes(), noise(7), settings)
    alone = inpaint(denoiser, original[5:6], stripes(), noise(1, offset=5), settings)
    assert torch.allclose(together[5:6], alone, atol=1e-6)
    backwards = ImageNoise(list(range(6, -1, -1)), (1, SIDE, SIDE))
    flipped = inpaint(denoiser, original.flip(0), stripes(), backwards, settings)
    assert torch.allclose(together, flipped.flip(0), atol=1e-6)


def test_noising_a_little_moves_little_and_all_the_way_forgets() -> None:
    original = torch.rand(500, 1, SIDE, SIDE) - 0.5
    denoiser, settings = GaussianDenoiser(covariance(), VP()), SamplerSettings(steps=50)
    moved = [
        (noise_and_denoise(denoiser, original, noise(500), settings, t) - original).square().mean()
        for t in (0.05, 0.3, 1.0)
    ]
    assert moved[0] < moved[1] < moved[2]
    settings = SamplerSettings(steps=400)
    fresh = noise_and_denoise(denoiser, original, noise(500), settings, 1.0)
    assert fresh.var().item() == pytest.approx(0.25, abs=0.04), "at t = 1 it is a plain sample"


@pytest.mark.parametrize(
    "settings", [SamplerSettings(steps=7), SamplerSettings(steps=7, corrector_snr=0.1)]
)
@pytest.mark.parametrize("resampling", [Resampling(), Resampling(3, 2)])
def test_the_stated_number_of_evaluations_is_spent(
    settings: SamplerSettings, resampling: Resampling
) -> None:
    denoiser = GaussianDenoiser(covariance(), VP())
    inpaint(denoiser, torch.zeros(1, 1, SIDE, SIDE), stripes(), noise(1), settings, resampling)
    assert denoiser.calls == evaluations(settings, resampling)


def test_the_plan_goes_back_and_walks_again() -> None:
    moves = plan([1.0, 0.6, 0.3, 0.0], resampling=Resampling(times=2, jump=2))
    assert moves == [
        Move("denoise", 1.0, 0.6),
        Move("denoise", 0.6, 0.3),
        Move("renoise", 0.3, 1.0),
        Move("denoise", 1.0, 0.6),
        Move("denoise", 0.6, 0.3),
        Move("denoise", 0.3, 0.0),
        Move("renoise", 0.0, 0.3),
        Move("denoise", 0.3, 0.0),
    ]


def test_noise_depends_on_the_seed_alone() -> None:
    one = ImageNoise([3, 4], (1, 2, 2))
    two = ImageNoise([4], (1, 2, 2))
    assert torch.equal(one.draw()[1], two.draw()[0])
    assert torch.equal(one.draw()[1], two.draw()[0])
    seeds = {attempt_seed(i, u, a) for i in range(9) for u in range(9) for a in range(9)}
    assert len(seeds) == 9**3


@pytest.mark.parametrize("start", [0.0, -1.0, 1.1])
def test_a_start_outside_its_range_is_refused(start: float) -> None:
    denoiser = GaussianDenoiser(covariance(), VP())
    with pytest.raises(SettingsError, match=f"start={start}"):
        noise_and_denoise(
            denoiser, torch.zeros(1, 1, SIDE, SIDE), noise(1), SamplerSettings(), start
        )


def test_resampling_settings_are_checked() -> None:
    with pytest.raises(SettingsError, match="times=0"):
        Resampling(times=0)
