from pathlib import Path

import pytest
import torch
from tiny import pixels, save_grey_generator

from liftmap.baselines.inpainters import (
    FourierInpainting,
    LaMaInpainting,
    MAEInpainting,
    MaskedAutoencoder,
)
from liftmap.errors import ModelError, SettingsError
from liftmap.images.prepare import Preparation, to_model_range
from liftmap.images.store import PreparedImages
from liftmap.stages.distances import LPIPS
from liftmap.stages.masks import MaskSettings, centre, checkerboard

GREY = Preparation(32, 32, 1)


def stored(path: Path, images: torch.Tensor) -> PreparedImages:
    path.write_bytes(images.numpy().tobytes())
    return PreparedImages(path, (1, 32, 32))


@pytest.mark.parametrize("kind", [MAEInpainting, FourierInpainting])
def test_hidden_pixels_are_not_seen(kind: type[MAEInpainting]) -> None:
    """Whatever stands under the mask, the redraw is the same."""
    scorer = kind(GREY, device="cpu")
    x = to_model_range(pixels(2))
    hidden = checkerboard(32, 32, 8).expand(2, 1, 32, 32)
    other = torch.where(hidden, torch.rand_like(x), x)
    with torch.no_grad():
        assert torch.equal(scorer.redraw(x, hidden), scorer.redraw(other, hidden))
        assert not torch.equal(scorer.redraw(x, ~hidden), scorer.redraw(other, ~hidden))


@pytest.mark.parametrize(
    ("kind", "steps", "count"), [(MAEInpainting, 60, 64), (FourierInpainting, 30, 16)]
)
def test_training_brings_the_redraw_nearer(
    kind: type[MAEInpainting], steps: int, count: int, tmp_path: Path
) -> None:
    train = stored(tmp_path / "i.u8", pixels(count))
    scorer = kind(GREY, device="cpu", steps=steps)
    x = to_model_range(pixels(16, seed=4))
    hidden = checkerboard(32, 32, 8).expand(16, 1, 32, 32)

    def error() -> float:
        with torch.no_grad():
            return float((scorer.redraw(x, hidden) - x)[hidden].square().mean())

    before = error()
    scorer.learn(train, train)
    assert error() < 0.5 * before


def test_an_explanation_takes_the_score_apart() -> None:
    scorer = FourierInpainting(GREY, device="cpu")
    scorer.keep()
    image = pixels(1)
    found = scorer.explain(image[0])
    assert found.score == pytest.approx(scorer.scores(image).item(), rel=1e-6)
    shown = found.hidden.expand_as(found.redraws)
    assert torch.equal(found.redraws[~shown], found.original.expand_as(found.redraws)[~shown])
    assert found.maps.shape == (2, 1, 32, 32)


def test_the_score_is_the_mean_lpips_of_both_masks() -> None:
    scorer = FourierInpainting(GREY, device="cpu")
    scorer.keep()
    x = to_model_range(pixels(3))
    lpips, expected = LPIPS(), torch.zeros(3)
    for flipped in (False, True):
        hidden = checkerboard(32, 32, 8, flipped=flipped).expand(3, 1, 32, 32)
        with torch.no_grad():
            redrawn = torch.where(hidden, scorer.redraw(x, hidden).clamp(-1, 1), x)
        expected += lpips.values(lpips.reference(x), redrawn, torch.arange(3)) / 2
    assert torch.allclose(scorer.scores(pixels(3)), expected, rtol=1e-5)


def test_a_mask_of_ones_own_is_used_and_saved(tmp_path: Path) -> None:
    scorer = MAEInpainting(GREY, device="cpu", mask=MaskSettings("centre"))
    scorer.keep()
    hidden = scorer.explain(pixels(1)[0]).hidden
    assert torch.equal(hidden, centre(32, 32, 0.5).expand_as(hidden))
    scorer.save(tmp_path)
    loaded = MAEInpainting.from_pretrained(tmp_path, device="cpu")
    assert loaded.settings == scorer.settings
    assert torch.equal(loaded.scores(pixels(2)), scorer.scores(pixels(2)))


def test_the_masked_autoencoder_puts_patches_back_where_they_were() -> None:
    """With the transformers passing tokens through, and prediction undoing the embedding."""
    network = MaskedAutoencoder(1, 8, 12)
    network.encoder = network.decoder = torch.nn.Identity()
    network.places.data.zero_()
    for layer in (network.embed, network.predict):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x = torch.randn(2, 1, 8, 12)
    nothing = torch.zeros(2, 1, 8, 12, dtype=torch.bool)
    with torch.no_grad():
        assert torch.allclose(network(x, nothing), x)


def test_lama_is_loaded_from_torchscript_and_told_what_is_hidden(tmp_path: Path) -> None:
    path = save_grey_generator(tmp_path / "big-lama.pt")
    scorer = LaMaInpainting(Preparation(32, 32, 3), generator=path, device="cpu")
    x = to_model_range(pixels(2, channels=3))
    hidden = checkerboard(32, 32, 8).expand(2, 1, 32, 32)
    redrawn = scorer.redraw(x, hidden)
    assert (redrawn[hidden.expand_as(x)] == 0).all(), "middle grey is 0 in [-1, 1]"
    assert torch.allclose(redrawn[~hidden.expand_as(x)], x[~hidden.expand_as(x)], atol=1e-6)
    scorer.save(tmp_path / "m")
    loaded = LaMaInpainting.from_pretrained(tmp_path / "m", device="cpu")
    images = pixels(2, channels=3)
    assert torch.equal(loaded.scores(images), scorer.scores(images))


def test_files_and_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"no program")
    with pytest.raises(ModelError, match="can't be read as TorchScript"):
        LaMaInpainting(Preparation(32, 32, 3), generator=tmp_path / "x.pt", device="cpu")
    with pytest.raises(SettingsError, match="need a preparation with 3 channels"):
        LaMaInpainting(GREY, generator=tmp_path / "x.pt", device="cpu")
    with pytest.raises(SettingsError, match="30x32 pixels: need multiples of 4"):
        MAEInpainting(Preparation(30, 32, 1), device="cpu")
