import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from tiny import standard_density

from liftmap import model
from liftmap.detector import Detector
from liftmap.diffusion.checkpoints import CONFIG, WEIGHTS, Checkpoint
from liftmap.diffusion.denoiser import Parametrisation
from liftmap.diffusion.network import Preset, build_unet
from liftmap.diffusion.process import VP, Process, SubVP, Tabulated
from liftmap.diffusion.schedule import TrainingSettings
from liftmap.engines.local import score_source
from liftmap.errors import ModelError, OutputError
from liftmap.images.copies import Seen
from liftmap.images.prepare import Preparation
from liftmap.images.sources import open_source
from liftmap.images.store import HoldOut, PreparedImages
from liftmap.model import ABOUT, SEEN, Initial, Model, Training, find_model
from liftmap.stages.calibrate import Calibration
from liftmap.stages.judge import Judge
from liftmap.stages.method import FIVE, METHODS, SEVEN, Method, find_method
from liftmap.stages.scales import Scale, Scales

FORMAT_1 = Path(__file__).parent / "data" / "format-1"
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
    Model.of(build()).save(folder)
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
    before = build(process=process, by=by)
    Model.of(before).save(tmp_path / "new" / "folder", half=half)
    after = Model.load(tmp_path / "new" / "folder").checkpoint
    assert (after.process, after.by, after.patch) == (process, by, 2)
    assert after.image_shape == before.image_shape == (3, 16, 24)
    x = torch.randn(2, 3, 16, 24)
    assert image_at(after, x).shape == x.shape
    # half precision has 11 bits: relative errors of 5e-4 a weight
    assert torch.allclose(image_at(before, x), image_at(after, x), atol=1e-2 if half else 0, rtol=0)


def learnt() -> Model:
    """A model of which everything is known."""
    preparation, hold_out = Preparation(16, 24, 3, "crop"), HoldOut(0.1, 50, 5)
    settings = TrainingSettings(minutes=3.0, flip=True)
    initial = Initial("before", "photos", 5, 0.5, Initial("first"))
    training = Training("photos", preparation, hold_out, settings, "tiny", initial, 90, 7, 3.0)
    model = replace(Model.of(build()), preparation=preparation, training=training)
    model = model.with_density(standard_density())
    for method in (Method(early_stop=0.5), Method(norms=True, sampler=FIVE)):
        judge = Judge(
            method,
            model.density if method.norms else None,
            Scales((-1.0, 0.5), (1.0, 2.0)),
            Scale(1.0, 2.0) if method.norms else None,
            settled=0.25,
            calibration=Calibration.from_scores([0.2, 0.1]),
            map_top=0.75,
            precision="bf16",
        )
        model = model.with_judge(judge)
    return model


def same(one: Model, other: Model) -> None:
    """Equal in all but the network; a density's tensors are compared by value."""
    assert (one.preparation, one.training) == (other.preparation, other.training)
    assert one.density is not None and other.density is not None
    assert all(torch.equal(a, b) for a, b in zip(one.density, other.density, strict=True))
    assert one.judges.keys() == other.judges.keys()
    for key, judge in one.judges.items():
        assert (judge.density is None) == (other.judges[key].density is None)
        assert replace(judge, density=None) == replace(other.judges[key], density=None)


def test_what_was_learnt_comes_back(tmp_path: Path) -> None:
    model = learnt()
    model.save(tmp_path)
    same(Model.load(tmp_path), model)
    assert json.loads((tmp_path / ABOUT).read_text())["format"] == 3


def test_a_folder_of_format_1_scores_and_decides_as_then(tmp_path: Path) -> None:
    """Made by liftmap 0.1, with its table of the images beside it."""
    shutil.copytree(FORMAT_1 / "model", tmp_path / "model")
    model = Model.load(tmp_path / "model")
    assert {judge.method for judge in model.judges.values()} == {
        METHODS[name] for name in ("fast", "redraws", "quick")
    }
    assert model.training is not None and model.training.hold_out == HoldOut(
        least=0, copies_together=False
    )
    then = [json.loads(line) for line in (FORMAT_1 / "whole.jsonl").read_text().splitlines()]
    detector = Detector(model, device="cpu", precision="float32")
    with np.load(FORMAT_1 / "images.npz") as arrays:
        found = detector.predict(list(arrays["images"]))
    assert found.scores.tolist() == pytest.approx([row["score"] for row in then], abs=1e-3)
    assert found.p_values.tolist() == pytest.approx([row["p_value"] for row in then], abs=0.03)
    model.save(tmp_path / "again")
    same(Model.load(tmp_path / "again"), model)


SHIPPED = sorted(p.parent for p in Path(__file__).parents[1].glob("**/models/**/liftmap.json"))


@pytest.mark.parametrize("folder", [*SHIPPED, FORMAT_1 / "model"], ids=lambda p: p.name)
def test_models_of_before_keep_the_split_that_they_had(folder: Path, tmp_path: Path) -> None:
    """Though many of the images are copies, which would stay together now."""
    training = Model.load(folder).training
    assert training is not None and not training.hold_out.copies_together
    (tmp_path / "images").write_bytes(bytes(i % 50 for i in range(700) for _ in range(4)))
    images = PreparedImages(tmp_path / "images", (1, 2, 2))
    count, seed = training.hold_out.count(700), training.settings.seed
    then = np.sort(np.random.default_rng(seed).permutation(700)[:count])
    rest, kept = training.split(images)
    assert torch.equal(kept.pixels(torch.arange(count)), images.pixels(torch.from_numpy(then)))
    assert len(rest) == 700 - count


def test_what_was_seen_is_kept_with_the_weights_alone(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(bytes(range(240)) * 16)
    images = PreparedImages(tmp_path / "images", (1, 16, 24))
    model = replace(Model.of(build()), seen=Seen.of(*images.hold_out(4)))
    model.save(tmp_path / "m", weights=True)
    again = Model.load(tmp_path / "m")
    assert again.seen is not None and (len(again.seen), again.seen.trained) == (10, 6)
    again.save(tmp_path / "m", weights=False)
    assert Model.load(tmp_path / "m").seen is not None
    (tmp_path / "m" / SEEN).write_bytes(b"damaged")
    with pytest.raises(ModelError, match=f"{SEEN} is damaged"):
        Model.load(tmp_path / "m")
    replace(again, seen=None).save(tmp_path / "m")
    assert not (tmp_path / "m" / SEEN).exists(), "it was of the model before"
    assert Model.load(tmp_path / "m").seen is None


def test_a_killed_score_of_format_1_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its journal names the method as liftmap 0.1 did, and tells nothing of the images' content."""
    folder = tmp_path / "there"
    shutil.copytree(FORMAT_1, folder)
    monkeypatch.chdir(folder)
    detector = Detector(Model.load("model"), device="cpu", precision="float32", at_once=8)
    kept = [json.loads(x) for x in Path("scores.jsonl.part").read_text().splitlines()[1:]]
    summary = score_source(detector, open_source("images.npz:images"), Path("scores.jsonl"))
    assert (summary.images, summary.computed, summary.changed_from) == (12, 12, 1)
    rows = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows[:8]] == [row["id"] for row in kept]
    then = pytest.approx([row["score"] for row in kept], abs=1e-3)
    assert [row["score"] for row in rows[:8]] == then
    Path("scores.jsonl.part").write_text((FORMAT_1 / "scores.jsonl.part").read_text())
    other = Detector(Model.load("model"), method="quick", device="cpu", at_once=8)
    with pytest.raises(OutputError, match="method was"):
        score_source(other, open_source("images.npz:images"), Path("scores.jsonl"))


def test_a_method_borrows_from_the_nearest_whatever_the_order() -> None:
    """`redraws` with 8 steps is nearer to `redraws` than to `fast`, or to `quick`."""
    model = Model.of(build())
    made = [
        Judge(
            find_method(name), scales=Scales((float(i), 0.0), (1.0, 1.0)), surprise=Scale(0.0, 1.0)
        )
        for i, name in enumerate(("fast", "quick", "redraws"))
    ]
    made = [judge.calibrated(Calibration.from_scores([1.0])) for judge in made]
    eight = replace(find_method("redraws"), sampler=replace(SEVEN, steps=8))
    for order in itertools.permutations(made):
        model = replace(model, judges={judge.method.key: judge for judge in order})
        assert model.donor(eight) == made[2]
        assert model.judge(eight) == made[2].lent_to(eight)
        assert model.donor(replace(eight, norms=True)) == made[0], "the only one with norms"
        assert model.donor(replace(eight, distance="mse")) is None


def test_another_density_forgets_who_went_by_the_old_one() -> None:
    model = learnt()
    again = model.with_density(standard_density())
    assert [judge.method.norms for judge in again.judges.values()] == [False]


def test_a_preparation_of_another_size_is_refused(folder: Path) -> None:
    change(folder, preparation={"height": 16, "width": 16, "channels": 3})
    with pytest.raises(ModelError, match="mixes two models"):
        Model.load(folder)


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    checkpoint = build()
    for half in (True, False):
        Model.of(checkpoint).save(tmp_path / str(half), half=half)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("True", "False")]
    assert sizes[0] < 0.55 * sizes[1]
    assert {p.dtype for p in Model.load(tmp_path / "True").checkpoint.unet.parameters()} == {
        torch.float32
    }


def test_saving_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    checkpoint = build()
    before = {k: v.clone() for k, v in checkpoint.unet.state_dict().items()}
    Model.of(checkpoint).save(tmp_path)
    after = checkpoint.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([ABOUT, CONFIG, WEIGHTS])


def test_about_alone_can_be_rewritten(folder: Path) -> None:
    weights = (folder / WEIGHTS).stat().st_mtime_ns
    model = Model.load(folder).with_density(standard_density())
    model.save(folder, weights=False)
    assert Model.load(folder).density is not None
    assert (folder / WEIGHTS).stat().st_mtime_ns == weights


def test_a_denoiser_does_not_train(saved: Path) -> None:
    network = Model.load(saved).checkpoint.denoiser().network
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_diffusers_reads_our_folder(saved: Path) -> None:
    unet, loaded = UNet2DModel.from_pretrained(
        saved, use_safetensors=True, output_loading_info=True
    )
    assert not any(loaded[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = Model.load(saved).checkpoint.unet
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


JUDGE = {
    "method": {},
    "scales": None,
    "surprise": None,
    "settled": None,
    "map_top": None,
    "precision": None,
    "scores": [1.0],
}


@pytest.mark.parametrize(
    ("sections", "changes", "message"),
    [
        (("process",), {"gamma": 2}, "gamma"),
        (("process",), {"kind": "cosine"}, "need one of vp, sub-vp"),
        (("process",), {"beta_min": "low"}, ABOUT),
        (("parametrisation",), {"flavour": "x"}, "flavour"),
        (("parametrisation",), {"target": "edges"}, "target 'edges': need one of noise, v"),
        (("parametrisation",), {"image_range": "bytes"}, "need one of signed, unit"),
        ((), {"format": 4}, "format 4, this liftmap reads up to 3: update liftmap"),
        ((), {"patch": "two"}, ABOUT),
        ((), {"process": None}, ABOUT),
        (("preparation",), {"breadth": 3}, "Preparation has no breadth"),
        ((), {"training": {"source": "x"}}, "Training: "),
        ((), {"density": {"means": "none"}}, ABOUT),
        ((), {"judges": [{}]}, "calibration is damaged"),
        ((), {"judges": [JUDGE | {"scores": []}]}, "calibration is damaged .*0 calibration scores"),
        ((), {"judges": [JUDGE | {"settled": "low"}]}, "calibration is damaged"),
        ((), {"judges": [JUDGE | {"scales": {"centres": [1]}}]}, "calibration is damaged"),
        ((), {"judges": [JUDGE | {"surprise": {"centre": 0, "spread": 0}}]}, "spread above 0"),
        ((), {"judges": [JUDGE | {"method": {"attempts": 0}}]}, "attempts=0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    folder: Path, sections: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    change(folder, *sections, **changes)
    with pytest.raises(ModelError, match=message):
        Model.load(folder)


@pytest.mark.parametrize("name", ["format", "process", "parametrisation", "patch"])
def test_missing_sections_are_named(folder: Path, name: str) -> None:
    about = json.loads((folder / ABOUT).read_text())
    del about[name]
    (folder / ABOUT).write_text(json.dumps(about))
    with pytest.raises(ModelError, match=f"'{name}' is missing"):
        Model.load(folder)


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
        Model.load(folder)


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
        Model.load(folder)
    assert not (folder / "trace").exists()


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "./nowhere", "/nowhere"])
def test_an_unknown_model_lists_what_there_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packed").mkdir()
    monkeypatch.setattr(model, "PACKAGED", tmp_path)
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
