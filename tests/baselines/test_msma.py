"""On data with a closed form: N(0, s^2) by pixel, whose best denoiser is linear."""

import torch
from tiny import pixels, small_checkpoint

from liftmap.baselines.msma import MSMA
from liftmap.diffusion.denoiser import Prediction
from liftmap.images.prepare import to_model_range

S = 0.5


def test_the_norms_are_those_of_the_true_score_at_the_published_levels() -> None:
    """The score of N(0, s^2 + r^2) at x is -x / (s^2 + r^2): r times its norm, r = 0.02 to 2."""
    scorer = MSMA(small_checkpoint(), device="cpu")
    process = scorer.denoiser.process
    asked = []

    def denoiser(x: torch.Tensor, t: float) -> Prediction:
        asked.append(t)
        alpha, sigma = (
            f(torch.tensor(t, dtype=torch.float64)) for f in (process.alpha, process.sigma)
        )
        noise = (sigma * x / (alpha**2 * S**2 + sigma**2)).float()
        return Prediction(((x - sigma * noise) / alpha).float(), noise)

    denoiser.device, denoiser.process = torch.device("cpu"), process  # type: ignore[attr-defined]
    scorer.denoiser = denoiser  # type: ignore[assignment]
    images = pixels(3)
    found = scorer.answers(images)
    levels = torch.logspace(-1, 0, 10, base=100) * 2
    assert torch.allclose(levels[[0, -1]], torch.tensor([0.02, 2.0]))
    x = torch.linalg.vector_norm(to_model_range(images), dim=(1, 2, 3))
    expected = x[:, None] * levels / (S**2 + levels**2)
    assert torch.allclose(found, expected, rtol=1e-4)
    assert len(asked) == scorer.evaluations == 10
