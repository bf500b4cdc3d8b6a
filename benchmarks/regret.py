"""Likelihood regret with batch normalisation, as in its authors' code, by length of training.

Everything else is as in `liftmap.baselines.likelihood_regret`. The first images of each side are
scored after each number of batches given; AUROC and median regret, in nats.

    python benchmarks/regret.py --train cifar10_train.npz:images \\
        --inside cifar10_test.npz:images --outside svhn_crops_test.npz:images --at 1000 3000 8000
"""

import argparse
import tempfile
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from liftmap.baselines.likelihood_regret import VAE, LikelihoodRegret
from liftmap.evaluation.metrics import auroc
from liftmap.images.prepare import Preparation
from liftmap.images.sources import open_source
from liftmap.images.store import store_source


def normalised(layers: nn.Sequential, first: int) -> nn.Sequential:
    """The same layers, with a batch norm before each ReLU; `first` channels go in."""
    found: list[nn.Module] = []
    channels = first
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            found.append(nn.BatchNorm2d(channels))
        channels = getattr(layer, "out_channels", channels)
        found.append(layer)
    return nn.Sequential(*found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True)
    parser.add_argument("--inside", required=True)
    parser.add_argument("--outside", nargs="+", required=True)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--at", type=int, nargs="+", default=[3000], help="numbers of batches")
    parser.add_argument("--images", type=int, default=40, help="of each")
    parser.add_argument("--samples", type=int, default=50, help="of a likelihood")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    prepare = Preparation(32, 32, asked.channels)

    scorer = LikelihoodRegret(
        prepare, steps=max(asked.at), samples=asked.samples, seed=asked.seed, device="cpu"
    )
    vae: VAE = scorer.network
    vae.encoder.layers = normalised(vae.encoder.layers, asked.channels)
    vae.decoder.layers = normalised(vae.decoder.layers, vae.decoder.shape[0])
    sides = {
        name: torch.stack([prepare(e.load()) for e in islice(open_source(name), asked.images)])
        for name in (asked.inside, *asked.outside)
    }
    print(f"| batches | {' | '.join(f'AUROC {name}' for name in asked.outside)} | median regrets |")
    print(f"|{'---|' * (len(asked.outside) + 2)}")

    def tell(done: int, steps: int) -> None:
        if done not in asked.at:
            return
        vae.eval()
        scores = {
            name: torch.cat(
                [scorer.compare(scorer.answers(b)) for b in torch.split(x, scorer.batch)]
            )
            for name, x in sides.items()
        }
        vae.train()
        cells = [
            f"{auroc(scores[asked.inside].numpy(), scores[name].numpy()):.3f}"
            for name in asked.outside
        ]
        medians = ", ".join(f"{score.median():.0f}" for score in scores.values())
        print(f"| {done} | {' | '.join(cells)} | {medians} |", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        images = store_source(open_source(asked.train), prepare, Path(folder) / "train")
        scorer.learn(images, images, on_batch=tell)


if __name__ == "__main__":
    main()
