"""The network of our own against its oracle, diffusers' UNet2DModel."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from liftmap.diffusion.network import network_from_config
from liftmap.diffusion.unet import UNet, reads
from liftmap.errors import SettingsError

PLAIN: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"layers_per_block": 2, "norm_num_groups": 8, "norm_eps": 1e-6},
    {"attention_head_dim": None, "flip_sin_to_cos": False, "freq_shift": 1},
    {"downsample_padding": 0, "attention_head_dim": 32, "sample_size": (16, 24)},
    {"down_block_types": ("AttnDownBlock2D", "DownBlock2D")},
    {
        "block_out_channels": (32, 64, 96),
        "down_block_types": ("DownBlock2D",) * 3,
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_equals_diffusers_forward_and_backward(changes: dict[str, Any]) -> None:
    oracle = UNet2DModel(**PLAIN | changes).eval()
    ours = UNet.from_config(json.loads(oracle.to_json_string())).eval()
    ours.load_state_dict(oracle.state_dict())
    ours.to(memory_format=torch.channels_last)
    x = torch.randn(3, 3, 16, 24)
    t = torch.tensor([0.0, 3.5, 999.0])
    answers = oracle(x, t).sample, ours(x.contiguous(memory_format=torch.channels_last), t)
    assert torch.allclose(*answers, atol=1e-5)
    for answer in answers:
        answer.square().sum().backward()
    mine = dict(ours.named_parameters())
    for name, parameter in oracle.named_parameters():
        # a bias right before a norm of its channel alone has a gradient of 0 up to rounding
        assert torch.allclose(mine[name].grad, parameter.grad, rtol=1e-3, atol=1e-4), name


def test_dropout_is_where_diffusers_has_it() -> None:
    oracle = UNet2DModel(**PLAIN, dropout=0.5).eval()
    ours = UNet.from_config(oracle.config).eval()
    ours.load_state_dict(oracle.state_dict())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([1.0, 2.0])
    theirs, mine = (seen_by_dropout(net, x, t) for net in (oracle, ours))
    assert len(mine) == 8, "two blocks on the way down, two in the middle, four up"
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-5) for name in mine)


def seen_by_dropout(network: nn.Module, x: Tensor, t: Tensor) -> dict[str, Tensor]:
    """What reaches each dropout of a rate above 0, by the module's name."""
    seen: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Dropout) and module.p:
            module.register_forward_hook(lambda m, args, out, n=name: seen.update({n: args[0]}))
    with torch.no_grad():
        network(x, t)
    return seen


def test_diffusers_reads_what_we_write(tmp_path: Path) -> None:
    ours = UNet.from_config(PLAIN)
    (tmp_path / "config.json").write_text(ours.to_json_string())
    theirs = UNet2DModel.from_config(UNet2DModel.load_config(tmp_path))
    theirs.load_state_dict(ours.state_dict())
    assert UNet.from_config(theirs.config).config == ours.config


@pytest.mark.parametrize(
    "changes",
    [
        {"down_block_types": ("SkipDownBlock2D", "DownBlock2D")},
        {"up_block_types": ("SkipUpBlock2D", "UpBlock2D")},
        {"time_embedding_type": "fourier"},
        {"class_embed_type": "timestep"},
        {"resnet_time_scale_shift": "scale_shift"},
        {"downsample_type": "resnet"},
        {"norm_num_groups": 24},
        {"attention_head_dim": 24},
        {"block_out_channels": (32, 64, 64)},
        {"something_new": 1},
    ],
)
def test_other_networks_are_left_to_diffusers(changes: dict[str, Any]) -> None:
    assert reads(PLAIN)
    assert not reads(PLAIN | changes)
    with pytest.raises(SettingsError, match="build it with diffusers"):
        UNet.from_config(PLAIN | changes)


def test_the_kind_of_network_follows_the_settings() -> None:
    assert isinstance(network_from_config(PLAIN), UNet)
    assert isinstance(network_from_config(PLAIN | {"act_fn": "gelu"}), UNet2DModel)


def test_building_ours_does_not_import_diffusers() -> None:
    program = (
        "import sys; from liftmap.diffusion.network import build_unet, find_preset; "
        "build_unet(find_preset('tiny'), height=32, width=32, channels=1); "
        "sys.exit('diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
