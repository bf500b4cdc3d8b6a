"""Network presets: UNets in the sizes that liftmap trains, all of them diffusers' UNet2DModel's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from liftmap.diffusion.unet import UNet, reads
from liftmap.errors import SettingsError


@dataclass(frozen=True)
class Preset:
    """A network's shape, the noise process it is meant for, and what it predicts."""

    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]  # levels with attention, 0 = full resolution
    patch: int = 1  # pixel-unshuffle factor: patch x patch pixels become channels
    process: str = "vp"
    prediction: str = "v"
    dropout: float = 0.0
    skip: bool = False  # NCSN++: skip blocks, Fourier features of sigma


PRESETS: dict[str, Preset] = {
    # 4.4 M parameters: some hundred training images a second on two CPU cores at 32x32
    "tiny": Preset((64, 128, 128), blocks=1, attention=(2,), patch=2),
    # 9 M parameters, for colour images
    "small": Preset((96, 160, 192), blocks=1, attention=(2,), patch=2),
    # the DDPM paper's 32x32 network, as LMD's authors use it (Ho et al. 2020, appendix B)
    "ddpm": Preset((128, 256, 256, 256), blocks=2, attention=(1,), dropout=0.1, prediction="noise"),
    # NCSN++ at 256x256 as google/ncsnpp-* ships it (Song et al. 2021, appendix H)
    "ncsnpp": Preset(
        (128, 128, 256, 256, 256, 256, 256),
        blocks=2,
        attention=(4,),
        process="ve",
        prediction="score",
        skip=True,
    ),
}

MOST_LAYERS, MOST_LEVELS = 64, 16  # of a network in a model folder; published ones have 4 and 8


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        SettingsError: no such preset; the message lists them.
    """
    if name not in PRESETS:
        raise SettingsError(f"preset {name!r}: need one of {', '.join(PRESETS)}")
    return PRESETS[name]


def build_unet(preset: Preset, *, height: int, width: int, channels: int) -> nn.Module:
    """A freshly initialised network for images of channels x height x width pixels.

    Raises:
        SettingsError: the sides don't divide by what the network halves.
    """
    step = preset.patch * 2 ** (len(preset.channels) - 1)
    if height % step or width % step:
        raise SettingsError(
            f"{height}x{width} pixels: this network needs sides that are multiples of {step}"
        )
    down = ["Attn{}" if i in preset.attention else "{}" for i in range(len(preset.channels))]
    kind = "Skip{}Block2D" if preset.skip else "{}Block2D"
    return network_from_config(
        {
            "sample_size": (height // preset.patch, width // preset.patch),
            "in_channels": channels * preset.patch**2,
            "out_channels": channels * preset.patch**2,
            "layers_per_block": preset.blocks,
            "block_out_channels": preset.channels,
            "down_block_types": tuple(d.format(kind.format("Down")) for d in down),
            "up_block_types": tuple(d.format(kind.format("Up")) for d in reversed(down)),
            "dropout": preset.dropout,
            **_embedding(preset),
        }
    )


def network_from_config(config: Mapping[str, Any]) -> nn.Module:
    """The network that UNet2DModel's settings describe: our own where it can be, else diffusers'.

    Raises:
        SettingsError, TypeError, ValueError: they describe none.
    """
    check_depth(config)
    if reads(config):
        return UNet.from_config(config)
    from diffusers import UNet2DModel  # takes seconds

    unet: nn.Module = UNet2DModel.from_config(config)
    return unet


def check_depth(config: Mapping[str, Any]) -> None:
    """Refuse a network of so many blocks that building it would take forever.

    Raises:
        SettingsError: the message names the setting.
    """
    layers, levels = config.get("layers_per_block", 1), config.get("block_out_channels", ())
    if not 1 <= layers <= MOST_LAYERS:
        raise SettingsError(f"layers_per_block={layers}: need 1 to {MOST_LAYERS}")
    if len(levels) > MOST_LEVELS:
        raise SettingsError(f"{len(levels)} block_out_channels: need at most {MOST_LEVELS}")


def _embedding(preset: Preset) -> dict[str, Any]:
    """How the network takes the noise level, and what goes with it."""
    if preset.skip:
        return {
            "time_embedding_type": "fourier",
            "mid_block_scale_factor": 2**0.5,
            "norm_num_groups": None,
            "norm_eps": 1e-6,
            "attention_head_dim": None,
        }
    # attention heads of 32 channels; group norm in at most 32 groups that divide every level
    groups = 32 if all(c % 32 == 0 for c in preset.channels) else 8
    return {"attention_head_dim": 32, "norm_num_groups": groups}


class Patched(nn.Module):
    """A UNet that sees each patch x patch square of pixels as one position with more channels."""

    def __init__(self, unet: nn.Module, patch: int = 1) -> None:
        super().__init__()
        self.unet = unet
        self.patch = patch

    def forward(self, x: Tensor, time_input: Tensor) -> Tensor:
        """x (n, c, h, w), time_input (n,) -> the network's raw prediction, same shape as x."""
        answer = self.unet(pixel_unshuffle(x, self.patch), time_input)
        answer = answer if isinstance(answer, Tensor) else answer.sample  # diffusers wraps it
        return pixel_shuffle(answer, self.patch)
