import torch
from tiny import pixels, small_model, standard_density

from liftmap.baselines.msma import MSMA
from liftmap.diffusion.noise_norms import noise_norms
from liftmap.images.prepare import to_model_range


def test_a_score_is_how_unlikely_the_ten_norms_are() -> None:
    scorer = MSMA(small_model(), device="cpu", precision="float32")
    assert scorer.evaluations == 10
    norms = noise_norms(scorer.denoiser, to_model_range(pixels(3)))
    scorer.learnt = standard_density()._asdict()
    likelihood = torch.distributions.Normal(0, 1).log_prob(norms.double()).sum(1)
    assert torch.allclose(scorer.scores(pixels(3)), -likelihood.float(), rtol=1e-4)
