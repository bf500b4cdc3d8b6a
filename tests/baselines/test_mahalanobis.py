from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from tiny import pixels

from liftmap.baselines.mahalanobis import Mahalanobis
from liftmap.images.prepare import Preparation, to_model_range
from liftmap.images.store import PreparedImages
from liftmap.stages.distances import LPIPS

GREY = Preparation(32, 32, 1)


def stored(path: Path, count: int) -> PreparedImages:
    path.write_bytes(pixels(count).numpy().tobytes())
    return PreparedImages(path, (1, 32, 32))


def test_the_distance_is_scipys_on_alexnets_pooled_features(tmp_path: Path) -> None:
    scorer = Mahalanobis(GREY, device="cpu")
    train = stored(tmp_path / "i.u8", 50)
    scorer.learn(train, train)
    images = pixels(3, seed=5)
    with torch.inference_mode():
        maps = LPIPS().last_activation(to_model_range(pixels(50))).mean((2, 3))
        asked = LPIPS().last_activation(to_model_range(images)).mean((2, 3))
    fitted = LedoitWolf().fit(maps.double().numpy())
    expected = [mahalanobis(x, fitted.location_, fitted.precision_) for x in asked.double().numpy()]
    assert scorer.scores(images).numpy() == pytest.approx(np.array(expected), rel=1e-4)


def test_another_backbone_can_be_named(tmp_path: Path) -> None:
    scorer = Mahalanobis(GREY, backbone="torchvision:resnet18", device="cpu")
    train = stored(tmp_path / "i.u8", 12)
    scorer.learn(train, train)
    assert scorer.answers(pixels(2)).shape == (2, 512)
    assert scorer.scores(pixels(2)).isfinite().all()


def test_images_can_be_scaled_up_first(tmp_path: Path) -> None:
    large = Mahalanobis(GREY, backbone="torchvision:resnet18", side=64, device="cpu")
    sizes: list[int] = []
    inner = large._maps
    large._maps = lambda x: (sizes.append(x.shape[-1]), inner(x))[1]
    assert large.answers(pixels(2)).shape == (2, 512)
    assert sizes == [64]
    train = stored(tmp_path / "i.u8", 12)
    large.learn(train, train)
    large.save(tmp_path / "saved")
    assert Mahalanobis.from_pretrained(tmp_path / "saved", device="cpu").settings["side"] == 64
