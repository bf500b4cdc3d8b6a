"""The local engine and Ray on the same images: the same table, how fast, and how much memory.

Three runs of `liftmap score`: by itself; with Ray's workers; and again, with a worker killed
(SIGKILL) halfway. --steps and --attempts make an image cheap, so that what the engines add shows.
Then what one process must do for all workers: list the images, and hand out the parts.

    python benchmarks/engines.py FashionMNIST/train-images-idx3-ubyte.gz --work DIR --images 20000
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from liftmap.detector import Detector
from liftmap.engines.ray import Cluster, score_on_ray
from liftmap.engines.tables import read_rows
from liftmap.images.sources import open_source
from liftmap.stages.method import find_method

WORKER = "ray::"  # how Ray titles a process that works
PAUSE = 0.5  # seconds between looks at a run


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that it started."""
    with suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def memory(processes: list[psutil.Process]) -> float:
    """Megabytes that they hold, what they share counted once."""
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().pss / 1e6
    return total


def scoring(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those of Ray's workers that have a model."""
    found = []
    for process in processes:
        with suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if title.startswith(WORKER) and "_Worker" in title:
                found.append(process)
    return found


def run(
    words: list[str], log: Path, look: Callable[[list[psutil.Process]], None]
) -> tuple[float, float]:
    """Seconds and peak megabytes of a command and all that it started."""
    begun, peak = time.monotonic(), 0.0
    with log.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "liftmap", *words], stdout=file, stderr=file
        )
    while child.poll() is None:
        there = tree(psutil.Process(child.pid))
        peak = max(peak, memory(there))
        look(there)
        time.sleep(PAUSE)
    assert child.returncode == 0, f"liftmap {' '.join(words)}: see {log}"
    return time.monotonic() - begun, peak


def against(table: Path, reference: dict[str, float]) -> str:
    """Lost ids, doubled ids and the largest relative difference of a score."""
    rows = [(row["id"], row["score"]) for row in read_rows(table)]
    mine = dict(rows)
    lost, doubled = len(reference.keys() - mine.keys()), len(rows) - len(mine)
    apart = max(abs(mine[id] - want) / abs(want) for id, want in reference.items() if id in mine)
    return f"{lost} | {doubled} | {apart:.1e}"


def listed_a_second(count: int, folder: Path) -> float:
    """Images a second that a folder of so many files is listed at."""
    for i in range(count):
        path = folder / f"{i // 1000:04}" / f"{i:08}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    begun = time.monotonic()
    assert sum(1 for _ in open_source(folder)) == count
    return count / (time.monotonic() - begun)


def parts_a_second(source: str, model: str, parts: int, workers: int, output: Path) -> float:
    """Parts of one image a second, with all that a part takes: handed out, written, told."""
    redraws = find_method("redraws")
    method = replace(redraws, sampler=replace(redraws.sampler, steps=1), attempts=1)
    detector = Detector.from_pretrained(model, method=method)
    times: list[float] = []
    score_on_ray(
        detector,
        open_source(f"{source}[:{parts}]"),
        output,
        Cluster(workers=workers),
        to="distances",
        images_a_part=1,
        on_part=lambda summary: times.append(time.monotonic()),
    )
    begun = len(times) // 2  # when all workers are there
    return (len(times) - 1 - begun) / (times[-1] - times[begun])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--attempts", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    shutil.rmtree(asked.work, ignore_errors=True)
    asked.work.mkdir(parents=True)
    words = [
        "score", f"{asked.source}[:{asked.images}]", "--model", asked.model, "--uncalibrated",
        "--method", "redraws", "--steps", str(asked.steps), "--attempts", str(asked.attempts),
    ]  # fmt: skip
    ray = ["--engine", "ray", "--workers", str(asked.workers)]
    killed: list[int] = []

    def kill(there: list[psutil.Process]) -> None:
        parts = len(list((asked.work / "killed").glob("part-*.parquet")))
        if not killed and parts >= 3 and (workers := scoring(there)):
            workers[0].kill()
            killed.append(parts)

    runs = {
        "local": ("local.parquet", [], lambda there: None),
        f"Ray, {asked.workers} workers": ("ray", ray, lambda there: None),
        "the same, one killed": ("killed", ray, kill),
    }
    print("| engine | seconds | images/s | of local | peak memory, MB | lost | doubled | scores |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    reference: dict[str, float] = {}
    rates: list[float] = []
    for name, (output, options, look) in runs.items():
        table = asked.work / output
        log = asked.work / "log"
        seconds, peak = run([*words, "--output", str(table), *options], log, look)
        reference = reference or {row["id"]: row["score"] for row in read_rows(table)}
        assert len(reference) == asked.images, f"{len(reference)} rows in {table}"
        rates.append(asked.images / seconds)
        cells = f"{seconds:.0f} | {rates[-1]:.1f} | {rates[-1] / rates[0]:.2f} | {peak:.0f}"
        print(f"| {name} | {cells} | {against(table, reference)} |", flush=True)
    assert killed, "no worker was killed"
    print(f"\nA worker was killed when {killed[0]} parts were there.")
    listed = listed_a_second(100_000, asked.work / "files")
    handed = parts_a_second(asked.source, asked.model, 400, asked.workers, asked.work / "parts")
    print(f"Listed: {listed:.0f} images/s. Handed out: {handed:.1f} parts/s of one image each.")


if __name__ == "__main__":
    main()
