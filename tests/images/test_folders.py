"""Folders as people have them: what is taken, what is passed over, and that it is said."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from forms import png
from PIL import Image

from liftmap.errors import ImageError, SourceError
from liftmap.images.entry import raw_name
from liftmap.images.sources import open_source

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
PNG = png(GREY)


def ids(source: object) -> list[str]:
    return [entry.id for entry in source]  # type: ignore[attr-defined]


def saved(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)
    return folder


def test_content_decides_what_is_an_image(tmp_path: Path) -> None:
    names = ("none", "wrong.txt", "A.PNG", "b.jfif", "c.heic", "d.jpg")
    saved(tmp_path, *names)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "film.MP4").write_bytes(b"\0\0\0\x18ftypmp42")
    (tmp_path / "README").write_text("no image")
    source = open_source(tmp_path)
    assert ids(source) == sorted(names)
    assert all(np.asarray(entry.load()).tolist() == GREY.tolist() for entry in source)
    [line] = source.tally.lines()
    assert line == "passed over, no images: 1 without an ending, 1 .mp4, 1 .txt"
    assert list(source.tally.lines()) == [line], "said again, not counted again"


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG2000", "PPM", "TIFF", "BMP", "GIF", "JPEG"])
def test_every_format_is_known_without_an_ending(kind: str, tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "picture", kind)
    [entry] = open_source(tmp_path)
    assert entry.load().size == (8, 6)


def test_heic_is_read_with_its_extra_and_named_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.fromarray(np.full((64, 64, 3), 200, np.uint8))).save(tmp_path / "a.heic")
    shutil.copy(tmp_path / "a.heic", tmp_path / "b.jpg")
    for entry in open_source(tmp_path):
        assert entry.load().size == (64, 64)
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    for entry in open_source(tmp_path):
        with pytest.raises(ImageError, match=r"HEIC: .*pip install 'liftmap\[heif\]'"):
            entry.load()


@pytest.mark.parametrize(
    ("name", "told"),
    [("a.NEF", "develop"), ("a.dng", "develop"), ("a.psd", "convert"), ("a.svg", "convert")],
)
def test_pictures_of_other_programs_are_named(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / name).write_bytes(b"MM\0*whatever")
    [entry] = open_source(tmp_path)
    with pytest.raises(ImageError, match=told):
        entry.load()


LITTER = (
    "._a.png",
    ".hidden.png",
    "__MACOSX/._a.png",
    ".ipynb_checkpoints/a-checkpoint.png",
    ".Trash-1000/files/a.png",
    "@eaDir/a.png/SYNOPHOTO_THUMB_M.png",
    "sub/Thumbs.db",
    "sub/.git/a.png",
    "$RECYCLE.BIN/a.png",
)


def test_what_systems_leave_behind_is_passed_over_and_counted(tmp_path: Path) -> None:
    saved(tmp_path, "a.png", "sub/b.png", *LITTER)
    source = open_source(tmp_path)
    assert ids(source) == ["a.png", "sub/b.png"]
    [line] = source.tally.lines()
    assert line.startswith(f"passed over: {len(LITTER)} hidden, or left by a system")
    assert "--hidden" in line
    assert len(ids(open_source(tmp_path, hidden=True))) == 2 + len(LITTER)


def test_names_that_are_no_text_have_ids_that_lead_back(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(PNG)
    (tmp_path / "line\nbreak.png").write_bytes(PNG)
    (tmp_path / r"looks\xe9.png").write_bytes(PNG)
    source = open_source(tmp_path)
    for entry in source:
        assert entry.id.encode("utf-8").isascii()
        assert (tmp_path / raw_name(entry.id)).is_file()
        assert source.find(entry.id).load().size == (8, 6)  # type: ignore[misc]
    assert len(set(ids(source))) == 3


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, "a.png", "locked/b.png")
    real = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source(tmp_path)
    assert ids(source) == ["a.png"]
    assert source.tally.unlisted == {"locked": "Permission denied"}
    [line] = source.tally.lines()
    assert line.startswith("could not be listed: locked (Permission denied)")
    monkeypatch.setattr(os, "scandir", lambda path: (_ for _ in ()).throw(OSError(13, "No")))
    with pytest.raises(SourceError, match=r"can't be read \(No\)"):
        open_source(tmp_path)


def test_pipes_do_not_keep_anybody_waiting(tmp_path: Path) -> None:
    saved(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    first, pipe = open_source(tmp_path)
    assert first.id == "a.png"
    with pytest.raises(ImageError, match="not a file: a pipe"):
        pipe.load()
    with pytest.raises(SourceError, match="is a pipe, a socket or a device"):
        open_source(tmp_path / "pipe")


def test_archives_and_tables_beside_images_are_named(tmp_path: Path) -> None:
    saved(tmp_path, "a.png")
    np.savez(tmp_path / "n.npz", images=GREY[None])
    np.save(tmp_path / "n.npy", GREY[None])
    source = open_source(tmp_path)
    assert ids(source) == ["a.png"]
    [line] = source.tally.lines()
    assert line.startswith("passed over, as sources of their own: ")
    assert "1 .npz" in line
    assert "1 .npy" in line
    both = open_source([tmp_path, tmp_path / "n.npz"])
    assert len(ids(both)) == 2
    [line] = both.tally.lines()
    assert ".npz" not in line, "it was taken"
    assert "1 .npy" in line


def test_several_sources_are_one(tmp_path: Path) -> None:
    saved(tmp_path, "f/a.png", "g/a.png", "h/c.png")
    np.save(tmp_path / "n.npy", np.stack([GREY, GREY]))
    names = [tmp_path / "f", tmp_path / "g" / "a.png", tmp_path / "n.npy"]
    source = open_source(names)
    assert ids(source) == [
        f"{tmp_path}/f/a.png",
        f"{tmp_path}/g/a.png",
        f"{tmp_path}/n.npy/0",
        f"{tmp_path}/n.npy/1",
    ]
    assert source.count() == 4
    with pytest.raises(SourceError, match=r"nowhere: no such file"):
        open_source([tmp_path / "f", tmp_path / "nowhere"])


def test_lists_and_patterns(tmp_path: Path) -> None:
    saved(tmp_path, "f/a.png", "f/b.png", "f/c.jpg")
    assert ids(open_source(f"{tmp_path}/f/*.png")) == [f"{tmp_path}/f/a.png", f"{tmp_path}/f/b.png"]
    assert open_source(f"{tmp_path}/f/*.png").count() == 2
    with pytest.raises(SourceError, match="no file or folder of such a name"):
        open_source(f"{tmp_path}/f/*.bmp")
    lines = [f"{tmp_path}/f/b.png", "", f"{tmp_path}/gone.png", f"{tmp_path}/f"]
    (tmp_path / "list.txt").write_text("\r\n".join(lines), encoding="utf-8-sig")
    entries = list(open_source(f"@{tmp_path}/list.txt"))
    assert [e.id for e in entries][:2] == [lines[0], lines[2]]
    with pytest.raises(ImageError, match="no such file or folder"):
        entries[1].load()
    assert len({e.id for e in entries}) == len(entries) == 5, "b.png is named twice"
    assert entries[0].load().size == (8, 6)


def test_a_source_is_opened_again_with_its_options(tmp_path: Path) -> None:
    import pickle

    saved(tmp_path, "a.png", ".b.png")
    source = open_source(tmp_path, hidden=True)
    again = pickle.loads(pickle.dumps(source.reopen))()
    assert ids(again) == ids(source) == [".b.png", "a.png"]


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    [before] = open_source(saved(tmp_path, "a.png"))
    [same] = open_source(tmp_path)
    assert before.stamp == same.stamp is not None
    os.utime(tmp_path / "a.png", ns=(1, 1))
    [after] = open_source(tmp_path)
    assert after.stamp != before.stamp


def test_the_tally_is_of_the_last_walk_to_the_end(tmp_path: Path) -> None:
    saved(tmp_path, "a.png", "b.png", ".c.png")
    source = open_source(tmp_path)
    next(iter(source))
    assert not list(source.tally.lines())
    assert ids(source) == ["a.png", "b.png"]
    next(iter(source))
    assert source.tally.hidden == 1
    assert ids(open_source(f"{tmp_path}[1:]")) == ["b.png"]


def test_what_is_wrong_in_a_list_costs_itself_alone(tmp_path: Path) -> None:
    saved(tmp_path, "d/a.png")
    (tmp_path / "empty.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    lines = [
        f"{tmp_path}/empty.zip",
        f"{tmp_path}/d[5:9]",
        f"@{tmp_path}/list.txt",
        f"{tmp_path}/d",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    *wrong, fine = open_source(f"@{tmp_path}/list.txt")
    assert fine.load().size == (8, 6)
    for entry, reason in zip(wrong, ("no images", "no images", "a list in a list"), strict=True):
        with pytest.raises(ImageError, match=reason):
            entry.load()


def test_rows_of_pixels_are_no_image(tmp_path: Path) -> None:
    np.save(tmp_path / "n.npy", np.zeros((50, 784), np.uint8))
    with pytest.raises(SourceError, match=r"the pixels of many in a row\? Save it as \(n, h, w\)"):
        open_source(tmp_path / "n.npy")
