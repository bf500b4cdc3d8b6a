import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import MNIST

from liftmap.errors import SourceError
from liftmap.images.labels import read_labels


def write_idx(
    path: Path, labels: list[int], *, magic: int = 2049, count: int | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">2I", magic, len(labels) if count is None else count)
    path.write_bytes(gzip.compress(header + bytes(labels)))


def test_labels_lie_beside_idx_images_and_follow_slices(tmp_path: Path) -> None:
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", [5, 0, 4, 1])
    spec = str(tmp_path / "t10k-images-idx3-ubyte.gz")
    assert read_labels(spec).tolist() == [5, 0, 4, 1]
    assert read_labels(f"{spec}[1:3]").tolist() == [0, 4]
    assert read_labels(f"{spec}[2:]").tolist() == [4, 1]


def test_labels_in_an_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=[7, 9])
    assert read_labels(str(tmp_path / "a.npz")).tolist() == [7, 9]
    assert read_labels(f"{tmp_path / 'a.npz'}:images").tolist() == [7, 9]


def test_labels_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(self: MNIST, root: str, train: bool = True) -> None:
        self.targets = [3, 1]

    monkeypatch.setattr(MNIST, "__init__", made)
    assert read_labels("torchvision:MNIST:test", root=tmp_path).tolist() == [3, 1]


def test_what_has_no_labels_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(SourceError, match="its labels can't be read"):
        read_labels(str(tmp_path / "a.npz"))
    with pytest.raises(SourceError, match="has no labels: need IDX"):
        read_labels(str(tmp_path))
    write_idx(tmp_path / "a-labels-idx1-ubyte.gz", [1], magic=2051)
    with pytest.raises(SourceError, match="IDX number 2051"):
        read_labels(str(tmp_path / "a-images-idx3-ubyte.gz"))
    write_idx(tmp_path / "b-labels-idx1-ubyte.gz", [1], count=5)
    with pytest.raises(SourceError, match="1 of 5 labels"):
        read_labels(str(tmp_path / "b-images-idx3-ubyte.gz"))
