from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import pixels, save_images

from liftmap.errors import SourceError
from liftmap.images.prepare import Preparation
from liftmap.images.sources import open_source
from liftmap.images.store import PreparedImages, store_source

PREPARE = Preparation(32, 32, 1)


def test_stored_images_are_the_prepared_ones(tmp_path: Path) -> None:
    source = open_source(save_images(tmp_path / "i", 6))
    stored = store_source(source, PREPARE, tmp_path / "images.u8")
    assert (len(stored), stored.shape) == (6, (1, 32, 32))
    assert torch.equal(stored.pixels(torch.arange(6)), pixels(6))
    assert torch.equal(stored.pixels(torch.tensor([4, 0])), pixels(6)[[4, 0]])
    taken = stored.take(torch.tensor([3]))
    assert torch.allclose(taken, pixels(6)[3:4].float() / 127.5 - 1)


def test_bad_images_are_left_out_and_named(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "i", 5)
    (folder / "001.png").write_bytes(b"")
    skipped: list[tuple[str, str]] = []
    path = tmp_path / "images.u8"
    stored = store_source(
        open_source(folder), PREPARE, path, on_skip=lambda i, why: skipped.append((i, why))
    )
    assert len(stored) == 4
    assert skipped == [("001.png", "the file is empty")]
    for file in folder.iterdir():
        file.write_bytes(b"")
    with pytest.raises(SourceError, match="none of its images could be read"):
        store_source(open_source(folder), PREPARE, path)


@given(count=st.integers(1, 40), part=st.integers(0, 40))
def test_the_two_parts_are_disjoint_and_whole(count: int, part: int) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "images.u8"
        path.write_bytes(bytes(i % 256 for i in range(count) for _ in range(4)))
        rest, held = PreparedImages(path, (1, 2, 2)).hold_out(part)
        again = PreparedImages(path, (1, 2, 2)).hold_out(part)
    assert len(held) == min(part, count)
    numbers = [p.pixels(torch.arange(len(p)))[:, 0, 0, 0].tolist() for p in (rest, held)]
    assert sorted(numbers[0] + numbers[1]) == list(range(count))
    assert numbers[1] == again[1].pixels(torch.arange(len(held)))[:, 0, 0, 0].tolist()
