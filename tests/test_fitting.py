import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SMALL, pixels, save_images

from liftmap import fitting
from liftmap.diffusion import network
from liftmap.diffusion.schedule import TrainingSettings
from liftmap.diffusion.training import Trainer
from liftmap.errors import ModelError, OutputError, SettingsError, SourceError
from liftmap.fitting import FitListener, fit_model
from liftmap.images.copies import Copy
from liftmap.images.prepare import Preparation
from liftmap.images.sources import open_source
from liftmap.images.store import HoldOut, PreparedImages, store_source
from liftmap.model import Model
from liftmap.stages.method import Method

PREPARATION = Preparation(32, 32, 1)


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(network.PRESETS, "test", SMALL)


def fit(
    images: Path,
    folder: Path,
    steps: int = 2,
    preparation: Preparation = PREPARATION,
    learning_rate: float = 4e-4,
    seed: int = 0,
    share: float = 0.25,
    group_by: str | None = None,
    **options: Any,
) -> tuple[Model, PreparedImages, PreparedImages]:
    settings = TrainingSettings(
        steps=steps, batch=4, save_every_minutes=0.0, learning_rate=learning_rate, seed=seed
    )
    return fit_model(
        open_source(images),
        folder,
        preset="test",
        preparation=preparation,
        settings=settings,
        hold_out=HoldOut(share=share, group_by=group_by),
        **options,
    )


@pytest.mark.parametrize(
    ("hold_out", "images", "expected"),
    [
        (HoldOut(), 10_000, 500),
        (HoldOut(), 100_000, 2000),
        (HoldOut(), 1000, 125),
        (HoldOut(), 500, 100),
        (HoldOut(), 4, 0),
        (HoldOut(share=0.5), 40, 20),
        (HoldOut(share=0.0), 1000, 0),
        (HoldOut(most=50), 1000, 50),
        (HoldOut(least=0), 1000, 50),
    ],
)
def test_small_sources_give_a_larger_share(hold_out: HoldOut, images: int, expected: int) -> None:
    assert hold_out.count(images) == expected


def test_the_held_out_images_are_not_trained_on(tmp_path: Path) -> None:
    notes: list[str] = []
    made = fit(
        save_images(tmp_path / "i", 20), tmp_path / "m", listener=FitListener(on_note=notes.append)
    )
    assert [len(part) for part in made[1:]] == [15, 5]
    assert notes == [
        "15 images to train on, 5 held out for calibration",
        "no copies among the images",
        "warning: 3 held-out images will calibrate: false-alarm rates from 25% on, not 5%, which "
        "score takes by default; 5% takes 91 normal images; 1% takes 491 normal images",
    ]
    about = json.loads((tmp_path / "m" / "liftmap.json").read_text())["training"]
    assert (about["images"], about["steps"], len(about["loss_curve"])) == (15, 2, 2)


def test_two_runs_on_one_folder_are_refused(tmp_path: Path) -> None:
    images, refused = save_images(tmp_path / "i", 8), []

    def second(note: str) -> None:
        with pytest.raises(OutputError, match="written by another run") as caught:
            fit(images, tmp_path / "m")
        refused.append(caught)

    fit(images, tmp_path / "m", listener=FitListener(on_note=second))
    assert refused


def test_a_full_disk_in_the_middle_is_reported_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves, save_state = [], Trainer.save_state

    def full_once(trainer: Trainer, path: Path) -> None:
        saves.append(path)
        if len(saves) == 1:
            raise OutputError("No space left on device")
        save_state(trainer, path)

    monkeypatch.setattr(Trainer, "save_state", full_once)
    notes: list[str] = []
    images = save_images(tmp_path / "i", 20)
    fit(images, tmp_path / "m", listener=FitListener(on_note=notes.append))
    assert "not saved, training goes on: No space left on device" in notes
    assert (tmp_path / "m" / fitting.STATE).exists()


def test_a_disk_that_stays_full_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(trainer: Trainer, path: Path) -> None:
        raise OutputError("No space left on device")

    monkeypatch.setattr(Trainer, "save_state", full)
    with pytest.raises(OutputError, match="No space left"):
        fit(save_images(tmp_path / "i", 20), tmp_path / "m")


def test_another_source_or_a_folder_without_a_run_is_not_resumed(tmp_path: Path) -> None:
    images, others = (save_images(tmp_path / name, 8) for name in "ab")
    with pytest.raises(ModelError, match="nothing to resume"):
        fit(images, tmp_path / "m", resume=True)
    fit(images, tmp_path / "m")
    with pytest.raises(OutputError, match=r"source was .*, is now "):
        fit(others, tmp_path / "m", resume=True)


def test_training_starts_from_another_models_weights_and_says_so(tmp_path: Path) -> None:
    images = save_images(tmp_path / "i", 8)
    first, *_ = fit(images, tmp_path / "a")
    second, *_ = fit(images, tmp_path / "b", initial=tmp_path / "a", learning_rate=1e-12)
    stored = Model.load(tmp_path / "a").checkpoint.unet.state_dict()
    for name, weight in second.checkpoint.unet.state_dict().items():
        torch.testing.assert_close(weight, stored[name])
    assert first.training is not None and second.training is not None
    before = second.training.initial
    assert before is not None
    assert (before.model, before.steps) == (str(tmp_path / "a"), first.training.steps)
    assert second.training.preset == "test"


def test_a_model_of_another_size_is_no_start(tmp_path: Path) -> None:
    images = save_images(tmp_path / "i", 8)
    fit(images, tmp_path / "a")
    with pytest.raises(SettingsError, match=r"16x16 .* takes 32x32 with 1: give --size 32x32"):
        fit(images, tmp_path / "b", initial=tmp_path / "a", preparation=Preparation(16, 16, 1))


def test_a_run_with_another_start_is_not_resumed(tmp_path: Path) -> None:
    images = save_images(tmp_path / "i", 8)
    fit(images, tmp_path / "a")
    fit(images, tmp_path / "b", initial=tmp_path / "a")
    fit(images, tmp_path / "b", initial=tmp_path / "a", resume=True, steps=3)
    with pytest.raises(OutputError, match=r"initial was .*, is now null"):
        fit(images, tmp_path / "b", resume=True)


def told(tmp_path: Path, images: Path, **options: Any) -> tuple[list[str], Any]:
    notes: list[str] = []
    made = fit(images, tmp_path / "m", listener=FitListener(on_note=notes.append), **options)
    return notes, made


def test_a_method_that_needs_larger_images_is_refused_before_anything(tmp_path: Path) -> None:
    images = save_images(tmp_path / "i", 8)
    with pytest.raises(SettingsError, match=r"at 16x16 pixels: LPIPS .* at least 31"):
        fit(images, tmp_path / "m", preparation=Preparation(16, 16, 1))
    assert not (tmp_path / "m").exists()
    method = Method(distance="mse+ssim")
    fit(images, tmp_path / "m", preparation=Preparation(16, 16, 1), method=method)


@pytest.mark.parametrize("count", [1, 2])
def test_what_can_never_be_calibrated_is_refused(count: int, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{count} images: need at least 3"):
        fit(save_images(tmp_path / "i", count), tmp_path / "m")


def test_exact_copies_are_on_one_side_and_counted(tmp_path: Path) -> None:
    images = save_images(tmp_path / "i", 12)
    for i in range(6):
        shutil.copy(images / f"{i:03}.png", images / f"again-{i}.png")
    notes, (model, rest, kept) = told(tmp_path, images)
    sides = [
        {bytes(image.numpy()) for image in part.pixels(torch.arange(len(part)))}
        for part in (rest, kept)
    ]
    assert sides[0].isdisjoint(sides[1])
    assert any(note.startswith("12 images have an exact copy") for note in notes)
    assert any(note.endswith("none of them is on both sides") for note in notes)
    assert model.seen is not None and (len(model.seen), model.seen.trained) == (18, len(rest))
    again = Model.load(tmp_path / "m")
    assert again.seen is not None
    found = again.seen.compare(kept.pixels(torch.arange(len(kept))))
    assert (found == Copy.EXACT_HELD_OUT).all()
    assert [part.ids() for part in again.trained_split(stored_anew(images, tmp_path))] == [
        rest.ids(),
        kept.ids(),
    ]


def stored_anew(images: Path, tmp_path: Path) -> PreparedImages:
    """As a benchmark prepares the training's images."""
    return store_source(open_source(images), PREPARATION, tmp_path / "anew.u8")


def grouped(tmp_path: Path, folders: int, each: int) -> Path:
    images = save_images(tmp_path / "flat", folders * each)
    for i, file in enumerate(sorted(images.iterdir())):
        to = tmp_path / "i" / f"part{i % folders}" / file.name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, to)
    return tmp_path / "i"


@pytest.mark.parametrize("by", ["folder", r"part(\d+)/"])
def test_groups_are_on_one_side_also_when_the_split_is_made_again(by: str, tmp_path: Path) -> None:
    images = grouped(tmp_path, 6, 4)
    shutil.copy(images / "part0" / "000.png", images / "alone.png")  # fits no group, is a copy
    notes, (_, rest, kept) = told(tmp_path, images, group_by=by)
    assert "6 groups, the largest of 5 images; 1 images fit no group" in notes[1]
    sides = [{id.split("/")[0] for id in part.ids()} - {"alone.png"} for part in (rest, kept)]
    assert sides[0].isdisjoint(sides[1]) and len(kept) in (4, 5, 8, 9)
    again = Model.load(tmp_path / "m")
    assert again.training is not None and again.training.hold_out.group_by == by
    anew = again.trained_split(stored_anew(images, tmp_path))
    assert [part.ids() for part in anew] == [rest.ids(), kept.ids()]
    resumed = fit(images, tmp_path / "m", group_by=by, resume=True, steps=3)
    assert [part.ids() for part in resumed[1:]] == [rest.ids(), kept.ids()]
    (tmp_path / "anew.u8.ids").unlink()
    with pytest.raises(SourceError, match=r"anew\.u8\.ids.*prepared again"):
        again.trained_split(PreparedImages(tmp_path / "anew.u8", (1, 32, 32)))


def test_groups_that_can_not_be_parted_are_refused_with_their_sizes(tmp_path: Path) -> None:
    images = grouped(tmp_path, 1, 12)
    with pytest.raises(SettingsError, match="12 images in 1 groups of 12 images"):
        fit(images, tmp_path / "m", group_by="folder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 7}, "limit was 8, is now 7"),
        ({"limit": None}, "limit was 8, is now null"),
        ({"seed": 1}, "seed was 0, is now 1"),
        ({"group_by": "folder"}, 'group_by was null, is now "folder"'),
        ({"share": 0.3}, "hold_out was "),
        ({"preparation": Preparation(32, 32, 1, "crop")}, "preparation was "),
    ],
)
def test_whatever_moves_the_split_is_refused_by_name(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    images = save_images(tmp_path / "i", 10)
    asked: dict[str, Any] = {"limit": 8}
    _, rest, kept = fit(images, tmp_path / "m", **asked)
    assert len(rest) + len(kept) == 8
    with pytest.raises(OutputError, match=message):
        fit(images, tmp_path / "m", resume=True, **asked | options)
    fit(images, tmp_path / "m", resume=True, **asked)


def test_images_that_are_gone_are_prepared_again_if_they_are_the_same(tmp_path: Path) -> None:
    images = save_images(tmp_path / "i", 10)
    _, rest, kept = fit(images, tmp_path / "m")
    (tmp_path / "m" / fitting.IMAGES).unlink()
    again = fit(images, tmp_path / "m", resume=True, steps=3)
    assert [part.ids() for part in again[1:]] == [rest.ids(), kept.ids()]
    (tmp_path / "m" / fitting.IMAGES).unlink()
    (images / "000.png").rename(tmp_path / "000.png")
    with pytest.raises(OutputError, match=r"images have changed .*then 10 images.*now 9 images"):
        fit(images, tmp_path / "m", resume=True)
    (tmp_path / "000.png").rename(images / "000.png")
    fit(images, tmp_path / "m", resume=True, steps=4)
    path = tmp_path / "m" / fitting.IMAGES
    path.write_bytes(bytes(10) + path.read_bytes()[10:])
    with pytest.raises(OutputError, match="images have changed"):
        fit(images, tmp_path / "m", resume=True)
    fit(images, tmp_path / "m", resume=True, steps=5)


def test_renamed_images_move_groups_and_are_refused(tmp_path: Path) -> None:
    images = grouped(tmp_path, 6, 4)
    fit(images, tmp_path / "m", group_by="folder")
    (tmp_path / "m" / fitting.IMAGES).unlink()
    (images / "part5").rename(images / "part6")
    with pytest.raises(OutputError, match="images have changed"):
        fit(images, tmp_path / "m", group_by="folder", resume=True)


def test_a_training_of_before_goes_on_with_the_split_that_it_had(tmp_path: Path) -> None:
    """Its training.json knows no limit, no groups, no copies, and not what the images were."""
    images = save_images(tmp_path / "i", 12)
    for i in range(6):
        shutil.copy(images / f"{i:03}.png", images / f"again-{i}.png")
    fit(images, tmp_path / "m")
    recipe = tmp_path / "m" / fitting.RECIPE
    about = json.loads(recipe.read_text())
    for name in ("prepared", "limit", "group_by"):
        del about[name]
    del about["hold_out"]["copies_together"]
    recipe.write_text(json.dumps(about))
    model, rest, kept = fit(images, tmp_path / "m", resume=True, steps=3)
    assert model.training is not None and not model.training.hold_out.copies_together
    stored = PreparedImages(tmp_path / "m" / fitting.IMAGES, (1, 32, 32))
    then = stored.hold_out(HoldOut(0.25).count(18), seed=0)
    assert [part.ids() for part in (rest, kept)] == [part.ids() for part in then]
    assert json.loads(recipe.read_text())["prepared"]["images"] == 18
    with pytest.raises(OutputError, match="group_by was null"):
        fit(images, tmp_path / "m", resume=True, group_by="folder")


def test_all_held_out_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="all 10 images are held out"):
        fit(save_images(tmp_path / "i", 10), tmp_path / "m", share=0.99)


def deep_images(folder: Path, bits: int, count: int = 12) -> Path:
    """Pictures whose values end near the top of so many bits, in files of sixteen."""
    folder.mkdir()
    for i, image in enumerate(pixels(count)):
        values = np.round(image[0].numpy() / 255 * (2**bits - 1)).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{i:02}.png")
    return folder


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_the_range_of_deep_images_is_found_at_training_and_kept(bits: int, tmp_path: Path) -> None:
    notes: list[str] = []
    listener = FitListener(on_note=notes.append)
    made, rest, _ = fit(deep_images(tmp_path / "i", bits), tmp_path / "m", listener=listener)
    assert made.preparation.value_range == (0.0, 2.0**bits - 1)
    assert any(f"their values are taken as 0:{2**bits - 1}" in note for note in notes)
    assert Model.load(tmp_path / "m").preparation == made.preparation
    assert rest.pixels(torch.arange(len(rest))).max() > 230, "not dark"
    again, more, _ = fit(tmp_path / "i", tmp_path / "m", steps=3, resume=True)
    assert again.preparation == made.preparation
    assert torch.equal(more.pixels(torch.arange(3)), rest.pixels(torch.arange(3)))


def test_a_range_that_was_asked_for_is_taken(tmp_path: Path) -> None:
    asked = Preparation(32, 32, 1, value_range=(0.0, 8191.0))
    made, rest, _ = fit(deep_images(tmp_path / "i", 12), tmp_path / "m", preparation=asked)
    assert made.preparation == asked
    assert 100 < rest.pixels(torch.arange(len(rest))).max() < 130


def test_eight_bits_need_no_range_and_two_kinds_of_numbers_are_refused(tmp_path: Path) -> None:
    made, _, _ = fit(save_images(tmp_path / "eight", 12), tmp_path / "m8")
    assert made.preparation.value_range is None
    folder = deep_images(tmp_path / "i", 12)
    Image.fromarray(pixels(1)[0, 0].numpy() / np.float32(255)).save(folder / "f.tif")
    with pytest.raises(SourceError, match=r"whole numbers and of floats.*--range"):
        fit(folder, tmp_path / "m")
