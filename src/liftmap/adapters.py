"""A Detector behind the interfaces of PyOD and pytorch-ood, so that it drops into their pipelines.

Neither library is imported unless its adapter is used; the extra `adapters` brings both.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from liftmap.detector import Detector
from liftmap.errors import MissingExtraError, SettingsError


def pyod_detector(detector: Detector, *, contamination: float = 0.05) -> Any:
    """The detector as a `pyod.models.base.BaseDetector`.

    `fit(X)` calibrates on in-domain images that were not trained on: it sets `decision_scores_`,
    `threshold_` and `labels_` from their scores. `decision_function(X)` gives scores, higher = more
    abnormal, and `predict(X)` 0 or 1, as PyOD has them. X is uint8 or [0, 1] images (n, h, w[, c]).

    Args:
        contamination: the share of `fit`'s images above the threshold, in (0, 0.5].

    Raises:
        MissingExtraError: pyod is not installed.
    """
    try:
        from pyod.models.base import BaseDetector
    except ImportError as error:
        raise MissingExtraError("pyod", "adapters") from error

    class LiftmapDetector(BaseDetector):  # type: ignore[misc]
        """Lift, Map, Detect behind PyOD's interface."""

        def __init__(self, contamination: float = contamination) -> None:
            super().__init__(contamination=contamination)

        def fit(self, X: np.ndarray, y: Any = None) -> "LiftmapDetector":
            self._set_n_classes(y)
            self.decision_scores_ = self.decision_function(X)
            self._process_decision_scores()
            return self

        def decision_function(self, X: np.ndarray) -> Float[np.ndarray, " n"]:
            return _scores(detector, X)

    return LiftmapDetector()


def ood_detector(detector: Detector) -> Any:
    """The detector as a `pytorch_ood.api.Detector`: predict(x) gives scores, higher = more OOD.

    `x` is a batch (n, c, h, w) in [0, 1], as torchvision's ToTensor gives it. `fit` does nothing:
    the diffusion model was trained before.

    Raises:
        MissingExtraError: pytorch-ood is not installed.
    """
    try:
        from pytorch_ood.api import Detector as Interface
    except ImportError as error:
        raise MissingExtraError("pytorch-ood", "adapters") from error

    class LiftmapDetector(Interface):  # type: ignore[misc]
        """Lift, Map, Detect behind pytorch-ood's interface."""

        def fit(self, *args: Any, **kwargs: Any) -> "LiftmapDetector":
            return self

        def fit_features(self, *args: Any, **kwargs: Any) -> "LiftmapDetector":
            return self

        def predict(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
            return detector.score(x.detach().cpu()).to(x.device)

        def predict_features(self, x: Tensor) -> Tensor:
            raise SettingsError("liftmap scores images, not features: call predict(images)")

    return LiftmapDetector()


def _scores(detector: Detector, images: np.ndarray) -> Float[np.ndarray, " n"]:
    """Scores of an array of images, a batch at a time."""
    if images.ndim not in (3, 4):
        raise SettingsError(f"X of shape {images.shape}: need images (n, h, w) or (n, h, w, c)")
    parts = range(0, len(images), detector.batch)
    scores = [detector.score(list(images[i : i + detector.batch])) for i in parts]
    return torch.cat(scores).double().numpy() if scores else np.empty(0)
