import math
from pathlib import Path

import pytest
import torch
from tiny import pixels

from liftmap.baselines.likelihood_regret import LikelihoodRegret, divergence
from liftmap.images.prepare import Preparation
from liftmap.images.store import PreparedImages

GREY = Preparation(32, 32, 1)


def test_the_divergence_is_torchs() -> None:
    mean, log_variance = torch.randn(4, 7), torch.randn(4, 7)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(divergence(mean, log_variance), expected.sum(1), atol=1e-5)


def test_an_untrained_decoder_gives_about_eight_bits_a_pixel() -> None:
    scorer = LikelihoodRegret(GREY, device="cpu")
    found = scorer.network.log_likelihood(pixels(2).long(), torch.zeros(2, 100))
    assert found.detach().numpy() / 1024 == pytest.approx(-math.log(256), abs=0.1)


def test_some_positions_estimate_the_whole_without_bias() -> None:
    scorer, codes = LikelihoodRegret(GREY, device="cpu"), torch.randn(2, 100)
    whole = scorer.network.log_likelihood(pixels(2).long(), codes)
    parts = [
        scorer.network.log_likelihood(pixels(2).long(), codes, part)
        for part in torch.randperm(1024).split(64)
    ]
    assert torch.allclose(torch.stack(parts).mean(0), whole, rtol=1e-5)


def test_fitting_the_encoder_to_an_image_raises_its_likelihood(tmp_path: Path) -> None:
    path = tmp_path / "i.u8"
    path.write_bytes(pixels(60).numpy().tobytes())
    train = PreparedImages(path, (1, 32, 32))
    scorer = LikelihoodRegret(
        GREY, device="cpu", steps=20, refit_steps=40, refit_rate=1e-3, samples=20
    )
    scorer.learn(train, train)
    before = {k: v.clone() for k, v in scorer.network.state_dict().items()}
    odd = 255 - pixels(4, seed=2)
    answers = scorer.answers(odd)
    assert answers[:, 1].mean() > answers[:, 0].mean()
    assert torch.equal(scorer.compare(answers), answers[:, 1] - answers[:, 0])
    for name, part in scorer.network.state_dict().items():
        assert torch.equal(part, before[name]), "the trained network itself is left alone"


def test_without_a_refit_there_is_no_regret() -> None:
    scorer = LikelihoodRegret(GREY, device="cpu", refit_steps=0, samples=5)
    scorer.keep()
    assert scorer.scores(pixels(3)).abs().max() < 1e-3
