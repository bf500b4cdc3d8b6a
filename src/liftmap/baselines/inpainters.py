"""Lift, Map, Detect with inpainters other than a diffusion model (Liu et al. 2024, section 3.4.5).

They are deterministic, so one pair of flipped masks is all there is to try. The paper finds them to
redraw out-of-distribution images too well: they were taught to continue what they see.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from liftmap.baselines.base import Baseline, OnBatch
from liftmap.baselines.trained import Trained
from liftmap.errors import ModelError, SettingsError
from liftmap.images.prepare import Preparation, to_model_range
from liftmap.images.store import PreparedImages
from liftmap.stages.aggregate import aggregate
from liftmap.stages.distances import LPIPS
from liftmap.stages.explanation import Explanation
from liftmap.stages.masks import MaskSettings, hidden_masks, random_patches

PATCH = 4  # pixels a side of what is hidden in training; the default mask's cells at 32x32
ATTEMPTS = 2


class ByInpainting(Baseline):
    """A score is the mean LPIPS of the redraws under a mask and its flip.

    Args:
        mask: the paper's default, unless told; as a dict, its fields, as `save` writes them.
    """

    def __init__(
        self,
        preparation: Preparation,
        *,
        mask: MaskSettings | dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(preparation, **options)
        if isinstance(mask, dict):
            mask = MaskSettings(**mask | {"rows": tuple(mask["rows"])})
        self.mask = mask or MaskSettings()
        self._lpips = LPIPS()

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"mask": asdict(self.mask)}

    @abstractmethod
    def redraw(
        self, x: Float[Tensor, "n c h w"], hidden: Bool[Tensor, "n 1 h w"]
    ) -> Float[Tensor, "n c h w"]:
        """What the inpainter makes of images whose hidden pixels it doesn't see."""

    @torch.no_grad()
    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """LPIPS of each attempt."""
        x = to_model_range(pixels).to(self.device)
        index = torch.arange(len(x), device=x.device)
        reference = self._lpips.reference(x)
        return torch.stack(
            [
                self._lpips.values(reference, redrawn, index).cpu()
                for _, redrawn in self._attempts(x)
            ],
            1,
        )

    @torch.no_grad()
    def explain(self, pixels: UInt8[Tensor, "c h w"]) -> Explanation:
        """One prepared image's redraws and where they differ."""
        x = to_model_range(pixels[None]).to(self.device)
        one = torch.zeros(1, dtype=torch.long, device=x.device)
        reference = self._lpips.reference(x)
        hidden, redraws = (torch.cat(part) for part in zip(*self._attempts(x), strict=True))
        maps = [self._lpips.maps(reference, redraw[None], one) for redraw in redraws]
        evidence = self.answers(pixels[None])[0]
        return Explanation(
            original=x[0].cpu(),
            hidden=hidden.cpu(),
            redraws=redraws.cpu(),
            maps=torch.stack(maps).cpu(),
            evidence=evidence,
            score=float(self.compare(evidence[None])[0]),
            surprise=None,
            p_value=None,
        )

    def _attempts(self, x: Float[Tensor, "n c h w"]) -> Iterator[tuple[Tensor, Tensor]]:
        """What is hidden (n, 1, h, w) and the redraw (n, c, h, w), attempt by attempt."""
        height, width = x.shape[2:]
        for mask in hidden_masks(self.mask, height, width, ATTEMPTS).to(x.device):
            hidden = mask.expand(len(x), 1, height, width)
            yield hidden, torch.where(hidden, self.redraw(x, hidden).clamp(-1, 1), x)

    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return aggregate(answers)


def _check_patches(height: int, width: int) -> None:
    if height % PATCH or width % PATCH:
        raise SettingsError(f"{height}x{width} pixels: need multiples of {PATCH}")


class _Taught(Trained, ByInpainting):
    """An inpainter trained on in-domain images with random patches hidden (SimMIM's masks).

    learnt: the network's parameters.
    """

    BATCH, RATE, RATIO = 64, 1e-3, 0.5
    loss: ClassVar[Any] = staticmethod(mse_loss)

    def redraw(self, x: Tensor, hidden: Tensor) -> Tensor:
        redrawn: Tensor = self.network(x, hidden)
        return redrawn

    def learn(
        self, train: PreparedImages, held_out: PreparedImages, *, on_batch: OnBatch | None = None
    ) -> None:
        """Train the inpainter on the training images; the held-out ones are not used."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.RATE)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for step, pixels in enumerate(self.batches(train, self.BATCH, on_batch)):
            x = to_model_range(pixels)
            height, width = x.shape[2:]
            seed = self.seed * 1_000_003 + step
            hidden = random_patches(height, width, PATCH, self.RATIO, seed).to(x.device)
            hidden = hidden.expand(len(x), 1, height, width)
            where = hidden.expand_as(x)
            loss = self.loss(self.network(x, hidden)[where], x[where])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            falling.step()
        self.keep()


class MaskedAutoencoder(nn.Module):
    """He et al. 2022, small: a transformer sees the known patches, another fills in the hidden.

    Departure: all images of a batch share a mask in training, so that the known patches of each are
    as many.
    """

    WIDTH, HEADS, ENCODER, DECODER = 128, 4, 4, 2

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        _check_patches(height, width)
        self.channels, self.grid = channels, (height // PATCH, width // PATCH)
        count, size = self.grid[0] * self.grid[1], channels * PATCH**2
        self.embed, self.predict = nn.Linear(size, self.WIDTH), nn.Linear(self.WIDTH, size)
        self.places = nn.Parameter(0.02 * torch.randn(count, self.WIDTH))
        self.blank = nn.Parameter(torch.zeros(self.WIDTH))
        self.encoder, self.decoder = self._layers(self.ENCODER), self._layers(self.DECODER)

    def _layers(self, count: int) -> nn.Module:
        layer = nn.TransformerEncoderLayer(
            self.WIDTH, self.HEADS, 4 * self.WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        )
        return nn.TransformerEncoder(layer, count, enable_nested_tensor=False)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x (n, c, h, w); hidden (n, 1, h, w), the same for all, whole patches at a time."""
        rows, columns = self.grid
        cut = (len(x), self.channels, rows, PATCH, columns, PATCH)
        patches = x.reshape(cut).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        covered = hidden[0, 0].reshape(rows, PATCH, columns, PATCH).amax((1, 3)).flatten()
        known = (~covered).nonzero()[:, 0]
        seen = self.encoder(self.embed(patches[:, known]) + self.places[known])
        tokens = self.blank.expand(len(x), rows * columns, -1).clone()
        tokens[:, known] = seen
        filled = self.predict(self.decoder(tokens + self.places))
        back = filled.view(len(x), rows, columns, self.channels, PATCH, PATCH)
        out: Tensor = back.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
        return out


class MAEInpainting(_Taught):
    """With a masked autoencoder trained in-domain; three of four patches are hidden in training."""

    RATIO = 0.75

    def __init__(
        self,
        preparation: Preparation,
        *,
        steps: int = 5000,
        **options: Any,
    ) -> None:
        super().__init__(preparation, MaskedAutoencoder, steps=steps, **options)


class _FourierUnit(nn.Module):
    """A convolution over the image's spectrum: each output pixel sees the whole image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x.float(), norm="ortho")
        mixed = torch.relu(self.mix(torch.cat([spectrum.real, spectrum.imag], 1)))
        out: Tensor = torch.fft.irfft2(torch.complex(*mixed.chunk(2, 1)), x.shape[2:], norm="ortho")
        return out


class _FourierBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(width, width, 3, padding=1), _FourierUnit(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.near(torch.relu(x)) + self.far(x)
        return out


class FourierInpainter(nn.Module):
    """Fast Fourier convolutions as LaMa has them (Suvorov et al. 2022), small and without a GAN.

    As in LaMa the blocks work on a smaller image: half the sides here, an eighth there.
    """

    WIDTH, BLOCKS = 48, 4

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        _check_patches(height, width)
        self.first = nn.Conv2d(channels + 1, self.WIDTH, 4, stride=2, padding=1)
        self.blocks = nn.Sequential(*(_FourierBlock(self.WIDTH) for _ in range(self.BLOCKS)))
        self.last = nn.ConvTranspose2d(self.WIDTH, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x (n, c, h, w), hidden (n, 1, h, w), True = to be redrawn."""
        seen = torch.cat([x.masked_fill(hidden, 0.0), hidden.to(x)], 1)
        out: Tensor = self.last(self.blocks(self.first(seen)))
        return out


class FourierInpainting(_Taught):
    """With a small Fourier-convolution inpainter trained in-domain: a stand-in for LaMa."""

    loss: ClassVar[Any] = staticmethod(l1_loss)

    def __init__(
        self,
        preparation: Preparation,
        *,
        steps: int = 3000,
        **options: Any,
    ) -> None:
        super().__init__(preparation, FourierInpainter, steps=steps, **options)


class LaMaInpainting(ByInpainting):
    """With LaMa itself (Suvorov et al. 2022): the authors' generator as they export it.

    Args:
        generator: a TorchScript file whose forward takes images in [0, 1], RGB, and a mask, 1 where
            to inpaint. A TorchScript file is a program: load none that you don't trust.

    Raises:
        ModelError: the file can't be read as TorchScript.
        SettingsError: grey images.
    """

    needs_learning: ClassVar = False

    def __init__(self, preparation: Preparation, *, generator: str | Path, **options: Any) -> None:
        super().__init__(preparation, **options)
        if preparation.channels != 3:
            raise SettingsError("LaMa redraws RGB images: need a preparation with 3 channels")
        self.generator = str(generator)
        try:
            loaded = torch.jit.load(self.generator, map_location=self.device)  # type: ignore[no-untyped-call]
            self._generator = loaded.eval()
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{generator} can't be read as TorchScript: {error}") from error

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"generator": self.generator}

    def redraw(self, x: Tensor, hidden: Tensor) -> Tensor:
        mask = hidden.to(x)
        out: Tensor = self._generator((x + 1) / 2 * (1 - mask), mask)
        return out * 2 - 1

    def learn(
        self, train: PreparedImages, held_out: PreparedImages, *, on_batch: OnBatch | None = None
    ) -> None:
        """Nothing to learn: LaMa comes trained."""
