"""Training on two processes against one: the same loss curve, also when killed and resumed.

Three runs of the same steps: one process; two processes; two processes of which one is killed
(SIGKILL) halfway, so that the job stops, then resumed on one process.

    python benchmarks/processes.py --source FashionMNIST/train-images-idx3-ubyte.gz --work DIR
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

PARTS = 6  # of the curve that are printed


def command(asked: argparse.Namespace, folder: Path, processes: int, resume: bool) -> list[str]:
    """`liftmap train`, by itself or under torchrun."""
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    else:
        launch = []
    train = [
        "-m", "liftmap", "train", asked.source, "--output", str(folder), "--channels", "1",
        "--steps", str(asked.steps), "--batch", str(asked.batch), "--limit", str(asked.images),
        "--method", "quick",
        "--save-every", "0.1", *(["--resume"] if resume else []),
    ]  # fmt: skip
    return [sys.executable, *launch, *train]


def run(words: list[str], threads: int, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            words, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
        )


def step_of(folder: Path) -> int:
    """The last saved step of a training; 0 before there is one."""
    try:
        found: int = json.loads((folder / "liftmap.json").read_text())["training"]["steps"]
    except (OSError, ValueError, KeyError):
        return 0
    return found


def workers_of(launcher: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="of grey images")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32, help="of all processes together")
    parser.add_argument("--images", type=int, default=10_000)
    asked = parser.parse_args()
    shutil.rmtree(asked.work, ignore_errors=True)
    asked.work.mkdir(parents=True)
    log, rows = asked.work / "log", []
    for name, processes in (("one process", 1), ("two processes", 2)):
        begun = time.monotonic()
        folder = asked.work / name.replace(" ", "-")
        assert run(command(asked, folder, processes, False), 2 // processes, log).wait() == 0, log
        rows.append((name, folder, time.monotonic() - begun, ""))
    begun, folder = time.monotonic(), asked.work / "killed"
    launcher = run(command(asked, folder, 2, False), 1, log)
    while step_of(folder) < asked.steps / 3 and launcher.poll() is None:
        time.sleep(0.2)
    os.kill(workers_of(launcher)[1], signal.SIGKILL)
    killed_at = step_of(folder)
    code = launcher.wait(120)
    assert code != 0, "the job went on without one of its processes"
    assert run(command(asked, folder, 1, True), 2, log).wait() == 0, log
    note = f"the job ended with code {code}; resumed from step {killed_at} on one process"
    rows.append(("two, one killed", folder, time.monotonic() - begun, note))
    print(f"| run | loss in each sixth of {asked.steps} steps | seconds | |\n|---|---|---|---|")
    for name, folder, seconds, note in rows:
        curve = json.loads((folder / "liftmap.json").read_text())["training"]["loss_curve"]
        ends = [round(i * len(curve) / PARTS) for i in range(PARTS + 1)]
        means = [sum(curve[a:b]) / (b - a) for a, b in pairwise(ends)]
        print(f"| {name} | {', '.join(f'{m:.4f}' for m in means)} | {seconds:.0f} | {note} |")


if __name__ == "__main__":
    main()
