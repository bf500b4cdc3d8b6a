import numpy as np
import pytest
import torch
from tiny import pixels, small_detector

from liftmap.adapters import ood_detector, pyod_detector
from liftmap.errors import SettingsError


def test_pyod_sees_one_of_its_own_detectors() -> None:
    base = pytest.importorskip("pyod.models.base")
    detector = small_detector()
    wrapped = pyod_detector(detector, contamination=0.1)
    assert isinstance(wrapped, base.BaseDetector)
    images = pixels(20)[:, 0].numpy()
    wrapped.fit(images)
    expected = detector.score(list(images)).double().numpy()
    assert np.allclose(wrapped.decision_function(images), expected)
    assert np.allclose(wrapped.decision_scores_, expected)
    assert wrapped.labels_.sum() == 2
    assert wrapped.predict(images).tolist() == (expected > wrapped.threshold_).astype(int).tolist()
    assert wrapped.predict_proba(images).shape == (20, 2)
    with pytest.raises(SettingsError, match=r"need images \(n, h, w\)"):
        wrapped.decision_function(np.zeros((3, 5)))


def test_pytorch_ood_sees_one_of_its_own_detectors() -> None:
    api = pytest.importorskip("pytorch_ood.api")
    detector = small_detector()
    wrapped = ood_detector(detector)
    assert isinstance(wrapped, api.Detector)
    batch = pixels(3).float() / 255
    scores = wrapped.fit(None)(batch)
    assert torch.allclose(scores, detector.score_pixels(pixels(3)).scores)
    with pytest.raises(SettingsError, match="images, not features"):
        wrapped.predict_features(batch)
