from pathlib import Path

import torch
from tiny import pixels

from liftmap.baselines.anogan import AnoGAN
from liftmap.images.prepare import Preparation
from liftmap.images.store import PreparedImages

GREY = Preparation(32, 32, 1)


def test_an_image_that_the_generator_makes_is_found_nearer_than_noise() -> None:
    """The search works on an untrained generator, whose images are known to be within reach."""
    scorer = AnoGAN(GREY, device="cpu", search_steps=80)
    with torch.no_grad():
        made = scorer.network.generator(torch.randn(3, 100))
    images = ((made + 1) * 127.5).round().to(torch.uint8)
    noise = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    assert scorer.answers(images).max() < 0.5 * scorer.answers(noise).min()


def test_more_searching_never_ends_further_away() -> None:
    images = pixels(3)
    short = AnoGAN(GREY, device="cpu", search_steps=2).answers(images)
    long = AnoGAN(GREY, device="cpu", search_steps=10).answers(images)
    assert (long <= short).all() and (long < short).any()


def test_training_moves_both_networks(tmp_path: Path) -> None:
    path = tmp_path / "i.u8"
    path.write_bytes(pixels(16).numpy().tobytes())
    train = PreparedImages(path, (1, 32, 32))
    scorer = AnoGAN(GREY, device="cpu", steps=2)
    before = {k: v.clone() for k, v in scorer.network.named_parameters()}
    scorer.learn(train, train)
    moved = [k for k, v in scorer.network.named_parameters() if not torch.equal(v, before[k])]
    assert {name.split(".")[0] for name in moved} == {"generator", "discriminator"}
    assert not scorer.network.training
