"""Images as people have them: each fault that was reported of such tools, and further ones, tried.

    python benchmarks/inputs.py > docs/results/inputs.md

Each case makes its input anew from packaged images, runs the command or the function that a user
would, and says what it saw; a case that isn't right ends the script with exit code 1.
"""

import base64
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from typer.testing import CliRunner

from liftmap import Detector
from liftmap.cli.base import app
from liftmap.engines.local import score_source
from liftmap.engines.tables import read_rows
from liftmap.errors import LiftmapError
from liftmap.images.entry import raw_name
from liftmap.images.prepare import to_image
from liftmap.images.sources import open_source

MODEL = "fashion-mnist"
SAMPLES = Path(__file__).parent.parent / "src/liftmap/data/samples.npz"
QUICK = ("--steps", 2, "--attempts", 2, "--distance", "lpips")
Run = Callable[[Path], str]


class Case(NamedTuple):
    """number: of the reported fault; 0 for a further one. test: where it is stated for good."""

    number: int
    what: str
    expected: str
    test: str
    run: Run


CASES: list[Case] = []


def case(number: int, what: str, expected: str, test: str) -> Callable[[Run], Run]:
    """A case, in the order of this file."""

    def keep(run: Run) -> Run:
        CASES.append(Case(number, what, expected, test, run))
        return run

    return keep


def need(condition: bool, seen: object) -> None:
    if not condition:
        raise AssertionError(str(seen))


def ask(*words: object, code: int | tuple[int, ...] = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    said = " ".join(done.output.split())
    codes = code if isinstance(code, tuple) else (code,)
    need(done.exit_code in codes, f"exit {done.exit_code}: {said[-300:]} {done.exception!r}")
    return said


def score(source: object, table: Path, *words: object, code: int = 0) -> dict[str, Any]:
    """Rows by id of a score with the packaged model."""
    sources = source if isinstance(source, list) else [source]
    ask("score", *sources, "--model", MODEL, "--output", table, *words, code=code)
    return {row["id"]: row for row in read_rows(table)}


def refused(call: Callable[[], object]) -> str:
    try:
        call()
    except LiftmapError as error:
        return str(error)
    raise AssertionError("not refused")


def samples(count: int = 8) -> np.ndarray:
    """Packaged clothes, (n, 28, 28) uint8; the first eight of forty."""
    with np.load(SAMPLES) as arrays:
        images: np.ndarray = arrays["fashion_mnist"][:count]
    return images


def png(grey: np.ndarray) -> bytes:
    return encoded(Image.fromarray(grey), "PNG")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    with io.BytesIO() as stream:
        image.save(stream, kind, **options)
        return stream.getvalue()


def folder(at: Path, count: int = 8) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(samples(count)):
        (at / f"{i:03}.png").write_bytes(png(image))
    return at


def shown(value: object) -> str:
    text = str(value).replace("|", "/").replace("\n", " ")
    return text if len(text) <= 170 else f"{text[:167]}..."


def p_values(*rows: dict[str, Any]) -> str:
    return ", ".join(f"p {row['p_value']:.4f}" for row in rows)


def small_model(at: Path) -> Path:
    """A pipeline's folder as diffusers writes it."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(at)
    return at


def train(source: Path, at: Path, *words: object, code: int = 0) -> str:
    size = ("--channels", 1, "--distance", "mse", "--method", "quick")
    return ask(
        "train", source, "--output", at, "--steps", 2, "--batch", 8, *size, *words, code=code
    )


@case(
    1,
    "DDPMPipeline(...).save_pretrained",
    "calibrated, then scored, reported, told of",
    "cli/test_diffusers.py::test_every_command_takes_a_calibrated_pipeline",
)
def pipeline(work: Path) -> str:
    model, images = small_model(work / "m"), folder(work / "i", 40)
    quick = ("--method", "quick", "--distance", "mse", "--steps", 2)
    ask("calibrate", images, "--model", model, *quick)
    table = work / "s.parquet"
    ask("score", images, "--model", model, "--output", table, *quick, "--limit", 4)
    info = ask("info", model)
    return f"{len(list(read_rows(table)))} rows; info: {info[:60]}"


@case(
    1,
    "a flat folder with query/key/value/proj_attn",
    "likewise",
    "cli/test_diffusers.py::test_a_calibrated_folder_loads_again_and_measures_the_same",
)
def early_names(work: Path) -> str:
    from safetensors.torch import load_file, save_file

    made, images, flat = small_model(work / "m"), folder(work / "i", 40), work / "flat"
    (made / "unet").rename(flat)
    (made / "scheduler" / "scheduler_config.json").rename(flat / "scheduler_config.json")
    weights, renamed = flat / "diffusion_pytorch_model.safetensors", {}
    for name, tensor in load_file(weights).items():
        for new, early in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            name = name.replace(f".{new}.", f".{early}.")
        renamed[name.replace(".to_out.0.", ".proj_attn.")] = tensor
    save_file(renamed, weights, metadata={"format": "pt"})
    need(any("proj_attn" in name for name in renamed), "no early names")
    ask("calibrate", images, "--model", flat, "--method", "quick", "--distance", "mse")
    return ask("info", flat)[:80]


@case(
    2,
    "train --seed 0, then --seed 1 --resume",
    "refused, by name",
    "test_fitting.py::test_whatever_moves_the_split_is_refused_by_name",
)
def other_seed(work: Path) -> str:
    images = folder(work / "i", 40)
    train(images, work / "m")
    return train(images, work / "m", "--seed", 1, "--resume", code=1)


@case(
    3,
    "a stopped score whose images changed",
    "computed anew",
    "engines/test_local.py::test_images_that_changed_since_are_scored_anew",
)
def changed_images(work: Path) -> str:
    class Stopped(BaseException):
        pass

    def stop(summary: Any) -> None:
        if summary.computed:
            raise Stopped

    images, detector = folder(work / "i"), Detector.from_pretrained(MODEL, at_once=8)
    try:
        score_source(detector, open_source(images), work / "s.parquet", on_batch=stop)
    except Stopped:
        (images / "000.png").write_bytes(png(255 - samples()[0]))
    summary = score_source(detector, open_source(images), work / "s.parquet")
    score_source(detector, open_source(images), work / "fresh.parquet")
    need(list(read_rows(work / "s.parquet")) == list(read_rows(work / "fresh.parquet")), "mixed")
    return f"as a fresh run; changed from number {summary.changed_from}"


@case(
    3,
    "benchmark, then other files under the same names",
    "another AUROC",
    "evaluation/test_benchmark.py, evaluation/test_keys.py",
)
def changed_benchmark(work: Path) -> str:
    inside, out = folder(work / "in", 20), folder(work / "out", 20)
    asked = ("benchmark", inside, out, "--model", MODEL, "--train", inside, "--output", work / "b")
    found = []
    for _ in range(2):
        ask(*asked, "--method", "msma")
        found.append(pq.read_table(work / "b" / "benchmark.parquet")["auroc"][0].as_py())
        for path in out.iterdir():
            path.write_bytes(png(255 - np.asarray(Image.open(path))))
    need(abs(found[0] - 0.5) < 1e-9 and found[1] > 0.9, found)
    return f"AUROC {found[0]:.2f}, then {found[1]:.2f}"


@case(
    4,
    "Parquet: ids twice, and null",
    "unique ids, said once",
    "images/test_tables.py::test_ids_are_unique_whatever_the_column_says",
)
def repeated_ids(work: Path) -> str:
    images = [png(image) for image in samples(4)]
    pq.write_table(pa.table({"id": ["a", "a", None, "b"], "image": images}), work / "p.parquet")
    said = ask("check", work / "p.parquet")
    rows = score(work / "p.parquet", work / "s.parquet")
    need(list(rows) == ["a", "a#2", "row 2", "b"], list(rows))
    return f"{', '.join(rows)}; {said[said.index('note') :]}"


@case(
    4,
    "zip and tar: members of one name",
    "likewise",
    "images/test_archives.py::test_repeated_names_get_numbers_and_it_is_said_once",
)
def repeated_members(work: Path) -> str:
    with tarfile.open(work / "t.tar", "w") as archive:
        for image in samples(3):
            add(archive, "a.png", png(image))
    rows = score(work / "t.tar", work / "s.parquet")
    need(len({row["score"] for row in rows.values()}) == 3, rows)
    return ", ".join(f"{id} {row['score']:.3f}" for id, row in rows.items())


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data) if data else None)


@case(
    5,
    "three broken images, --fail-if-flagged 0.1",
    "exit code other than 0",
    "cli/test_check.py::test_nothing_checked_is_no_success",
)
def all_broken(work: Path) -> str:
    for name in "abc":
        (work / f"{name}.png").write_text("no image")
    asked = ("--model", MODEL, "--output", work / "s.csv", "--fail-if-flagged", 0.1)
    said = ask("score", work, *asked, code=5)
    return f"exit 5: {said[said.index('incomplete') :]}"


@case(
    6,
    "a file name that is not UTF-8",
    "a row whose id leads back",
    "images/test_folders.py::test_names_that_are_no_text_have_ids_that_lead_back",
)
def no_text(work: Path) -> str:
    (work / "i").mkdir()
    (work / "i" / os.fsdecode(b"caf\xe9.png")).write_bytes(png(samples(1)[0]))
    [id] = score(work / "i", work / "s.parquet")
    need((work / "i" / raw_name(id)).is_file(), id)
    return id


@case(7, ".npy of shape (28, 28, 3)", "one image", "images/test_same_picture.py")
def one_array(work: Path) -> str:
    np.save(work / "a.npy", np.repeat(samples(1)[0][..., None], 3, axis=2))
    return f"{len(score(work / 'a.npy', work / 's.parquet'))} row"


@case(
    7,
    "floats of 0 to 255, one image of the array dark",
    "all alike, by --range or refused",
    "images/test_picture.py::test_floats_are_judged_over_the_array_that_they_belong_to",
)
def float_array(work: Path) -> str:
    images = samples(3).astype(np.float32)
    images[1] /= 300  # below 1: taken for [0, 1], it would be bright
    np.save(work / "a.npy", images)
    rows = score(work / "a.npy", work / "s.parquet", code=5)
    need(all(row["reason"] for row in rows.values()), rows)
    score(work / "a.npy", work / "r.parquet", "--range", "0:255")
    return str(rows["1"]["reason"])


@case(7, "big-endian numbers", "as little-endian", "images/test_same_picture.py")
def big_endian(work: Path) -> str:
    values = samples(2).astype(np.uint16) * np.uint16(257)
    np.save(work / "a.npy", values)
    np.save(work / "b.npy", values.astype(">u2"))
    one, other = (score(work / f"{n}.npy", work / f"{n}.parquet") for n in "ab")
    need(one == other, (one, other))
    return p_values(*other.values())


@case(
    8,
    "twelve bits in files of sixteen",
    "--range: as in eight bits; without it a note",
    "cli/test_check.py::test_the_range_of_deep_images_is_an_option",
)
def twelve_bits(work: Path) -> str:
    eight, twelve = folder(work / "8", 2), work / "12"
    twelve.mkdir()
    for path in eight.iterdir():
        values = np.round(np.asarray(Image.open(path)) / 255 * 4095).astype(np.uint16)
        Image.fromarray(values).save(twelve / path.name)
    one = score(eight, work / "8.parquet")
    other = score(twelve, work / "12.parquet", "--range", "0:4095")
    dark = score(twelve, work / "dark.parquet")
    need(one == other, (one, other))
    need("dark" in dark["000.png"]["notes"][0], dark)
    return f"{p_values(*other.values())}; without: {dark['000.png']['notes'][0]}"


@case(
    8,
    "the same at training",
    "the range found, and kept with the model",
    "test_fitting.py::test_the_range_of_deep_images_is_found_at_training_and_kept",
)
def trained_range(work: Path) -> str:
    (work / "i").mkdir()
    for i, image in enumerate(samples(40)):
        values = np.round(image / 255 * 4095).astype(np.uint16)
        Image.fromarray(values).save(work / "i" / f"{i}.png")
    said = train(work / "i", work / "m")
    kept = json.loads((work / "m" / "liftmap.json").read_text())["preparation"]["value_range"]
    need(kept == [0.0, 4095.0], kept)
    return said[said.index("images of more than 8 bits") :][:110]


@case(
    8,
    "int32 TIFF of 0 to 255",
    "refused without a range, right with it",
    "images/test_picture.py::test_whole_numbers_without_a_range_of_their_own_are_refused",
)
def int32(work: Path) -> str:
    image = samples(1)[0]
    Image.fromarray(image.astype(np.int32)).save(work / "a.tif")
    (work / "a.png").write_bytes(png(image))
    right = score(work / "a.tif", work / "r.parquet", "--range", "0:255")["a.tif"]
    plain = score(work / "a.png", work / "p.parquet")["a.png"]
    need(right["score"] == plain["score"], (right, plain))
    return refused(lambda: to_image(work / "a.tif"))


@case(
    8,
    "TIFF whose zero is white, of 8 and 16 bits",
    "as seen",
    "images/test_picture.py::test_zero_is_white_at_every_depth_and_range",
)
def zero_is_white(work: Path) -> str:
    from forms import zero_is_white as made

    image = samples(1)[0]
    (work / "8.tif").write_bytes(made(255 - image))
    (work / "16.tif").write_bytes(made(65535 - image.astype(np.uint16) * np.uint16(257)))
    (work / "a.png").write_bytes(png(image))
    rows = score(work, work / "s.parquet")
    need(len({row["score"] for row in rows.values()}) == 1, rows)
    return p_values(*rows.values())


@case(
    9,
    "transparency: RGBA, LA, palette, one colour of L, RGB, 16 bits",
    "on white, all alike",
    "images/test_picture.py::test_a_transparent_colour_is_laid_on_white_at_every_depth",
)
def transparency(work: Path) -> str:
    image = samples(1)[0].copy()
    image[image == 7] = 8
    image[:9] = 7  # what is to be clear
    white = np.where(image == 7, 255, image).astype(np.uint8)
    grey, colour = Image.fromarray(image), Image.fromarray(image).convert("RGB")
    alpha = Image.fromarray(np.where(image == 7, 0, 255).astype(np.uint8))
    table = Image.frombytes("P", grey.size, grey.tobytes())
    table.putpalette([shade for i in range(256) for shade in (i, i, i)])
    deep = Image.fromarray(image.astype(np.uint16) * np.uint16(257))
    forms = {
        "white": png(white),
        "L": encoded(grey, "PNG", transparency=7),
        "RGB": encoded(colour, "PNG", transparency=(7, 7, 7)),
        "P": encoded(table, "PNG", transparency=7),
        "16": encoded(deep, "PNG", transparency=7 * 257),
        "GIF": encoded(grey, "GIF", transparency=7),
    }
    for mode, base in (("LA", grey), ("RGBA", colour)):
        over = base.copy()
        over.putalpha(alpha)
        forms |= {mode: encoded(over, "PNG"), f"{mode} tif": encoded(over, "TIFF")}
    for name, data in forms.items():
        (work / name).write_bytes(data)
    rows = score(work, work / "s.parquet")
    need(len({row["score"] for row in rows.values()}) == 1, rows)
    return f"{len(rows)} forms: {p_values(next(iter(rows.values())))}"


@case(
    10,
    "EXIF orientation of a PIL image",
    "as the file's path, for each kind of file",
    "images/test_picture.py::test_a_picture_given_to_python_is_turned_as_its_file_is",
)
def orientation(work: Path) -> str:
    detector, exif = Detector.from_pretrained(MODEL), Image.Exif()
    exif[274] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(samples(1)[0])))
    found = {}
    for kind in ("PNG", "TIFF", "WEBP", "JPEG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        (work / kind).write_bytes(encoded(stored, kind, exif=exif, **options))
        with Image.open(work / kind) as opened:
            found[kind] = [detector.score(form).item() for form in (work / kind, opened)]
    need(all(a == b for a, b in found.values()), found)
    upright = detector.score(samples(1)[0]).item()
    need(all(found[kind][0] == upright for kind in ("PNG", "TIFF", "WEBP")), found)
    return f"4 kinds of files, each one score; PNG, TIFF, WebP that of the upright ({upright:.3f})"


@case(
    11,
    "tar: links inside and out, pipe, sparse, contiguous",
    "read, or named",
    "images/test_archives.py",
)
def tar_members(work: Path) -> str:
    data = png(samples(1)[0])
    with tarfile.open(work / "t.tar", "w") as archive:
        add(archive, "link.png", type=tarfile.SYMTYPE, linkname="d/a.png")
        add(archive, "d/a.png", data)
        add(archive, "hard.png", type=tarfile.LNKTYPE, linkname="d/a.png")
        add(archive, "contiguous.png", data, type=tarfile.CONTTYPE)
        add(archive, "out.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "pipe.png", type=tarfile.FIFOTYPE)
    rows = score(work / "t.tar", work / "s.parquet", "--most-skipped", 0.5)
    fine = [id for id, row in rows.items() if not row["reason"]]
    need(len(fine) == 4 and len(rows) == 6, rows)
    named = "; ".join(rows[id]["reason"] for id in ("out.png", "pipe.png"))
    return f"scored: {', '.join(fine)}; named: {named}"


@case(
    12,
    "HEIC, AVIF, JP2, PGM, JFIF, WebP, no ending, wrong ending, capitals",
    "read by content; the rest counted in one line",
    "images/test_folders.py::test_content_decides_what_is_an_image",
)
def formats(work: Path) -> str:
    import pillow_heif

    image, i = Image.fromarray(samples(1)[0]), work / "i"
    i.mkdir()
    for name, kind in (("a.avif", "AVIF"), ("b.jp2", "JPEG2000"), ("c.pgm", "PPM"),
                       ("d.jfif", "JPEG"), ("e.webp", "WEBP"), ("none", "PNG"),
                       ("wrong.txt", "PNG"), ("F.PNG", "PNG")):  # fmt: skip
        (i / name).write_bytes(encoded(image, kind))
    pillow_heif.from_pillow(image.convert("RGB").resize((64, 64))).save(i / "g.heic")
    for name in ("notes.txt", "film.mp4", "table.csv", "README"):
        (i / name).write_text("no image")
    said = ask("check", i)
    rows = score(i, work / "s.parquet")
    need(len(rows) == 9 and not any(row["reason"] for row in rows.values()), rows)
    return f"9 scored; {said[said.index('note') :]}"


@case(
    13,
    "a subfolder that can't be listed",
    "named; exit code",
    "cli/test_check.py::test_a_folder_that_cannot_be_listed_is_in_the_exit_code",
)
def unlisted(work: Path) -> str:
    images = folder(work / "i", 2)
    (images / "locked").mkdir()
    real = os.scandir

    def refuse(path: Any) -> Any:  # a stand-in, since nothing is locked for an administrator
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(path)

    os.scandir = refuse  # type: ignore[assignment]
    try:
        said = ask("check", images, code=5)
    finally:
        os.scandir = real
    return f"exit 5: {said[said.index('note') :]}"


@case(
    14,
    "watch: half a file, five seconds, the rest",
    "scored once it is whole",
    "engines/test_watch.py::test_a_slow_upload_is_scored_once_it_is_whole",
)
def slow_upload(work: Path) -> str:
    from liftmap.engines.arrivals import from_folder
    from liftmap.engines.watch import watch

    detector, stop, data = Detector.from_pretrained(MODEL), threading.Event(), png(samples(1)[0])
    incoming = folder(work / "in", 2)
    seen: list[Any] = []
    arrivals = from_folder(incoming, stop, every=0.5)
    running = threading.Thread(
        target=lambda: seen.append(watch(detector, arrivals, work / "out", stop=stop))
    )
    running.start()
    (incoming / "slow.png").write_bytes(data[:200])
    time.sleep(5)
    (incoming / "slow.png").write_bytes(data)
    time.sleep(4)
    stop.set()
    running.join()
    [row] = [row for row in read_rows(work / "out") if row["id"] == "slow.png"]
    need(row["score"] is not None and seen[0].images == 3, row)
    return f"{seen[0].images} images, {seen[0].skipped} skipped; slow.png {p_values(row)}"


@case(
    15,
    "Parquet: several binary columns, struct, paths, shards",
    "the images' column, or asked for",
    "images/test_tables.py",
)
def parquet(work: Path) -> str:
    image, mask = png(samples(1)[0]), png(np.zeros((28, 28), np.uint8))
    (work / "kept").mkdir()
    (work / "kept" / "a.png").write_bytes(image)
    columns: dict[str, dict[str, Any]] = {
        "named": {"mask": [mask], "image": [image]},
        "struct": {"mask": [mask], "x": [{"bytes": image, "path": None}]},
        "path": {"label": [1], "file_name": ["kept/a.png"]},
        "out": {"image": ["/etc/passwd"]},
        "several": {"mask": [mask], "photograph": [image]},
    }
    for name, column in columns.items():
        pq.write_table(pa.table(column), work / f"{name}.parquet")
    scores = {
        name: score(work / f"{name}.parquet", work / f"{name}-s.parquet")["0"]["score"]
        for name in ("named", "struct", "path")
    }
    need(len(set(scores.values())) == 1, scores)
    asked = refused(lambda: open_source(work / "several.parquet"))
    [out] = open_source(work / "out.parquet")
    return f"one score; {asked.rpartition('parquet: ')[2]}; {refused(out.load)[:60]}"


@case(
    16,
    "train --size 16 with LPIPS",
    "refused before training",
    "test_fitting.py::test_a_method_that_needs_larger_images_is_refused_before_anything",
)
def too_small(work: Path) -> str:
    begun = time.monotonic()
    said = ask("train", folder(work / "i", 40), "--output", work / "m", "--size", 16, code=1)
    need(not (work / "m" / "images.u8").exists(), "prepared already")
    return f"after {time.monotonic() - begun:.1f} s: {said[said.index('error') :]}"


@case(
    17,
    "._*, __MACOSX, .ipynb_checkpoints, .Trash-1000, @eaDir, Thumbs.db",
    "passed over, one line",
    "images/test_folders.py::test_what_systems_leave_behind_is_passed_over_and_counted",
)
def litter(work: Path) -> str:
    images = folder(work / "i", 2)
    for name in ("._000.png", "__MACOSX/a.png", ".ipynb_checkpoints/a.png", ".Trash-1000/a.png",
                 "@eaDir/a.png", "Thumbs.db"):  # fmt: skip
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(png(samples(1)[0]))
    said = ask("check", images)
    need(said.startswith("2 images"), said)
    need(ask("check", images, "--hidden").startswith("8 images"), "--hidden")
    return said[said.index("note") :]


@case(
    18,
    "copies in the normal images; scoring images of the training",
    "one side; said",
    "test_fitting.py::test_exact_copies_are_on_one_side_and_counted, "
    "images/test_store.py::test_no_copy_and_no_group_is_on_both_sides",
)
def copies(work: Path) -> str:
    images = folder(work / "i", 30)
    for path in list(images.iterdir())[:10]:
        (images / f"copy-{path.name}").write_bytes(path.read_bytes())
    said = train(images, work / "m")
    told = said[said.index("exact cop") - 4 :].split(" note ")[0][:110]
    rows = ask("score", images, "--model", work / "m", "--output", work / "s.csv",
                   "--uncalibrated", "--method", "quick", "--distance", "mse")  # fmt: skip
    return f"train: {told}; score: {rows[rows.index('note of') :][:110]}"


@case(
    18,
    "train --group-by",
    "a group is on one side",
    "test_fitting.py::test_groups_are_on_one_side_also_when_the_split_is_made_again",
)
def groups(work: Path) -> str:
    for number in range(8):
        folder(work / "i" / f"part{number}", 5 + number % 3)
        for path in (work / "i" / f"part{number}").iterdir():
            path.write_bytes(png(np.roll(np.asarray(Image.open(path)), number, axis=1)))
    said = train(work / "i", work / "m", "--group-by", "folder", "--hold-out", 0.3)
    return said[said.index("groups") - 2 :][:110]


@case(
    19,
    "calibrated in bf16, scored in float32",
    "refused, with what to do",
    "test_precision.py; the change of p: docs/guarantee.md",
)
def precision(work: Path) -> str:
    made = Detector.from_pretrained(MODEL)
    judge = replace(made.judge, precision="bf16")
    replace(made.model, judges={judge.method.key: judge}).save(work / "m")
    asked = ("score", folder(work / "i", 2), "--model", work / "m", "--output", work / "s.csv")
    said = ask(*asked, "--precision", "float32", code=1)
    return said[said.index("error") :]


@case(
    20,
    "train on 40 images, and on 2",
    "said before training what they will support",
    "stages/test_outlook.py::test_what_is_announced_is_what_the_calibration_accepts",
)
def few(work: Path) -> str:
    said = train(folder(work / "i", 40), work / "m")
    at = said.index("held out for calibration")
    two = train(folder(work / "2", 2), work / "m2", code=1)
    return f"{said[at + 25 : at + 220]}; 2: {two[two.index('error') :][:60]}"


@case(21, "base64 in lines, data URL, application/octet-stream", "accepted", "serve/test_asked.py")
def bodies(work: Path) -> str:
    from fastapi.testclient import TestClient

    from liftmap.serve.app import create_app

    data = png(samples(1)[0])
    lines = base64.encodebytes(data).decode()
    with TestClient(create_app(Detector.from_pretrained(MODEL))) as client:
        url = f"data:image/png;base64,{lines}"
        kind = {"content-type": "application/octet-stream"}
        answers = [client.post("/v1/score", json={"images": [text]}) for text in (lines, url)]
        answers.append(client.post("/v1/score", content=data, headers=kind))
    scores = {answer.json()["results"][0]["score"] for answer in answers}
    need(len(scores) == 1 and None not in scores, scores)
    return f"3 bodies, one score {scores.pop():.3f}"


@case(
    22,
    "PYTHONIOENCODING=ascii, output to a file",
    "plain characters, exit 0",
    "cli/test_streams.py",
)
def ascii_stream(work: Path) -> str:
    images, output = str(folder(work / "i", 2)), str(work / "s.csv")
    asked = ["score", images, "--model", MODEL, "--output", output]
    command = [sys.executable, "-m", "liftmap", *asked]
    told = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=told, check=False)
    need(done.returncode == 0 and done.stdout.isascii() and done.stderr.isascii(), done)
    [line] = [text for text in done.stdout.decode().splitlines() if "p-values" in text]
    return f"exit 0; {line}"


@case(
    23,
    "IDX, npz, Parquet, zip, tar under any name",
    "known by their first bytes",
    "images/test_same_picture.py::test_every_form_has_one_score",
)
def any_name(work: Path) -> str:
    import gzip

    image = samples(1)[0]
    (work / "fashion.gz").write_bytes(
        gzip.compress(struct.pack(">4I", 2051, 1, 28, 28) + image.tobytes())
    )
    with (work / "arrays").open("wb") as file:
        np.savez(file, images=image[None])
    pq.write_table(pa.table({"image": [png(image)]}), work / "table.bin")
    with zipfile.ZipFile(work / "photos.jpg", "w") as archive:
        archive.writestr("a.png", png(image))
    with tarfile.open(work / "backup", "w:gz") as tar:
        add(tar, "a.png", png(image))
    found = set()
    for path in list(work.iterdir()):
        found |= {row["score"] for row in score(path, work / "s.parquet").values()}
        (work / "s.parquet").unlink()
    need(len(found) == 1, found)
    return f"5 files, one score {found.pop():.3f}"


def same(work: Path, name: str, data: bytes, *words: object) -> str:
    """A file that shows the first sample scores as its PNG does."""
    (work / name).write_bytes(data)
    (work / "plain.png").write_bytes(png(samples(1)[0]))
    [row] = score(work / name, work / "s.parquet", *words).values()
    [plain] = score(work / "plain.png", work / "plain.parquet").values()
    need(row["score"] == plain["score"], (row, plain))
    return f"{p_values(row)}, as its PNG"


def named(work: Path, source: object, id: str, *words: object) -> str:
    """An image that can't be used has its row with the reason; the others their scores."""
    rows = score(source, work / "s.parquet", "--most-skipped", 0.9, *words)
    need(sum(not row["reason"] for row in rows.values()) > 0, rows)
    need(rows[id]["reason"] and rows[id]["score"] is None, rows)
    return f"{id}: {rows[id]['reason']}"


def noted(work: Path, name: str, data: bytes, *words: object) -> str:
    (work / name).write_bytes(data)
    [row] = score(work / name, work / "s.parquet", *words).values()
    need(bool(row["notes"]), row)
    return f"{p_values(row)}; note: {row['notes'][0]}"


@case(0, "uncompressed TIFF on its side, non-square, by its path", "as seen", "images/forms.py")
def side(work: Path) -> str:
    exif = Image.Exif()
    exif[274] = 6
    wide = np.asarray(Image.fromarray(samples(1)[0]).resize((56, 28), Image.Resampling.NEAREST))
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(wide)))
    (work / "a.tif").write_bytes(encoded(stored, "TIFF", exif=exif))
    need(np.array_equal(np.asarray(to_image(work / "a.tif")), wide), "garbled")
    return "every pixel in its place (Pillow maps such a file wrongly by its path)"


@case(0, "PGM whose white is 4095", "as seen, whatever --range", "images/test_picture.py")
def pgm(work: Path) -> str:
    values = np.round(samples(1)[0] / 255 * 4095).astype(">u2").tobytes()
    data = b"P5 28 28 4095\n" + values
    same(work, "a.pgm", data)
    return same(work, "a.pgm", data, "--range", "0:1023")


@case(0, "JPEG 2000 of 16 bits", "as seen", "images/test_same_picture.py")
def deep_jp2(work: Path) -> str:
    values = samples(1)[0].astype(np.uint16) * np.uint16(257)
    return same(work, "a.jp2", encoded(Image.fromarray(values), "JPEG2000"))


@case(0, "16-bit PNG with alpha, which Pillow reads as 8 bits", "as seen", "images/forms.py")
def deep_alpha(work: Path) -> str:
    from forms import deep_colour_png

    return same(work, "a.png", deep_colour_png(samples(1)[0], 4, 2))


@case(0, "12 bits in a 16-bit colour PNG", "a note", "images/test_picture.py")
def deep_colour(work: Path) -> str:
    from forms import deep_colour_png

    return noted(work, "a.png", deep_colour_png(samples(1)[0] // 16, 2, 3))


@case(0, "8 bits where the range is 0:4095", "scored, with a note", "images/test_picture.py")
def shallow(work: Path) -> str:
    return noted(work, "a.png", png(samples(1)[0]), "--range", "0:4095")


@case(0, "16 bits up to 65535 where the range is 0:4095", "refused", "images/test_picture.py")
def beyond(work: Path) -> str:
    images = folder(work / "i", 2)
    values = samples(1)[0].astype(np.uint16) * np.uint16(257)
    (images / "deep.png").write_bytes(encoded(Image.fromarray(values), "PNG"))
    return named(work, images, "deep.png", "--range", "0:4095")


@case(0, "a GIF of two frames", "the first, with a note", "images/test_picture.py")
def frames(work: Path) -> str:
    first, second = (Image.fromarray(image) for image in samples(2))
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    return noted(work, "a.gif", data)


@case(0, "camera raw data, which look like TIFF", "named", "images/test_folders.py")
def raw(work: Path) -> str:
    images = folder(work / "i", 2)
    (images / "DSC1.NEF").write_bytes(encoded(Image.fromarray(samples(1)[0]), "TIFF"))
    return named(work, images, "DSC1.NEF")


@case(0, "DNG under the name .tif", "named", "images/test_picture.py")
def dng(work: Path) -> str:
    images = folder(work / "i", 2)
    preview = encoded(Image.fromarray(samples(1)[0]), "TIFF", tiffinfo={254: 1})
    (images / "a.tif").write_bytes(preview)
    return named(work, images, "a.tif")


@case(0, "a pipe called a.png", "named, without waiting", "images/test_folders.py")
def pipe(work: Path) -> str:
    images = folder(work / "i", 2)
    os.mkfifo(images / "a.png")
    return named(work, images, "a.png")


@case(0, "a link to nothing", "named", "images/test_sources.py")
def broken_link(work: Path) -> str:
    images = folder(work / "i", 2)
    (images / "a.png").symlink_to("nowhere.png")
    return named(work, images, "a.png")


@case(0, "links of folders in a circle", "each image once", "images/test_sources.py")
def circle(work: Path) -> str:
    images = folder(work / "i", 2)
    (images / "again").symlink_to(images, target_is_directory=True)
    return f"{len(score(images, work / 's.parquet'))} rows"


@case(0, "a zip with a password", "named", "images/test_archives.py")
def password(work: Path) -> str:
    with zipfile.ZipFile(work / "z.zip", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.writestr(name, png(samples(1)[0]))
    data = bytearray((work / "z.zip").read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    (work / "z.zip").write_bytes(data)
    return named(work, work / "z.zip", "a.png")


@case(0, "a symbolic link in a zip", "what it leads to", "images/test_archives.py")
def zip_link(work: Path) -> str:
    with zipfile.ZipFile(work / "z.zip", "w") as archive:
        archive.writestr("d/a.png", png(samples(1)[0]))
        link = zipfile.ZipInfo("b.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "d/a.png")
    one, other = score(work / "z.zip", work / "s.parquet").values()
    need(one["score"] == other["score"], (one, other))
    return "both one score"


@case(0, "a tar that ends in the middle", "an error, no table", "images/test_sources.py")
def cut_tar(work: Path) -> str:
    with tarfile.open(work / "t.tar.gz", "w:gz") as archive:
        for number in range(20):
            add(archive, f"{number}.png", os.urandom(2000))
    data = (work / "t.tar.gz").read_bytes()
    (work / "t.tar.gz").write_bytes(data[: len(data) // 2])
    asked = ("score", work / "t.tar.gz", "--model", MODEL, "--output", work / "s.csv")
    said = ask(*asked, code=1)
    need(not (work / "s.csv").exists(), "a table")
    return said[said.index("error") :]


@case(0, "a zip beside images", "named as a source of its own", "images/test_folders.py")
def zip_inside(work: Path) -> str:
    images = folder(work / "i", 2)
    with zipfile.ZipFile(images / "more.zip", "w") as archive:
        archive.writestr("a.png", png(samples(1)[0]))
    said = ask("check", images)
    return said[said.index("note") :]


@case(0, "two folders with the same names, in one run", "unique ids", "images/test_folders.py")
def two_folders(work: Path) -> str:
    rows = score([folder(work / "a", 2), folder(work / "b", 2)], work / "s.parquet")
    need(len(rows) == 4, rows)
    return ", ".join(id.removeprefix(f"{work}/") for id in rows)


@case(0, "@list.txt with CRLF, a BOM, a name that is gone", "named", "images/test_folders.py")
def listed(work: Path) -> str:
    images = folder(work / "i", 2)
    lines = [f"{images}/000.png", f"{work}/gone.png", f"{images}/001.png"]
    (work / "list.txt").write_text("\r\n".join(lines), encoding="utf-8-sig")
    told = named(work, f"@{work}/list.txt", lines[1])
    return told.replace(str(work), "")


@case(0, "NaN in one row of an array", "named", "images/test_sources.py")
def nan(work: Path) -> str:
    values = samples(3) / 255
    values[1, 0, 0] = np.nan
    np.save(work / "a.npy", values)
    return named(work, work / "a.npy", "1")


@case(0, "more pixels than Pillow allows", "named; --most-pixels", "images/test_picture.py")
def large(work: Path) -> str:
    images = folder(work / "i", 2)
    Image.new("1", (9500, 9500)).save(images / "large.png")
    told = named(work, images, "large.png")
    rows = score(images, work / "m.parquet", "--most-pixels", 100_000_000)
    need(rows["large.png"]["score"] is not None, rows)
    return told


@case(
    0,
    "a photograph of 12 megapixels, and a model of 32x32",
    "worth a sentence",
    "images/test_survey.py",
)
def photograph(work: Path) -> str:
    Image.fromarray(samples(1)[0]).resize((4000, 3000)).save(work / "a.jpg")
    said = ask("check", work, "--model", MODEL)
    return said[said.index("4000x3000 pixels become") :][:170]


@case(0, "an image of one pixel; one of one colour", "named; told of", "images/test_prepare.py")
def tiny(work: Path) -> str:
    images = folder(work / "i", 2)
    Image.new("L", (1, 1)).save(images / "one.png")
    Image.new("L", (40, 40), 9).save(images / "blank.png")
    said = ask("check", images, "--most-skipped", 0.5)
    need("of one colour throughout: 1, blank.png" in said, said)
    return named(work, images, "one.png")


@case(0, "arrays, tensors and lists given to Python", "as the file", "images/test_prepare.py")
def python(work: Path) -> str:
    detector, image = Detector.from_pretrained(MODEL), samples(1)[0]
    (work / "a.png").write_bytes(png(image))
    forms = [
        work / "a.png", str(work / "a.png"), png(image), image, image / 255.0,
        image.astype(np.uint16) * np.uint16(257), np.stack([image, np.full_like(image, 255)], 2),
        torch.from_numpy(image)[None], torch.from_numpy(image)[None] / 255.0,
        Image.fromarray(image), Image.fromarray(image).convert("RGBA"),
    ]  # fmt: skip
    found = set(detector.score(forms).tolist())
    need(len(found) == 1, found)
    wrong = refused(lambda: detector.score([image.astype(np.float32)]))
    return f"{len(forms)} forms, one score; floats of 0 to 255: {wrong[:90]}"


@case(0, "a CMYK JPEG", "as colour", "images/test_prepare.py")
def cmyk(work: Path) -> str:
    colour = Image.fromarray(samples(1)[0]).convert("RGB")
    data = encoded(colour.convert("CMYK"), "JPEG", quality=100, subsampling=0)
    off = np.abs(np.asarray(to_image(data), int) - np.asarray(colour, int)).mean()
    need(off < 2, off)
    return f"{off:.2f} grey levels off on average"


@case(0, "HEIC where the extra is not installed", "the extra's name", "images/test_folders.py")
def no_heif(work: Path) -> str:
    import pillow_heif

    images, before = folder(work / "i", 2), sys.modules["pillow_heif"]
    picture = Image.fromarray(samples(1)[0]).convert("RGB").resize((64, 64))
    pillow_heif.from_pillow(picture).save(images / "a.heic")
    sys.modules["pillow_heif"] = None  # type: ignore[assignment]
    try:
        return named(work, images, "a.heic")
    finally:
        sys.modules["pillow_heif"] = before


@case(0, "TIFF of 16 bits, plane by plane, uncompressed", "refused", "images/test_quirks.py")
def planes(work: Path) -> str:
    from forms import tiff

    images = folder(work / "i", 2)
    values = np.repeat(samples(1).astype(np.uint16), 3, axis=0).reshape(84, 28)
    strips = tuple(8 + i * 1568 for i in range(3))
    data = tiff(values, t257=28, t258=(16, 16, 16), t262=2, t273=strips, t277=3, t278=28,
                t279=(1568, 1568, 1568), t284=2)  # fmt: skip
    (images / "a.tif").write_bytes(data)
    return named(work, images, "a.tif")


@case(0, "TIFF of signed eight bits", "refused, right with --range", "images/test_quirks.py")
def signed(work: Path) -> str:
    from forms import tiff

    image = samples(1)[0]
    values = (image.astype(np.int16) - 128).astype(np.int8).view(np.uint8)
    data = tiff(values, t339=2)
    told = refused(lambda: to_image(data))
    plain = np.asarray(to_image(data, (-128.0, 127.0)))
    need(np.array_equal(plain, image), "not as seen")
    return told


@case(
    0,
    "TIFF with a palette of eight bits, as old programs wrote it",
    "as seen",
    "images/test_quirks.py",
)
def old_palette(work: Path) -> str:
    from forms import tiff

    return same(work, "a.tif", tiff(samples(1)[0], t262=3, t320=tuple([*range(256)] * 3)))


@case(
    0,
    "JPEG 2000 of 12 bits in colour",
    "refused: Pillow makes black of white",
    "images/test_quirks.py",
)
def deep_colour_jp2(work: Path) -> str:
    from forms import jpeg_2000

    images = folder(work / "i", 2)
    (images / "a.jp2").write_bytes(jpeg_2000(samples(1)[0], 12, 3))
    return named(work, images, "a.jp2")


@case(0, "a download whose second half is zeros", "named", "images/test_quirks.py")
def zeros(work: Path) -> str:
    images, data = folder(work / "i", 2), encoded(Image.fromarray(samples(1)[0]), "JPEG")
    (images / "a.jpg").write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    return named(work, images, "a.jpg")


@case(0, "a tar that ends between two members", "exit code", "images/test_archives.py")
def tar_boundary(work: Path) -> str:
    with tarfile.open(work / "t.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, image in enumerate(samples(4)):
            add(archive, f"{number}.png", png(image))
    with tarfile.open(work / "t.tar") as archive:
        third = archive.getmembers()[2].offset
    (work / "t.tar").write_bytes((work / "t.tar").read_bytes()[:third])
    said = ask("score", work / "t.tar", "--model", MODEL, "--output", work / "s.csv", code=5)
    return f"exit 5: {said[said.index('note could') :]}"


@case(0, "two tars in one file", "exit code", "images/test_archives.py")
def two_tars(work: Path) -> str:
    with tarfile.open(work / "t.tar", "w") as archive:
        add(archive, "a.png", png(samples(1)[0]))
    (work / "t.tar").write_bytes((work / "t.tar").read_bytes() * 2)
    said = ask("score", work / "t.tar", "--model", MODEL, "--output", work / "s.csv", code=5)
    return f"exit 5: {said[said.index('note could') :]}"


@case(0, ".npy of shape (8, 784)", "refused", "images/test_folders.py")
def flat(work: Path) -> str:
    np.save(work / "a.npy", samples(8).reshape(8, -1))
    return refused(lambda: open_source(work / "a.npy"))


@case(0, "alpha of 12 bits beside 12 bits of grey", "as seen", "images/test_quirks.py")
def deep_alpha_array(work: Path) -> str:
    values = np.round(samples(1)[0] / 255 * 4095).astype(np.uint16)
    np.save(work / "a.npy", np.dstack([values, np.full_like(values, 4095)]))
    [row] = score(work / "a.npy", work / "s.parquet", "--range", "0:4095").values()
    (work / "b.png").write_bytes(png(samples(1)[0]))
    [plain] = score(work / "b.png", work / "p.parquet").values()
    need(row["score"] == plain["score"], (row, plain))
    return f"{p_values(row)}, as its PNG"


@case(
    0,
    "a list that names itself, an empty zip, an empty part",
    "named; the rest scored",
    "images/test_folders.py",
)
def bad_list(work: Path) -> str:
    images = folder(work / "i", 2)
    lines = [f"@{work}/list.txt", f"{images}[5:9]", f"{images}"]
    (work / "list.txt").write_text("\n".join(lines))
    rows = score(f"@{work}/list.txt", work / "s.parquet", "--most-skipped", 0.9)
    named_rows = [row["reason"] for row in rows.values() if row["reason"]]
    need(len(rows) == 4 and len(named_rows) == 2, rows)
    return "; ".join(named_rows)


@case(0, "calibrate on images that were trained on", "left out, said", "engines/test_calibrate.py")
def calibrated_on_trained(work: Path) -> str:
    images = folder(work / "i", 40)
    train(images, work / "m")
    asked = ("calibrate", images, "--model", work / "m", "--method", "quick", "--distance", "mse")
    said = ask(*asked)
    return said[said.index("left out") :][:60]


def row_of(one: Case) -> tuple[bool, str]:
    """A case's row of the table, and whether it was right."""
    with tempfile.TemporaryDirectory() as there:
        try:
            seen, right = shown(one.run(Path(there)).replace(there, "")), True
        except Exception as error:
            seen, right = f"**wrong**: {shown(error)}", False
    number = str(one.number or "+")
    tests = " ".join(f"`{name.strip()}`" for name in one.test.split(","))
    return right, f"| {number} | {one.what} | {one.expected} | {seen} | {tests} |"


def main() -> None:
    """Run those cases whose numbers are given, or all, and print the table."""
    asked = {int(number) for number in sys.argv[1:]}
    right = []
    print(INTRODUCTION)
    print("| | input | expected | seen | tests |\n|---|---|---|---|---|", flush=True)
    for one in CASES:
        if not asked or one.number in asked:
            fine, row = row_of(one)
            right.append(fine)
            print(row, flush=True)
    print(f"\n{sum(right)} of {len(right)} right.")
    raise SystemExit(not all(right))


INTRODUCTION = """# Images as people have them

    python benchmarks/inputs.py > docs/results/inputs.md

The numbers are those of 23 kinds of faults that users reported of similar tools; + are further
inputs of those kinds. Each was made anew from packaged clothes (FashionMNIST) and given to the
command or the function that a user would use, mostly `liftmap score` with the packaged model.
"Seen" is from that run; tests are below `tests/`. [The page about images](../images.md) says what
is expected of whom.
"""


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "images"))
    main()
