"""What `train` says before it trains, and what it refuses."""

from pathlib import Path

import pytest
from tiny import SMALL, save_images
from typer.testing import CliRunner

from liftmap.cli import app
from liftmap.diffusion import network


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(network.PRESETS, "test", SMALL)


def train(images: Path, output: Path, *more: object, code: int = 0) -> str:
    asked = ["train", images, "--output", output, "--preset", "test", "--channels", 1]
    done = CliRunner().invoke(app, [str(w) for w in (*asked, "--batch", 8, "--steps", 1, *more)])
    assert done.exit_code == code, done.output + repr(done.exception)
    return " ".join(done.output.split())


def test_a_size_that_the_method_can_not_take_is_refused_at_once(tmp_path: Path) -> None:
    images, output = save_images(tmp_path / "i", 60), tmp_path / "m"
    told = train(images, output, "--size", 16, code=1)
    assert "at 16x16 pixels: LPIPS of 16x16 pixels: need at least 31 a side" in told
    assert "--size and --distance" in told and not output.exists()
    told = train(images, output, "--size", 16, "--distance", "mse+ssim", "--hold-out", 0.5)
    assert "next: liftmap score NEW_IMAGES" in told and told.endswith("--distance mse+ssim")


def test_few_images_are_announced_and_few_more_decide(tmp_path: Path) -> None:
    told = train(save_images(tmp_path / "i", 40), tmp_path / "m")
    assert "warning: 6 held-out images will calibrate: false-alarm rates from 14.3% on" in told
    assert "5% takes 115 normal images; 1% takes 615 normal images" in told
    told = train(save_images(tmp_path / "j", 14), tmp_path / "n")
    assert "warning: 2 of 14 images are held out, too few to calibrate on" in told
    assert "2 images: need at least 3" in train(
        save_images(tmp_path / "k", 2), tmp_path / "o", code=1
    )


def test_series_stay_together_and_info_says_so(tmp_path: Path) -> None:
    images = save_images(tmp_path / "i", 60)  # 000.png to 059.png: ten a series
    told = train(images, tmp_path / "m", "--group-by", r"^0(\d)", "--hold-out", 0.5)
    assert "30 images to train on, 30 held out" in told
    assert "6 groups, the largest of 10 images" in told
    assert "groups of images whole, by ^0" in told and "30 held out: copies of them" in told
    refused = train(images, tmp_path / "n", "--group-by", "series", code=1)
    assert "has 0 groups in it: need folder, or a regular expression" in refused
    told = train(images, tmp_path / "o", "--group-by", "folder")
    assert "60 images fit no group and stand for themselves" in told


def test_resuming_with_another_limit_or_seed_is_refused_by_name(tmp_path: Path) -> None:
    images, output = save_images(tmp_path / "i", 30), tmp_path / "m"
    train(images, output, "--limit", 20)
    assert "limit was 20, is now null" in train(images, output, "--resume", code=1)
    again = ("--resume", "--limit", 20)
    assert "seed was 0, is now 1" in train(images, output, *again, "--seed", 1, code=1)
    train(images, output, *again)
