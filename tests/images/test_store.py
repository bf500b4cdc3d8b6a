import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import pixels, save_images

from liftmap.errors import SettingsError, SourceError
from liftmap.images.prepare import Preparation
from liftmap.images.sources import open_source
from liftmap.images.store import HoldOut, PreparedImages, ids_path, store_source

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
    with TemporaryDirectory() as folder:
        path = Path(folder) / "images.u8"
        path.write_bytes(bytes(i % 256 for i in range(count) for _ in range(4)))
        rest, held = PreparedImages(path, (1, 2, 2)).hold_out(part)
        again = PreparedImages(path, (1, 2, 2)).hold_out(part)
    assert len(held) == min(part, count)
    numbers = [p.pixels(torch.arange(len(p)))[:, 0, 0, 0].tolist() for p in (rest, held)]
    assert sorted(numbers[0] + numbers[1]) == list(range(count))
    assert numbers[1] == again[1].pixels(torch.arange(len(held)))[:, 0, 0, 0].tolist()


def test_ids_are_kept_beside_the_pixels(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "i", 5)
    (folder / "001.png").write_bytes(b"")
    (folder / "003.png").rename(folder / "line\nbreak \u2028 \u00e9.png")
    stored = store_source(open_source(folder), PREPARE, tmp_path / "images.u8")
    ids = ["000.png", "002.png", "004.png", "line\\x0abreak \u2028 \u00e9.png"]
    assert stored.ids() == ids
    rest, held = stored.hold_out(2)
    assert sorted(rest.ids() + held.ids()) == ids
    (tmp_path / "images.u8.ids").write_text('"000.png"\n')
    with pytest.raises(SourceError, match=r"delete images\.u8 beside it"):
        stored.ids()


@settings(deadline=None)
@given(
    pixels=st.lists(st.integers(0, 255), min_size=1, max_size=60),
    folders=st.lists(st.integers(0, 9), min_size=60, max_size=60),
    by=st.sampled_from([None, "folder"]),
    share=st.floats(0.05, 0.5),
    seed=st.integers(0, 9),
)
def test_no_copy_and_no_group_is_on_both_sides(
    pixels: list[int], folders: list[int], by: str | None, share: float, seed: int
) -> None:
    total = len(pixels)
    hold_out = HoldOut(share, least=0, group_by=by)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "images.u8"
        path.write_bytes(bytes(pixel for pixel in pixels for _ in range(4)))
        ids = [f"{f}/{i}" for i, f in enumerate(folders[:total])]
        ids_path(path).write_text("".join(f"{json.dumps(id)}\n" for id in ids))
        images = PreparedImages(path, (1, 2, 2))
        groups, count = hold_out.groups(images), hold_out.count(total)
        try:
            parts = images.hold_out(count, seed=seed, groups=groups)
        except SettingsError as error:
            assert "stay together" in str(error)
            return
        sides = [set(part.pixels(torch.arange(len(part))).flatten().tolist()) for part in parts]
        named = [{id.split("/")[0] for id in part.ids()} for part in parts]
        held, then = parts[1].ids(), images.hold_out(count, seed=seed)[1].ids()
    assert sides[0].isdisjoint(sides[1])
    if by:
        assert named[0].isdisjoint(named[1])
    elif len(set(pixels)) == total:
        assert held == then
