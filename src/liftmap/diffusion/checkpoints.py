"""Model folders: diffusers' own layout plus liftmap.json; never pickle.

    config.json                           UNet2DModel's shape, as diffusers writes it
    diffusion_pytorch_model.safetensors   its weights
    liftmap.json                          process, parametrisation, preparation, method, calibration

A folder without liftmap.json is read as an unconditional diffusers checkpoint (`foreign.py`).
"""

import hashlib
import json
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from liftmap.diffusion.denoiser import Denoiser, Parametrisation, Precision
from liftmap.diffusion.foreign import read_diffusers
from liftmap.diffusion.group_norm import use_channels_last
from liftmap.diffusion.network import Patched, network_from_config
from liftmap.diffusion.process import Process, process_from_json, process_to_json
from liftmap.errors import LiftmapError, ModelError, SettingsError
from liftmap.files import atomic_path

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "config.json"
ABOUT = "liftmap.json"
FORMAT = 1
# never halved: NCSN++'s Fourier frequencies reach 50, and half precision would turn the phase of
# log sigma by half a radian
WHOLE = frozenset({"time_proj.weight"})
MOST_SIDE = 4096  # pixels of an image that a model folder may ask for
MOST_JSON = 256 * 2**20  # bytes of a settings file; calibrations on a million images take 20 MB
PACKAGED = Path(__file__).parent.parent / "data" / "models"


@dataclass
class Checkpoint:
    """A model as it lies in a folder.

    unet: ours or diffusers' UNet2DModel; patch: its pixel-unshuffle factor.
    about: liftmap.json's other sections as plain data ("preparation", "method", "calibrations",
        "training"), which mean nothing to this module.
    """

    unet: nn.Module
    process: Process
    by: Parametrisation
    patch: int = 1
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that the network sees."""
        config: Any = self.unet.config
        size = config.sample_size or 32
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return config.in_channels // self.patch**2, height * self.patch, width * self.patch

    @property
    def weights_key(self) -> str:
        """A short hash of the network's weights: which model a score came from."""
        digest = hashlib.sha256()
        for tensor in self.unet.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def denoiser(
        self, device: str | torch.device = "cpu", *, precision: Precision | None = None
    ) -> Denoiser:
        """The model ready to predict on a device; the checkpoint's own weights are left alone."""
        network = Patched(deepcopy(self.unet), self.patch).to(device).eval().requires_grad_(False)
        return Denoiser(use_channels_last(network), self.process, self.by, precision=precision)


def save_checkpoint(checkpoint: Checkpoint, folder: Path, *, half: bool = True) -> None:
    """Write a model folder; each file is replaced whole or not at all, liftmap.json last.

    Args:
        half: weights in float16, which halves the file and moves AUROC by less than its interval.

    Raises:
        OutputError: the folder can't be written to.
    """
    from safetensors.torch import save_file

    weights = {
        name: tensor.detach()
        .to("cpu", torch.float16 if half and name not in WHOLE else torch.float32)
        .contiguous()
        for name, tensor in checkpoint.unet.state_dict().items()
    }
    config: Any = checkpoint.unet
    with atomic_path(folder / WEIGHTS) as path:
        save_file(weights, path, metadata={"format": "pt"})
    with atomic_path(folder / CONFIG) as path:
        path.write_text(config.to_json_string(), encoding="utf-8")
    save_about(checkpoint, folder)


def save_about(checkpoint: Checkpoint, folder: Path) -> None:
    """Write liftmap.json alone, as `calibrate` does."""
    about = {
        "format": FORMAT,
        "process": process_to_json(checkpoint.process),
        "parametrisation": asdict(checkpoint.by),
        "patch": checkpoint.patch,
        **checkpoint.about,
    }
    with atomic_path(folder / ABOUT) as path:
        path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def load_checkpoint(model: str | Path) -> Checkpoint:
    """Read a model: a folder, a packaged model's name, or a hub id as google/ddpm-cifar10-32.

    Raises:
        ModelError: nothing there, a file is missing, truncated or of the wrong shape, settings are
            unknown, or only pickled weights are on offer.
    """
    folder = find_model(model)
    if not (folder / ABOUT).exists():
        return _checked(Checkpoint(**read_diffusers(folder)), folder)
    about = _read_json(folder / ABOUT)
    try:
        version = about.pop("format")
        if version != FORMAT:
            raise ModelError(f"{folder / ABOUT}: format {version}, this liftmap reads {FORMAT}")
        process = process_from_json(about.pop("process"))
        by = Parametrisation(**about.pop("parametrisation"))
        patch = int(about.pop("patch"))
    except (KeyError, TypeError, ValueError, AttributeError, SettingsError) as error:
        raise ModelError(f"{folder / ABOUT}: {_reason(error)}; is it a liftmap model?") from error
    return _checked(Checkpoint(read_unet(folder), process, by, patch, about), folder)


def _checked(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint, if its images are of a size that one may want to take memory for."""
    try:
        _, height, width = checkpoint.image_shape
        if not 2 <= min(height, width) <= max(height, width) <= MOST_SIDE:
            raise ValueError(f"images of {height}x{width} pixels: need 2 to {MOST_SIDE} a side")
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{folder / CONFIG}: {error}") from error
    return checkpoint


def find_model(model: str | Path) -> Path:
    """The folder that a model's name stands for; a hub id is fetched into the hub's cache.

    Raises:
        ModelError: no such folder or packaged model, and not a hub id that can be fetched.
    """
    if str(model) and Path(model).is_dir():
        return Path(model)
    packaged = sorted(p.name for p in PACKAGED.iterdir()) if PACKAGED.is_dir() else []
    if str(model) in packaged:
        return PACKAGED / str(model)
    parts = str(model).split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in {".", ".."}:
        raise ModelError(
            f"model {str(model)!r}: no such folder; packaged models: {', '.join(packaged)}; "
            "or give a hub id such as google/ddpm-cifar10-32"
        )
    return _fetch(str(model))


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.safetensors"]
        return Path(snapshot_download(hub_id, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise ModelError(
            f"model {hub_id!r}: no such folder, and the hub gave {type(error).__name__}: {error}"
        ) from error


def read_unet(folder: Path) -> nn.Module:
    """The network that a folder's config.json and safetensors file describe, in float32.

    It is built without memory and then takes the file's tensors, so a small file can't ask for a
    large network.

    Raises:
        ModelError: a file is missing, truncated, or doesn't fit the other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = _read_json(folder / CONFIG)
    weights = folder / WEIGHTS
    if not weights.exists():
        raise ModelError(f"{weights} is missing: copy the whole model folder, or train again")
    try:
        with torch.device("meta"):
            unet = network_from_config(config)
    except Exception as error:  # diffusers' constructor fails in many ways on a stranger's settings
        raise ModelError(f"{folder / CONFIG} doesn't describe a UNet2DModel ({error})") from error
    try:
        state = {k: v.float() for k, v in load_file(weights).items()}
        unet.load_state_dict(state, assign=True)
    except SafetensorError as error:
        raise ModelError(f"{weights} is damaged or truncated ({error}): copy it again") from error
    except RuntimeError as error:
        first = str(error).splitlines()[1:3] or [str(error)]
        raise ModelError(
            f"{weights} doesn't fit {CONFIG}: {' '.join(line.strip() for line in first)}"
        ) from error
    return unet


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"{path.stat().st_size} bytes: need at most {MOST_JSON}")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: {path.parent} is no model folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} can't be read as JSON ({error})") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds a {type(data).__name__}: need a JSON object")
    return data


def _reason(error: Exception) -> str:
    if isinstance(error, LiftmapError):
        return str(error)
    missing = isinstance(error, KeyError)
    return f"{error} is missing" if missing else str(error)
