from dataclasses import replace

import pytest
import torch
from torch import nn

from liftmap.diffusion.network import PRESETS, Patched, Preset, build_unet, find_preset
from liftmap.errors import SettingsError


def count(preset: str, side: int, channels: int) -> float:
    """Million parameters, built without memory."""
    with torch.device("meta"):
        unet = build_unet(find_preset(preset), height=side, width=side, channels=channels)
    return sum(p.numel() for p in unet.parameters()) / 1e6


@pytest.mark.parametrize(
    ("preset", "side", "channels", "low", "high"),
    [
        ("tiny", 32, 3, 4.0, 4.5),
        ("small", 32, 3, 8.0, 10.5),
        # Ho et al. 2020, appendix B: 35.7 million on CIFAR10
        ("ddpm", 32, 3, 35.7, 35.8),
        # no count is published for 256x256: this one was measured, and holds the shape still
        ("ncsnpp", 256, 3, 65.0, 66.0),
    ],
)
def test_parameter_counts(preset: str, side: int, channels: int, low: float, high: float) -> None:
    assert low <= count(preset, side, channels) <= high


@pytest.mark.parametrize("name", PRESETS)
def test_cut_down_presets_answer_in_the_images_shape(name: str) -> None:
    preset = PRESETS[name]
    levels = min(len(preset.channels), 3)
    attention = (levels - 1,)
    cut = replace(preset, channels=(32,) * levels, blocks=1, attention=attention)
    unet = build_unet(cut, height=16, width=24, channels=3)
    network = Patched(unet, cut.patch).eval()
    with torch.inference_mode():
        out = network(torch.randn(2, 3, 16, 24), torch.tensor([1.0, 900.0]))
    assert out.shape == (2, 3, 16, 24)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("preset", "height", "width"),
    [("tiny", 28, 28), ("tiny", 32, 36), ("ddpm", 12, 16), ("ncsnpp", 64, 96)],
)
def test_sides_that_cannot_be_halved_are_refused(preset: str, height: int, width: int) -> None:
    with pytest.raises(SettingsError, match=f"{height}x{width} pixels: .*multiples of [0-9]+"):
        build_unet(find_preset(preset), height=height, width=width, channels=3)


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(SettingsError, match="preset 'huge': need one of tiny, small, ddpm, ncsnpp"):
        find_preset("huge")


def test_channels_that_32_does_not_divide_get_8_groups() -> None:
    preset = Preset((24, 48), blocks=1, attention=())
    unet = build_unet(preset, height=8, width=8, channels=1)
    groups = {m.num_groups for m in unet.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {8}


class Mean(nn.Module):
    """Stands for a UNet: answers each position's mean over channels, in all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: tuple[int, ...] = ()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> "Mean":
        self.seen = tuple(x.shape)
        self.sample = x.mean(1, keepdim=True).expand_as(x)
        return self


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_become_channels_and_come_back_in_place(patch: int) -> None:
    unet = Mean()
    x = torch.randn(2, 3, 8, 12)
    out = Patched(unet, patch)(x, torch.zeros(2))
    assert unet.seen == (2, 3 * patch**2, 8 // patch, 12 // patch)
    expected = nn.functional.avg_pool2d(x.mean(1, keepdim=True), patch)
    expected = nn.functional.interpolate(expected, scale_factor=float(patch)).expand_as(x)
    assert torch.allclose(out, expected, atol=1e-6)
