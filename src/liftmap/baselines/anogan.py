"""AnoGAN: the nearest image that a GAN can make (Schlegl et al. 2017)."""

import math
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from liftmap.baselines.base import OnBatch, noise_of
from liftmap.baselines.trained import HALVES, Trained, check_sides
from liftmap.images.prepare import Preparation, to_model_range
from liftmap.images.store import PreparedImages

WIDTHS, CODE = (32, 64, 128), 100
BATCH, RATE, BETAS = 64, 2e-4, (0.5, 0.999)  # the latter two are DCGAN's
SEARCH_STEPS, SEARCH_RATE = 500, 0.02
BY_FEATURES = 0.1  # the discriminator's share in the loss


class Generator(nn.Module):
    """DCGAN's (Radford et al. 2016): from a code to an image in [-1, 1]."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.shape = (WIDTHS[-1], height // HALVES, width // HALVES)
        self.first = nn.Linear(CODE, math.prod(self.shape))
        layers: list[nn.Module] = [nn.BatchNorm2d(WIDTHS[-1]), nn.ReLU()]
        for before, after in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
            layers += [nn.BatchNorm2d(after), nn.ReLU()]
        last = nn.ConvTranspose2d(WIDTHS[0], channels, 4, stride=2, padding=1)
        self.layers = nn.Sequential(*layers, last, nn.Tanh())

    def forward(self, code: Tensor) -> Tensor:
        out: Tensor = self.layers(self.first(code).view(len(code), *self.shape))
        return out


class Discriminator(nn.Module):
    """DCGAN's: features of an image, then the logit of its being real."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip((channels, *WIDTHS), WIDTHS, strict=False)):
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            layers += [nn.BatchNorm2d(after)] if i else []
            layers.append(nn.LeakyReLU(0.2))
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.last = nn.Linear(WIDTHS[-1] * height * width // HALVES**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.features(x))[:, 0]
        return logits


class DCGAN(nn.Module):
    """Both networks."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        check_sides(height, width)
        self.generator = Generator(channels, height, width)
        self.discriminator = Discriminator(channels, height, width)


class AnoGAN(Trained):
    """Schlegl et al. 2017, "Unsupervised anomaly detection with generative adversarial networks".

    After a DCGAN was trained on in-domain images, a code is searched for each image whose made
    image is nearest: 500 steps of Adam on (1 - 0.1) times the sum of absolute differences plus 0.1
    times that of the discriminator's last features (their eq. 4). The score is what is left.

    Departure: networks a quarter as wide as theirs, for images of 32x32, in batches of 64 instead
    of DCGAN's 128, so that training takes minutes without a GPU.

    learnt: the parameters of generator and discriminator.
    """

    def __init__(
        self,
        preparation: Preparation,
        *,
        device: str | torch.device | None = None,
        steps: int = 3000,
        search_steps: int = SEARCH_STEPS,
        seed: int = 0,
    ) -> None:
        super().__init__(preparation, DCGAN, device=device, steps=steps, seed=seed)
        self.search_steps = search_steps

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"search_steps": self.search_steps}

    def learn(
        self, train: PreparedImages, held_out: PreparedImages, *, on_batch: OnBatch | None = None
    ) -> None:
        """Train the GAN on the training images; the held-out ones are not used."""
        make, judge = self.network.generator, self.network.discriminator
        makes, judges = (
            torch.optim.Adam(part.parameters(), lr=RATE, betas=BETAS) for part in (make, judge)
        )
        draw = torch.Generator().manual_seed(self.seed + 1)
        for pixels in self.batches(train, BATCH, on_batch):
            real = to_model_range(pixels)
            made = make(torch.randn(len(real), CODE, generator=draw).to(real))
            ones, zeros = torch.ones(len(real)).to(real), torch.zeros(len(real)).to(real)
            wrong = cross_entropy(judge(real), ones) + cross_entropy(judge(made.detach()), zeros)
            judges.zero_grad(set_to_none=True)
            torch.autograd.backward(wrong)
            judges.step()
            makes.zero_grad(set_to_none=True)
            torch.autograd.backward(cross_entropy(judge(made), ones), inputs=[*make.parameters()])
            makes.step()
        self.keep()

    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The smallest loss found."""
        x = to_model_range(pixels).to(self.device)
        make, features = self.network.generator, self.network.discriminator.features
        with torch.no_grad():
            wanted = features(x)
        noise = noise_of(pixels, self.seed, 0, (1, 1, CODE), self.device)
        code = noise.draw().flatten(1).requires_grad_()
        # Adam works element by element: each image's code moves as if it were alone
        optimizer = torch.optim.Adam([code], lr=SEARCH_RATE)
        best = torch.full((len(x),), float("inf"), device=self.device)
        for _ in range(self.search_steps):
            made = make(code)
            by_pixels = (made - x).abs().flatten(1).sum(1)
            by_features = (features(made) - wanted).abs().sum(1)
            loss = (1 - BY_FEATURES) * by_pixels + BY_FEATURES * by_features
            best = torch.minimum(best, loss.detach())
            [code.grad] = torch.autograd.grad(loss.sum(), [code])
            optimizer.step()
        return best[:, None].cpu()

    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return answers[:, 0]
