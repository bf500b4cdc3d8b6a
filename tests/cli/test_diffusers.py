"""Folders as diffusers writes them: calibrated in place, and then used as any other model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    PNDMScheduler,
    UNet2DModel,
)
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from tiny import pixels, save_images
from typer.testing import CliRunner

from liftmap.cli import app
from liftmap.detector import Detector
from liftmap.errors import ModelError
from liftmap.model import ABOUT, Model
from liftmap.serve.app import create_app

WEIGHTS = "diffusion_pytorch_model.safetensors"
EARLY = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def unet(**changes: Any) -> UNet2DModel:
    torch.manual_seed(3)
    settings: dict[str, Any] = {
        "sample_size": 32,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**settings | changes).eval()


def with_early_names(folder: Path) -> None:
    """Attention as google/ddpm-cifar10-32 calls its parts."""
    unet().save_pretrained(folder)
    DDPMScheduler().save_config(folder)
    renamed = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        for new, early in EARLY.items():
            name = name.replace(f".{new}.", f".{early}.")
        renamed[name] = tensor
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})


def save(folder: Path, kind: str) -> None:
    if kind == "ddpm":
        DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(folder)
    elif kind == "ddim of a list of sides":
        DDIMPipeline(unet(sample_size=[32, 32]), DDIMScheduler()).save_pretrained(folder)
    elif kind == "pndm":  # its pipeline left diffusers, its folders are still about
        DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(folder)
        PNDMScheduler(skip_prk_steps=True).save_config(folder / "scheduler")
    elif kind == "early names":
        with_early_names(folder)
    elif kind == "fp16":
        DDPMPipeline(unet().half(), DDPMScheduler()).save_pretrained(folder, variant="fp16")
        assert (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").exists()
    elif kind == "shards":
        DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(folder)
        (folder / "unet" / WEIGHTS).unlink()
        unet().save_pretrained(folder / "unet", max_shard_size="300KB")
        assert (folder / "unet" / f"{WEIGHTS}.index.json").exists()
    elif kind == "shards of fp16":
        DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(folder)
        (folder / "unet" / WEIGHTS).unlink()
        unet().half().save_pretrained(folder / "unet", max_shard_size="150KB", variant="fp16")


KINDS = (
    "ddpm",
    "ddim of a list of sides",
    "pndm",
    "early names",
    "fp16",
    "shards",
    "shards of fp16",
)


def liftmap(*words: object) -> str:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


def detector(folder: Path) -> Detector:
    return Detector.from_pretrained(folder, method="quick", device="cpu", precision="float32")


@pytest.mark.parametrize("kind", KINDS)
def test_a_calibrated_folder_loads_again_and_measures_the_same(kind: str, tmp_path: Path) -> None:
    save(tmp_path / "m", kind)
    before = detector(tmp_path / "m").measure(pixels(2)).distances
    images = save_images(tmp_path / "images", 12)
    how = ("--model", tmp_path / "m", "--method", "quick", "--precision", "float32")
    liftmap("calibrate", images, *how)
    assert json.loads((tmp_path / "m" / ABOUT).read_text())["network"] == "diffusers"
    after = detector(tmp_path / "m")
    assert torch.equal(after.measure(pixels(2)).distances, before)
    assert len(after.judge.decides_by.scores) == 10
    liftmap("calibrate", images, *how)
    assert detector(tmp_path / "m").judge == after.judge


def test_every_command_takes_a_calibrated_pipeline(tmp_path: Path) -> None:
    folder, images = tmp_path / "m", save_images(tmp_path / "images", 26)
    save(folder, "ddpm")
    how = ("--model", folder, "--method", "quick")
    liftmap("calibrate", images, *how, "--precision", "float32")
    assert "calibrated (quick)" in liftmap("info", folder)
    table = tmp_path / "scores.parquet"
    liftmap("score", images, *how, "--output", table)
    found = pq.read_table(table).column("score").to_pylist()
    assert found == pytest.approx(detector(folder).scores(pixels(26)).tolist(), abs=0.05)
    liftmap("report", table, "--source", images, *how, "--output", tmp_path / "report.html")
    service = TestClient(create_app(detector(folder)))
    with service, (images / "000.png").open("rb") as file:
        answer = service.post("/v1/score", files=[("images", ("a.png", file, "image/png"))])
    assert answer.status_code == 200, answer.text


def test_a_copy_has_liftmaps_own_layout(tmp_path: Path) -> None:
    save(tmp_path / "m", "early names")
    first = detector(tmp_path / "m")
    first.model.save(tmp_path / "copy", half=False)
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == ["config.json", WEIGHTS, ABOUT]
    assert json.loads((tmp_path / "copy" / ABOUT).read_text())["network"] == "liftmap"
    again = detector(tmp_path / "copy").measure(pixels(2)).distances
    torch.testing.assert_close(again, first.measure(pixels(2)).distances, rtol=1e-3, atol=1e-4)


def test_training_goes_on_from_a_pipeline(tmp_path: Path) -> None:
    save(tmp_path / "m", "ddpm")
    images = save_images(tmp_path / "images", 20)
    words = ("--channels", 1, "--steps", 2, "--batch", 4, "--method", "quick")
    liftmap("train", images, "--initial", tmp_path / "m", "--output", tmp_path / "new", *words)
    assert not Model.load(tmp_path / "new").checkpoint.foreign


def test_folders_that_liftmap_of_before_calibrated_are_read(tmp_path: Path) -> None:
    """Their liftmap.json of format 2 doesn't say who wrote the network."""
    for kind in ("ddpm", "early names"):
        save(tmp_path / kind, kind)
        Model.load(tmp_path / kind).save(tmp_path / kind, weights=False)
        about = json.loads((tmp_path / kind / ABOUT).read_text())
        del about["network"]
        (tmp_path / kind / ABOUT).write_text(json.dumps(about | {"format": 2}))
        assert Model.load(tmp_path / kind).checkpoint.foreign


def test_a_name_of_another_writer_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "ddpm")
    Model.load(tmp_path).save(tmp_path, weights=False)
    about = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps(about | {"network": "others"}))
    with pytest.raises(ModelError, match="network 'others': need one of liftmap, diffusers"):
        Model.load(tmp_path)


def test_the_hubs_cache_is_not_written_to(tmp_path: Path) -> None:
    folder = tmp_path / "models--someone--something" / "snapshots" / "0123"
    save(folder, "ddpm")
    images = save_images(tmp_path / "images", 12)
    before = sorted(folder.rglob("*"))
    done = CliRunner().invoke(
        app, ["calibrate", str(images), "--model", str(folder), "--method", "quick"]
    )
    assert done.exit_code == 1
    assert "is in the hub's cache: copy it elsewhere" in " ".join(done.output.split())
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["fashion-mnist", "someone/something"])
def test_names_are_no_folders_to_calibrate(name: str, tmp_path: Path) -> None:
    images = save_images(tmp_path / "images", 3)
    done = CliRunner().invoke(app, ["calibrate", str(images), "--model", name])
    assert done.exit_code == 1
    assert "need a model folder that can be written; copy the model first" in " ".join(
        done.output.split()
    )


def test_a_latent_pipeline_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "ddpm")
    index = tmp_path / "model_index.json"
    about = json.loads(index.read_text()) | {"vqvae": ["diffusers", "VQModel"], "none": [None] * 2}
    index.write_text(json.dumps(about))
    with pytest.raises(ModelError, match="a pipeline with vqvae; need one of unet and scheduler"):
        Model.load(tmp_path)


def test_variants_that_no_one_can_choose_between_are_named(tmp_path: Path) -> None:
    save(tmp_path, "early names")
    for variant in ("ema", "non_ema"):
        shutil.copy(tmp_path / WEIGHTS, tmp_path / f"diffusion_pytorch_model.{variant}.safetensors")
    Model.load(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"ema\.safetensors, .*non_ema.*need .* one variant of it"):
        Model.load(tmp_path)
    (tmp_path / "diffusion_pytorch_model.ema.safetensors").unlink()
    Model.load(tmp_path)
