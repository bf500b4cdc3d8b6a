"""The oracle is a small DDPM network written here from the paper's and layers' description."""

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from liftmap.diffusion.process import VP, SubVP
from liftmap.diffusion.score_sde import Layout, import_score_sde, plan
from liftmap.errors import ModelError, SettingsError
from liftmap.model import Model


class Nin(nn.Module):
    """A product over channels, weights as (in, out)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(inside, outside) / math.sqrt(inside))
        self.b = nn.Parameter(torch.randn(outside) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return (x.movedim(1, -1) @ self.W + self.b).movedim(-1, 1)


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, time: int) -> None:
        super().__init__()
        self.GroupNorm_0 = nn.GroupNorm(32, inside, eps=1e-6)
        self.Conv_0 = nn.Conv2d(inside, outside, 3, padding=1)
        self.Dense_0 = nn.Linear(time, outside)
        self.GroupNorm_1 = nn.GroupNorm(32, outside, eps=1e-6)
        self.Conv_1 = nn.Conv2d(outside, outside, 3, padding=1)
        if inside != outside:
            self.NIN_0 = Nin(inside, outside)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.Conv_0(F.silu(self.GroupNorm_0(x)))
        h = h + self.Dense_0(F.silu(time))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        return h + (self.NIN_0(x) if hasattr(self, "NIN_0") else x)


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = nn.GroupNorm(32, channels, eps=1e-6)
        for i in range(4):
            setattr(self, f"NIN_{i}", Nin(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        query, key, value = (getattr(self, f"NIN_{i}")(h).flatten(2) for i in range(3))
        weights = (query.mT @ key / math.sqrt(x.shape[1])).softmax(-1)
        return x + self.NIN_3((value @ weights.mT).view_as(x))


class Resample(nn.Module):
    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=int(up))
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            return self.Conv_0(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.Conv_0(F.pad(x, (0, 1, 0, 1)))


class Ddpm(nn.Module):
    """Each module of the flat list with what happens around it: "push", "pop" or nothing."""

    def __init__(self, nf: int, mult: tuple[int, ...], blocks: int, attends: set[int]) -> None:
        super().__init__()
        self.register_buffer("sigmas", torch.linspace(50, 0.01, 10))
        self.nf = nf
        time = 4 * nf
        modules: list[nn.Module] = [nn.Linear(nf, time), nn.Linear(time, time)]
        modules.append(nn.Conv2d(3, nf, 3, padding=1))
        self.around = ["", "", "push"]
        widths, width = [nf], nf

        def add(module: nn.Module, around: str = "") -> None:
            modules.append(module)
            self.around.append(around)

        for level, factor in enumerate(mult):
            for _ in range(blocks):
                attend = level in attends
                add(Block(width, nf * factor, time), "" if attend else "push")
                width = nf * factor
                if attend:
                    add(Attention(width), "push")
                widths.append(width)
            if level < len(mult) - 1:
                add(Resample(width, up=False), "push")
                widths.append(width)
        add(Block(width, width, time))
        add(Attention(width))
        add(Block(width, width, time))
        for level in reversed(range(len(mult))):
            for _ in range(blocks + 1):
                add(Block(width + widths.pop(), nf * mult[level], time), "pop")
                width = nf * mult[level]
            if level in attends:
                add(Attention(width))
            if level > 0:
                add(Resample(width, up=True))
        add(nn.GroupNorm(32, width, eps=1e-6))
        add(nn.Conv2d(width, 3, 3, padding=1))
        self.all_modules = nn.ModuleList(modules)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        half = self.nf // 2
        angles = labels[:, None] * 10000.0 ** (-torch.arange(half) / (half - 1))
        first, second, *body, norm, last = self.all_modules
        time = second(F.silu(first(torch.cat([angles.sin(), angles.cos()], 1))))
        h, kept = x, []
        for module, around in zip(body, self.around[2:], strict=False):
            if around == "pop":
                h = torch.cat([h, kept.pop()], 1)
            h = module(h, time) if isinstance(module, Block) else module(h)
            if around == "push":
                kept.append(h)
        assert not kept
        return last(F.silu(norm(h)))


def write(path: Path, network: Ddpm) -> Ddpm:
    """The network as score_sde saves it, with other averages; returns the averaged network."""
    averaged = [p.detach() + 0.05 * torch.randn_like(p) for p in network.parameters()]
    optimizer = torch.optim.Adam(network.parameters())
    torch.save(
        {
            "optimizer": optimizer.state_dict(),
            "model": nn.DataParallel(network).state_dict(),
            "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": averaged},
            "step": 7,
        },
        path,
    )
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), averaged, strict=True):
            parameter.copy_(value)
    return network.eval()


SHAPES = {
    "lowest attends": ((1, 2), 2, {1}),
    "middle attends": ((1, 2, 2), 1, {1}),
    "all attend": ((1, 1, 2), 2, {0, 1, 2}),
    "none attends": ((1, 2), 1, set()),
    "one level": ((1,), 2, {0}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_imported_network_answers_as_the_original(name: str, tmp_path: Path) -> None:
    mult, blocks, attends = SHAPES[name]
    original = write(tmp_path / "checkpoint.pth", Ddpm(32, mult, blocks, attends))
    imported = import_score_sde(tmp_path / "checkpoint.pth", image_size=8)
    assert imported.image_shape == (3, 8, 8)
    assert imported.process == SubVP()
    denoiser = imported.denoiser(precision="float32")
    x = torch.randn(2, 3, 8, 8)
    for t in (1e-3, 0.7313, 1.0):
        with torch.inference_mode():
            noise = original(x, torch.full((2,), 999 * t))
        assert noise.abs().mean() > 0.1, "an oracle that says nothing proves nothing"
        assert (denoiser(x, t).noise - noise).abs().max() < 1e-4


def test_round_trip_through_a_model_folder(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint.pth", Ddpm(32, (1, 2), 1, {1}))
    imported = import_score_sde(tmp_path / "checkpoint.pth", sde="vp", image_size=8)
    Model.of(imported).save(tmp_path / "model", half=False)
    loaded = Model.load(tmp_path / "model").checkpoint
    assert loaded.process == VP()
    assert loaded.by == imported.by
    assert loaded.image_shape == (3, 8, 8)
    x = torch.randn(1, 3, 8, 8)
    before, after = (c.denoiser(precision="float32")(x, 0.5) for c in (imported, loaded))
    assert torch.allclose(before.image, after.image, rtol=1e-4, atol=1e-4)


def test_the_published_shape_has_its_attentions_where_score_sde_has_them() -> None:
    """CIFAR10's ddpm_continuous: 4 levels of 2 blocks, attention at 16x16."""
    places = plan(Layout(levels=4, blocks=2, attention=frozenset({1})))
    assert [p.name for p in places if p.kind == "attention"] == [
        "down_blocks.1.attentions.0",
        "down_blocks.1.attentions.1",
        "mid_block.attentions.0",
        "up_blocks.2.attentions.2",
    ]
    assert len(places) == 3 + (8 + 2 + 3) + 3 + (12 + 1 + 3) + 2


class Touch:
    """A pickle that leaves a file behind when it is read the unsafe way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_hostile_pickle_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"model": Touch(trace), "ema": {"shadow_params": []}}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="could run code"):
        import_score_sde(tmp_path / "evil.pth")
    assert not trace.exists()


def damaged(saved: dict[str, Any], how: str) -> dict[str, Any]:
    model, shadow = saved["model"], saved["ema"]["shadow_params"]
    if how == "no ema":
        del saved["ema"]
    elif how == "too few averages":
        shadow.pop()
    elif how == "averages of another shape":
        shadow[0] = torch.zeros(3, 3)
    elif how == "a layer missing":
        saved["model"] = {k: v for k, v in model.items() if ".all_modules.5." not in k}
    elif how == "fourier features":
        saved["model"] = {"module.all_modules.0.W": torch.randn(32)} | {
            k.replace(f".{n}.", f".{int(n) + 1}.", 1): model[k]
            for k in model
            for n in [k.split(".")[2]]
        }
    elif how == "biggan blocks":
        saved["model"] = {k.replace("NIN_0.W", "Conv_2.weight"): v for k, v in model.items()}
    elif how == "layers in another order":
        del saved["model"]["module.all_modules.2.bias"]
        model["module.all_modules.2.weight"] = torch.zeros(32, 32)
        model["module.all_modules.2.bias"] = torch.zeros(32)
        saved["model"] = dict(sorted(model.items(), key=lambda item: int(item[0].split(".")[2])))
    elif how == "another network":
        saved["model"] = {"module.conv.weight": torch.zeros(3)}
    elif how == "a weight of another shape":
        name = "module.all_modules.3.Conv_1.weight"
        shadow[list(model).index(name)] = model[name] = torch.zeros(32, 31, 3, 3)
    return saved


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no ema", "lacks score_sde's model and ema entries"),
        ("too few averages", "averaged"),
        ("averages of another shape", "averaged"),
        ("a layer missing", "a layer before it has no weights"),
        ("fourier features", r"found a layer with W; its NCSN\+\+"),
        ("biggan blocks", "found a layer with Conv_0.bias, .*Conv_2.weight"),
        ("layers in another order", "in another order"),
        ("another network", "no all_modules.N tensors"),
        ("a weight of another shape", "size mismatch"),
        ("a wider first level", r"levels have \(64, 64\) channels after a first convolution of 32"),
    ],
)
def test_other_files_are_refused_by_what_was_found(how: str, message: str, tmp_path: Path) -> None:
    network = Ddpm(32, (2, 2) if how == "a wider first level" else (1, 2), 1, {1})
    del network.sigmas  # older files hold no such buffer
    path = tmp_path / "checkpoint.pth"
    write(path, network)
    torch.save(damaged(torch.load(path, weights_only=True), how), path)
    with pytest.raises(ModelError, match=message):
        import_score_sde(path, image_size=16)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    with pytest.raises(ModelError, match="no such file"):
        import_score_sde(path)
    write(path, Ddpm(32, (1,), 1, set()))
    for content in (path.read_bytes()[:5000], b"not a checkpoint", b""):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="can't be read as plain weights"):
            import_score_sde(path)


def test_settings_are_checked(tmp_path: Path) -> None:
    unchecked = inspect.unwrap(import_score_sde)  # as at run time, without jaxtyping's checks
    with pytest.raises(SettingsError, match="need one of vp, sub-vp"):
        unchecked(tmp_path, sde="ve")
    write(tmp_path / "checkpoint.pth", Ddpm(32, (1, 1), 1, set()))
    with pytest.raises(SettingsError, match="image_size=9: this network needs a multiple of 2"):
        import_score_sde(tmp_path / "checkpoint.pth", image_size=9)
