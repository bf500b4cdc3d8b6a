"""On data with a closed form: N(0, s^2) by pixel, whose best denoiser is linear."""

import pytest
import torch
from exact import ExactDenoiser
from tiny import pixels

from liftmap.diffusion.denoiser import Prediction
from liftmap.diffusion.noise_norms import LEVELS, noise_norms
from liftmap.diffusion.process import VE, VP, Process
from liftmap.images.prepare import to_model_range

S = 0.5


@pytest.mark.parametrize("process", [VP(), VE()], ids=["vp", "ve"])
def test_the_norms_are_those_of_the_true_score_at_the_published_levels(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score of N(0, s^2 + r^2) at x is -x / (s^2 + r^2): r times its norm, r = 0.02 to 2."""
    asked = []
    predict = ExactDenoiser.predict

    def counting(denoiser: ExactDenoiser, x: torch.Tensor, t: float) -> Prediction:
        asked.append(t)
        return predict(denoiser, x, t)

    monkeypatch.setattr(ExactDenoiser, "predict", counting)
    images = to_model_range(pixels(3))
    found = noise_norms(ExactDenoiser(process, [0.0], [S], [1.0]), images)
    levels = torch.logspace(-1, 0, LEVELS, base=100) * 2
    assert torch.allclose(levels[[0, -1]], torch.tensor([0.02, 2.0]))
    x = torch.linalg.vector_norm(images, dim=(1, 2, 3))
    expected = x[:, None] * levels / (S**2 + levels**2)
    assert torch.allclose(found.float(), expected, rtol=1e-4)
    assert len(asked) == LEVELS == 10
