"""Calibrate a model folder anew on the images that its training held out, and forget the old.

For models whose training folder is gone: the split is made again from the training's record.
With --add the other calibrations stay.

    python benchmarks/recalibrate.py --model models/mnist --source MNIST/train-images-idx3-ubyte.gz
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from validation import known_split

from liftmap.cli.progress import CountProgress
from liftmap.cli.terminal import about_table
from liftmap.detector import Detector
from liftmap.model import Model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--source", required=True, help="what the model was trained on")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--methods", nargs="+", default=["fast"])
    parser.add_argument("--add", action="store_true", help="keep what is there")
    asked = parser.parse_args()
    console = Console()
    model = Model.load(asked.model)
    if not asked.add:
        model = replace(model, density=None, judges={})
    with TemporaryDirectory() as folder:
        store = Path(folder) / "images.u8"
        train, held_out = known_split(Detector(model), asked.source, asked.root, store)
        for method in asked.methods:
            detector = Detector(model, method=method)
            with CountProgress(console, method) as on_batch:
                if detector.method.norms and model.density is None:
                    detector.learn_density(train)
                detector.calibrate(held_out, on_batch=on_batch)
            model = detector.model
    model.save(asked.model, weights=False)
    console.print(about_table(model))


if __name__ == "__main__":
    main()
