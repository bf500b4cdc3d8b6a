"""The command as a user runs it, on a network that trains in seconds."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import SMALL, calibrated_model, pixels, save_grey_generator, save_images, trained
from typer.testing import CliRunner, Result

from liftmap.cli import app
from liftmap.detector import Detector
from liftmap.diffusion import network
from liftmap.diffusion.checkpoints import Checkpoint
from liftmap.diffusion.denoiser import Parametrisation
from liftmap.diffusion.network import build_unet
from liftmap.diffusion.process import VE
from liftmap.engines.local import Summary, score_source
from liftmap.evaluation import speed
from liftmap.evaluation.entrants import described
from liftmap.images.sources import open_source
from liftmap.images.store import HoldOut
from liftmap.model import Model
from liftmap.stages.method import METHODS

run = CliRunner()


def liftmap(*words: object, code: int = 0) -> Result:
    done = run.invoke(app, [str(w) for w in words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


def words(result: Result) -> str:
    """Output without the line breaks that a narrow terminal puts in."""
    return " ".join(result.output.split())


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(network.PRESETS, "test", SMALL)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images", 60)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return calibrated_model(tmp_path / "model")


FAST = ("--steps", 1, "--attempts", 2)


def train(images: Path, output: Path, *more: object, code: int = 0) -> Result:
    base = ("--preset", "test", "--channels", 1, "--batch", 8, "--hold-out", 0.5)
    return liftmap("train", images, "--output", output, *base, *more, code=code)


def test_train_calibrates_and_score_decides(tmp_path: Path, images: Path) -> None:
    output = tmp_path / "m"
    done = train(images, output, "--steps", 3)
    assert "30 images to train on, 30 held out" in words(done)
    assert "calibrated (fast) on 24 images" in words(done), "6 of the 30 set the scales"
    about = json.loads((output / "liftmap.json").read_text())
    assert about["training"]["steps"] == 3
    scores = tmp_path / "s.parquet"
    done = liftmap("score", images, "--model", output, "--output", scores, "--limit", 6)
    assert "6 images scored, 0 skipped" in words(done)
    assert "flagged as out-of-distribution" in words(done)
    assert pq.read_table(scores).num_rows == 6


def test_training_goes_on_where_it_stopped(tmp_path: Path, images: Path) -> None:
    output = tmp_path / "m"
    train(images, output, "--steps", 2)
    refused = train(images, output, "--steps", 4, code=1)
    assert "add --resume" in words(refused)
    train(images, output, "--steps", 4, "--resume")
    assert json.loads((output / "liftmap.json").read_text())["training"]["steps"] == 4
    other = train(images, output, "--steps", 5, "--resume", "--size", "64", code=1)
    assert "is of another run" in words(other)


def test_train_reports_what_it_skips_and_refuses_what_it_cannot_do(
    tmp_path: Path, images: Path
) -> None:
    (images / "000.png").write_bytes(b"")
    assert "skipped 000.png" in words(train(images, tmp_path / "m", "--steps", 1))
    assert "multiples of 8" in words(train(images, tmp_path / "n", "--size", "33", code=1))
    assert "--size 3x" in words(train(images, tmp_path / "n", "--size", "3x", code=1))
    done = liftmap("train", images, "--output", tmp_path / "n", "--preset", "huge", code=1)
    assert "need one of tiny, small, ddpm, ncsnpp" in words(done)


def test_calibrate_replaces_the_stored_scores(tmp_path: Path, images: Path, model: Path) -> None:
    before = (model / "diffusion_pytorch_model.safetensors").read_bytes()
    liftmap("calibrate", images, "--model", model, *FAST, "--limit", 25)
    stored = json.loads((model / "liftmap.json").read_text())["judges"]
    assert sorted(len(judge["scores"]) for judge in stored) == [20, 40], "5 of the 25 are left out"
    assert (model / "diffusion_pytorch_model.safetensors").read_bytes() == before
    liftmap("score", images, "--model", model, "--output", tmp_path / "s.csv", *FAST, "--limit", 3)


def test_score_needs_a_calibration_for_its_method_and_rate(
    tmp_path: Path, images: Path, model: Path
) -> None:
    base = ("score", images, "--model", model, "--output", tmp_path / "s.csv", "--limit", 3)
    assert "no calibration for this method" in words(liftmap(*base, *FAST, code=1))
    needs = liftmap(*base, "--false-alarms", 0.01, code=1)
    assert "needs at least 99 calibration images, there are 40" in words(needs)
    assert "need more than 0" in words(liftmap(*base, "--false-alarms", 1.5, code=1))
    liftmap(*base, *FAST, "--uncalibrated")


def test_evaluate_writes_figures_and_pictures(tmp_path: Path, images: Path, model: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=noise)
    output = tmp_path / "e"
    sources = (images, f"{tmp_path}/noise.npz", images)
    done = liftmap("evaluate", *sources, "--model", model, "--output", output, *FAST)
    assert "AUROC" in done.output
    records = json.loads((output / "evaluation.json").read_text())
    assert [(r["n_in"], r["n_out"]) for r in records] == [(60, 20), (60, 60)]
    keys = "in out n_in n_out auroc auroc_low auroc_high aupr_in aupr_out fpr95 method"
    assert set(keys.split()) | {"network_evaluations", "images_per_second"} <= set(records[0])
    assert records[0]["network_evaluations"] == 2 + 10, "two attempts of a step, ten norms"
    assert abs(records[0]["auroc"] - 0.5) > 0.4, "noise and smooth images are far apart"
    assert records[1]["auroc"] == pytest.approx(0.5), "the same images on both sides"
    assert {"roc.png", "histogram.png"} <= {p.name for p in output.iterdir()}


def test_info_says_what_a_model_is(model: Path) -> None:
    shown = words(liftmap("info", model))
    assert "32x32, 1 channel(s)" in shown
    assert "calibrated (fast) on 40 images" in shown
    assert "at 1%: needs 99 images" in shown
    assert "at 5%: flagged above 0.9750; of further normal images 0.6% to 13.2% are (95%)" in shown


def test_bench_compares_methods_and_says_what_it_timed(
    images: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "PEAK_SIDE", 64)
    monkeypatch.setattr(speed, "MOST_STEPS", 2)
    monkeypatch.setenv("COLUMNS", "120")
    done = liftmap("speed", images, "--model", model, "--images", 2, "--rounds", 1)
    assert f"fast {METHODS['fast'].evaluations}" not in done.output, "columns are apart"
    rows = [line.split("│") for line in done.output.splitlines() if "│" in line]
    fast, paper = (next(r for r in rows if name in r[1]) for name in ("fast", "paper"))
    assert (int(fast[2]), int(paper[2])) == (METHODS["fast"].evaluations, 10_000)
    assert float(paper[5].strip().rstrip("x")) == 1.0, "the slowest is what others are compared to"
    assert float(fast[5].strip().rstrip("x")) > 10
    assert "one image alone" in words(done)


def test_score_speaks_to_scripts_by_json_and_exit_code(
    images: Path, model: Path, tmp_path: Path
) -> None:
    base = ("score", images, "--model", model, "--limit", 6)
    done = liftmap(*base, "--output", tmp_path / "a.csv", "--json")
    found = json.loads(done.stdout)
    assert (found["images"], found["scored"], found["skipped"]) == (6, 6, 0)
    assert found["flagged"] <= 6 and len(found["oddest"]) == 5
    scores = [image["score"] for image in found["oddest"]]
    assert scores == sorted(scores, reverse=True)
    limit = ("--false-alarms", 0.9, "--fail-if-flagged")
    many = liftmap(*base, "--output", tmp_path / "b.csv", *limit, 0.0, code=3)
    assert "the oddest:" in many.output and "p-values from 0 to 1: " in many.output
    liftmap(*base, "--output", tmp_path / "c.csv", *limit, 1.0)
    bad = liftmap(*base, "--output", tmp_path / "d.csv", *limit, 1.5, code=1)
    assert "need 0 to 1" in words(bad)


def test_explain_draws_a_row_an_image_and_says_it_in_words(
    images: Path, model: Path, tmp_path: Path
) -> None:
    (images / "001.png").write_text("no image")
    output = tmp_path / "why.png"
    asked = ("--model", model, "--output", output)
    done = words(liftmap("explain", images / "000.png", images / "001.png", *asked, code=5))
    assert "000.png: score" in done and "in-domain images look" in done
    assert "skipped" in done and output.exists()
    refused = liftmap("explain", images / "001.png", *asked, code=1)
    assert "none of the images could be read" in words(refused)


def test_report_is_one_file_about_a_scored_folder(
    images: Path, model: Path, tmp_path: Path
) -> None:
    (images / "007.png").write_text("no image")
    table, page = tmp_path / "s.parquet", tmp_path / "r.html"
    scored = ("--output", table, "--method", "fast", "--limit", 9, "--most-skipped", 0.2)
    liftmap("score", images, "--model", model, *scored)
    done = liftmap("report", table, "--source", images, "--model", model, "--output", page)
    assert "of 8 flagged" in words(done)
    text = page.read_text()
    assert (
        text.startswith("<!doctype html>") and "007.png" in text and "1 could not be read" in text
    )
    assert len(text) < 3_000_000
    both = (*scored, "--report", tmp_path / "b.html")
    liftmap("score", images, "--model", model, *both)
    assert (tmp_path / "b.html").stat().st_size == pytest.approx(page.stat().st_size, rel=0.1)
    wrong = liftmap(
        "score", images, "--model", model, "--output", "x.csv", "--report", page, code=1
    )
    assert "need a .parquet --output" in words(wrong)
    (tmp_path / "x.parquet").write_text("no table")
    bad = liftmap("report", tmp_path / "x.parquet", "--source", images, "--model", model, code=1)
    assert "can't be read as a Parquet table of scores" in words(bad)


def test_ray_scores_into_a_folder_of_parts(images: Path, model: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    asked = ("score", images, "--model", model, "--engine", "ray", "--workers", 1, "--limit", 6)
    output = tmp_path / "scores"
    done = liftmap(*asked, "--output", output, "--report", tmp_path / "report.html")
    ray.shutdown()
    assert "6 images" in words(done)
    assert pq.read_table(output / "part-000000000.parquet").num_rows == 6
    assert (tmp_path / "report.html").stat().st_size > 50_000
    wrong = liftmap(*asked, "--output", tmp_path / "s.parquet", code=1)
    assert "Ray's workers write a folder" in words(wrong)
    assert "need local or ray" in words(
        liftmap(*asked[:4], "--engine", "x", "--output", output, code=1)
    )


def test_ray_calibrates_and_evaluates_as_one_process_does(
    images: Path, model: Path, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray")
    by_ray, by_one = tmp_path / "ray", tmp_path / "one"
    engine = ("--engine", "ray", "--workers", 1)
    found = []
    for folder, more in ((by_one, ()), (by_ray, engine)):
        shutil.copytree(model, folder)
        liftmap("calibrate", images, "--model", folder, "--method", "quick", *more)
        assert not list(folder.glob("calibration*"))
        quick = ("--model", folder, "--method", "quick", "--output", folder / "e")
        liftmap("evaluate", images, images, *quick, "--limit", 6, *more)
        [record] = json.loads((folder / "e" / "evaluation.json").read_text())
        stored = json.loads((folder / "liftmap.json").read_text())["judges"]
        found.append((record["auroc"], [judge["scores"] for judge in stored]))
    ray.shutdown()
    assert found[0][0] == found[1][0] == 0.5
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_watch_takes_paths_from_a_pipe_and_goes_on(
    images: Path, model: Path, tmp_path: Path
) -> None:
    asked = ["watch", "--model", str(model), "--output", str(tmp_path / "w")]
    files = sorted(str(path) for path in images.iterdir())
    for some in (files[:3], files):
        done = run.invoke(app, asked, input="\n".join(some))
        assert done.exit_code == 0, done.output
    assert f"{len(files)} images" in words(done)
    rows = pq.read_table(tmp_path / "w" / "part-000000000.parquet").to_pylist()
    assert [row["id"] for row in rows] == files


def test_watch_ends_well_when_it_is_told_to(images: Path, model: Path, tmp_path: Path) -> None:
    output, many = tmp_path / "w", len(list(images.iterdir()))
    watching = started("watch", images, "--model", model, "--output", output, "--every", 0.1)
    journal = output / "journal.jsonl"
    wait_for(lambda: journal.exists() and len(journal.read_text().splitlines()) > many, watching)
    watching.send_signal(signal.SIGTERM)
    out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0 and f"{many} images" in " ".join(out.split())
    report = tmp_path / "report.html"
    liftmap("report", output, "--source", images, "--model", model, "--output", report)
    assert report.stat().st_size > 50_000, "with pictures"


def test_benchmark_compares_methods_and_keeps_its_cells(
    images: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    output = tmp_path / "b"
    asked = ("--model", model, "--train", images, "--output", output, "--method", "combined")
    done = liftmap("benchmark", f"{images}[0:6]", f"{images}[6:12]", *asked)
    rows = [line.split("│") for line in done.output.splitlines() if "│" in line]
    assert rows[-1][1].strip() == "combined"
    assert (output / "benchmark.md").read_text().startswith("| method |")
    again = liftmap("benchmark", f"{images}[0:6]", f"{images}[6:12]", *asked)
    assert [line.split("│") for line in again.output.splitlines() if "│" in line] == rows
    wrong = liftmap("benchmark", images, images, *asked[:-1], "svm", code=1)
    assert "need some of combined" in words(wrong)


def test_the_benchmarks_help_lists_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shown = words(liftmap("benchmark", "--help"))
    for name, about in described().items():
        assert name in shown and about in shown


def test_reproduce_sets_a_table_beside_the_papers(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    calibrated_model(tmp_path / "models" / "mnist")
    sources = [f"{name}:test={images}[0:6]" for name in ("MNIST", "KMNIST")]
    options = [word for s in [*sources, f"MNIST:train={images}"] for word in ("--source", s)]
    options += ["--models", tmp_path / "models", "--output", tmp_path / "r", "--only", "LMD"]
    done = liftmap("reproduce", "table1", "--method", "quick", *options)
    assert "left out CIFAR10 > SVHN" in words(done)
    lines = (tmp_path / "r" / "table1.md").read_text().splitlines()
    assert lines[0] == "| pair | LMD |"
    assert lines[2] == "| MNIST > KMNIST | 0.500 (-0.484) |", "both are the same images"
    assert "| images of a set, at most | 6 |" in lines
    liftmap("reproduce", "table1", "--method", "quick", *options, "--fewer", "LMD=4")
    assert "| images of a set, at most | 4 |" in (tmp_path / "r" / "table1.md").read_text()
    details = (tmp_path / "r" / "table1-intervals.md").read_text()
    assert "| MNIST > KMNIST | LMD | 0 | 0.5000 (" in details
    wrong = liftmap("reproduce", "table1", *options, "--fewer", "LMD", code=1)
    assert "--fewer LMD: need COLUMN=IMAGES" in words(wrong)
    assert "need some of Likelihood" in words(
        liftmap("reproduce", "table1", *options[:-1], "SVM", code=1)
    )
    bad = liftmap("reproduce", "table1", "--source", "MNIST=x", "--output", tmp_path, code=1)
    assert "need DATASET:train=SOURCE" in words(bad)


def test_the_pairs_at_256_run_on_a_variance_exploding_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the authors' CelebA-HQ and LSUN models are; this one is untrained, and small."""
    monkeypatch.setenv("COLUMNS", "120")
    torch.manual_seed(0)
    unet = build_unet(SMALL, height=256, width=256, channels=3)
    checkpoint = Checkpoint(unet, VE(sigma_max=348.0), Parametrisation(), SMALL.patch)
    trained(Model.of(checkpoint), HoldOut(0.5, 9, 0)).save(tmp_path / "models" / "celeba-hq")
    faces, others = tmp_path / "faces", tmp_path / "others"
    for folder, seed in ((faces, 0), (others, 1)):
        folder.mkdir()
        for number, picture in enumerate(pixels(8, seed=seed, channels=3)):
            image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((256, 256))
            image.save(folder / f"{number}.png")
    given = (f"CelebA-HQ:train={faces}", f"CelebA-HQ:test={faces}", f"ImageNet:test={others}")
    options = [word for source in given for word in ("--source", source)]
    options += ["--models", tmp_path / "models", "--output", tmp_path / "r", "--images", 2]
    done = liftmap("reproduce", "table256", "--method", "quick", *options)
    assert "left out LSUN-bedroom > LSUN-classroom" in words(done)
    lines = (tmp_path / "r" / "table256.md").read_text().splitlines()
    assert re.match(r"\| CelebA-HQ > ImageNet \| [01]\.\d{3} \([+-]0\.\d{3}\) \|", lines[2])
    liftmap("reproduce", "figure6", "--method", "quick", *options)
    assert len(list((tmp_path / "r").glob("figure6-*.png"))) == 3
    generator = save_grey_generator(tmp_path / "big-lama.pt")
    liftmap("reproduce", "figure10", "--generator", generator, *options)
    assert len(list((tmp_path / "r").glob("figure10-*-CelebA-HQ-ImageNet.png"))) == 3


def test_a_model_that_is_not_there_lists_the_packaged_ones() -> None:
    assert "packaged models: fashion-mnist" in words(liftmap("info", "nowhere", code=1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "diffusion_pytorch_model.safetensors").unlink(), "is missing"),
        (lambda m: os.truncate(m / "diffusion_pytorch_model.safetensors", 1000), "truncated"),
        (lambda m: (m / "config.json").unlink(), "is missing"),
        (lambda m: (m / "config.json").write_text("{"), "can't be read as JSON"),
        (lambda m: (m / "liftmap.json").write_text("[]"), "need a JSON object"),
        (lambda m: edit(m, "parametrisation", {"colour": 1}), "colour"),
        (lambda m: edit(m, "preparation", {"height": 32, "width": 32, "channels": 1, "x": 1}), "x"),
        (lambda m: edit(m, "process", {"kind": "vq"}), "need one of vp"),
        (lambda m: edit(m, "patch", 2), "liftmap.json prepares"),
    ],
)
def test_damaged_model_folders_are_named(model: Path, damage: object, message: str) -> None:
    damage(model)  # type: ignore[operator]
    assert message in words(liftmap("info", model, code=1))


def edit(model: Path, key: str, value: object) -> None:
    about = json.loads((model / "liftmap.json").read_text())
    (model / "liftmap.json").write_text(json.dumps(about | {key: value}))


def test_help_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "liftmap demo" in liftmap("--help").output
    for command in (
        "train",
        "calibrate",
        "score",
        "evaluate",
        "speed",
        "demo",
        "info",
        "import-score-sde",
    ):
        assert command in liftmap("--help").output
        assert liftmap(command, "--help").output


def started(*words: object) -> "subprocess.Popen[str]":
    """The command in a process of its own that hears Ctrl-C, whatever started the tests."""
    return subprocess.Popen(
        [sys.executable, "-m", "liftmap", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition: object, process: "subprocess.Popen[str]", seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "too slow"
        time.sleep(0.01)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_score_continues_to_the_same_table(
    tmp_path: Path, model: Path, sent: signal.Signals
) -> None:
    images = save_images(tmp_path / "many", 400)
    whole, broken = tmp_path / "whole.parquet", tmp_path / "broken.parquet"
    options = ("--model", model, *FAST, "--uncalibrated", "--at-once", 16)
    liftmap("score", images, *options, "--output", whole)
    journal = tmp_path / "broken.parquet.part"
    process = started("score", images, *options, "--output", broken)
    wait_for(lambda: journal.exists() and journal.stat().st_size > 3000, process)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else 130)
    if sent == signal.SIGINT:
        assert "run the same command to go on" in " ".join(errors.split())
        assert "Traceback" not in errors
    assert journal.exists()
    assert not broken.exists()
    shown = words(liftmap("score", images, *options, "--output", broken))
    assert "were there from an earlier run" in shown
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_score_that_goes_on_says_where_the_images_changed(
    tmp_path: Path, images: Path, model: Path, as_json: bool
) -> None:
    output, detector = tmp_path / "s.csv", Detector.from_pretrained(model, at_once=16)

    def stop(summary: Summary) -> None:
        if summary.images:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_source(detector, open_source(images), output, on_batch=stop)
    (images / "002.png").write_text("no image")
    options = ("--model", model, "--output", output, "--at-once", 16)
    done = liftmap("score", images, *options, *(["--json"] if as_json else []))
    assert "the images changed from number 3 on: scored anew" in words(done)
    if as_json:
        assert json.loads(done.stdout)["changed_from"] == 3


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_training_resumes(tmp_path: Path, images: Path, sent: signal.Signals) -> None:
    output = tmp_path / "m"
    options = ("--preset", "tiny", "--channels", 1, "--batch", 8, "--save-every", 0.0, "--steps")
    process = started("train", images, "--output", output, *options, 5000)
    wait_for((output / "liftmap.json").exists, process)  # the last file of a saved state
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else 130)
    first = json.loads((output / "liftmap.json").read_text())["training"]["steps"]
    assert first >= 1
    options = (*options[:-3], "--hold-out", 0.05, "--steps", first + 2)
    liftmap("train", images, "--output", output, *options, "--resume", *("--hold-out-most", 2000))
    about = json.loads((output / "liftmap.json").read_text())
    assert about["training"]["steps"] >= first + 2
