"""A diffusion model as files in diffusers' own layout; never pickle.

config.json                           UNet2DModel's shape, as diffusers writes it
diffusion_pytorch_model.safetensors   its weights
"""

import hashlib
import json
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from liftmap.diffusion.denoiser import Denoiser, Parametrisation, Precision
from liftmap.diffusion.group_norm import use_channels_last
from liftmap.diffusion.network import Patched, network_from_config
from liftmap.diffusion.process import Process
from liftmap.errors import ModelError, OutputError
from liftmap.files import atomic_path

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "config.json"
# never halved: NCSN++'s Fourier frequencies reach 50, and half precision would turn the phase of
# log sigma by half a radian
WHOLE = frozenset({"time_proj.weight"})
MOST_SIDE = 4096  # pixels of an image that a model folder may ask for
MOST_JSON = 256 * 2**20  # bytes of a settings file; calibrations on a million images take 20 MB


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with the noise process it was trained for.

    unet: ours or diffusers' UNet2DModel; patch: its pixel-unshuffle factor.
    foreign: the network was read from files in which only diffusers finds its way (`foreign`).
    """

    unet: nn.Module
    process: Process
    by: Parametrisation
    patch: int = 1
    foreign: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that the network sees."""
        config: Any = self.unet.config
        size = config.sample_size or 32
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return config.in_channels // self.patch**2, height * self.patch, width * self.patch

    @cached_property
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

    def check_size(self, folder: Path) -> None:
        """Refuse images of a size that one doesn't want to take memory for.

        Raises:
            ModelError: the message names the folder's file.
        """
        try:
            _, height, width = self.image_shape
            if not 2 <= min(height, width) <= max(height, width) <= MOST_SIDE:
                raise ValueError(f"images of {height}x{width} pixels: need 2 to {MOST_SIDE} a side")
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ModelError(f"{folder / CONFIG}: {error}") from error


def check_own(folder: Path) -> None:
    """Refuse to write into the hub's cache, which other programs share and the hub replaces.

    Raises:
        OutputError: the message says what to do.
    """
    parts = folder.resolve().parts
    if any(a.startswith("models--") and b == "snapshots" for a, b in pairwise(parts)):
        raise OutputError(f"{folder} is in the hub's cache: copy it elsewhere, and take the copy")


def write_network(unet: nn.Module, folder: Path, *, half: bool = True) -> None:
    """Write config.json and the weights; each file is replaced whole or not at all.

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
        for name, tensor in unet.state_dict().items()
    }
    config: Any = unet
    with atomic_path(folder / WEIGHTS) as path:
        save_file(weights, path, metadata={"format": "pt"})
    with atomic_path(folder / CONFIG) as path:
        path.write_text(config.to_json_string(), encoding="utf-8")


def read_network(folder: Path) -> nn.Module:
    """The network that a folder's config.json and safetensors file describe, in float32.

    It is built without memory and then takes the file's tensors, so a small file can't ask for a
    large network.

    Raises:
        ModelError: a file is missing, truncated, or doesn't fit the other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_json(folder / CONFIG)
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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a model folder's settings file.

    Raises:
        ModelError: it is missing, too large, or no JSON object.
    """
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
