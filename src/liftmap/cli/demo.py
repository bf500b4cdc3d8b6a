"""The demo: a packaged model scores packaged images, prints a table, draws a picture."""

from pathlib import Path
from time import monotonic

import numpy as np
from rich.console import Console
from rich.table import Table

from liftmap.cli.progress import ScoreProgress
from liftmap.detector import Detector
from liftmap.engines.local import score_source
from liftmap.engines.tables import odd_rows, read_scores
from liftmap.evaluation.metrics import evaluate_scores
from liftmap.images.sources import open_source
from liftmap.stages.explanation import draw_explanations

SAMPLES = Path(__file__).parent.parent / "data" / "samples.npz"
NORMAL, STRANGE = "fashion_mnist", "mnist"
PICTURED = 3  # rows of each kind in the picture


def run_demo(console: Console, output: Path, false_alarms: float) -> None:
    """Score FashionMNIST (normal) and MNIST (strange) samples with the packaged model."""
    begun = monotonic()
    console.print("Clothes are normal: the model saw FashionMNIST alone. MNIST's digits are not.\n")
    detector = Detector.from_pretrained("fashion-mnist")
    tables = {}
    for name in (NORMAL, STRANGE):
        source = open_source(f"{SAMPLES}:{name}")
        tables[name] = output / f"{name}.parquet"
        with ScoreProgress(console, source.count(), name) as on_batch:
            score_source(
                detector, source, tables[name], false_alarms=false_alarms, on_batch=on_batch
            )
    _print_scores(console, tables)
    found = evaluate_scores(read_scores(tables[NORMAL]), read_scores(tables[STRANGE])).auroc
    console.print(f"\nAUROC {found.value:.3f} (95% interval {found.low:.3f} to {found.high:.3f})")
    picture = output / "explained.png"
    with np.load(SAMPLES) as samples:
        shown = [*samples[NORMAL][:PICTURED], *samples[STRANGE][:PICTURED]]
    explanations = [detector.explain(image) for image in shown]
    titles = [f"score {e.score:.3f}\np {e.p_value:.4f}" for e in explanations]
    draw_explanations(explanations, picture, titles=titles)
    console.print(f"scores: {', '.join(str(t) for t in tables.values())}")
    console.print(f"picture of originals, masks and redraws: {picture}")
    console.print(f"{monotonic() - begun:.0f} seconds")


def _print_scores(console: Console, tables: dict[str, Path]) -> None:
    table = Table("image", "score", "p-value", "decision")
    for name, path in tables.items():
        for row in odd_rows(path, 6):
            decision = "[red]out-of-distribution[/]" if row["is_ood"] else "normal"
            table.add_row(
                f"{name} {row['id']}", f"{row['score']:.4f}", f"{row['p_value']:.4f}", decision
            )
    console.print(table)
    console.print("(the six highest scores of each)")
