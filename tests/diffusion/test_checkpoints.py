import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

from liftmap.diffusion import checkpoints
from liftmap.diffusion.checkpoints import (
    ABOUT,
    CONFIG,
    WEIGHTS,
    Checkpoint,
    find_model,
    load_checkpoint,
    save_about,
    save_checkpoint,
)
from liftmap.diffusion.denoiser import Parametrisation
from liftmap.diffusion.network import Preset, build_unet
from liftmap.diffusion.process import VP, Process, SubVP, Tabulated
from liftmap.errors import ModelError

PRESET = Preset((32, 32), blocks=1, attention=(1,), patch=2)


def build(height: int = 16, width: int = 24, **fields: Any) -> Checkpoint:
    unet = build_unet(PRESET, height=height, width=width, channels=3)
    settings: dict[str, Any] = {"process": VP(), "by": Parametrisation(), "patch": 2}
    return Checkpoint(unet, **settings | fields)


def image_at(checkpoint: Checkpoint, x: torch.Tensor, t: float = 0.5) -> torch.Tensor:
    return checkpoint.denoiser(precision="float32")(x, t).image


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(build(), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved model that a test may spoil."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(
    ("process", "by"),
    [
        (VP(0.2, 15.0), Parametrisation("v", "scaled")),
        (SubVP(), Parametrisation("noise", "scaled")),
        (Tabulated((0.9, 0.5, 0.1)), Parametrisation("image", "step", 3)),
        (VP(), Parametrisation("noise", image_range="unit")),
    ],
)
def test_round_trip(process: Process, by: Parametrisation, half: bool, tmp_path: Path) -> None:
    about = {"preparation": {"size": [16, 24]}, "calibrations": {"x": [0.1, 0.25]}}
    before = build(process=process, by=by, about=about)
    save_checkpoint(before, tmp_path / "new" / "folder", half=half)
    after = load_checkpoint(tmp_path / "new" / "folder")
    assert (after.process, after.by, after.patch, after.about) == (process, by, 2, about)
    assert after.image_shape == before.image_shape == (3, 16, 24)
    x = torch.randn(2, 3, 16, 24)
    assert image_at(after, x).shape == x.shape
    # half precision has 11 bits: relative errors of 5e-4 a weight
    assert torch.allclose(image_at(before, x), image_at(after, x), atol=1e-2 if half else 0, rtol=0)


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    checkpoint = build()
    for half in (True, False):
        save_checkpoint(checkpoint, tmp_path / str(half), half=half)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("True", "False")]
    assert sizes[0] < 0.55 * sizes[1]
    assert {p.dtype for p in load_checkpoint(tmp_path / "True").unet.parameters()} == {
        torch.float32
    }


def test_saving_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    checkpoint = build()
    before = {k: v.clone() for k, v in checkpoint.unet.state_dict().items()}
    save_checkpoint(checkpoint, tmp_path)
    after = checkpoint.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([ABOUT, CONFIG, WEIGHTS])


def test_about_alone_can_be_rewritten(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    weights = (folder / WEIGHTS).stat().st_mtime_ns
    checkpoint.about["calibrations"] = {"new": [1, 2]}
    save_about(checkpoint, folder)
    assert load_checkpoint(folder).about["calibrations"] == {"new": [1, 2]}
    assert (folder / WEIGHTS).stat().st_mtime_ns == weights


def test_a_denoiser_does_not_train(saved: Path) -> None:
    network = load_checkpoint(saved).denoiser().network
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_diffusers_reads_our_folder(saved: Path) -> None:
    unet, loaded = UNet2DModel.from_pretrained(
        saved, use_safetensors=True, output_loading_info=True
    )
    assert not any(loaded[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = load_checkpoint(saved).unet
    theirs, mine = unet.state_dict(), ours.state_dict()
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(theirs[name], mine[name]) for name in mine)


def change(folder: Path, *sections: str, **changes: Any) -> None:
    """Change liftmap.json, or a section within it."""
    about = json.loads((folder / ABOUT).read_text())
    section = about
    for name in sections:
        section = section[name]
    section.update(changes)
    (folder / ABOUT).write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("sections", "changes", "message"),
    [
        (("process",), {"gamma": 2}, "gamma"),
        (("process",), {"kind": "cosine"}, "need one of vp, sub-vp"),
        (("process",), {"beta_min": "low"}, ABOUT),
        (("parametrisation",), {"flavour": "x"}, "flavour"),
        (("parametrisation",), {"target": "edges"}, "target 'edges': need one of noise, v"),
        (("parametrisation",), {"image_range": "bytes"}, "need one of signed, unit"),
        ((), {"format": 2}, "format 2, this liftmap reads 1"),
        ((), {"patch": "two"}, ABOUT),
        ((), {"process": None}, ABOUT),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    folder: Path, sections: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    change(folder, *sections, **changes)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["format", "process", "parametrisation", "patch"])
def test_missing_sections_are_named(folder: Path, name: str) -> None:
    about = json.loads((folder / ABOUT).read_text())
    del about[name]
    (folder / ABOUT).write_text(json.dumps(about))
    with pytest.raises(ModelError, match=f"'{name}' is missing"):
        load_checkpoint(folder)


def spoil(folder: Path, how: str) -> None:
    weights = folder / WEIGHTS
    if how == "weights missing":
        weights.unlink()
    elif how == "weights truncated":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif how == "weights empty":
        weights.write_bytes(b"")
    elif how == "a weight of another shape":
        wide = {"conv_in.bias": torch.zeros(7)}
        save_file(load_file(weights) | wide, weights)
    elif how == "a weight missing":
        state = load_file(weights)
        del state["conv_in.bias"]
        save_file(state, weights)
    elif how == "config missing":
        (folder / CONFIG).unlink()
    elif how == "config is no JSON":
        (folder / CONFIG).write_text("{'single': quotes}")
    elif how == "config is no object":
        (folder / CONFIG).write_text("[1, 2]")
    elif how == "config of another network":
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | {"down_block_types": ["Other", "Other"]}))
    elif how == "about is no JSON":
        (folder / ABOUT).write_bytes(b"\xff\xfe{")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("weights missing", f"{WEIGHTS} is missing"),
        ("weights truncated", "damaged or truncated"),
        ("weights empty", "damaged or truncated"),
        ("a weight of another shape", "doesn't fit config.json: size mismatch for conv_in.bias"),
        ("a weight missing", "doesn't fit config.json: Missing key.*conv_in.bias"),
        ("config missing", f"{CONFIG} is missing"),
        ("config is no JSON", f"{CONFIG} can't be read as JSON"),
        ("config is no object", f"{CONFIG} holds a list: need a JSON object"),
        ("config of another network", f"{CONFIG} doesn't describe a UNet2DModel"),
        ("about is no JSON", f"{ABOUT} can't be read as JSON"),
    ],
)
def test_damaged_folders_are_refused(folder: Path, how: str, message: str) -> None:
    spoil(folder, how)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(folder)


class Touch:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("ours", [True, False])
def test_pickled_weights_are_never_read(folder: Path, ours: bool) -> None:
    (folder / WEIGHTS).unlink()
    if not ours:
        (folder / ABOUT).unlink()
    torch.save(Touch(folder / "trace"), folder / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_checkpoint(folder)
    assert not (folder / "trace").exists()


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "./nowhere", "/nowhere"])
def test_an_unknown_model_lists_what_there_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packed").mkdir()
    monkeypatch.setattr(checkpoints, "PACKAGED", tmp_path)
    with pytest.raises(ModelError, match=r"no such folder; packaged models: packed; .*hub id"):
        find_model(name)
    assert find_model("packed") == tmp_path / "packed"
    assert find_model(tmp_path) == tmp_path


def test_a_hub_that_does_not_answer_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError, match="the hub gave ConnectionError: no route"):
        find_model("someone/something")
