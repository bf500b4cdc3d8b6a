"""Where the network's time goes: each kind of operation's share, and its rate against the peak.

One denoiser on full batches, each operation timed where torch dispatches it (on a CPU, where calls
return when they are done; torch's own profiler slows this network by a fifth). The share of the
peak counts convolutions, linear layers and attention; the rest moves memory.

    python benchmarks/profile_network.py --model fashion-mnist --batch 256
"""

import argparse
import time
from collections import defaultdict
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from liftmap.detector import Detector
from liftmap.evaluation.speed import matrix_peak

KINDS = {
    "addmm": "linear layers",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "silu": "SiLU",
    "silu_": "SiLU",
    "addcmul": "group norm: scale and shift",
    "avg_pool2d": "group norm: sums",
    "pow": "group norm: squares",
    "cat": "skip connections",
    "upsample_nearest2d": "upsampling",
    "add": "additions",
    "add_": "additions",
    "clone": "copies",
    "copy_": "copies",
    "_to_copy": "copies",
}


class Clock(TorchDispatchMode):
    """Seconds and floating-point operations by kind of operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.work: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        begun = time.perf_counter()
        out = func(*args, **kwargs)
        took = time.perf_counter() - begun
        name = _label(func._overloadpacket.__name__, args)
        self.seconds[name] += took
        count = flop_registry.get(func._overloadpacket)
        if count:
            self.work[name] += count(*args, **kwargs, out_val=out)
        return out


def _label(name: str, args: Any) -> str:
    """The kind of operation; a convolution with its filter's side and its image's."""
    if name != "convolution":
        return KINDS.get(name, "other")
    image, filters = args[0].shape, args[1].shape
    return f"convolution {filters[2]}x{filters[3]} at {image[2]}x{image[3]} pixels"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    detector = Detector.from_pretrained(asked.model)
    peak = matrix_peak(detector.device, detector.denoiser.precision)
    x = torch.randn(asked.batch, *detector.model.checkpoint.image_shape)
    for _ in range(3):
        detector.denoiser(x, 0.5)
    with torch.no_grad(), Clock() as clock:  # inference mode hides operations from a dispatch mode
        for _ in range(asked.rounds):
            detector.denoiser.predict(x, 0.5)
    total = sum(clock.seconds.values())
    print(
        f"matrix peak {peak / 1e9:.0f} GFLOP/s; {1000 * total / asked.rounds:.0f} ms a batch of "
        f"{asked.batch}, {sum(clock.work.values()) / total / peak:.0%} of the peak\n"
    )
    print("| operation | share of time | of matrix peak |")
    print("|---|---|---|")
    for name, took in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        rate = f"{clock.work[name] / took / peak:.0%}" if clock.work[name] else ""
        print(f"| {name} | {took / total:.1%} | {rate} |")


if __name__ == "__main__":
    main()
