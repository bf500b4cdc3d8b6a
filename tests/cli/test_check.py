"""What is said of images before a run and after it, and the exit codes that scripts go by."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import calibrated_model, save_images
from typer.testing import CliRunner, Result

from liftmap.cli import app

run = CliRunner()


def liftmap(*words: object, code: int = 0) -> str:
    done: Result = run.invoke(app, [str(w) for w in words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return " ".join(done.output.split())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images", 12)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return calibrated_model(tmp_path / "model")


def test_check_names_what_is_wrong_and_writes_nothing(images: Path, model: Path) -> None:
    (images / "broken.png").write_bytes(b"")
    (images / "notes.txt").write_text("no image")
    (images / "._000.png").write_bytes(b"x")
    Image.open(images / "003.png").save(images / "twin.png")
    Image.new("L", (32, 32), 9).save(images / "blank.png")
    Image.new("L", (900, 20)).save(images / "strip.png")
    before = sorted(images.parent.iterdir())
    told = liftmap("check", images)
    assert told.startswith("16 images: 15 grey, 32x32 to 900x20")
    for line in (
        "broken broken.png: the file is empty",
        "copy twin.png: the same as 003.png",
        "blank blank.png",
        "odd size strip.png: 900x20",
        "no images: 1 .txt",
        "1 hidden",
    ):
        assert line in told, line
    assert re.search(r"about .* to score them", liftmap("check", images, "--model", model))
    assert sorted(images.parent.iterdir()) == before


def test_a_look_comes_before_every_score(images: Path, model: Path, tmp_path: Path) -> None:
    told = liftmap("score", images, "--model", model, "--output", tmp_path / "s.csv")
    assert told.startswith("12 images: 12 grey, 32x32 pixels about")


@pytest.mark.parametrize("gate", [(), ("--fail-if-flagged", 0.1)])
def test_nothing_checked_is_no_success(model: Path, tmp_path: Path, gate: tuple[object]) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (broken / name).write_text("no image")
    asked = ("score", broken, "--model", model, "--output", tmp_path / "s.csv", *gate)
    told = liftmap(*asked, code=5)
    assert "none of 3 images could be used: nothing was checked" in told
    assert "nothing was checked" in liftmap(*asked, "--most-skipped", 1, code=5)
    assert "nothing was checked" in liftmap("check", broken, code=5)


def test_how_many_may_be_skipped_is_an_option(images: Path, model: Path, tmp_path: Path) -> None:
    for name in ("x.png", "y.png"):
        (images / name).write_text("no image")
    asked = ("score", images, "--model", model, "--output", tmp_path / "s.csv")
    told = liftmap(*asked, code=5)
    assert "14.3% of the images could not be used" in told
    liftmap(*asked, "--most-skipped", 0.2)
    liftmap(*asked, "--most-skipped", 0, code=5)


def test_a_folder_that_cannot_be_listed_is_in_the_exit_code(
    images: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "locked").mkdir()
    real = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    told = liftmap("score", images, "--model", model, "--output", tmp_path / "s.csv", code=5)
    assert "could not be listed: locked (Permission denied)" in told


def test_the_range_of_deep_images_is_an_option(model: Path, tmp_path: Path) -> None:
    """The same pictures in eight bits, and in twelve of sixteen: the same scores."""
    eight, twelve = save_images(tmp_path / "eight", 4), tmp_path / "twelve"
    twelve.mkdir()
    for path in eight.iterdir():
        shades = np.asarray(Image.open(path)) / 255
        Image.fromarray(np.round(shades * 4095).astype(np.uint16)).save(twelve / path.name)
    tables = [tmp_path / f"{n}.csv" for n in range(3)]
    asked = ("--model", model, "--output")
    liftmap("score", eight, *asked, tables[0])
    liftmap("score", twelve, *asked, tables[1], "--range", "0:4095")
    told = liftmap("score", twelve, *asked, tables[2])
    assert "dark: values end below an eighth of 0:65535" in told
    assert tables[0].read_text() == tables[1].read_text() != tables[2].read_text()
    assert "need LOW:HIGH" in liftmap("score", twelve, *asked, tables[2], "--range", "x", code=1)


def test_several_sources_in_one_run(images: Path, model: Path, tmp_path: Path) -> None:
    table = tmp_path / "s.csv"
    liftmap("score", images / "000.png", images / "001.png", "--model", model, "--output", table)
    rows = table.read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [f"{images}/000.png", f"{images}/001.png"]
