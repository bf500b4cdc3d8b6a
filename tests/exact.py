"""A denoiser with a closed form, for tests: Gaussian mixtures by pixel."""

import torch
from torch import Tensor

from liftmap.diffusion.denoiser import Denoiser, Parametrisation, Prediction
from liftmap.diffusion.process import Process


class ExactDenoiser(Denoiser):
    """The posterior mean of Gaussian mixture data, E[image | x], instead of a network's guess.

    Each pixel is drawn alone from sum_k weight_k N(mean_k, std_k^2).
    """

    def __init__(
        self, process: Process, means: list[float], stds: list[float], weights: list[float]
    ):
        super().__init__(torch.nn.Linear(1, 1), process, Parametrisation(), precision="float32")
        self.parts = [torch.tensor(v, dtype=torch.float64) for v in (means, stds, weights)]

    def predict(self, x: Tensor, t: float) -> Prediction:
        at = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = self.process.alpha(at), self.process.sigma(at)
        means, stds, weights = self.parts
        wide = x[..., None]
        variance = (alpha * stds).square() + sigma.square()
        off = wide - alpha * means
        log = weights.log() - 0.5 * off.square() / variance - 0.5 * variance.log()
        posterior = means + alpha * stds.square() / variance * off
        image = (log.softmax(-1) * posterior).sum(-1)
        return Prediction(image, (x - alpha * image) / sigma)
