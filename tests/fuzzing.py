"""Hostile input: every reader is fed damaged files, which it may refuse by its own errors alone.

    python tests/fuzzing.py --minutes 2            # all readers, a table
    python tests/fuzzing.py --minutes 10 tar.gz    # one of them

Needs atheris, which mutates valid files and goes on with those that reach new lines of Python.
What was found lies in data/hostile, as KIND-WHAT, and is read again by the tests.
"""

import argparse
import base64
import gzip
import io
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path

FOUND = Path(__file__).parent / "data" / "hostile"
MOST_SECONDS = 10.0  # that one small file may take
ENTRIES = 300  # of a source that are read


def _image(kind: str, **options: object) -> bytes:
    from PIL import Image

    with io.BytesIO() as file:
        shades = bytes(range(0, 192))
        Image.frombytes("RGB", (8, 8), shades).save(file, kind, **options)
        return file.getvalue()


def _heic() -> bytes:
    import pillow_heif
    from PIL import Image

    with io.BytesIO() as file:
        pillow_heif.from_pillow(Image.frombytes("RGB", (64, 64), bytes(64 * 64 * 3))).save(file)
        return file.getvalue()


def _deep(kind: str) -> bytes:
    """Sixteen bits of grey, and what turns and clears a picture."""
    import numpy as np
    from PIL import Image

    exif = Image.Exif()
    exif[274] = 6
    with io.BytesIO() as file:
        values = np.arange(64, dtype=np.uint16).reshape(8, 8) * np.uint16(60)
        options = {"transparency": 60} if kind == "PNG" else {"tiffinfo": {262: 0}}
        Image.fromarray(values).save(file, kind, exif=exif, **options)
        return file.getvalue()


def _zip() -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/b.png", _image("PNG"))
            archive.writestr("c", _image("BMP"))
            link = zipfile.ZipInfo("d.png")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "a/b.png")
        return file.getvalue()


def _tar(mode: str) -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode=mode, format=tarfile.PAX_FORMAT) as archive:
            for name in ("a.png", f"{'long' * 40}.png"):
                member = tarfile.TarInfo(name)
                member.size = len(_image("PNG"))
                archive.addfile(member, io.BytesIO(_image("PNG")))
            for name, kind in (("b.png", tarfile.SYMTYPE), ("c.png", tarfile.LNKTYPE)):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, "a.png"
                archive.addfile(member)
        return file.getvalue()


def _array(archived: bool, kind: str = "u1") -> bytes:
    import numpy as np

    rows = np.arange(3 * 64).reshape(3, 8, 8).astype(kind)
    with io.BytesIO() as file:
        if archived:
            np.savez_compressed(file, images=rows)
        else:
            np.save(file, rows)
        return file.getvalue()


def _idx() -> bytes:
    return struct.pack(">4I", 2051, 3, 4, 4) + bytes(range(48))


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with io.BytesIO() as file:
        pq.write_table(pa.table({"id": ["x", "y"], "image": [_image("PNG"), None]}), file)
        return file.getvalue()


def _parquet_of_paths() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": _image("PNG"), "path": None}, {"bytes": None, "path": "../x.png"}]
    with io.BytesIO() as file:
        pq.write_table(pa.table({"id": ["x", None], "image": images}), file)
        return file.getvalue()


def _scores() -> bytes:
    from liftmap.engines.tables import write_table

    row = {"id": "a", "score": 1.0, "p_value": 0.5, "is_ood": False, "attempts": 2}
    rest = {"distances": {"mse": [0.1, 0.2]}, "norms": [1.0], "reason": None, "notes": ["dark"]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.parquet"
        write_table([row | rest], path, ["mse"], 2)
        return path.read_bytes()


@cache
def _model() -> dict[str, bytes]:
    """The files of a valid model folder."""
    from tiny import calibrated_model

    with tempfile.TemporaryDirectory() as folder:
        return {p.name: p.read_bytes() for p in calibrated_model(Path(folder)).iterdir()}


def read_source(path: Path) -> None:
    """Walk a source and decode its images, as scoring does."""
    from liftmap.errors import ImageError, SourceError
    from liftmap.images.prepare import Preparation
    from liftmap.images.sources import open_source

    plain, ranged = (Preparation(8, 8, 3, "pad", value_range=r) for r in (None, (0.0, 4095.0)))
    try:
        source = open_source(path)
        for entry in islice(source, ENTRIES):
            entry.id.encode("utf-8")
            with suppress(ImageError):
                picture = entry.load()
                with suppress(ImageError):
                    plain(picture)
                ranged(picture)
        list(source.tally.lines())
    except SourceError:
        return


def read_scores_table(path: Path) -> None:
    """Read a table of scores, as `report` and a resumed `score` do."""
    from liftmap.engines.tables import read_distances, read_norms, read_rows, read_scores
    from liftmap.errors import LiftmapError

    def rows(path: Path) -> list[object]:
        return list(read_rows(path))

    for read in (read_scores, read_distances, read_norms, rows):
        try:
            read(path)
        except LiftmapError:
            continue


def read_body(path: Path) -> None:
    """Read what a client sends to the service as text."""
    from liftmap.errors import ImageError
    from liftmap.images.decode import decode
    from liftmap.serve.asked import decoded

    try:
        decode(decoded(path.read_bytes().decode("latin-1")))
    except ImageError:
        return


def read_model(path: Path) -> None:
    """Load the model folder that a file lies in, and all that its settings say."""
    from liftmap.detector import Detector
    from liftmap.errors import LiftmapError

    for name, data in _model().items():
        if name != path.name:
            (path.parent / name).write_bytes(data)
    try:
        detector = Detector.from_pretrained(path.parent, device="cpu")
        detector.judge.check()
    except LiftmapError:
        return


Seed = Callable[[], bytes]
# the file's name, a valid one's bytes, and what reads it
KINDS: dict[str, tuple[str, Seed, Callable[[Path], None]]] = {
    "png": ("x.png", lambda: _image("PNG"), read_source),
    "jpeg": ("x.jpg", lambda: _image("JPEG"), read_source),
    "webp": ("x.webp", lambda: _image("WEBP"), read_source),
    "tiff": ("x.tif", lambda: _image("TIFF", compression="tiff_lzw"), read_source),
    "bmp": ("x.bmp", lambda: _image("BMP"), read_source),
    "gif": ("x.gif", lambda: _image("GIF"), read_source),
    "avif": ("x.avif", lambda: _image("AVIF"), read_source),
    "heic": ("x.heic", _heic, read_source),
    "jpeg2000": ("x.jp2", lambda: _image("JPEG2000"), read_source),
    "ppm": ("x.ppm", lambda: _image("PPM"), read_source),
    "deep-png": ("x.png", lambda: _deep("PNG"), read_source),
    "deep-tiff": ("x.tif", lambda: _deep("TIFF"), read_source),
    "zip": ("x.zip", _zip, read_source),
    "tar": ("x.tar", lambda: _tar("w"), read_source),
    "tar.gz": ("x.tar.gz", lambda: _tar("w:gz"), read_source),
    "npz": ("x.npz", lambda: _array(True), read_source),
    "npy": ("x.npy", lambda: _array(False), read_source),
    "deep-npy": ("x.npy", lambda: _array(False, ">f4"), read_source),
    "any-name": ("x.dat", lambda: _tar("w:gz"), read_source),
    "idx": ("x-ubyte", _idx, read_source),
    "idx.gz": ("x-ubyte.gz", lambda: gzip.compress(_idx()), read_source),
    "parquet": ("x.parquet", _parquet, read_source),
    "parquet-paths": ("x.parquet", _parquet_of_paths, read_source),
    "body": ("x.txt", lambda: base64.b64encode(_image("PNG")), read_body),
    "scores": ("x.parquet", _scores, read_scores_table),
    "liftmap.json": ("liftmap.json", lambda: _model()["liftmap.json"], read_model),
    "config.json": ("config.json", lambda: _model()["config.json"], read_model),
    "weights": (
        "diffusion_pytorch_model.safetensors",
        lambda: _model()["diffusion_pytorch_model.safetensors"],
        read_model,
    ),
}


def read(kind: str, data: bytes, folder: Path) -> float:
    """Let a kind's reader have the bytes as a file in the folder; seconds that it took.

    Anything but liftmap's own errors goes on to the caller, and so does taking too long.
    """
    name, _, reader = KINDS[kind]
    (folder / name).write_bytes(data)
    begun = time.monotonic()
    reader(folder / name)
    seconds = time.monotonic() - begun
    assert seconds < MOST_SECONDS, f"{len(data)} bytes of {kind} took {seconds:.1f} s"
    return seconds


def _fuzz(kind: str, seconds: int) -> None:
    """Run libFuzzer, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["liftmap", "tarfile", "zipfile", "gzip", "PIL"]):
        import liftmap.engines.tables
        import liftmap.images.sources
        import liftmap.serve.asked  # noqa: F401

    with tempfile.TemporaryDirectory() as there:
        corpus, place = Path(there) / "corpus", Path(there) / "place"
        FOUND.mkdir(exist_ok=True)
        corpus.mkdir()
        place.mkdir()
        (corpus / "valid").write_bytes(KINDS[kind][1]())
        for path in FOUND.glob(f"{kind}-*"):
            (corpus / path.name).write_bytes(path.read_bytes())
        options = [
            f"-max_total_time={seconds}",
            f"-timeout={MOST_SECONDS:.0f}",
            "-rss_limit_mb=4096",
            "-max_len=65536",
            f"-artifact_prefix={FOUND}/{kind}-",
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: read(kind, data, place))
        atheris.Fuzz()


def _row(kind: str, seconds: int) -> str:
    """A kind's line of the table, by a process of its own."""
    command = [sys.executable, __file__, kind, "--seconds", str(seconds), "--alone"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    runs = re.findall(r"^#(\d+)", done.stderr, re.MULTILINE)
    found = re.search(r"Test unit written to (\S+)", done.stderr)
    what = "nothing" if done.returncode == 0 else f"{found[1] if found else done.stderr[-300:]}"
    return f"| {kind} | {runs[-1] if runs else 0} | {what} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--minutes", type=float, default=2.0, help="for each kind")
    parser.add_argument("--seconds", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        _fuzz(asked.kinds[0], asked.seconds)
    print("| reader | files | found |\n|---|---|---|", flush=True)
    for kind in asked.kinds or KINDS:
        print(_row(kind, asked.seconds or round(60 * asked.minutes)), flush=True)


if __name__ == "__main__":
    main()
