import pytest
import torch
from torch import Tensor

from liftmap.diffusion.denoiser import Parametrisation
from liftmap.diffusion.network import Patched, Preset, build_unet
from liftmap.diffusion.on_card import Augmentation, CardTrainer, draw_images
from liftmap.diffusion.process import VP
from liftmap.diffusion.schedule import TrainingSettings

SMALL = Preset((32, 32), blocks=1, attention=(), patch=2)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device"))]  # fmt: skip


def blobs(count: int = 40) -> Tensor:
    coarse = torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear") * 2 - 1


def trainer(device: str, steps: int, **options: object) -> CardTrainer:
    torch.manual_seed(0)
    network = Patched(build_unet(SMALL, height=16, width=16, channels=1), SMALL.patch)
    settings = TrainingSettings(steps=steps, batch=8, warm_up=5, **options)  # type: ignore[arg-type]
    return CardTrainer(
        network, VP(), Parametrisation(), settings, blobs().to(device), precision="float32"
    )


@pytest.mark.parametrize("device", DEVICES)
def test_training_lowers_the_loss_on_other_images(device: str) -> None:
    made, others = trainer(device, 60, noise_times="log-normal"), blobs(50)[40:].to(device)
    before = made.held_out_loss(others)
    assert made.held_out_loss(others) == before
    made.record()
    assert made.held_out_loss(others) == before
    for _ in range(60):
        made.step()
    assert made.progress.step == 60
    assert made.held_out_loss(others) < 0.8 * before
    assert 0 < made.loss() < before


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_average_follows_the_weights(device: str, ema: float) -> None:
    made = trainer(device, 20, ema=ema)
    made.record()
    for _ in range(10):
        made.step()
    made.loss()
    pairs = zip(made.network.parameters(), made.averaged.parameters(), strict=True)
    gap = max((a - b).abs().max().item() for a, b in pairs)
    assert (1e-6 < gap < 1e-2) if ema else gap < 1e-6


def test_images_are_drawn_as_they_are_unless_asked() -> None:
    images = torch.rand(5, 3, 4, 4)
    drawn = draw_images(images, 64, Augmentation())
    assert all(any(torch.equal(d, i) for i in images) for d in drawn)
    assert len({float(d.sum()) for d in drawn}) == 5


def test_shifts_repeat_the_border() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4)
    drawn = draw_images(images, 200, Augmentation(shift=1))
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == 9
    down = drawn[(drawn[:, 0, 0, 0] == 5) & (drawn[:, 0, 3, 3] == 15)]
    assert len(down)
    assert down[0, 0, 3].tolist() == [13, 14, 15, 15]


def test_flips_and_colours_come_half_of_the_time() -> None:
    images = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1) * torch.tensor([1.0, 2.0])
    drawn = draw_images(images, 400, Augmentation(flip=True, colours=True))
    dark = drawn.sum((1, 2, 3)) < 0
    assert 140 < dark.sum() < 260
    flipped = drawn.abs()[:, 0, 0, 0] > drawn.abs()[:, 0, 0, 1]
    assert 140 < flipped.sum() < 260
    orders = {tuple(round(x, 1) for x in d.abs().amax((1, 2)).tolist()) for d in drawn}
    assert len(orders) == 6
