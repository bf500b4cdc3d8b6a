import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from liftmap.errors import ImageError, SourceError
from liftmap.images.entry import Source, take
from liftmap.images.prepare import to_image
from liftmap.images.sources import open_source

SHADES = [10, 80, 200]


def picture(shade: int) -> Image.Image:
    return Image.new("L", (6, 5), shade)


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    picture(shade).save(stream, "PNG")
    return stream.getvalue()


def rows() -> np.ndarray:
    return np.stack([np.asarray(picture(s)) for s in SHADES])


def make_folder(at: Path) -> Path:
    (at / "f" / "sub").mkdir(parents=True)
    for name, shade in zip(["a.png", "b.PNG", "sub/c.png"], SHADES, strict=True):
        (at / "f" / name).write_bytes(png(shade))
    (at / "f" / "notes.txt").write_text("no image")
    return at / "f"


def make_zip(at: Path) -> Path:
    with zipfile.ZipFile(at / "z.zip", "w") as archive:
        for i, shade in enumerate(SHADES):
            archive.writestr(f"d/{i}.png", png(shade))
        archive.writestr("readme.txt", "no image")
    return at / "z.zip"


def make_tar(at: Path) -> Path:
    with tarfile.open(at / "t.tar.gz", "w:gz") as archive:
        for i, shade in enumerate(SHADES):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(png(shade))
            archive.addfile(member, io.BytesIO(png(shade)))
    return at / "t.tar.gz"


def make_npz(at: Path) -> str:
    np.savez_compressed(at / "n.npz", images=rows(), labels=np.arange(3))
    return str(at / "n.npz")


def make_keyed(at: Path) -> str:
    np.savez(at / "k.npz", mine=rows()[..., None] / np.float32(255))
    return f"{at}/k.npz:mine"


def make_npy(at: Path) -> Path:
    np.save(at / "n.npy", rows())
    return at / "n.npy"


def make_idx(at: Path) -> Path:
    with gzip.open(at / "t-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">4I", 2051, *rows().shape) + rows().tobytes())
    return at / "t-images-idx3-ubyte.gz"


def make_parquet(at: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": png(s), "path": None} for s in SHADES]
    pq.write_table(pa.table({"label": [0, 1, 2], "image": images}), at / "p.parquet")
    return at / "p.parquet"


MAKERS = [make_folder, make_zip, make_tar, make_npz, make_keyed, make_npy, make_idx, make_parquet]


def shades(source: Source) -> list[int]:
    return [int(np.asarray(to_image(e.load()).convert("L"))[0, 0]) for e in source]


@pytest.mark.parametrize("make", MAKERS, ids=lambda m: m.__name__)
def test_every_kind_gives_its_images_in_order_again_and_again(make: object, tmp_path: Path) -> None:
    source = open_source(make(tmp_path))  # type: ignore[operator]
    assert shades(source) == SHADES
    assert shades(source) == SHADES, "a second walk gives the same"
    ids = [e.id for e in source]
    assert len(set(ids)) == 3
    assert source.count() in (3, None)
    assert shades(take(source, 2)) == SHADES[:2]
    assert take(source, 2).count() in (2, None)


def test_folder_ids_are_sorted_relative_paths(tmp_path: Path) -> None:
    assert [e.id for e in open_source(make_folder(tmp_path))] == ["a.png", "b.PNG", "sub/c.png"]


@pytest.mark.parametrize(
    ("asked", "rows"),
    [("[1:3]", "12"), ("[2:]", "23"), ("[:2]", "01"), ("[:]", "0123"), ("[3:9]", "3")],
)
def test_a_part_of_a_source(tmp_path: Path, asked: str, rows: str) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8), np.uint8))
    source = open_source(f"{tmp_path}/a.npz:images{asked}")
    assert [entry.id for entry in source] == list(rows)
    assert source.count() == len(rows)


def test_a_part_beyond_the_end_is_empty(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(SourceError, match="no images in it"):
        list(open_source(f"{tmp_path}/a.npy[4:]"))


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    assert shades(open_source(make_folder(tmp_path) / "a.png")) == [10]


def test_parquet_takes_its_ids_and_a_named_column(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": ["x", "y"], "a": [png(1), png(2)], "b": [png(3), None]})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(SourceError, match=r"several columns may hold the images: a, b.*--column"):
        open_source(tmp_path / "p.parquet")
    first = open_source(tmp_path / "p.parquet", column="a")
    assert [e.id for e in first] == ["x", "y"]
    second = list(open_source(tmp_path / "p.parquet", column="b"))
    assert second[0].load().getpixel((0, 0)) == 3
    with pytest.raises(ImageError, match="neither image bytes nor a path"):
        second[1].load()
    with pytest.raises(SourceError, match="no column c"):
        open_source(tmp_path / "p.parquet", column="c")


def test_torchvision_reads_published_files_below_root(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.zeros((2, 28, 28), np.uint8) + np.array([7, 9], np.uint8)[:, None, None]
    for part in ("t10k", "train"):
        header = struct.pack(">4I", 2051, 2, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, 2) + b"\0\1")
    assert shades(open_source("torchvision:MNIST:test", root=tmp_path)) == [7, 9]
    with pytest.raises(SourceError, match="--root"):
        open_source("torchvision:MNIST:test")
    with pytest.raises(SourceError, match="no data set 'MNOST'"):
        open_source("torchvision:MNOST:test", root=tmp_path)
    with pytest.raises(SourceError, match="--download"):
        open_source("torchvision:MNIST:test", root=tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="need train or test"):
        open_source("torchvision:MNIST:valid", root=tmp_path)


def test_the_hub_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"image": [picture(s) for s in SHADES], "label": [0, 1, 2]})
    made = made.cast_column("image", datasets.Image())
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **k: made.to_iterable_dataset())
    assert shades(open_source("hf:someone/pictures:train")) == SHADES


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "no such file or folder"),
        ("nowhere.npz", "no such file or folder"),
        ("nowhere.npz:key", "no such file or folder"),
        ("torchvision:MNIST", "need torchvision:NAME:split"),
    ],
)
def test_what_is_not_there_is_named(spec: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(spec)


def test_an_unknown_kind_lists_what_would_work(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"\(zip, tar\).*torchvision:NAME:split"):
        open_source(tmp_path / "film.mp4")


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the folder is empty"):
        open_source(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SourceError, match=r"passed over, no images: 1 \.txt"):
        open_source(tmp_path)


def test_bad_files_cost_only_themselves(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "aa.jpg").write_bytes(b"")
    (folder / "ab.png").write_text("text")
    results = []
    for entry in open_source(folder):
        try:
            entry.load()
            results.append("fine")
        except ImageError as error:
            results.append(str(error))
    assert results[0] == "fine"
    assert "empty" in results[1]
    assert "not an image" in results[2]
    assert results[3:] == ["fine", "fine"]


def test_an_unreadable_file_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path)
    real = Image.open

    def refuse(file: object, *more: object, **options: object) -> Image.Image:
        if str(file).endswith("a.png"):
            raise PermissionError(13, "Permission denied")
        return real(file, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", refuse)
    entries = list(open_source(folder))
    with pytest.raises(ImageError, match="Permission denied"):
        entries[0].load()
    assert entries[1].load().size == (6, 5)


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "sub" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "self.png").symlink_to(folder / "self.png")
    entries = list(open_source(folder))
    assert [e.id for e in entries] == ["a.png", "b.PNG", "self.png", "sub/c.png"]
    with pytest.raises(ImageError):
        entries[2].load()


@pytest.mark.parametrize("name", ["../out.png", "/etc/x.png", "a/../../b.png", "..\\w.png"])
def test_unsafe_names_in_archives_are_never_followed(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(name, png(1))
        archive.writestr("fine.png", png(2))
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(png(1))
        tar.addfile(member, io.BytesIO(png(1)))
    for made in ("z.zip", "t.tar"):
        first = next(iter(open_source(tmp_path / made)))
        with pytest.raises(ImageError, match="unsafe name"):
            first.load()
    assert list(open_source(tmp_path / "z.zip"))[1].load().getpixel((0, 0)) == 2


@pytest.mark.parametrize("name", ["z.zip", "t.tar", "n.npz", "n.npy", "p.parquet", "i-ubyte.gz"])
def test_damaged_containers_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not what the name says")
    with pytest.raises(SourceError, match=r"can't be read|IDX number"):
        open_source(tmp_path / name)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(5),
        np.zeros((3, 3, 5, 5), np.uint8),
        np.zeros((2, 3, 5, 5, 3), np.uint8),
        np.zeros((3, 5, 5), "S3"),
        np.zeros((3, 5, 5), np.complex64),
        np.asfortranarray(np.zeros((3, 5, 5))),
    ],
)
def test_arrays_of_the_wrong_kind_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "n.npy", array)
    with pytest.raises(SourceError, match="need numbers of shape"):
        open_source(tmp_path / "n.npy")


def test_a_missing_key_lists_those_there_are(tmp_path: Path) -> None:
    make_npz(tmp_path)
    with pytest.raises(SourceError, match="no array 'pics': it has images, labels"):
        open_source(f"{tmp_path}/n.npz:pics")


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_pickled_objects_in_arrays_do_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "it-ran"
    np.save(tmp_path / "n.npy", np.array([Hostile(trace)] * 3, dtype=object), allow_pickle=True)
    with pytest.raises(SourceError, match="pickles are not read"):
        open_source(tmp_path / "n.npy")
    assert not trace.exists()


def test_nan_in_one_row_costs_that_row(tmp_path: Path) -> None:
    array = rows() / np.float32(255)
    array[1, 0, 0] = np.nan
    np.save(tmp_path / "n.npy", array)
    entries = list(open_source(tmp_path / "n.npy"))
    with pytest.raises(ImageError, match="1 of 30 values are NaN"):
        to_image(entries[1].load())
    assert to_image(entries[2].load()).getpixel((0, 0)) == 200


def test_labels_and_truncated_idx_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "l-ubyte").write_bytes(struct.pack(">4I", 2049, 3, 0, 0))
    with pytest.raises(SourceError, match="images, not labels"):
        open_source(tmp_path / "l-ubyte")
    (tmp_path / "t-ubyte").write_bytes(struct.pack(">4I", 2051, 3, 4, 4) + bytes(20))
    with pytest.raises(SourceError, match="truncated at row 1 of 3"):
        list(open_source(tmp_path / "t-ubyte"))


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        np.savez_compressed(tmp_path / "n.npz", images=np.zeros((count, 5, 5), np.uint8))
        source = open_source(tmp_path / "n.npz")
        tracemalloc.start()
        total = sum(1 for _ in source)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == count
        return top

    assert peak(60_000) < 1.2 * peak(2_000) + 100_000
