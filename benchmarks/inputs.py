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
from liftmap.cli import app
from liftmap.engines.local import score_source
from liftmap.engines.tables import read_rows
from liftmap.errors import LiftmapError
from liftmap.images.entry import raw_name
from liftmap.images.picture import remarks_of
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


def liftmap(*words: object, code: int | tuple[int, ...] = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    said = " ".join(done.output.split())
    codes = code if isinstance(code, tuple) else (code,)
    need(done.exit_code in codes, f"exit {done.exit_code}: {said[-300:]} {done.exception!r}")
    return said


def score(source: object, table: Path, *words: object, code: int = 0) -> dict[str, Any]:
    """Rows by id of a score with the packaged model."""
    sources = source if isinstance(source, list) else [source]
    liftmap("score", *sources, "--model", MODEL, "--output", table, *words, code=code)
    return {row["id"]: row for row in read_rows(table)}


def refused(call: Callable[[], object]) -> str:
    try:
        call()
    except LiftmapError as error:
        return str(error)
    raise AssertionError("not refused")


def samples(count: int = 8) -> np.ndarray:
    """Packaged clothes, (n, 28, 28) uint8."""
    with np.load(SAMPLES) as arrays:
        name = next(key for key in arrays.files if "cloth" in key or "fashion" in key or key == "images")
        images: np.ndarray = arrays[name][:count]
    return images.reshape(len(images), *images.shape[1:3])


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
