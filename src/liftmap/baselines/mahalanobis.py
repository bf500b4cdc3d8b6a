"""Mahalanobis distance of pretrained features (Lee et al. 2018, without classes)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from liftmap.baselines.base import Baseline, OnBatch
from liftmap.images.prepare import Preparation, to_model_range
from liftmap.images.store import PreparedImages
from liftmap.stages.distances import LPIPS, FeatureCosine

MOST = 5000  # training images that the Gaussian is fitted to


class Mahalanobis(Baseline):
    """Features of a network trained on ImageNet, averaged over positions, against one Gaussian.

    Lee et al. 2018, "A simple unified framework for detecting out-of-distribution samples", eq. 1,
    with all in-domain images as a single class since there are no labels; the covariance is shrunk
    (Ledoit & Wolf 2004), as features may outnumber images.

    Args:
        backbone: "alexnet", whose convolutions are packaged, or a backbone of `FeatureCosine`.
        weights: the backbone's state dict, unless it brings its own.
        side: images are scaled up to so many pixels a side first (Xiao et al. 2021, "Do we really
            need to learn representations from in-domain data for outlier detection?", whose method
            this is with one Gaussian, show them as large as ImageNet's); None for as they are.

    learnt: centre (d,), precision (d, d).
    """

    def __init__(
        self,
        preparation: Preparation,
        *,
        backbone: str = "alexnet",
        weights: str | Path | None = None,
        side: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(preparation, **options)
        self._settings = {
            "backbone": backbone,
            "weights": None if weights is None else str(weights),
            "side": side,
        }
        self._side = side
        if backbone == "alexnet":
            self._maps: Callable[[Tensor], Tensor] = LPIPS().to(self.device).last_activation
        else:
            path = None if weights is None else Path(weights)
            features = FeatureCosine.from_backbone(backbone, path).to(self.device)
            self._maps = features.reference

    @property
    def settings(self) -> dict[str, Any]:
        return self._settings

    @torch.inference_mode()
    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        x = to_model_range(pixels).to(self.device)
        if self._side is not None:
            x = interpolate(x, (self._side, self._side), mode="bilinear", antialias=True)
        return self._maps(x).mean((2, 3)).cpu()

    def learn(
        self, train: PreparedImages, held_out: PreparedImages, *, on_batch: OnBatch | None = None
    ) -> None:
        """Fit the Gaussian to training images; the held-out ones are not used."""
        from sklearn.covariance import LedoitWolf

        answers = self._all_answers(train, MOST, on_batch)
        fitted = LedoitWolf().fit(answers.double().numpy())
        self.learnt = {
            "centre": torch.from_numpy(fitted.location_),
            "precision": torch.from_numpy(fitted.precision_),
        }

    def compare(self, answers: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        off = answers.double() - self.learnt["centre"]
        return ((off @ self.learnt["precision"]) * off).sum(1).clamp_min(0).sqrt()
