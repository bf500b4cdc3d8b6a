"""The plain UNet of diffusers' UNet2DModel, without diffusers: same config.json, same state dict.

It covers what liftmap trains and what most unconditional DDPM checkpoints are: residual blocks,
self-attention, positional time embedding. `reads` tells whether a configuration is of that kind;
any other (NCSN++'s skip blocks, learned embeddings) is diffusers' own to build. Written for this
one purpose it starts in a fraction of the time and wastes no passes over memory
(docs/decisions/0004-a-network-of-our-own.md). UNet2DModel stays the oracle in its tests.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu

from liftmap.diffusion.group_norm import ChannelsLastGroupNorm
from liftmap.errors import SettingsError

# UNet2DModel's settings that this network has only one answer to
FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "add_attention": True,
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_type": "conv",
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}
DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}  # with attention or without
UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
MAX_PERIOD = 10_000  # how much longer the time embedding's slowest wave is than its fastest


@dataclass(frozen=True)
class UNetConfig:
    """UNet2DModel's settings that vary among plain networks, under its names and defaults."""

    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    layers_per_block: int = 2
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    downsample_padding: int = 1
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    dropout: float = 0.0


def reads(config: Mapping[str, Any]) -> bool:
    """Whether UNet2DModel's settings are of a plain network: nothing here that this one lacks."""
    known = {field.name for field in fields(UNetConfig)}
    unknown = [key for key in config if key not in known | FIXED.keys() and not key.startswith("_")]
    widths = config.get("block_out_channels", ())
    heads = config.get("attention_head_dim", UNetConfig.attention_head_dim)
    groups = config.get("norm_num_groups", UNetConfig.norm_num_groups)
    return (
        bool(widths)
        and not unknown
        and all(config.get(key, value) == value for key, value in FIXED.items())
        and set(config.get("down_block_types", [None])) <= DOWN.keys()
        and set(config.get("up_block_types", [None])) <= UP.keys()
        and len(widths) == len(config["down_block_types"]) == len(config["up_block_types"])
        and groups is not None
        and all(width % groups == 0 == width % (heads or width) for width in widths)
    )


class UNet(nn.Module):
    """Ho et al. 2020, appendix B, as UNet2DModel has it; its parameters bear diffusers' names."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, embedded = config.block_out_channels, 4 * config.block_out_channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = _TimeEmbedding(config, embedded)
        self.down_blocks = nn.ModuleList(_down_blocks(config, embedded))
        self.mid_block = _Level(config, [(widths[-1], widths[-1])] * 2, embedded, attentions=1)
        self.up_blocks = nn.ModuleList(_up_blocks(config, embedded))
        self.conv_norm_out = ChannelsLastGroupNorm(
            config.norm_num_groups, widths[0], config.norm_eps
        )
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "UNet":
        """A freshly initialised network from UNet2DModel's settings.

        Raises:
            SettingsError: the settings are not those of a plain network.
        """
        if not reads(config):
            raise SettingsError("not a plain UNet2DModel: build it with diffusers")
        known = {field.name for field in fields(UNetConfig)}
        values = {key: value for key, value in config.items() if key in known}
        for key, value in values.items():
            values[key] = tuple(value) if isinstance(value, list) else value
        return cls(UNetConfig(**values))

    def to_json_string(self) -> str:
        """config.json as diffusers reads it."""
        about = {"_class_name": "UNet2DModel", **FIXED, **asdict(self.config)}
        return json.dumps(about, indent=2, sort_keys=True) + "\n"

    def forward(self, x: Float[Tensor, "n c h w"], t: Float[Tensor, " n"]) -> Tensor:
        """The network's answer to noisy images x at noise levels t, as it is told them."""
        time = silu(self.time_embedding(t))
        h = self.conv_in(x)
        passed = [h]
        level: Any
        for level in self.down_blocks:
            h = level.down(h, time, passed)
        h = self.mid_block.middle(h, time)
        for level in self.up_blocks:
            h = level.up(h, time, passed)
        out: Tensor = self.conv_out(silu(self.conv_norm_out(h)))
        return out


class _TimeEmbedding(nn.Module):
    """Waves of geometrically growing length (Vaswani et al. 2017, section 3.5), then two layers."""

    def __init__(self, config: UNetConfig, embedded: int) -> None:
        super().__init__()
        self.config = config
        self.linear_1 = nn.Linear(config.block_out_channels[0], embedded)
        self.linear_2 = nn.Linear(embedded, embedded)

    def forward(self, t: Float[Tensor, " n"]) -> Tensor:
        half = self.linear_1.in_features // 2
        exponent = torch.arange(half, dtype=torch.float32, device=t.device)
        exponent = -math.log(MAX_PERIOD) * exponent / (half - self.config.freq_shift)
        angle = t[:, None].float() * exponent.exp()
        waves = [angle.sin(), angle.cos()]
        if self.config.flip_sin_to_cos:
            waves.reverse()
        embedded = self.linear_1(torch.cat(waves, 1).to(self.linear_1.weight.dtype))
        out: Tensor = self.linear_2(silu(embedded))
        return out


class _Residual(nn.Module):
    """Two normalised convolutions beside a shortcut; the time shifts the channels in between."""

    def __init__(self, config: UNetConfig, channels: tuple[int, int], embedded: int) -> None:
        super().__init__()
        before, after = channels
        groups, eps = config.norm_num_groups, config.norm_eps
        self.norm1 = ChannelsLastGroupNorm(groups, before, eps)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedded, after)
        self.norm2 = ChannelsLastGroupNorm(groups, after, eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(self.dropout(silu(self.norm2(h))))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class _Attention(nn.Module):
    """Self-attention over all positions, added to what came in."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.heads = channels // (config.attention_head_dim or channels)
        self.group_norm = ChannelsLastGroupNorm(config.norm_num_groups, channels, config.norm_eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        # channels-last: positions x channels without moving anything
        h = self.group_norm(x).permute(0, 2, 3, 1).reshape(n, height * width, c)
        q, k, v = (
            part(h).view(n, -1, self.heads, c // self.heads).transpose(1, 2)
            for part in (self.to_q, self.to_k, self.to_v)
        )
        h = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, height * width, c)
        out: Tensor = x + self.to_out[0](h).view(n, height, width, c).permute(0, 3, 1, 2)
        return out


class _Downsampler(nn.Module):
    """A 3x3 convolution that halves the sides."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2, padding)

    def forward(self, x: Tensor) -> Tensor:
        # UNet2DModel's padding 0 stands for one row below and one column to the right
        out: Tensor = self.conv(x if self.conv.padding[0] else pad(x, (0, 1, 0, 1)))
        return out


class _Upsampler(nn.Module):
    """Doubles the sides by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class _Level(nn.Module):
    """Residual blocks of one resolution, with or without attention, and what leads to the next."""

    def __init__(
        self,
        config: UNetConfig,
        channels: list[tuple[int, int]],
        embedded: int,
        *,
        attentions: int,
        below: _Downsampler | None = None,
        above: _Upsampler | None = None,
    ) -> None:
        super().__init__()
        width = channels[-1][1]
        self.resnets = nn.ModuleList(_Residual(config, pair, embedded) for pair in channels)
        self.attentions = nn.ModuleList(_Attention(config, width) for _ in range(attentions))
        self.downsamplers = nn.ModuleList([below] if below else [])
        self.upsamplers = nn.ModuleList([above] if above else [])

    def down(self, h: Tensor, time: Tensor, passed: list[Tensor]) -> Tensor:
        """Down one level; what each block gives is passed across to the way up."""
        for i, block in enumerate(self.resnets):
            h = self._attended(block(h, time), i)
            passed.append(h)
        for halve in self.downsamplers:
            h = halve(h)
            passed.append(h)
        return h

    def middle(self, h: Tensor, time: Tensor) -> Tensor:
        """Block, attention, block."""
        first, second = self.resnets
        out: Tensor = second(self._attended(first(h, time), 0), time)
        return out

    def up(self, h: Tensor, time: Tensor, passed: list[Tensor]) -> Tensor:
        """Up one level; each block sees what was passed across beside what comes from below."""
        for i, block in enumerate(self.resnets):
            h = self._attended(block(torch.cat([h, passed.pop()], 1), time), i)
        for double in self.upsamplers:
            h = double(h)
        return h

    def _attended(self, h: Tensor, i: int) -> Tensor:
        out: Tensor = self.attentions[i](h) if len(self.attentions) else h
        return out


def _down_blocks(config: UNetConfig, embedded: int) -> list[_Level]:
    widths, blocks = config.block_out_channels, config.layers_per_block
    levels, before = [], widths[0]
    for i, (width, kind) in enumerate(zip(widths, config.down_block_types, strict=True)):
        last = i == len(widths) - 1
        below = None if last else _Downsampler(width, config.downsample_padding)
        channels = [(before, width), *[(width, width)] * (blocks - 1)]
        attentions = blocks if DOWN[kind] else 0
        levels.append(_Level(config, channels, embedded, attentions=attentions, below=below))
        before = width
    return levels


def _up_blocks(config: UNetConfig, embedded: int) -> list[_Level]:
    """Each level takes one block more than on the way down, and what those blocks passed across."""
    widths, blocks = config.block_out_channels[::-1], config.layers_per_block + 1
    levels, before = [], widths[0]
    for i, (width, kind) in enumerate(zip(widths, config.up_block_types, strict=True)):
        last = i == len(widths) - 1
        # the first block hears from the level below, the last one from what led down to here
        heard = [before] + [width] * (blocks - 1)
        passed = [width] * (blocks - 1) + [widths[min(i + 1, len(widths) - 1)]]
        channels = [(a + b, width) for a, b in zip(heard, passed, strict=True)]
        above = None if last else _Upsampler(width)
        attentions = blocks if UP[kind] else 0
        levels.append(_Level(config, channels, embedded, attentions=attentions, above=above))
        before = width
    return levels
