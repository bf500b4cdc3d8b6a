"""What a source is known by: its content, however it is called and wherever it lies."""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import pixels, save_images

from liftmap.evaluation.keys import data_key
from liftmap.images.entry import Entry, Source, Stream, take
from liftmap.images.sources import open_source


def an_array(folder: Path) -> str:
    np.savez(folder / "a.npz", images=pixels(4)[:, 0].numpy())
    return str(folder / "a.npz")


def an_archive(folder: Path) -> str:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for path in sorted(save_images(folder / "of", 4).iterdir()):
            archive.write(path, path.name)
    return str(folder / "a.zip")


def change_file(spec: str) -> None:
    path = Path(spec)
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def change_image(spec: str) -> None:
    invert(Path(spec) / "001.png")


def invert(path: Path) -> None:
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


# how a source is made in a folder, and then changed under the same name
KINDS: dict[str, tuple[Callable[[Path], str], Callable[[str], None]]] = {
    "a folder": (lambda at: str(save_images(at / "a", 4)), change_image),
    "a single image": (
        lambda at: str(save_images(at / "a", 1) / "000.png"),
        lambda spec: invert(Path(spec)),
    ),
    "an archive": (an_archive, change_file),
    "an array": (an_array, change_file),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["", "[0:2]", "[0:3][0:2]"])
def test_the_key_goes_by_content(kind: str, part: str, tmp_path: Path) -> None:
    make, change = KINDS[kind]
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    spec = make(tmp_path / "here") + part
    before = data_key(open_source(spec))
    shutil.copytree(tmp_path / "here", tmp_path / "there", dirs_exist_ok=True)
    moved = spec.replace("/here/", "/there/")
    assert data_key(open_source(moved)) == before, "it may move"
    change(spec.removesuffix(part))
    assert data_key(open_source(spec)) != before
    assert data_key(open_source(moved)) == before


def test_a_folder_is_its_ids_and_bytes_of_the_images_asked_for(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "a", 4)
    before, first = data_key(open_source(folder)), data_key(open_source(f"{folder}[0:2]"))
    assert data_key(take(open_source(folder), 2)) != before
    (folder / "003.png").write_text("no image")
    assert data_key(open_source(f"{folder}[0:2]")) == first
    damaged = data_key(open_source(folder))
    (folder / "003.png").rename(folder / "004.png")
    renamed = data_key(open_source(folder))
    (folder / "005.png").write_bytes((folder / "000.png").read_bytes())
    keys = [before, damaged, renamed, data_key(open_source(folder))]
    assert all(a != b for i, a in enumerate(keys) for b in keys[:i])


def test_the_same_size_and_time_do_not_hide_a_change(tmp_path: Path) -> None:
    """A program that copies times along leaves the time of the change of status."""
    path = save_images(tmp_path / "a", 1) / "000.png"
    before, status = data_key(open_source(tmp_path / "a")), path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert data_key(open_source(tmp_path / "a")) != before


def test_files_that_did_not_change_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, opened = save_images(tmp_path / "a", 3), []
    plain = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a: opened.append(self.name) or plain(self, *a))
    data_key(open_source(folder))
    invert(folder / "001.png")
    opened.clear()
    data_key(open_source(folder))
    assert opened == ["001.png"]


def stamped(name: str, values: list[int], stamps: list[str | None]) -> Source:
    def entry(i: int) -> Entry:
        return Entry(str(i), lambda: Image.new("L", (4, 4), values[i]), stamps[i])

    return Stream(name, lambda tally: map(entry, range(len(values))), lambda: len(values))


def test_a_source_of_any_other_kind_goes_by_its_pixels() -> None:
    first = data_key(stamped("mine", [1, 2], ["a", "b"]))
    assert data_key(stamped("mine", [1, 2], ["c", None])) == first
    assert data_key(stamped("mine", [1, 3], ["a", "b"])) != first


def test_objects_in_stores_go_by_size_and_time_where_they_are_told() -> None:
    first = data_key(stamped("s3://b/x", [1, 2], ["a", "b"]))
    assert data_key(stamped("s3://b/x", [1, 2], ["a", "c"])) != first
    bare = data_key(stamped("s3://b/x", [1, 2], [None, None]))
    assert data_key(stamped("s3://b/x", [1, 3], [None, None])) != bare


def test_published_sets_go_by_their_names() -> None:
    for name in ("torchvision:MNIST:test", "hf:mnist:test", "torchvision:MNIST:test[0:2]"):
        assert data_key(stamped(name, [1, 2], [None, None])) == [name, 2]


def test_keys_of_files_stay_as_they_were(tmp_path: Path) -> None:
    """The committed cells are found by them."""
    np.save(tmp_path / "x.npy", np.zeros((3, 5, 5), np.uint8))
    sha = hashlib.sha256((tmp_path / "x.npy").read_bytes()).hexdigest()
    assert data_key(open_source(tmp_path / "x.npy")) == ["x.npy", 3, sha]
    assert data_key(open_source(f"{tmp_path}/x.npy[1:]")) == ["x.npy[1:]", 2, sha]
    assert data_key(take(open_source(tmp_path / "x.npy"), 1)) == ["x.npy", 1, sha]
