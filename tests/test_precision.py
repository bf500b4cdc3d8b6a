"""A calibration speaks of scores in its own precision: in another one nothing is decided."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import calibrated_model, decide_by, pixels, save_images, small_detector, small_method
from typer.testing import CliRunner

from liftmap.cli import app
from liftmap.detector import Detector
from liftmap.diffusion import denoiser
from liftmap.diffusion.denoiser import Precision
from liftmap.engines.local import score_source
from liftmap.engines.tables import read_rows
from liftmap.engines.watch import Watch
from liftmap.errors import CalibrationError, ModelError
from liftmap.images.sources import open_source
from liftmap.model import Model
from liftmap.report.collect import collect
from liftmap.serve.app import create_app
from liftmap.serve.schema import ServiceSettings

METHOD = small_method(attempts=2, steps=1)
BOTH: list[tuple[Precision, Precision]] = [("bf16", "float32"), ("float32", "bf16")]


def calibrated(precision: Precision | None) -> Model:
    made = small_detector(METHOD)
    decide_by(made, map(float, range(40)), precision=precision)
    return made.model


def running(model: Model, precision: Precision | None = None) -> Detector:
    return Detector(model, method=METHOD, device="cpu", precision=precision, at_once=8)


@pytest.fixture(params=[True, False], ids=["bf16 in hardware", "emulated"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(denoiser, "fast_bf16", lambda device: request.param)
    return bool(request.param)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_a_detector_runs_in_its_calibrations_precision(precision: Precision, fast: bool) -> None:
    made = running(calibrated(precision))
    assert made.denoiser.precision == precision
    assert made.predict(pixels(2)).p_values.isfinite().all()


def test_without_a_known_precision_the_hardware_decides(fast: bool) -> None:
    """No calibration, one of another method, or one of before it was recorded."""
    native = "bf16" if fast else "float32"
    other = Detector(calibrated("float32"), method=small_method(attempts=4), device="cpu")
    assert small_detector().denoiser.precision == other.denoiser.precision == native
    unknown = calibrated(None)
    assert running(unknown).denoiser.precision == native
    for precision in ("bf16", "float32"):
        assert running(unknown, precision).predict(pixels(1)).p_values.isfinite().all()


def decide_table(detector: Detector, folder: Path) -> object:
    return score_source(detector, open_source(save_images(folder / "i", 3)), folder / "s.csv")


def report(detector: Detector, folder: Path) -> object:
    table, source = folder / "s.parquet", open_source(save_images(folder / "i", 3))
    score_source(running(detector.model), source, table)
    return collect(read_rows(table), detector, source, title="a report")


DECIDING: dict[str, Callable[[Detector, Path], object]] = {
    "predict": lambda detector, folder: detector.predict(pixels(1)),
    "explain": lambda detector, folder: detector.explain(pixels(1)[0, 0].numpy()),
    "score": decide_table,
    "watch": lambda detector, folder: Watch(detector, folder),
    "serve": lambda detector, folder: create_app(detector, ServiceSettings()),
    "report": report,
}


@pytest.mark.parametrize("what", DECIDING)
@pytest.mark.parametrize(("mine", "other"), BOTH)
def test_nothing_is_decided_in_another_precision(
    mine: Precision, other: Precision, what: str, tmp_path: Path
) -> None:
    detector = running(calibrated(mine), other)
    expected = f"in {mine} and runs in {other}.*take --precision {mine}.*calibrate --precision"
    with pytest.raises(CalibrationError, match=expected):
        DECIDING[what](detector, tmp_path)


@pytest.mark.parametrize(("mine", "other"), BOTH)
def test_scores_alone_may_be_made_in_another_precision(
    mine: Precision, other: Precision, tmp_path: Path
) -> None:
    detector, source = running(calibrated(mine), other), open_source(save_images(tmp_path / "i", 3))
    assert detector.score_pixels(pixels(2)).scores.isfinite().all()
    score_source(detector, source, tmp_path / "s.csv", to="scores")
    score_source(detector, source, tmp_path / "d.csv", to="distances")


@pytest.mark.parametrize(("mine", "other"), BOTH)
def test_a_new_calibration_is_of_the_precision_that_it_is_made_in(
    mine: Precision, other: Precision, tmp_path: Path
) -> None:
    detector = running(calibrated(mine), other)
    detector.calibrate_on(detector.measure(pixels(40)))
    detector.fix_colours(pixels(2))
    detector.save(tmp_path)
    again = running(Model.load(tmp_path))
    assert again.denoiser.precision == other == again.judge.precision
    found = detector.predict(pixels(2)), again.predict(pixels(2))
    assert torch.equal(found[0].is_ood, found[1].is_ood)


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    running(calibrated("bf16")).save(tmp_path)
    about = tmp_path / "liftmap.json"
    about.write_text(about.read_text().replace('"bf16"', '"half"'))
    with pytest.raises(ModelError, match="calibration is damaged"):
        Model.load(tmp_path)


def command(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return " ".join(done.output.split())


def test_the_command_says_what_to_do(tmp_path: Path, fast: bool) -> None:
    folder, images = calibrated_model(tmp_path / "m"), save_images(tmp_path / "i", 30)
    assert "on 40 images, precision not recorded" in command("info", folder)
    native, other = ("bf16", "float32") if fast else ("float32", "bf16")
    command("calibrate", images, "--model", folder, "--precision", other)
    assert f"images in {other}" in command("info", folder)
    score = ("score", images, "--model", folder, "--output", tmp_path / "s.csv", "--limit", 2)
    score = (*score, "--false-alarms", 0.1)
    shown = command(*score)
    assert ("emulated on this machine" in shown) == (other == "bf16")
    refused = command(*score, "--precision", native, code=1)
    assert f"calibrated for this method in {other} and runs in {native}" in refused
    command(*score, "--precision", native, "--uncalibrated")
    assert f"images in {native}" in command("calibrate", images, "--model", folder)
    command(*score, "--precision", native)
