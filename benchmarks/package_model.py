"""Copy a trained model to where it is kept, with its card: data, training, loss curve, AUROC.

    python benchmarks/package_model.py --model runs/fashion-mnist --evaluation evaluation \\
        --output src/liftmap/data/models --data "FashionMNIST's training images" --licence MIT

The table of `--evaluation` (a folder that `liftmap evaluate` wrote) is printed as well.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from liftmap.diffusion.checkpoints import CONFIG, WEIGHTS
from liftmap.evaluation.paper import ARTEFACTS, PAIRS, published
from liftmap.files import atomic_path
from liftmap.model import Initial, Model, Training


def evaluation_table(records: list[dict[str, Any]]) -> list[str]:
    """`evaluation.json` as the lines of a Markdown table, the paper's AUROC beside ours."""
    lines = [
        "| in-domain | OOD | images | AUROC (95% interval) | paper | FPR95 (95% interval) "
        "| AUPR in / out | method | evaluations an image | images/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        pair = _data_set(r["in"]), _data_set(r["out"])
        paper = published(ARTEFACTS["table1"], "LMD", pair) if pair in PAIRS else None
        lines.append(
            f"| {r['in']} | {r['out']} | {r['n_in']} + {r['n_out']} "
            f"| {r['auroc']:.4f} ({r['auroc_low']:.4f} to {r['auroc_high']:.4f}) "
            f"| {f'{paper:.3f}' if paper else ''} "
            f"| {r['fpr95']:.4f} ({r['fpr95_low']:.4f} to {r['fpr95_high']:.4f}) "
            f"| {r['aupr_in']:.4f} / {r['aupr_out']:.4f} | {r['method']} "
            f"| {r['network_evaluations']} | {r['images_per_second']:.2f} |"
        )
    return lines


def _data_set(source: str) -> str:
    """The data set that a source's name speaks of; the longest, as CIFAR100 also says CIFAR10."""
    named = [name for pair in PAIRS for name in pair if name.lower() in source.lower()]
    return max(named, key=len, default="")


def draw_loss(training: Training, path: Path) -> None:
    """The loss curve against training steps, the first points cut off where they dwarf the rest."""
    curve, width = training.loss_curve, training.loss_curve_steps_a_point
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([width * (i + 0.5) for i in range(len(curve))], curve)
    axis.set(xlabel="step", ylabel="mean squared error of v", ylim=(0.9 * min(curve), curve[2]))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


def card(name: str, data: str, licence: str, training: Training, table: list[str]) -> str:
    settings, prepared, curve = training.settings, training.preparation, training.loss_curve
    final = sum(curve[-5:]) / len(curve[-5:])
    colours = "grey" if prepared.channels == 1 else "RGB"
    held, started = training.hold_out, training.initial
    return "\n".join(
        [
            f"# {name}",
            "",
            f"Knows {data}, and nothing else. Images are taken as {prepared.height}x"
            f"{prepared.width} {colours}. `liftmap info` shows its calibration.",
            "",
            "| | |",
            "|---|---|",
            f"| data | {data}: {training.images} to train on, {held.share:.0%} (at least "
            f"{held.least}, at most {held.most}) held out for calibration |",
            f"| credit | {licence} |",
            f"| network | preset `{training.preset}`, float16 |",
            f"| training | {training.minutes:.0f} minutes on two CPU cores, {training.steps} "
            f"steps of {settings.batch} images, learning rate {settings.learning_rate:g} "
            f"falling by a cosine, EMA {settings.ema}, seed {settings.seed}, flips "
            f"{'on' if settings.flip else 'off'} |",
            *([f"| started from | {_earlier(started)} |"] if started else []),
            f"| loss | {curve[0]:.3f} at first, {final:.4f} over the last twentieth |",
            "",
            "![training loss](loss.png)",
            "",
            "## How well it separates",
            "",
            "The first images of each source named, in their published order; intervals are "
            "bootstrap 95% over images, for this one model and noise seed 0.",
            "",
            *table,
            "",
        ]
    )


def _earlier(initial: Initial) -> str:
    """The trainings before this one, the last first."""
    text = f"{initial.minutes or 0:.0f} minutes, {initial.steps} steps on the same images"
    return f"{text}; before it {_earlier(initial.initial)}" if initial.initial else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of models")
    parser.add_argument("--data", required=True, help="what the model was trained on, in words")
    parser.add_argument("--licence", required=True, help="of the data, and whose they are")
    parser.add_argument("--evaluation", type=Path, required=True)
    asked = parser.parse_args()
    model = Model.load(asked.model)
    if model.training is None:
        raise SystemExit(f"{asked.model} has no record of its training")
    folder = asked.output / asked.model.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, CONFIG):
        shutil.copyfile(asked.model / name, folder / name)
    training = replace(model.training, source=asked.data)
    replace(model, training=training).save(folder, weights=False)
    records = json.loads((asked.evaluation / "evaluation.json").read_text(encoding="utf-8"))
    table = evaluation_table(records)
    draw_loss(training, folder / "loss.png")
    text = card(asked.model.name, asked.data, asked.licence, training, table)
    (folder / "README.md").write_text(text, encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
