import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, ScoreSdeVeScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from liftmap.diffusion.checkpoints import Checkpoint
from liftmap.diffusion.process import VE, Tabulated
from liftmap.errors import ModelError
from liftmap.model import Model

WEIGHTS = "diffusion_pytorch_model.safetensors"


def ddpm_unet(**changes: Any) -> UNet2DModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**settings | changes).eval()


def ncsnpp_unet() -> UNet2DModel:
    """A cut-down google/ncsnpp-*, with its settings."""
    return ddpm_unet(
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        time_embedding_type="fourier",
        mid_block_scale_factor=2**0.5,
        norm_num_groups=None,
        norm_eps=1e-6,
        attention_head_dim=None,
    )


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPM folder as diffusers saves one."""
    folder = tmp_path_factory.mktemp("ddpm")
    ddpm_unet().save_pretrained(folder)
    DDPMScheduler(clip_sample=False).save_config(folder)
    return folder


@pytest.fixture
def folder(shipped: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    for file in shipped.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_predictions_equal_diffusers_own(folder: Path, prediction: str, schedule: str) -> None:
    scheduler = DDPMScheduler(beta_schedule=schedule, prediction_type=prediction, clip_sample=False)
    scheduler.save_config(folder)
    checkpoint = Model.load(folder).checkpoint
    assert checkpoint.image_shape == (3, 8, 8)
    denoiser = checkpoint.denoiser(precision="float32")
    unet = UNet2DModel.from_pretrained(folder, use_safetensors=True)
    x = torch.randn(2, 3, 8, 8)
    for step in (0, 10, 500):
        with torch.inference_mode():
            answer = unet(x, step).sample
        published = scheduler.step(answer, step, x).pred_original_sample
        assert torch.allclose(denoiser(x, (step + 1) / 1000).image, published, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_train_timesteps": 100},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"trained_betas": [0.1, 0.2, 0.3]},
    ],
)
def test_the_table_is_the_schedulers(folder: Path, settings: dict[str, Any]) -> None:
    scheduler = DDIMScheduler(**settings)
    scheduler.save_config(folder)
    checkpoint = Model.load(folder).checkpoint
    assert isinstance(checkpoint.process, Tabulated)
    assert checkpoint.process.alphas_cumprod == tuple(scheduler.alphas_cumprod.double().tolist())
    assert checkpoint.by.steps == len(scheduler.alphas_cumprod)


def test_zero_terminal_snr_keeps_a_trace_of_the_image(folder: Path) -> None:
    DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction").save_config(folder)
    process = Model.load(folder).checkpoint.process
    assert isinstance(process, Tabulated)
    assert 0 < process.alphas_cumprod[-1] <= 2**-24


def test_pipeline_layout_with_unet_and_scheduler_folders(shipped: Path, tmp_path: Path) -> None:
    for name in ("config.json", WEIGHTS):
        (tmp_path / "unet").mkdir(exist_ok=True)
        (tmp_path / "unet" / name).write_bytes((shipped / name).read_bytes())
    (tmp_path / "scheduler").mkdir()
    settings = (shipped / "scheduler_config.json").read_bytes()
    (tmp_path / "scheduler" / "scheduler_config.json").write_bytes(settings)
    nested, flat = Model.load(tmp_path).checkpoint, Model.load(shipped).checkpoint
    assert nested.process == flat.process
    assert all(map(torch.equal, nested.unet.parameters(), flat.unet.parameters()))


def test_attention_names_of_early_diffusers_load(folder: Path) -> None:
    """google/ddpm-cifar10-32 calls them query, key, value and proj_attn."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(folder / WEIGHTS)
    renamed = {}
    for name, tensor in state.items():
        for new, early in old.items():
            name = name.replace(f".{new}.", f".{early}.")
        renamed[name] = tensor
    assert renamed.keys() != state.keys()
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})
    loaded = Model.load(folder).checkpoint.unet.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_half_precision_weights_come_as_float32(folder: Path) -> None:
    UNet2DModel.from_pretrained(folder, torch_dtype=torch.float16).save_pretrained(folder)
    assert {p.dtype for p in Model.load(folder).checkpoint.unet.parameters()} == {torch.float32}


@pytest.fixture
def ncsnpp(tmp_path: Path) -> Path:
    ncsnpp_unet().save_pretrained(tmp_path)
    ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=348.0).save_config(tmp_path)
    return tmp_path


def test_ncsnpp_in_unit_range_equals_its_own_prediction(ncsnpp: Path) -> None:
    """In [0, 1] Tweedie's formula is u + sigma^2 score(u, sigma); liftmap works in [-1, 1]."""
    checkpoint = Model.load(ncsnpp).checkpoint
    assert checkpoint.process == VE(0.02, 696.0)
    denoiser = checkpoint.denoiser(precision="float32")
    unet = UNet2DModel.from_pretrained(ncsnpp, use_safetensors=True)
    clean = torch.rand(2, 3, 8, 8)
    noise = torch.randn_like(clean)
    for t in (0.01, 0.5, 1.0):
        sigma = 0.01 * 34800.0**t
        u = clean + sigma * noise
        with torch.inference_mode():
            score = unet(u, torch.full((2,), sigma)).sample
        x = (2 * clean - 1) + 2 * sigma * noise
        prediction = denoiser(x, t)
        expected = 2 * (u + sigma**2 * score) - 1
        scale = 2 * sigma + 1
        assert (prediction.image - expected).abs().max() < 1e-4 * scale
        assert (prediction.noise + sigma * score).abs().max() < 1e-3
        rebuilt = prediction.image + 2 * sigma * prediction.noise
        assert (rebuilt - x).abs().max() < 1e-4 * scale


@pytest.mark.parametrize("half", [True, False])
def test_ncsnpp_survives_saving(ncsnpp: Path, half: bool) -> None:
    """Frequencies reach 50 and multiply log sigma: in half precision that is half a radian off."""
    checkpoint = Model.load(ncsnpp).checkpoint
    Model.of(checkpoint).save(ncsnpp / "saved", half=half)
    saved = Model.load(ncsnpp / "saved").checkpoint
    assert saved.by == checkpoint.by
    frequencies = "time_proj.weight"
    assert torch.equal(
        saved.unet.state_dict()[frequencies], checkpoint.unet.state_dict()[frequencies]
    )
    x = 100 * torch.randn(1, 3, 8, 8)
    before, after = (c.denoiser(precision="float32")(x, 0.9) for c in (checkpoint, saved))
    assert (before.noise - after.noise).abs().max() < (5e-3 if half else 1e-6)


def spoil(folder: Path, how: str) -> None:
    config, weights = folder / "config.json", folder / WEIGHTS
    state = load_file(weights)
    if how == "no scheduler":
        (folder / "scheduler_config.json").unlink()
    elif how == "no config":
        config.unlink()
    elif how == "config is a list":
        config.write_text("[]")
    elif how == "config is no JSON":
        config.write_text("{")
    elif how == "unknown block":
        change(config, down_block_types=["DownBlock2D", "Nonsense"])
    elif how == "only pickled weights":
        weights.rename(folder / "diffusion_pytorch_model.bin")
    elif how == "no weights":
        weights.unlink()
    elif how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "a weight missing":
        del state["conv_in.weight"]
        save_file(state, weights, metadata={"format": "pt"})
    elif how == "a weight too many":
        save_file(state | {"extra": torch.zeros(2)}, weights, metadata={"format": "pt"})
    elif how == "a weight of another shape":
        wide = {"conv_in.weight": torch.zeros(32, 3, 5, 5)}
        save_file(state | wide, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no scheduler", "scheduler_config.json is missing.*DDPMScheduler.save_config"),
        ("no config", "config.json is missing"),
        ("only pickled weights", "only diffusion_pytorch_model.bin, a pickle.*save_pretrained"),
        ("no weights", "no weights: need safetensors"),
        ("truncated weights", "can't be read"),
        ("a weight missing", r"1 missing keys \(conv_in.weight"),
        ("a weight too many", r"1 unexpected keys \(extra"),
        ("a weight of another shape", "conv_in.weight"),
        ("config is a list", "config.json"),
        ("config is no JSON", "config.json can't be read as JSON"),
        ("unknown block", "Nonsense"),
    ],
)
def test_damaged_folders_are_refused(folder: Path, how: str, message: str) -> None:
    spoil(folder, how)
    with pytest.raises(ModelError, match=message):
        Model.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "of a UNet2DConditionModel"),
        ({"num_class_embeds": 10}, "class-conditional"),
        ({"class_embed_type": "timestep"}, "class-conditional"),
        ({"out_channels": 6}, "3 channels in, 6 out"),
        ({"time_embedding_type": "learned"}, "learned"),
    ],
)
def test_networks_that_need_more_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    change(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message):
        Model.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "of a FlowMatch.*DDPMScheduler"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "lacks 'sigma_min'"),
        ({"prediction_type": "flow_prediction"}, "need one of epsilon, v_prediction, sample"),
        ({"beta_schedule": "moon"}, "moon"),
        ({"beta_end": -1.0}, "alphas_cumprod"),
        ({"num_train_timesteps": "many"}, "scheduler_config.json"),
    ],
)
def test_schedules_that_mean_nothing_here_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    change(folder / "scheduler_config.json", **changes)
    with pytest.raises(ModelError, match=message):
        Model.load(folder)


def test_our_folders_load_in_diffusers(shipped: Path, tmp_path: Path) -> None:
    checkpoint = Model.load(shipped).checkpoint
    Model.of(checkpoint).save(tmp_path, half=False)
    unet, loaded = UNet2DModel.from_pretrained(
        tmp_path, use_safetensors=True, output_loading_info=True
    )
    assert not any(loaded[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(map(torch.equal, unet.parameters(), checkpoint.unet.parameters()))


def test_an_imported_model_is_a_checkpoint_like_any(shipped: Path, tmp_path: Path) -> None:
    imported = Model.load(shipped).checkpoint
    Model.of(imported).save(tmp_path, half=False)
    again = Model.load(tmp_path).checkpoint
    assert isinstance(again, Checkpoint)
    assert again.process == imported.process
    assert again.by == imported.by
