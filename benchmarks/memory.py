"""Whether memory grows with the number of images: peak resident memory of `liftmap score`.

One step and one attempt an image: memory doesn't depend on either, time does.

    python benchmarks/memory.py --source torchvision:FashionMNIST:train --root DATA
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory


def peak_megabytes(words: list[str]) -> float:
    """Peak resident memory of a command, from the system's own account of the child."""
    child = subprocess.Popen([sys.executable, "-m", "liftmap", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"liftmap {' '.join(words)} failed")
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--source", required=True)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 60000])
    asked = parser.parse_args()
    fixed = ["--uncalibrated", "--steps", "1", "--attempts", "1"]
    root = ["--root", str(asked.root)] if asked.root else []
    print("| images | peak memory, MB |")
    print("|---|---|")
    with TemporaryDirectory() as folder:
        for count in asked.images:
            output = ["--output", f"{folder}/{count}.parquet", "--limit", str(count)]
            words = ["score", asked.source, "--model", asked.model, *output, *fixed, *root]
            print(f"| {count} | {peak_megabytes(words):.0f} |", flush=True)


if __name__ == "__main__":
    main()
