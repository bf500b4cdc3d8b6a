"""Likelihood regret of a variational autoencoder (Xiao et al. 2020)."""

import math
from typing import Any

import torch
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from liftmap.baselines.base import OnBatch, noise_of
from liftmap.baselines.trained import HALVES, Trained, check_sides
from liftmap.diffusion.noise import ImageNoise
from liftmap.images.prepare import Preparation, to_model_range
from liftmap.images.store import PreparedImages

WIDTHS, CODE, LEVELS = (32, 64, 128), 100, 256
BATCH, RATE = 64, 1e-3
SHARE = 16  # a training step takes one in so many positions
REFIT_STEPS, REFIT_RATE = 100, 1e-4
SAMPLES = 200  # of the importance-weighted likelihood


class Encoder(nn.Module):
    """From an image to the mean and log-variance of its code."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((channels, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        size = WIDTHS[-1] * height * width // HALVES**2
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, 2 * CODE))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.layers(x).chunk(2, 1)
        return mean, log_variance


class Decoder(nn.Module):
    """From a code to the logits of each pixel's 256 levels, (n, 256, c, h, w)."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.shape = (WIDTHS[-1], height // HALVES, width // HALVES)
        self.first = nn.Linear(CODE, math.prod(self.shape))
        layers: list[nn.Module] = []
        for before, after in zip(WIDTHS[::-1], (*WIDTHS[-2::-1], WIDTHS[0]), strict=True):
            layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        last = nn.Conv2d(WIDTHS[0], LEVELS * channels, 1)
        self.layers = nn.Sequential(*layers, nn.ReLU(), last)

    def forward(self, code: Tensor, positions: Tensor | None = None) -> Tensor:
        """Of all pixels, or of those positions alone: (n, 256, c, p, 1), p of height * width."""
        out: Tensor = self.layers[:-1](self.first(code).view(len(code), *self.shape))
        if positions is not None:
            out = out.flatten(2)[:, :, positions, None]
        out = self.layers[-1](out)
        return out.view(len(code), LEVELS, self.channels, *out.shape[2:])


class VAE(nn.Module):
    """Kingma & Welling 2014, with a categorical distribution over each pixel's levels."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        check_sides(height, width)
        self.encoder = Encoder(channels, height, width)
        self.decoder = Decoder(channels, height, width)

    def log_likelihood(
        self,
        pixels: Int[Tensor, "n c h w"],
        code: Float[Tensor, "n d"],
        positions: Int[Tensor, " p"] | None = None,
    ) -> Float64[Tensor, " n"]:
        """Of the pixels given codes, in nats; estimated by some of the h * w positions if given."""
        if positions is None:
            each = cross_entropy(self.decoder(code), pixels, reduction="none")
            return -each.double().sum((1, 2, 3))
        some = pixels.flatten(2)[:, :, positions, None]
        each = cross_entropy(self.decoder(code, positions), some, reduction="none")
        share = len(positions) / (pixels.shape[2] * pixels.shape[3])
        return -each.double().sum((1, 2, 3)) / share


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of the posterior from the prior N(0, 1), in nats, summed over the code."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


class LikelihoodRegret(Trained):
    """Xiao et al. 2020, "Likelihood regret: an out-of-distribution detection score for VAE", eq. 5.

    How much the likelihood of an image rises when the encoder is fitted to it alone: 100 steps of
    Adam from the trained encoder, the decoder left as it is. Both likelihoods are importance-
    weighted estimates with 200 samples. An in-domain image gains little, since the encoder was
    trained for its like.

    Departure: no batch normalisation, and 3,000 batches of 64 images, where the authors' code
    normalises after every convolution and by default trains for 200 epochs in batches of 128; and
    a training step looks at a sixteenth of the positions, drawn anew: its gradient is that of the
    whole on average, at an eighth of the cost.

    learnt: the VAE's parameters.
    """

    def __init__(
        self,
        preparation: Preparation,
        *,
        device: str | torch.device | None = None,
        steps: int = 3000,
        refit_steps: int = REFIT_STEPS,
        refit_rate: float = REFIT_RATE,
        samples: int = SAMPLES,
        seed: int = 0,
    ) -> None:
        super().__init__(preparation, VAE, device=device, steps=steps, seed=seed)
        self.refit_steps, self.refit_rate, self.samples = refit_steps, refit_rate, samples

    @property
    def settings(self) -> dict[str, Any]:
        refit = {"refit_steps": self.refit_steps, "refit_rate": self.refit_rate}
        return super().settings | refit | {"samples": self.samples}

    @property
    def batch(self) -> int:
        """Each image has an encoder of its own while it is scored."""
        return max(1, super().batch // 8)

    def learn(
        self, train: PreparedImages, held_out: PreparedImages, *, on_batch: OnBatch | None = None
    ) -> None:
        """Train the VAE on the training images; the held-out ones are not used."""
        vae = self.network
        optimizer = torch.optim.Adam(vae.parameters(), lr=RATE)
        draw = torch.Generator().manual_seed(self.seed)
        for pixels in self.batches(train, BATCH, on_batch):
            mean, log_variance = vae.encoder(to_model_range(pixels))
            noise = torch.randn(mean.shape, generator=draw).to(mean)
            code = mean + noise * (0.5 * log_variance).exp()
            every = pixels.shape[2] * pixels.shape[3]
            positions = torch.randperm(every, generator=draw)[: every // SHARE].to(self.device)
            likelihood = vae.log_likelihood(pixels.long(), code, positions)
            bound = likelihood - divergence(mean, log_variance)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(-bound.mean())
            optimizer.step()
        self.keep()

    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The log-likelihood before and after the refit, in nats."""
        pixels_there = pixels.to(self.device)
        x = to_model_range(pixels_there)
        noise = noise_of(pixels, self.seed, 0, (1, 1, CODE), self.device)
        encoders = self._refitted(x, pixels_there.long(), noise)
        with torch.no_grad():
            before = self.network.encoder(x)
            mean, log_variance = self._encode(encoders, x)
            after = (mean[:, 0], log_variance[:, 0])
        # both by the same noise, so that most of the estimates' error cancels in the difference
        draws = [noise.draw().flatten(1) for _ in range(self.samples)]
        levels = pixels_there.long()
        found = [self._importance_weighted(levels, q, draws) for q in (before, after)]
        return torch.stack(found, 1).cpu()

    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return answers[:, 1] - answers[:, 0]

    def _encode(self, encoders: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """Each image through an encoder of its own: (b, 1, d) means and log-variances."""

        def encode(parameters: dict[str, Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
            found: tuple[Tensor, Tensor] = functional_call(
                self.network.encoder, parameters, (image[None],)
            )
            return found

        found: tuple[Tensor, Tensor] = vmap(encode)(encoders, x)
        return found

    def _refitted(self, x: Tensor, pixels: Tensor, noise: ImageNoise) -> dict[str, Tensor]:
        """An encoder an image: parameters with a first axis of images."""
        encoders = {
            name: part.detach().expand(len(x), *part.shape).clone().requires_grad_()
            for name, part in self.network.encoder.named_parameters()
        }
        # Adam works element by element: each image's encoder moves as if it were alone
        optimizer = torch.optim.Adam(encoders.values(), lr=self.refit_rate)
        for _ in range(self.refit_steps):
            mean, log_variance = (part[:, 0] for part in self._encode(encoders, x))
            code = mean + noise.draw().flatten(1) * (0.5 * log_variance).exp()
            bound = self.network.log_likelihood(pixels, code) - divergence(mean, log_variance)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(-bound.sum())
            optimizer.step()
        return {name: part.detach() for name, part in encoders.items()}

    @torch.no_grad()
    def _importance_weighted(
        self, pixels: Tensor, posterior: tuple[Tensor, Tensor], draws: list[Tensor]
    ) -> Tensor:
        """log p(x) by samples from the posterior, mean and log-variance (Burda et al. 2016, 8)."""
        (mean, log_variance), weights = posterior, []
        for drawn in draws:
            code = mean + drawn * (0.5 * log_variance).exp()
            prior = -0.5 * code.square().sum(1)
            drawn_at = -0.5 * (drawn.square() + log_variance).sum(1)
            weights.append(self.network.log_likelihood(pixels, code) + prior - drawn_at)
        return torch.stack(weights).double().logsumexp(0) - math.log(len(draws))
