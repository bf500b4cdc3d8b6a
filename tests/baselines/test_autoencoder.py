from pathlib import Path

import pytest
import torch
from scipy.spatial.distance import mahalanobis
from tiny import pixels

from liftmap.baselines.autoencoder import AEMH, AEMSE
from liftmap.errors import SettingsError
from liftmap.images.prepare import Preparation, to_model_range
from liftmap.images.store import PreparedImages

GREY = Preparation(32, 32, 1)


def stored(path: Path, images: torch.Tensor) -> PreparedImages:
    path.write_bytes(images.numpy().tobytes())
    return PreparedImages(path, (1, 32, 32))


def test_what_it_was_trained_on_comes_back_and_noise_does_not(tmp_path: Path) -> None:
    train = stored(tmp_path / "i.u8", pixels(200))
    scorer = AEMSE(GREY, device="cpu", steps=150)
    before = scorer.network.image(scorer.network.code(train.take(torch.arange(20))))
    error = (before - train.take(torch.arange(20))).square().mean()
    scorer.learn(train, train)
    known = scorer.scores(pixels(20, seed=3))
    noise = scorer.scores(torch.randint(0, 256, (20, 1, 32, 32), dtype=torch.uint8))
    assert known.mean() < 0.3 * error
    assert noise.min() > known.max()


def test_dark_images_with_strokes_are_learnt(tmp_path: Path) -> None:
    """As digits are: mostly black, which is far from all of the answer."""
    draw, images = torch.Generator().manual_seed(0), torch.zeros(32, 1, 32, 32, dtype=torch.uint8)
    places = torch.randint(2, 16, (32, 2), generator=draw).tolist()
    for image, (top, left) in zip(images, places, strict=True):
        image[0, top : top + 14, left : left + 6] = 255
    train = stored(tmp_path / "i.u8", images)
    scorer = AEMSE(GREY, device="cpu", steps=150)
    scorer.learn(train, train)
    by_the_best_constant = to_model_range(images).var()
    assert scorer.scores(images).mean() < 0.9 * by_the_best_constant


def test_the_score_is_the_mean_squared_error(tmp_path: Path) -> None:
    train = stored(tmp_path / "i.u8", pixels(20))
    scorer = AEMSE(GREY, device="cpu", steps=2)
    scorer.learn(train, train)
    x = to_model_range(pixels(3))
    with torch.no_grad():
        back = scorer.network.image(scorer.network.code(x))
    expected = ((back - x) ** 2).flatten(1).mean(1)
    assert torch.allclose(scorer.scores(pixels(3)), expected, rtol=1e-5)


def test_the_two_distances_count_in_their_in_domain_deviations(tmp_path: Path) -> None:
    train = stored(tmp_path / "i.u8", pixels(60))
    held = stored(tmp_path / "h.u8", pixels(40, seed=1))
    scorer = AEMH(GREY, device="cpu", steps=2)
    scorer.learn(train, held)
    answers = scorer.answers(pixels(40, seed=1))
    centre, precision = (scorer.learnt[name].numpy() for name in ("centre", "precision"))
    distance = torch.tensor([mahalanobis(a, centre, precision) for a in answers[:, 1:].double()])
    expected = distance / distance.std() + answers[:, 0] / answers[:, 0].std()
    assert torch.allclose(scorer.compare(answers), expected, rtol=1e-4)


def test_what_one_score_has_learnt_serves_the_other(tmp_path: Path) -> None:
    train = stored(tmp_path / "i.u8", pixels(60))
    one, other = AEMSE(GREY, device="cpu", steps=2), AEMH(GREY, device="cpu", steps=2)
    one.learn(train, train)
    one.save_learnt(tmp_path / "kept")
    other.read_learnt(tmp_path / "kept")
    again = AEMH(GREY, device="cpu", steps=2)
    again.learn(train, train)
    assert torch.equal(other.scores(pixels(3, seed=1)), again.scores(pixels(3, seed=1)))


def test_training_is_repeatable_and_follows_the_seed(tmp_path: Path) -> None:
    train, found = stored(tmp_path / "i.u8", pixels(20)), []
    for seed in (0, 0, 1):
        scorer = AEMSE(GREY, device="cpu", steps=3, seed=seed)
        scorer.learn(train, train)
        found.append(scorer.scores(pixels(4)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_sides_that_can_not_be_halved_are_refused() -> None:
    with pytest.raises(
        SettingsError, match="30x32 pixels: this method's network needs multiples of 8"
    ):
        AEMSE(Preparation(30, 32, 1))
