"""Commands that are killed again and again at random moments: is anything lost, doubled or damaged?

Each command is started, killed (SIGKILL) after a random time and started again, as often as asked,
then left to end; what it wrote is compared with a run that nothing disturbed. If it ends before, it
begins anew in another folder. The images are the packaged samples, shifted this way and that, as
what they show doesn't matter.

    python benchmarks/faults.py --work DIR
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from liftmap.cli.demo import SAMPLES
from liftmap.detector import Detector
from liftmap.engines.tables import read_rows
from liftmap.model import Model

MODEL = "fashion-mnist"


@dataclass
class Job:
    """A command below a folder, and what is wrong with what it left there beside another's."""

    words: Callable[[Path], list[str]]
    differs: Callable[[Path, Path], str]


def same_rows(done: Path, undisturbed: Path) -> str:
    """Nothing, or how two tables of scores differ."""
    got, want = (list(read_rows(path)) for path in (done, undisturbed))
    ids = [row["id"] for row in got]
    lost, doubled = {row["id"] for row in want} - set(ids), len(ids) - len(set(ids))
    if lost or doubled:
        return f"{len(lost)} lost, {doubled} doubled"
    mine = {row["id"]: row["score"] for row in got}
    apart = max(abs(mine[row["id"]] - row["score"]) for row in want)
    return "" if apart < 1e-3 else f"scores differ by {apart:.2g}"


def same_calibration(done: Path, undisturbed: Path) -> str:
    got, want = (
        Detector.from_pretrained(p, method="quick").judge.decides_by for p in (done, undisturbed)
    )
    close = np.allclose(got.scores, want.scores, atol=1e-3)
    return "" if len(got.scores) == len(want.scores) and close else "other scores"


def same_training(done: Path, undisturbed: Path) -> str:
    steps = [record.steps if (record := Model.load(p).training) else 0 for p in (done, undisturbed)]
    return "" if steps[0] == steps[1] else f"{steps[0]} steps instead of {steps[1]}"


def same_table(done: Path, undisturbed: Path) -> str:
    got, want = (pq.read_table(p / "benchmark.parquet").to_pylist() for p in (done, undisturbed))
    apart = max(abs(g["auroc"] - w["auroc"]) for g, w in zip(got, want, strict=True))
    return "" if apart < 1e-3 else f"AUROC differs by {apart:.2g}"


def jobs(source: Path, files: Path, model: str = MODEL) -> dict[str, Job]:
    """By the command's name; the source is an array of images, `files` are images in a folder."""
    quick = ["--method", "quick"]
    quarter = len(np.load(source, mmap_mode="r")) // 4

    def calibrate(folder: Path) -> list[str]:
        if not (folder / "m").exists():
            Detector.from_pretrained(model, method="quick").save(folder / "m")
        return ["calibrate", str(source), "--model", str(folder / "m"), *quick]

    def listed(folder: Path) -> list[str]:
        names = folder / "names.txt"
        names.write_text("\n".join(sorted(map(str, files.iterdir()))))
        return ["watch", "--model", model, "--output", str(folder / "w"), *quick]

    sizes = ["--preset", "tiny", "--channels", "1", "--batch", "16", "--save-every", "0.03"]
    return {
        "score": Job(
            lambda f: [
                "score", str(source), "--model", model, "--output", str(f / "s.parquet"), *quick
            ],
            lambda a, b: same_rows(a / "s.parquet", b / "s.parquet"),
        ),
        "watch": Job(listed, lambda a, b: same_rows(a / "w", b / "w")),
        "calibrate": Job(calibrate, lambda a, b: same_calibration(a / "m", b / "m")),
        "train": Job(
            lambda f: [
                "train", str(source), "--output", str(f / "m"), "--steps", "400", *sizes,
                *(["--resume"] if (f / "m" / "training.safetensors").exists() else []), *quick,
            ],
            lambda a, b: same_training(a / "m", b / "m"),
        ),
        "benchmark": Job(
            lambda f: [
                "benchmark", f"{source}[:{quarter}]", f"{source}[{quarter}:{2 * quarter}]",
                "--model", model, "--train", f"{source}[{2 * quarter}:]", "--output", str(f / "b"),
                "--method", "lmd-quick", "--method", "mahalanobis",
            ],
            lambda a, b: same_table(a / "b", b / "b"),
        ),
    }  # fmt: skip


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """The command, with the names to watch on its standard input if there are some."""
    names = folder / "names.txt"
    command = [sys.executable, "-m", "liftmap", *words]
    with (names if names.exists() else Path("/dev/null")).open("rb") as given:
        return subprocess.Popen(
            command, stdin=given, stdout=subprocess.DEVNULL, stderr=(folder / "err").open("ab")
        )


def run(job: Job, folder: Path, kills: int, longest: float, draw: random.Random) -> tuple[int, int]:
    """(times killed, times that it ended with an error of its own) until it has ended well."""
    folder.mkdir(parents=True)
    killed = errors = 0
    while True:
        process = start(job.words(folder), folder)
        if killed < kills:
            try:
                process.wait(draw.uniform(0, longest))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed += 1
                continue
        if process.wait() == 0:
            return killed, errors
        errors += 1
        if errors > 3:
            return killed, errors


def write_images(count: int, folder: Path) -> tuple[Path, Path]:
    """(an array of that many different pictures of the packaged samples, the same as files)."""
    with np.load(SAMPLES) as samples:
        base = samples["fashion_mnist"]
    draw = np.random.default_rng(0)
    rows = [
        np.roll(base[i % len(base)], draw.integers(-6, 7, 2), axis=(0, 1)) for i in range(count)
    ]
    files = folder / "files"
    files.mkdir(parents=True)
    np.save(folder / "images.npy", np.stack(rows))
    for i, row in enumerate(rows):
        Image.fromarray(row).save(files / f"{i:06}.png")
    return folder / "images.npy", files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=50, help="kills of each command")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds until a kill")
    parser.add_argument("--only", nargs="+")
    asked = parser.parse_args()
    shutil.rmtree(asked.work, ignore_errors=True)
    every, draw = jobs(*write_images(asked.images, asked.work)), random.Random(0)
    print("| command | killed | ended | errors of its own | lost, doubled, different | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in asked.only or every:
        begun = time.monotonic()
        run(every[name], asked.work / name / "undisturbed", 0, 0.0, draw)
        killed = errors = times = 0
        wrong: list[str] = []
        while killed < asked.rounds and times < asked.rounds:
            disturbed = asked.work / name / f"disturbed-{times}"
            left = asked.rounds - killed
            kills, failures = run(every[name], disturbed, left, asked.longest, draw)
            killed, errors, times = killed + kills, errors + failures, times + 1
            found = every[name].differs(disturbed, asked.work / name / "undisturbed")
            wrong += [found] if found else []
        seconds = time.monotonic() - begun
        told = "; ".join(wrong) or "nothing"
        print(f"| {name} | {killed} | {times} | {errors} | {told} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
