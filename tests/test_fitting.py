import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL, save_images

from liftmap import fitting
from liftmap.diffusion import network
from liftmap.diffusion.schedule import TrainingSettings
from liftmap.diffusion.training import Trainer
from liftmap.errors import ModelError, OutputError, SettingsError
from liftmap.fitting import FitListener, fit_model
from liftmap.images.prepare import Preparation
from liftmap.images.sources import open_source
from liftmap.images.store import HoldOut, PreparedImages
from liftmap.model import Model

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
    **options: Any,
) -> tuple[Model, PreparedImages, PreparedImages]:
    settings = TrainingSettings(
        steps=steps, batch=4, save_every_minutes=0.0, learning_rate=learning_rate
    )
    return fit_model(
        open_source(images),
        folder,
        preset="test",
        preparation=preparation,
        settings=settings,
        hold_out=HoldOut(share=0.25),
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
