"""Our UNet beside diffusers' UNet2DModel: starting, evaluating, training, in one process in turn.

python benchmarks/network.py --preset tiny --channels 1
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from diffusers import UNet2DModel
from torch import nn

from liftmap.diffusion.denoiser import Denoiser, Parametrisation, autocast
from liftmap.diffusion.group_norm import use_channels_last
from liftmap.diffusion.network import Patched, build_unet, find_preset
from liftmap.diffusion.process import VP
from liftmap.diffusion.training import loss_of


def import_seconds(statement: str) -> float:
    """The best of three fresh interpreters."""
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        took.append(time.perf_counter() - begun)
    return min(took)


def rates(calls: dict[str, Callable[[], object]], images: int, rounds: int) -> dict[str, float]:
    """Images a second of each call, the best of some rounds taken in turn."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - begun)
    return {name: images / seconds for name, seconds in best.items()}


def train_step(network: nn.Module, x: torch.Tensor, t: torch.Tensor) -> None:
    with autocast(x.device, "bf16"):
        loss = loss_of(network, VP(), Parametrisation(), x, t, torch.randn_like(x))
    loss.backward()  # type: ignore[no-untyped-call]
    network.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4)
    asked = parser.parse_args()
    preset, side = find_preset(asked.preset), asked.side
    ours = build_unet(preset, height=side, width=side, channels=asked.channels)
    theirs = UNet2DModel.from_config(ours.config.__dict__)
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(asked.batch, asked.channels, side, side) * 2 - 1
    t = torch.linspace(0.01, 1, asked.batch)
    named = {"UNet2DModel": theirs, "ours": ours}
    networks = {k: use_channels_last(Patched(v, preset.patch)) for k, v in named.items()}
    training = rates(
        {k: lambda n=v: train_step(n, x, t) for k, v in networks.items()},  # type: ignore[misc]
        asked.batch,
        asked.rounds,
    )
    denoisers = {
        k: Denoiser(v.eval().requires_grad_(False), VP(), Parametrisation(), precision="bf16")
        for k, v in networks.items()
    }
    forward = rates(
        {k: lambda d=v: d(x, 0.5) for k, v in denoisers.items()},  # type: ignore[misc]
        asked.batch,
        asked.rounds,
    )
    print(f"preset {asked.preset}, {side}x{side}, {asked.channels} channels, batch {asked.batch}\n")
    print("| network | import, s | forward, images/s | forward and backward, images/s |")
    print("|---|---|---|---|")
    statements = {
        "UNet2DModel": "from diffusers import UNet2DModel",
        "ours": "import liftmap.diffusion.network",
        "torch alone": "import torch",
    }
    for name, statement in statements.items():
        cells = [f"{table[name]:.0f}" if name in table else "" for table in (forward, training)]
        print(f"| {name} | {import_seconds(statement):.1f} | {' | '.join(cells)} |", flush=True)
    ratios = [table["ours"] / table["UNet2DModel"] for table in (forward, training)]
    print(f"| ratio | | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
