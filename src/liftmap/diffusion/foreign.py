"""Unconditional diffusers folders as they ship: a UNet2DModel, a scheduler's settings, safetensors.

    config.json, *.safetensors   in the folder itself, as google/ddpm-cifar10-32, or in unet/
    scheduler_config.json        beside them, or in scheduler/
    model_index.json             which parts a pipeline has; may be missing

The weights may be in one file or in several with an index, under their plain name or as a variant
(`diffusion_pytorch_model.fp16.safetensors`). diffusers reads them; what its pipelines assume of the
network decides the parametrisation.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from liftmap.diffusion.checkpoints import CONFIG, Checkpoint, read_json
from liftmap.diffusion.denoiser import Parametrisation, Target
from liftmap.diffusion.network import check_depth
from liftmap.diffusion.process import VE, Tabulated
from liftmap.errors import LiftmapError, ModelError

SCHEDULER = "scheduler_config.json"
PIPELINE = "model_index.json"
STEM, ENDING = "diffusion_pytorch_model", ".safetensors"
VE_SCHEDULER = "ScoreSdeVeScheduler"

# Schedulers of a network that was trained on DDPM's table of betas and is told the table's index.
TABLE_SCHEDULERS = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDPM",
        "DDPMParallel",
        "DDIM",
        "DDIMInverse",
        "DDIMParallel",
        "DEISMultistep",
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "DPMSolverSDE",
        "EulerDiscrete",
        "EulerAncestralDiscrete",
        "HeunDiscrete",
        "KDPM2Discrete",
        "KDPM2AncestralDiscrete",
        "LMSDiscrete",
        "PNDM",
        "RePaint",
        "UniPCMultistep",
    )
)
MOST_STEPS = 100_000  # of the table; published models have 1,000
# diffusers' names of what the network answers; configurations older than the setting mean epsilon
TARGETS: dict[str, Target] = {"epsilon": "noise", "v_prediction": "v", "sample": "image"}


def read_diffusers(folder: Path) -> Checkpoint:
    """An unconditional diffusers folder.

    Images are in [-1, 1] under a table of betas, as DDPMPipeline has them, and in [0, 1] under
    ScoreSdeVeScheduler, whose pipeline clamps its samples to that. Weights become float32.

    Raises:
        ModelError: a file is missing or damaged, the weights are pickled or don't fit, the network
            needs more than a noisy image and its noise level, or the scheduler is not supported.
    """
    unet = read_unet(folder)
    process, by = _read_scheduler(_scheduler_of(folder))
    return Checkpoint(unet, process, by, foreign=True)


def ships_scheduler(folder: Path) -> bool:
    """Whether a folder has a scheduler's settings, which liftmap never writes."""
    return any(path.exists() for path in _scheduler_places(folder))


def read_unet(folder: Path) -> nn.Module:
    """The network of such a folder, in float32; its scheduler is not looked at.

    Every weight comes from the files, and every one in them is used.

    Raises:
        ModelError: as `read_diffusers` does.
    """
    from diffusers import UNet2DModel
    from safetensors import SafetensorError

    root = folder if (folder / CONFIG).exists() else folder / "unet"
    if not (root / CONFIG).exists():
        raise ModelError(f"{folder / CONFIG} is missing: {folder} is no model folder")
    _check_pixels(folder)
    _check_unconditional(root)
    variant = _variant(root)
    try:
        unet, loaded = UNet2DModel.from_pretrained(
            root,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            variant=variant,
            torch_dtype=torch.float32,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{root}: weights and {CONFIG} can't be read ({error})") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[problem]:
            names = ", ".join(sorted(map(str, loaded[problem]))[:3])
            raise ModelError(
                f"{root}: weights don't fit {CONFIG}: {len(loaded[problem])} "
                f"{problem.replace('_', ' ')} ({names}, ...): copy both files from one model"
            )
    network: nn.Module = unet
    return network.eval()


def _check_pixels(folder: Path) -> None:
    """Refuse a pipeline whose network doesn't work on pixels: it has parts beside network and
    scheduler, as a latent model its autoencoder."""
    if not (folder / PIPELINE).exists():
        return
    parts = [
        name
        for name, part in read_json(folder / PIPELINE).items()
        if isinstance(part, list) and part[:1] != [None] and name not in ("unet", "scheduler")
    ]
    if parts:
        raise ModelError(
            f"{folder / PIPELINE}: a pipeline with {', '.join(parts)}; need one of unet and "
            "scheduler alone, which works on pixels"
        )


def _variant(root: Path) -> str | None:
    """Which of the weights to read: the plain ones, else the fp16 ones, else the only variant.

    Raises:
        ModelError: there are no safetensors, or several variants and neither of these.
    """
    names = [p.name for p in root.glob(f"*{ENDING}*") if p.name.startswith(STEM)]
    if not names:
        raise ModelError(_no_safetensors(root))
    plain = {f"{STEM}{ENDING}", f"{STEM}{ENDING}.index.json"}
    if plain & set(names):
        return None
    found = set()
    for name in names:  # STEM.fp16.safetensors, or STEM.safetensors.index.fp16.json of several
        middle = name.removeprefix(STEM).removeprefix(f"{ENDING}.index")
        middle = middle.removesuffix(ENDING).removesuffix(".json")
        if middle.startswith(".") and "-" not in middle:
            found.add(middle[1:])
    if "fp16" in found or len(found) == 1:
        return "fp16" if "fp16" in found else found.pop()
    raise ModelError(
        f"{root} holds {', '.join(sorted(names))}: need {STEM}{ENDING}, one variant of it, or the "
        "index of its parts; copy the whole folder"
    )


def _check_unconditional(root: Path) -> None:
    """Refuse a network that is asked for more than a noisy image and its noise level."""
    from diffusers import UNet2DModel

    config = _read_config(UNet2DModel, root / CONFIG)
    try:
        check_depth(config)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{root / CONFIG}: {error}") from error
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ModelError(f"{root / CONFIG} is of a {kind}: need an unconditional UNet2DModel")
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise ModelError(f"{root / CONFIG}: class-conditional; need an unconditional model")
    channels = config.get("in_channels", 3), config.get("out_channels", 3)
    if channels[0] != channels[1]:
        raise ModelError(
            f"{root / CONFIG}: {channels[0]} channels in, {channels[1]} out; "
            "need as many out as in, a model without learned variance or extra inputs"
        )
    if config.get("time_embedding_type") == "learned":
        raise ModelError(
            f"{root / CONFIG}: time_embedding_type learned knows whole steps only; "
            "need positional or fourier"
        )


def _no_safetensors(root: Path) -> str:
    pickled = sorted(p.name for p in root.glob("*.bin"))
    found = (
        f"only {pickled[0]}, a pickle, which can run code when read" if pickled else "no weights"
    )
    return (
        f"{root} holds {found}: need safetensors; where you trust the file, run "
        "UNet2DModel.from_pretrained(folder, use_safetensors=False).save_pretrained(folder)"
    )


def _scheduler_places(folder: Path) -> list[Path]:
    return [folder / SCHEDULER, folder / "scheduler" / SCHEDULER]


def _scheduler_of(folder: Path) -> Path:
    places = _scheduler_places(folder)
    for path in places:
        if path.exists():
            return path
    raise ModelError(
        f"{places[0]} is missing, and so is scheduler/{SCHEDULER}: without one the noise schedule "
        "is unknown; copy it from the model's source, or write it with DDPMScheduler.save_config"
    )


def _read_scheduler(path: Path) -> tuple[VE | Tabulated, Parametrisation]:
    """The process and the parametrisation that a scheduler's settings stand for."""
    from diffusers import DDPMScheduler

    config = _read_config(DDPMScheduler, path)
    kind = config.get("_class_name")
    try:
        if kind == VE_SCHEDULER:
            return _variance_exploding(config)
        if kind in TABLE_SCHEDULERS:
            return _table(config)
    except KeyError as error:
        raise ModelError(f"{path} lacks {error}: copy it from the model's source") from error
    except (LiftmapError, TypeError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path}: {error}") from error
    known = ", ".join(sorted(TABLE_SCHEDULERS | {VE_SCHEDULER}))
    raise ModelError(f"{path} is of a {kind}: need one of {known}")


def _variance_exploding(config: dict[str, Any]) -> tuple[VE, Parametrisation]:
    """NCSN++: told sigma, answers the score, images u in [0, 1].

    x = 2 u - 1 has twice u's noise, so the process in [-1, 1] runs over twice the sigmas.
    """
    process = VE(2.0 * config["sigma_min"], 2.0 * config["sigma_max"])
    return process, Parametrisation("score", "sigma", image_range="unit")


def _table(config: dict[str, Any]) -> tuple[Tabulated, Parametrisation]:
    """The table of alphas exactly as diffusers computes it, in float32 from the betas."""
    from diffusers import DDPMScheduler

    answer = config.get("prediction_type", "epsilon")
    if answer not in TARGETS:
        raise ModelError(f"prediction_type {answer!r}: need one of {', '.join(TARGETS)}")
    needed = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    betas = {name: config[name] for name in needed}
    if not 1 <= betas["num_train_timesteps"] <= MOST_STEPS:
        raise ModelError(
            f"num_train_timesteps={betas['num_train_timesteps']}: need 1 to {MOST_STEPS}"
        )
    for name in ("trained_betas", "rescale_betas_zero_snr"):
        betas[name] = config.get(name)
    table = DDPMScheduler(**betas).alphas_cumprod.double()
    if table[-1] == 0:
        # Zero terminal SNR: its last step holds no image, and 0 has no logarithm. 2^-24 as in
        # DPMSolverMultistepScheduler, and below the step before it.
        table[-1] = min(2.0**-24, table[-2].item() / 2)
    steps = tuple(table.tolist())
    return Tabulated(steps), Parametrisation(TARGETS[answer], "step", len(steps))


def _read_config(reader: Any, path: Path) -> dict[str, Any]:
    """A diffusers configuration file as plain data, read by the class it belongs to."""
    try:
        config = reader.load_config(path.parent, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} can't be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}: need a JSON object")
    return config
