"""Members of every kind: read, or named; ids that are unique."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forms import png

from liftmap.errors import ImageError
from liftmap.images.sources import open_source

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
PNG = png(GREY)


def member(
    name: str, data: bytes = PNG, kind: bytes = tarfile.REGTYPE, to: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, to, len(data)
    return made, data


def tar(at: Path, *members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(at, "w", format=form) as archive:
        for made, data in members:
            archive.addfile(made, io.BytesIO(data) if made.size else None)
    return at


def test_links_lead_to_what_is_in_the_archive(tmp_path: Path) -> None:
    at = tar(
        tmp_path / "t.tar",
        member("early.png", b"", tarfile.SYMTYPE, "sub/late.png"),
        member("sub/late.png"),
        member("hard.png", b"", tarfile.LNKTYPE, "sub/late.png"),
        member("sub/up.png", b"", tarfile.SYMTYPE, "../sub/late.png"),
        member("chain.png", b"", tarfile.SYMTYPE, "hard.png"),
    )
    entries = list(open_source(at))
    assert [e.id for e in entries] == [
        *("sub/late.png", "early.png", "hard.png", "sub/up.png", "chain.png"),
    ]
    assert all(np.asarray(e.load()).tolist() == GREY.tolist() for e in entries)


def test_links_that_lead_nowhere_and_what_is_no_file_are_named(tmp_path: Path) -> None:
    at = tar(
        tmp_path / "t.tar",
        member("fine.png"),
        member("out.png", b"", tarfile.SYMTYPE, "/etc/passwd"),
        member("up.png", b"", tarfile.SYMTYPE, "../../secret.png"),
        member("loop.png", b"", tarfile.SYMTYPE, "loop.png"),
        member("pipe.png", b"", tarfile.FIFOTYPE),
        member("device.png", b"", tarfile.CHRTYPE),
        member("folder.png", b"", tarfile.DIRTYPE),
    )
    reasons = {}
    for entry in open_source(at):
        try:
            entry.load()
        except ImageError as error:
            reasons[entry.id] = str(error)
    assert set(reasons) == {"out.png", "up.png", "loop.png", "pipe.png", "device.png"}
    assert "not a file in the archive" in reasons["out.png"]
    assert "a pipe or a device" in reasons["pipe.png"]


def sparse(data: bytes) -> bytes:
    """A tar with a sparse member in GNU's old form: a hole of 4096 bytes after the data."""
    header = tarfile.TarInfo("s.png")
    header.type, header.size = tarfile.GNUTYPE_SPARSE, len(data)
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    fields = [(0, len(data)), (len(data) + 4096, 0)]
    for i, (offset, count) in enumerate(fields):
        block[386 + 24 * i : 386 + 24 * i + 24] = b"%011o\0%011o\0" % (offset, count)
    block[482] = 0
    block[483:495] = b"%011o\0" % (len(data) + 4096)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    padding = bytes(-len(data) % 512)
    return bytes(block) + data + padding + bytes(1024)


def test_sparse_members_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(sparse(PNG))
    [entry] = open_source(tmp_path / "t.tar")
    assert np.asarray(entry.load()).tolist() == GREY.tolist()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_and_tars_without_a_mark(tmp_path: Path, form: int) -> None:
    long = f"{'d' * 60}/{'n' * 60}.png"
    at = tar(tmp_path / "t", member("a.png"), member(long), form=form)
    assert [e.id for e in open_source(at)] == ["a.png", long]
    data = bytearray(at.read_bytes())
    data[257:265] = bytes(8)  # as tar was before POSIX
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "old").write_bytes(data[:1024] + bytes(1024))
    assert [e.id for e in open_source(tmp_path / "old")] == ["a.png"]


def test_repeated_names_get_numbers_and_it_is_said_once(tmp_path: Path) -> None:
    at = tar(tmp_path / "t.tar", *[member(n) for n in ("a.png", "a.png", "a.png#2", "a.png")])
    source = open_source(at)
    found = [e.id for e in source]
    assert found == ["a.png", "a.png#2", "a.png#2#2", "a.png#3"]
    assert [e.id for e in source] == found, "a second walk gives the same"
    assert list(source.tally.lines()) == [
        "3 ids were there already: they got a number, as in name#2"
    ]


def test_names_of_tar_that_are_no_text_are_printable(tmp_path: Path) -> None:
    at = tar(tmp_path / "t.tar", member("caf\udce9.png"), form=tarfile.GNU_FORMAT)
    assert [e.id for e in open_source(at)] == [r"caf\xe9.png"]


def test_litter_and_other_files_in_archives_are_counted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in ("a.png", "noend", "__MACOSX/._a.png", "sub/.DS_Store"):
            archive.writestr(name, PNG)
        archive.writestr("notes.txt", "no image")
        archive.writestr("inner.zip", b"PK\x05\x06" + bytes(18))
    source = open_source(tmp_path / "z.zip")
    assert [e.id for e in source] == ["a.png", "noend"]
    assert source.count() == 2
    lines = " / ".join(source.tally.lines())
    assert "no images: 1 .txt" in lines
    assert "sources of their own: 1 .zip" in lines
    assert "2 hidden" in lines
    assert len(list(open_source(tmp_path / "z.zip", hidden=True))) == 4


def test_links_in_zip_lead_to_members(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.png", PNG)
        for name, to in (("b.png", "a.png"), ("c.png", "../out.png")):
            link = zipfile.ZipInfo(name)
            link.external_attr = 0o120777 << 16
            archive.writestr(link, to)
    first, second, third = open_source(tmp_path / "z.zip")
    assert np.asarray(second.load()).tolist() == np.asarray(first.load()).tolist()
    with pytest.raises(ImageError, match="not in the archive"):
        third.load()


def test_members_that_are_encrypted_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.png", PNG)
    data = bytearray((tmp_path / "z.zip").read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    (tmp_path / "z.zip").write_bytes(data)
    [entry] = open_source(tmp_path / "z.zip")
    with pytest.raises(ImageError, match="encrypted"):
        entry.load()


def whole(names: int = 5) -> bytes:
    """A tar of members of 1024 bytes each."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(names):
            made, data = member(f"{number}.png")
            archive.addfile(made, io.BytesIO(data))
    return stream.getvalue()


def broken_header(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[2 * 1024 + 5] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (lambda data: data[:2048], "it has no end"),
        (lambda data: data[: 2048 + 100], "it has no end"),
        (broken_header, "a broken header in its midst"),
        (lambda data: data[:2048] + bytes(512) + data[2048:], "data after its end"),
        (lambda data: data + whole(2), "data after its end"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_an_archive_that_was_not_read_to_its_end_is_named(
    tmp_path: Path, damaged: Callable[[bytes], bytes], reason: str, packed: bool
) -> None:
    assert len(png(GREY)) < 512, "a header and a block a member"
    data = damaged(whole())
    (tmp_path / "t.tar").write_bytes(gzip.compress(data) if packed else data)
    source = open_source(tmp_path / "t.tar")
    assert len(list(source)) in (2, 5)
    assert reason in source.tally.unlisted["t.tar"]


def test_a_whole_archive_has_nothing_to_say(tmp_path: Path) -> None:
    for name, data in (("a.tar", whole()), ("b.tar", gzip.compress(whole()))):
        (tmp_path / name).write_bytes(data)
        source = open_source(tmp_path / name)
        assert len(list(source)) == 5
        assert not list(source.tally.lines())


def test_a_link_changes_with_its_target(tmp_path: Path) -> None:
    stamps = []
    for shade in (1, 2):
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
            link = zipfile.ZipInfo("l.png")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "z.png")
            archive.writestr("z.png", png(np.full((6, 8), shade, np.uint8)))
        stamps.append(next(iter(open_source(tmp_path / "z.zip"))).stamp)
    assert stamps[0] != stamps[1]
