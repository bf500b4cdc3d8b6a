"""Frozen scores: the same images through the same weights must score the same, to the last bit.

`python tests/golden.py` compares, `python tests/golden.py --freeze` writes `tests/data/golden.npz`
anew. Bits agree only on the same kind of cores with the same torch; elsewhere scores are close.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from liftmap import Detector

HERE = Path(__file__).parent
FROZEN = HERE / "data" / "golden.npz"
SAMPLES = HERE.parent / "src" / "liftmap" / "data" / "samples.npz"
MODELS = {"fashion-mnist": "fashion-mnist", "mnist": HERE.parent / "models" / "mnist"}
METHODS = ("fast", "redraws", "quick")
EACH = 32  # images of each of the two sets


def machine() -> str:
    """What decides the bits: the cores' kind, torch, and how many threads share the work."""
    kind = torch.backends.cpu.get_cpu_capability()
    return f"{kind}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def samples() -> list[np.ndarray]:
    """Packaged images, half of them clothes and half digits."""
    with np.load(SAMPLES) as arrays:
        return [*arrays["fashion_mnist"][:EACH], *arrays["mnist"][:EACH]]


def computed(images: list[np.ndarray], model: str, method: str) -> dict[str, np.ndarray]:
    """Scores and p-values of some images in float32, on the CPU."""
    detector = Detector.from_pretrained(
        MODELS[model], method=method, device="cpu", precision="float32"
    )
    found = detector.predict(images)
    return {"scores": found.scores.numpy(), "p_values": found.p_values.numpy()}


def main() -> None:
    """Freeze, or compare all and say how many differ."""
    now = {
        f"{model}/{method}/{name}": values
        for model in MODELS
        for method in METHODS
        for name, values in computed(samples(), model, method).items()
    }
    if "--freeze" in sys.argv:
        np.savez_compressed(FROZEN, machine=machine(), **now)
        return
    with np.load(FROZEN) as frozen:
        print(f"frozen on {frozen['machine']}, now {machine()}")
        for name, values in now.items():
            differ = int((values != frozen[name]).sum())
            print(f"{name}: {differ} of {len(values)} differ")
        sys.exit(any((values != frozen[name]).any() for name, values in now.items()))


if __name__ == "__main__":
    main()
