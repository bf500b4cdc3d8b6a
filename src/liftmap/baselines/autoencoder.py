"""A convolutional autoencoder's error (AE-MSE), and its code's distance (AE-MH)."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from liftmap.baselines.base import OnBatch
from liftmap.baselines.trained import HALVES, Trained, check_sides
from liftmap.images.prepare import Preparation, to_model_range
from liftmap.images.store import PreparedImages

STEPS, BATCH, RATE = 3000, 128, 1e-3
WIDTHS, CODE = (32, 64, 128), 64


class Autoencoder(nn.Module):
    """Three convolutions that halve the sides, a code of 64 numbers, and the way back."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        check_sides(height, width)
        down: list[nn.Module] = []
        for before, after in zip((channels, *WIDTHS), WIDTHS, strict=False):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.down = nn.Sequential(*down)
        self.shape = (WIDTHS[-1], height // HALVES, width // HALVES)
        size = self.shape[0] * self.shape[1] * self.shape[2]
        self.encode, self.decode = nn.Linear(size, CODE), nn.Linear(CODE, size)
        up: list[nn.Module] = []
        for before, after in zip(WIDTHS[::-1], (*WIDTHS[-2::-1], channels), strict=True):
            up += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        # no tanh at the end: on dark images it saturates at black, and learning stops
        self.up = nn.Sequential(*up)

    def code(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """What is left of each image."""
        code: Tensor = self.encode(self.down(x).flatten(1))
        return code

    def image(self, code: Float[Tensor, "n d"]) -> Float[Tensor, "n c h w"]:
        """The image that a code stands for, in about [-1, 1]."""
        image: Tensor = self.up(self.decode(code).view(len(code), *self.shape))
        return image


class ByAutoencoder(Trained):
    """What both scores come from; what one of them has learnt serves the other as well.

    learnt: the autoencoder's parameters, the codes' centre (d,) and precision (d, d), and the
    weights (2,) of the code's distance and the squared error.
    """

    def __init__(
        self,
        preparation: Preparation,
        *,
        device: str | torch.device | None = None,
        steps: int = STEPS,
        seed: int = 0,
    ) -> None:
        super().__init__(preparation, Autoencoder, device=device, steps=steps, seed=seed)

    @torch.no_grad()
    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The squared error, then the code."""
        x = to_model_range(pixels).to(self.device)
        code = self.network.code(x)
        error = (self.network.image(code) - x).square().mean((1, 2, 3))
        return torch.cat([error[:, None], code], 1).cpu()

    def learn(
        self, train: PreparedImages, held_out: PreparedImages, *, on_batch: OnBatch | None = None
    ) -> None:
        """Train on the training images, then weigh the two distances on the held-out ones."""
        from sklearn.covariance import LedoitWolf

        optimizer = torch.optim.Adam(self.network.parameters(), lr=RATE)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for pixels in self.batches(train, BATCH, on_batch):
            x = to_model_range(pixels)
            loss = mse_loss(self.network.image(self.network.code(x)), x)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            falling.step()
        self.keep()
        codes = self._all_answers(train, 10_000, None)[:, 1:]
        fitted = LedoitWolf().fit(codes.double().numpy())
        self.learnt |= {
            "centre": torch.from_numpy(fitted.location_),
            "precision": torch.from_numpy(fitted.precision_),
        }
        both = self._both(self._all_answers(held_out, 2000, None))
        self.learnt["weights"] = 1.0 / both.std(0).clamp_min(1e-12)

    def _both(self, answers: Tensor) -> Tensor:
        """(b, 2): the code's Mahalanobis distance and the squared error."""
        off = answers[:, 1:].double() - self.learnt["centre"]
        distance = ((off @ self.learnt["precision"]) * off).sum(1).clamp_min(0).sqrt()
        return torch.stack([distance, answers[:, 0].double()], 1)


class AEMSE(ByAutoencoder):
    """A score is the mean squared error of the autoencoder's reconstruction.

    As LMD's authors compare: trained on in-domain images, which it then reproduces best.
    """

    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return answers[:, 0]


class AEMH(ByAutoencoder):
    """The code's Mahalanobis distance plus the squared error (Denouden et al. 2018).

    "Improving reconstruction autoencoder out-of-distribution detection with Mahalanobis distance".

    Departure: they weigh the two by trial on OOD images. Here each is divided by its deviation over
    held-out in-domain images, since OOD examples are not to be had.
    """

    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return (self._both(answers) * self.learnt["weights"]).sum(1)
