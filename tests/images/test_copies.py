import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from tiny import pixels

from liftmap.errors import ModelError
from liftmap.images.copies import Copies, Copy, Seen, Sketches, near_pairs
from liftmap.images.store import PreparedImages


def stored(folder: Path, images: torch.Tensor, name: str = "images.u8") -> PreparedImages:
    path = folder / name
    path.write_bytes(images.numpy().tobytes())
    return PreparedImages(path, tuple(images.shape[1:]))


def photographs(count: int, *, seed: int = 0, side: int = 32) -> torch.Tensor:
    """Noise of natural images' spectrum, 1 / frequency; (count, 3, side, side)."""
    draw = torch.Generator().manual_seed(seed)
    waves = torch.fft.fftfreq(side)
    frequency = (waves[:, None].square() + waves.square()).sqrt().clamp_min(1 / side)
    noise = torch.randn(count, 3, side, side, generator=draw)
    noise = 0.8 * noise[:, :1] + 0.2 * noise
    images = torch.fft.ifft2(torch.fft.fft2(noise) / frequency).real
    images = images / images.std((1, 2, 3), keepdim=True)
    return (127 + 45 * images).clamp(0, 255).to(torch.uint8)


def changed(image: torch.Tensor, how: str) -> torch.Tensor:
    picture = Image.fromarray(np.asarray(image.permute(1, 2, 0)))
    size = picture.size
    if how == "compressed":
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=60)
        picture = Image.open(io.BytesIO(file.getvalue()))
    elif how == "smaller":
        small = picture.resize((round(0.9 * size[0]), round(0.9 * size[1])), 2)
        picture = small.resize(size, 2)
    elif how == "brighter":
        picture = ImageEnhance.Brightness(picture).enhance(1.05)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize("how", ["compressed", "smaller", "brighter"])
def test_copies_are_known_again_and_others_are_not(how: str, tmp_path: Path) -> None:
    images = photographs(80)
    seen = Seen.of(stored(tmp_path, images[:40]), stored(tmp_path, images[40:60], "held.u8"))
    found = seen.compare(torch.stack([changed(image, how) for image in images]))
    near = (found[:40] == Copy.NEAR_TRAINED).float().mean()
    held = (found[40:60] == Copy.NEAR_HELD_OUT).float().mean()
    assert near > 0.9 and held > 0.9
    assert (found[60:] == Copy.NONE).all()


def test_exact_copies_come_before_near_ones(tmp_path: Path) -> None:
    images = photographs(4)
    near = changed(images[0], "compressed")[None]
    held = stored(tmp_path, torch.cat([near, images[2:3]]), "held.u8")
    seen = Seen.of(stored(tmp_path, images[:2]), held)
    assert seen.compare(images).tolist() == [
        Copy.EXACT_TRAINED,
        Copy.EXACT_TRAINED,
        Copy.EXACT_HELD_OUT,
        Copy.NONE,
    ]
    assert seen.compare(near).tolist() == [Copy.EXACT_HELD_OUT]
    assert seen.compare(images[:0]).tolist() == []


def test_what_is_found_depends_on_no_batch(tmp_path: Path) -> None:
    images = photographs(700, side=8)
    seen = Seen.of(stored(tmp_path, images[:650]), stored(tmp_path, images[650:660], "b"))
    whole = seen.compare(images)
    assert torch.equal(whole, torch.cat([seen.compare(part) for part in images.split(37)]))


def test_flat_images_are_only_copies_pixel_by_pixel(tmp_path: Path) -> None:
    flat = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 16, 16)
    noise = torch.randint(0, 255, (20, 1, 16, 16), dtype=torch.uint8)
    for images in (flat.contiguous(), noise):
        seen = Seen.of(stored(tmp_path, images[:10]), stored(tmp_path, images[10:], "held.u8"))
        assert seen.copies() == Copies((0, 0), (0, 0), 0)
        assert (seen.compare(images)[:10] == Copy.EXACT_TRAINED).all()


def test_counts_by_side_and_across(tmp_path: Path) -> None:
    images = photographs(6)
    near = torch.stack([changed(image, "smaller") for image in images])
    trained = torch.cat([images[:3], images[:1], near[1:2]])
    held = torch.cat([images[3:5], images[3:4], near[2:3]])
    seen = Seen.of(stored(tmp_path, trained), stored(tmp_path, held, "held.u8"))
    found = seen.copies()
    assert found == Copies(exact=(2, 2), near=(3, 1), across=1)
    assert found.words() == (
        "4 images have an exact copy (2 trained on, 2 held out), 4 images have a near copy (3 "
        "trained on, 1 held out); 1 held-out image is a copy of one trained on, so that more than "
        "the promised rate may be flagged: keep series on one side with --group-by, or leave the "
        "copies out (`liftmap check` names them)"
    )
    assert "--group-by" not in found.words(grouped=True)
    assert Copies((2, 0), (0, 0), 0).words().endswith("; none of them is on both sides")


@given(count=st.integers(1, 40), sides=st.tuples(st.integers(2, 40), st.integers(2, 40)))
@settings(max_examples=30)
def test_pairs_are_found_as_by_comparing_each_with_each(count: int, sides: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (count, 1, *sides), dtype=torch.uint8)
    images = torch.cat([images, (images.float() * 0.97).to(torch.uint8)])
    sketches = Sketches.of(images)
    from liftmap.images.copies import pairs_within

    rows, columns = near_pairs(sketches, sketches)
    slow = {tuple(sorted(p)) for p in zip(rows.tolist(), columns.tolist(), strict=True)}
    found = [p for a, b in pairs_within(sketches) for p in zip(a.tolist(), b.tolist(), strict=True)]
    assert len(found) == len(set(map(frozenset, found)))
    assert {tuple(sorted(p)) for p in found} == {(a, b) for a, b in slow if a != b}


def test_a_sketch_is_the_cosine_transform_times_the_frequency() -> None:
    from scipy.fft import dctn

    image = photographs(1, side=24)[:, :1, :, :16]
    found = Sketches.of(image)
    expected = dctn(image[0, 0].numpy().astype(float), norm="ortho")[:8, :8]
    frequency = np.hypot(*np.mgrid[:8, :8])
    waves = (expected * frequency).ravel()[1:] / (24 * 16) ** 0.5
    assert found.waves[0].numpy() == pytest.approx(waves, abs=1e-3)
    assert found.means.item() == pytest.approx(image.float().mean().item(), abs=1e-3)


def test_the_file_is_small_and_comes_back(tmp_path: Path) -> None:
    images = pixels(200)
    seen = Seen.of(stored(tmp_path, images[:150]), stored(tmp_path, images[150:], "held.u8"))
    seen.save(tmp_path / "seen.safetensors")
    assert (tmp_path / "seen.safetensors").stat().st_size < 80 * 200 + 1000
    again = Seen.load(tmp_path / "seen.safetensors")
    assert (len(again), again.trained) == (200, 150)
    assert torch.equal(again.compare(images), seen.compare(images))
    for name in ("fingerprints", "waves", "tops", "means", "reaches"):
        assert torch.equal(getattr(again, name), getattr(seen, name))


@pytest.mark.parametrize("how", ["cut", "empty", "other"])
def test_a_damaged_file_is_a_model_error(how: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "seen.safetensors"
    Seen.of(stored(tmp_path, pixels(3)), stored(tmp_path, pixels(2), "held.u8")).save(path)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        save_file({"waves": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=r"seen.safetensors is damaged .*copy it again, or delete"):
        Seen.load(path)
