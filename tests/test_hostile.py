"""Readers against damaged and malicious files; `fuzzing` knows the readers and how to read."""

import io
import json
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from fuzzing import FOUND, KINDS, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import calibrated_model

from liftmap.errors import ImageError, ModelError, SourceError
from liftmap.images.decode import decode
from liftmap.images.sources import open_source
from liftmap.model import Model

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF)


@st.composite
def damage(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid file after a few changes: bytes flipped, cut out, doubled, or made into numbers."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["flip", "cut", "double", "number", "end"]))
        length = draw(st.integers(1, 64))
        if how == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif how == "cut":
            del data[at : at + length]
        elif how == "double":
            data[at:at] = data[at : at + length]
        elif how == "number":
            order = draw(st.sampled_from(["<I", ">I"]))
            data[at : at + 4] = struct.pack(order, draw(st.sampled_from(INTERESTING)))
        else:
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_by_our_errors_alone_and_soon(kind: str, tmp_path: Path) -> None:
    valid = KINDS[kind][1]()
    slow = kind in ("liftmap.json", "config.json", "weights")

    @settings(
        max_examples=10 if slow else 60,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(damage(valid))
    def check(data: bytes) -> None:
        read(kind, data, tmp_path)

    check()


@pytest.mark.parametrize("path", sorted(FOUND.glob("*-*")), ids=lambda p: p.name)
def test_what_was_found_once_is_refused(path: Path, tmp_path: Path) -> None:
    kind = next(k for k in sorted(KINDS, key=len, reverse=True) if path.name.startswith(f"{k}-"))
    read(kind, path.read_bytes(), tmp_path)


def test_a_format_that_starts_programs_is_not_decoded_whatever_its_name(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "EPS")
    (tmp_path / "a.png").write_bytes(file.getvalue())  # Pillow would start Ghostscript
    with pytest.raises(ImageError, match="not an image, or of an unknown format"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize("shape", [(2, 10**6, 10**6), (2, 2**32, 2**32), (1, 0, 9), (1, -3, -3)])
def test_arrays_may_not_claim_images_beyond_all_memory(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    header = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    file = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    (tmp_path / "a.npy").write_bytes(file + bytes(100))
    with pytest.raises(SourceError, match="claims images of"):
        open_source(tmp_path / "a.npy")


def test_idx_files_may_not_claim_images_beyond_all_memory(tmp_path: Path) -> None:
    (tmp_path / "a-ubyte").write_bytes(struct.pack(">4I", 2051, 1, 2**31, 2**31) + bytes(64))
    with pytest.raises(SourceError, match="claims images of 2147483648x2147483648 pixels"):
        open_source(tmp_path / "a-ubyte")


def test_a_zip_member_that_unpacks_to_more_than_is_allowed_is_not_unpacked(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("bomb.png", "w", force_zip64=True) as member,
    ):
        for _ in range(300):
            member.write(bytes(2**20))
    [entry] = open_source(tmp_path / "z.zip")
    with pytest.raises(ImageError, match="need at most"):
        entry.load()


def test_a_tar_header_that_unpacks_to_more_than_is_allowed_is_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 64 * 2**20
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as archive:
        archive.addfile(header, io.BytesIO(bytes(header.size)))
    tracemalloc.start()
    with pytest.raises(SourceError, match="a header of 67108864 bytes: need at most 1048576"):
        list(open_source(tmp_path / "t.tar.gz"))
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert top < 16 * 2**20


@pytest.mark.parametrize("id", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_an_id_from_a_strangers_table_may_not_lead_out_of_the_folder(
    id: str, tmp_path: Path
) -> None:
    (tmp_path / "f").mkdir()
    for path in (tmp_path / "f" / "a.png", tmp_path / "secret.png"):
        Image.new("L", (4, 4)).save(path)
    source = open_source(tmp_path / "f")
    assert source.find is not None  # type: ignore[attr-defined]
    with pytest.raises(ImageError, match="leads out of"):
        source.find(id).load()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"layers_per_block": 10**9}, "layers_per_block=1000000000: need 1 to 64"),
        ("config.json", {"block_out_channels": [10**6, 10**6]}, "doesn't fit"),
        ("config.json", {"sample_size": 10**6}, "images of 4000000x4000000 pixels"),
        ("liftmap.json", {"patch": 0}, "division"),
        ("liftmap.json", {"patch": 10**5}, "pixels: need 2 to 4096 a side"),
    ],
)
def test_a_small_model_folder_can_not_ask_for_a_large_model(
    file: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = calibrated_model(tmp_path) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    tracemalloc.start()
    with pytest.raises(ModelError, match=message):
        Model.load(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_settings_nested_beyond_the_readers_depth_are_refused(tmp_path: Path) -> None:
    (calibrated_model(tmp_path) / "liftmap.json").write_text("[" * 200_000)
    with pytest.raises(ModelError, match="can't be read as JSON"):
        Model.load(tmp_path)
