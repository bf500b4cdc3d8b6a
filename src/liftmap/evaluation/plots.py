"""ROC curves and score histograms as PNG files."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from liftmap.evaluation.metrics import auroc, roc_points
from liftmap.files import atomic_path

Scores = Float[np.ndarray, " _"]


def draw_roc(scores_in: Scores, scores_out: dict[str, Scores], path: Path) -> None:
    """One ROC curve for each out-of-distribution source; OOD = positives."""
    figure, axis = _figure()
    for name, scores in scores_out.items():
        fpr, tpr = roc_points(scores_in, scores)
        axis.plot(fpr, tpr, label=f"{name}  AUROC {auroc(scores_in, scores):.3f}")
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)
    axis.set(xlabel="false-alarm rate", ylabel="share of OOD images caught", aspect="equal")
    _save(figure, axis, path)


def draw_histogram(
    name_in: str, scores_in: Scores, scores_out: dict[str, Scores], path: Path
) -> None:
    """Score histograms of all sources on one axis."""
    figure, axis = _figure()
    all_scores = np.concatenate([scores_in, *scores_out.values()])
    bins = np.linspace(all_scores.min(), all_scores.max(), 60)
    for name, scores in {f"{name_in} (in-domain)": scores_in, **scores_out}.items():
        axis.hist(scores, bins=bins, density=True, alpha=0.55, label=name)
    axis.set(xlabel="score (higher = more out-of-distribution)", ylabel="density")
    _save(figure, axis, path)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, axis: Any, path: Path) -> None:
    axis.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
