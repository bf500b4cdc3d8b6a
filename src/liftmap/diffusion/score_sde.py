"""score_sde_pytorch's `ddpm_continuous` checkpoints (Song et al. 2021) as a UNet2DModel.

The .pth file names layers by their place in one flat list, all_modules.N. `plan` lists what stands
at each place and what UNet2DModel calls it; a file must match it place by place. UNet2DModel
attends after every block of an upward level where score_sde attends once, after the last; the
attentions in between are set to zero, which adds nothing to what passes through them.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from liftmap.diffusion.checkpoints import Checkpoint
from liftmap.diffusion.denoiser import Parametrisation
from liftmap.diffusion.process import VP, SubVP
from liftmap.errors import ModelError, SettingsError

Sde = Literal["vp", "sub-vp"]
PREFIX = "all_modules."

# each kind of module: score_sde's names of its parts -> UNet2DModel's; "" is a bare layer
PARTS: dict[str, dict[str, str]] = {
    "linear": {"": ""},
    "conv": {"": ""},
    "norm": {"": ""},
    "resample": {"Conv_0": "conv"},
    "attention": {
        "GroupNorm_0": "group_norm",
        "NIN_0": "to_q",
        "NIN_1": "to_k",
        "NIN_2": "to_v",
        "NIN_3": "to_out.0",
    },
    "block": {
        "GroupNorm_0": "norm1",
        "Conv_0": "conv1",
        "Dense_0": "time_emb_proj",
        "GroupNorm_1": "norm2",
        "Conv_1": "conv2",
        "NIN_0": "conv_shortcut",
    },
}


class Layout(NamedTuple):
    """What the flat list says about the network's shape."""

    levels: int
    blocks: int
    attention: frozenset[int]  # levels with attention, 0 = full resolution


class Place(NamedTuple):
    """One entry of the flat list: its kind, and its name in UNet2DModel."""

    kind: str
    name: str


def import_score_sde(path: Path, *, sde: Sde = "sub-vp", image_size: int = 32) -> Checkpoint:
    """A ddpm_continuous .pth file with its averaged (EMA) weights.

    The file holds weights alone. Taken from score_sde's ddpm_continuous configurations are:
    images in [-1, 1] (data.centered), betas from 0.1 to 20, the network told 999 t, and score =
    -answer / sigma (models/utils.py), so the answer is the noise.

    Args:
        sde: what it was trained on, "sub-vp" (LMD's choice) or "vp".
        image_size: pixels a side; the weights fit any.

    Raises:
        SettingsError: another sde, or a side that the network can't halve.
        ModelError: no such file, not a plain torch file, a network other than ddpm (NCSN++ and
            DDPM++ have other layers), or no averaged weights.
    """
    if sde not in get_args(Sde):
        known = ", ".join(get_args(Sde))
        raise SettingsError(
            f"sde {sde!r}: need one of {known}, as score_sde trains ddpm_continuous"
        )
    weights, averaged = _read(path)
    try:
        modules = _modules(weights)
        layout = _layout([kind_of(module) for module in modules])
        places = plan(layout)
        unet = _build(dict(zip((p.name for p in places), modules, strict=True)), layout, image_size)
        renamed = _renamed(places, _modules(_average(weights, averaged)))
        zeros = {k: torch.zeros_like(v) for k, v in unet.state_dict().items() if k not in renamed}
        unet.load_state_dict(zeros | renamed)
    except (ModelError, RuntimeError, IndexError, KeyError) as error:
        # load_state_dict lists every misfit, one a line: the first will do
        found = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise ModelError(
            f"{path} is no ddpm_continuous checkpoint of score_sde: {found}; its NCSN++ and DDPM++ "
            "files are not supported: take them in diffusers' layout, as google/ncsnpp-*"
        ) from error
    process = SubVP() if sde == "sub-vp" else VP()
    by = Parametrisation("noise", "scaled")
    return Checkpoint(unet.eval(), process, by)


def plan(layout: Layout) -> list[Place]:
    """The flat list of a network of that shape, in order (score_sde, models/ddpm.py).

    >>> [place.kind for place in plan(Layout(levels=1, blocks=0, attention=frozenset()))][3:]
    ['block', 'attention', 'block', 'block', 'norm', 'conv']
    """
    levels, blocks, attention = layout
    places = [
        Place("linear", "time_embedding.linear_1"),
        Place("linear", "time_embedding.linear_2"),
        Place("conv", "conv_in"),
    ]
    for level in range(levels):
        at = f"down_blocks.{level}"
        for block in range(blocks):
            places.append(Place("block", f"{at}.resnets.{block}"))
            if level in attention:
                places.append(Place("attention", f"{at}.attentions.{block}"))
        if level < levels - 1:
            places.append(Place("resample", f"{at}.downsamplers.0"))
    places += [
        Place("block", "mid_block.resnets.0"),
        Place("attention", "mid_block.attentions.0"),
        Place("block", "mid_block.resnets.1"),
    ]
    for level in reversed(range(levels)):
        at = f"up_blocks.{levels - 1 - level}"
        places += [Place("block", f"{at}.resnets.{block}") for block in range(blocks + 1)]
        if level in attention:
            places.append(Place("attention", f"{at}.attentions.{blocks}"))
        if level > 0:
            places.append(Place("resample", f"{at}.upsamplers.0"))
    return [*places, Place("norm", "conv_norm_out"), Place("conv", "conv_out")]


def kind_of(module: dict[str, Tensor]) -> str:
    """What a module of the flat list is, told from its parameters' names.

    Raises:
        ModelError: none of the ddpm network's.
    """
    parts = {name.rpartition(".")[0] for name in module}
    if set(module) == {"weight", "bias"} and module["weight"].dim() in (1, 2, 4):
        return {1: "norm", 2: "linear", 4: "conv"}[module["weight"].dim()]
    for kind in ("resample", "attention", "block"):
        if parts in (set(PARTS[kind]), set(PARTS[kind]) - {"NIN_0"}):
            return kind
    raise ModelError(f"found a layer with {', '.join(sorted(module)) or 'no weights'}")


def _layout(kinds: list[str]) -> Layout:
    """The network's shape, from its modules' kinds.

    With L levels of n blocks there are L n blocks on the way down, 2 in the middle and L (n + 1)
    on the way up, and 2 (L - 1) resamplings.
    """
    count = Counter(kinds)
    levels = count["resample"] // 2 + 1
    blocks = (count["block"] - 2 - levels) // (2 * levels)
    between: list[list[str]] = [[]]
    for kind in kinds:
        if kind == "resample":
            between.append([])
        between[-1].append(kind)
    attention = {i for i in range(levels - 1) if "attention" in between[i]}
    if (
        between[levels - 1].count("attention") > 1
    ):  # the lowest level shares its run with the middle
        attention.add(levels - 1)
    layout = Layout(levels, blocks, frozenset(attention))
    if blocks < 1 or kinds != [place.kind for place in plan(layout)]:
        found = ", ".join(f"{n} {kind}" for kind, n in sorted(count.items()))
        raise ModelError(f"its {len(kinds)} layers ({found}) are in another order")
    return layout


def _build(modules: dict[str, dict[str, Tensor]], layout: Layout, image_size: int) -> nn.Module:
    """A UNet2DModel of the shape that the named modules have."""
    from diffusers import UNet2DModel

    step = 2 ** (layout.levels - 1)
    if image_size < step or image_size % step:
        raise SettingsError(f"image_size={image_size}: this network needs a multiple of {step}")
    colours = modules["conv_in"]["weight"].shape[1]
    first = [modules[f"down_blocks.{level}.resnets.0"] for level in range(layout.levels)]
    channels = tuple(block["Conv_0.weight"].shape[0] for block in first)
    stem = modules["conv_in"]["weight"].shape[0]
    if channels[0] != stem or any(c % 32 for c in channels):
        raise ModelError(
            f"its levels have {channels} channels after a first convolution of {stem}: "
            "need the first level's number there, and multiples of 32"
        )
    attends = ["Attn" if level in layout.attention else "" for level in range(layout.levels)]
    return UNet2DModel(  # type: ignore[no-any-return]
        sample_size=image_size,
        in_channels=colours,
        out_channels=colours,
        layers_per_block=layout.blocks,
        block_out_channels=channels,
        down_block_types=tuple(f"{a}DownBlock2D" for a in attends),
        up_block_types=tuple(f"{a}UpBlock2D" for a in reversed(attends)),
        # models/layers.py: embedding [sin, cos] with the last frequency 1 / 10000, stride-2
        # convolutions padded below and to the right only, one attention head, 32 groups
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
        attention_head_dim=None,
        norm_num_groups=32,
        norm_eps=1e-6,
    )


def _renamed(places: list[Place], modules: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The weights under UNet2DModel's names, in its shapes."""
    renamed = {}
    for place, module in zip(places, modules, strict=True):
        for name, tensor in module.items():
            part, _, leaf = name.rpartition(".")
            if leaf == "W":  # NIN, a product over channels: (in, out) where torch has (out, in)
                tensor = tensor.T[:, :, None, None] if place.kind == "block" else tensor.T
            new = (
                place.name,
                PARTS[place.kind][part],
                {"W": "weight", "b": "bias"}.get(leaf, leaf),
            )
            renamed[".".join(filter(None, new))] = tensor.float().contiguous()
    return renamed


def _modules(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The flat list: each module's parameters by their names within it."""
    modules: list[dict[str, Tensor]] = []
    for name, tensor in weights.items():
        number, _, rest = name.removeprefix(PREFIX).partition(".")
        if number == str(len(modules)):
            modules.append({})
        if not modules or number != str(len(modules) - 1):
            raise ModelError(f"{name} is out of order, or a layer before it has no weights")
        modules[-1][rest] = tensor
    return modules


def _average(weights: dict[str, Tensor], averaged: list[Tensor]) -> dict[str, Tensor]:
    """The averages by name; the file lists them in the parameters' order (models/ema.py)."""
    if [tuple(v.shape) for v in averaged] != [tuple(v.shape) for v in weights.values()]:
        raise ModelError(
            f"its {len(averaged)} averaged (EMA) weights don't match the model's {len(weights)}"
        )
    return dict(zip(weights, averaged, strict=True))


def _read(path: Path) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The file's parameters by name and its averages; nothing in the file is run."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        first = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"{path} can't be read as plain weights ({type(error).__name__}: {first}): it is "
            "damaged, or holds objects that could run code; get it again from a source you trust"
        ) from error
    try:
        # saved from nn.DataParallel, hence module.; buffers (sigmas) are not in all_modules
        state = {name.removeprefix("module."): value for name, value in data["model"].items()}
        averaged = list(data["ema"]["shadow_params"])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{path} lacks score_sde's model and ema entries ({type(error).__name__}: {error})"
        ) from error
    weights = {name: value for name, value in state.items() if name.startswith(PREFIX)}
    if not weights or not all(isinstance(v, Tensor) for v in [*weights.values(), *averaged]):
        raise ModelError(f"{path} holds no {PREFIX}N tensors, as score_sde's networks do")
    return weights, averaged
