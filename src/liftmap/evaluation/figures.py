"""The paper's figures that models and data at hand can draw: examples, classes, masks, attempts.

Liu, Zhou & Weinberger 2024, Figures 4 to 11. `liftmap reproduce figure9` and its like.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from liftmap.baselines.inpainters import ByInpainting, FourierInpainting, MAEInpainting
from liftmap.detector import Detector
from liftmap.engines.local import Summary, score_source
from liftmap.engines.tables import read_distances
from liftmap.errors import SettingsError, SourceError
from liftmap.evaluation.benchmark import BenchmarkListener, Participant, Task
from liftmap.evaluation.entrants import Entrant, inpainting, lama
from liftmap.evaluation.keys import data_key
from liftmap.evaluation.metrics import auroc
from liftmap.evaluation.paper import (
    C10,
    KMNIST,
    LARGE_PAIRS,
    MNIST,
    PAIRS,
    PAPER_MASKS,
    SHOWN_MASKS,
    SVHN,
    Pair,
)
from liftmap.files import atomic_path
from liftmap.images.entry import Source, readable
from liftmap.scorer import Scorer
from liftmap.stages.aggregate import aggregate
from liftmap.stages.explanation import Explanation, draw_explanations
from liftmap.stages.masks import MaskSettings, hidden_masks
from liftmap.stages.method import Method

KINDS = ("lpips", "mse", "ssim")
ATTEMPTS = 10
SHOWN = 4  # images of each side in a picture of examples


OnBatch = AbstractContextManager[Callable[[Summary], None]]


class Tools(NamedTuple):
    """What a figure needs of its caller.

    labels: the classes of a source's images.
    names: of data sets, by the names of the sources that their test images come from.
    progress: opens what shows how far a training is; scoring: how far a source's scoring is.
    generator: LaMa's, as its authors export it, if there is one.
    """

    labels: Callable[[Source], Int[np.ndarray, " n"]]
    names: Mapping[str, str] = MappingProxyType({})
    progress: Callable[[], AbstractContextManager[BenchmarkListener]] = lambda: nullcontext(
        BenchmarkListener()
    )
    scoring: Callable[[Source], OnBatch] = lambda source: nullcontext(lambda summary: None)
    generator: Path | None = None

    def title(self, source: Source) -> str:
        """What the source is called in a picture and in its file name."""
        return self.names.get(source.name) or _short(source)


@dataclass(frozen=True)
class Figure:
    """A figure of the paper; `draw` makes the files of one in-domain set's task."""

    title: str
    pairs: tuple[Pair, ...]
    draw: Callable[[Task, Method, Path, Tools], list[Path]]


def draw_masks(folder: Path, side: int = 32) -> Path:
    """Figure 8: the six masks of Table 2, hidden pixels dark, each at its first two attempts."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(1.4 * len(PAPER_MASKS), 3.1), layout="constrained")
    axes = canvas.subplots(2, len(PAPER_MASKS), squeeze=False)
    for column, (name, settings) in enumerate(PAPER_MASKS.items()):
        masks = hidden_masks(settings, side, side, 2)
        for row in range(2):
            axes[row][column].imshow(~masks[row, 0], cmap="gray", vmin=0, vmax=1)
            axes[row][column].set(xticks=[], yticks=[])
        axes[0][column].set_title(name.replace(" ", "\n"), fontsize=7)
    for row in range(2):
        axes[row][0].set_ylabel(f"attempt {row}", fontsize=7)
    path = folder / "figure8.png"
    with atomic_path(path) as temporary:
        canvas.savefig(temporary, dpi=110, format="png")
    return path


def draw_examples(
    task: Task, method: Method, folder: Path, tools: Tools, *, name: str = "figure4"
) -> list[Path]:
    """Figure 4: originals, masked images and redraws of in-domain and other images."""
    detector = Detector.from_pretrained(task.model, method=_uncalibrated(method))
    return _examples(detector.explain, task, folder, tools, name)


def _draw_masked(task: Task, method: Method, folder: Path, tools: Tools, name: str) -> list[Path]:
    """Figures 6 and 7: the same under three masks."""
    made = []
    for mask in SHOWN_MASKS:
        masked = replace(method, mask=PAPER_MASKS[mask])
        made += draw_examples(task, masked, folder, tools, name=_under(name, mask))
    return made


def draw_lama(task: Task, method: Method, folder: Path, tools: Tools) -> list[Path]:
    """Figure 10: redraws by LaMa; without its generator by a stand-in, which this trains first."""
    generator = tools.generator
    if generator is None:
        by_stand_in = partial(inpainting, FourierInpainting)
        return _draw_inpainter(task, folder, tools, by_stand_in, "figure10-stand-in")
    return _draw_inpainter(task, folder, tools, partial(lama, generator), "figure10")


def draw_autoencoder(task: Task, method: Method, folder: Path, tools: Tools) -> list[Path]:
    """Figure 11: redraws by a masked autoencoder, which this trains first."""
    return _draw_inpainter(task, folder, tools, partial(inpainting, MAEInpainting), "figure11")


def _draw_inpainter(
    task: Task, folder: Path, tools: Tools, entrant: Callable[[MaskSettings], Entrant], name: str
) -> list[Path]:
    """A picture for each of three masks; what the inpainter has learnt is kept for all of them."""
    made = []
    for mask in SHOWN_MASKS:
        with tools.progress() as listener:
            scorer = Participant(task, name, entrant(PAPER_MASKS[mask]), 0, folder, listener).scorer
        made += _examples(_explaining(scorer), task, folder, tools, _under(name, mask))
    return made


def _explaining(scorer: Scorer) -> Callable[[Image.Image], Explanation]:
    """What explains an image by an inpainter's redraws.

    Raises:
        SettingsError: the method redraws nothing.
    """
    if not isinstance(scorer, ByInpainting):
        raise SettingsError(f"{type(scorer).__name__} redraws nothing: need an inpainter")
    return lambda image: scorer.explain(scorer.preparation(image))


def _under(name: str, mask: str) -> str:
    """What a figure's picture under a mask is called."""
    return f"{name}-{mask.replace(' ', '-')}"


def _examples(
    explain: Callable[[Image.Image], Explanation],
    task: Task,
    folder: Path,
    tools: Tools,
    name: str,
) -> list[Path]:
    """A picture for each other source: the first images of both sides, explained."""
    made = []
    for other in task.outside:
        explanations, titles = [], []
        for source in (task.inside, other):
            for _, image in islice(readable(source), SHOWN):
                explanations.append(explain(image))
                titles.append(f"{tools.title(source)}\n{explanations[-1].score:.3f}")
        path = folder / f"{name}-{tools.title(task.inside)}-{tools.title(other)}.png"
        draw_explanations(explanations, path, titles=titles)
        made.append(path)
    return made


def draw_attempts(task: Task, method: Method, folder: Path, tools: Tools) -> list[Path]:
    """Figure 9: AUROC against the number of attempts, a line a distance."""
    from matplotlib.figure import Figure as Canvas

    every = replace(_uncalibrated(method), attempts=ATTEMPTS, distance="+".join(KINDS))
    detector = Detector.from_pretrained(task.model, method=every)
    inside, made = _distances(detector, task.inside, folder, tools), []
    for other in task.outside:
        curves = attempts_curves(inside, _distances(detector, other, folder, tools))
        canvas = Canvas(figsize=(4.6, 3.4), layout="constrained")
        axis = canvas.subplots()
        for kind, curve in zip(KINDS, curves, strict=True):
            axis.plot(range(1, ATTEMPTS + 1), curve, marker="o", label=kind)
        axis.set(xlabel="attempts an image", ylabel="AUROC")
        axis.set_title(f"{tools.title(task.inside)}\nagainst {tools.title(other)}", fontsize=8)
        axis.grid(alpha=0.3)
        axis.legend()
        path = folder / f"figure9-{tools.title(task.inside)}-{tools.title(other)}.png"
        with atomic_path(path) as temporary:
            canvas.savefig(temporary, dpi=110, format="png")
        made.append(path)
    return made


def draw_classes(task: Task, method: Method, folder: Path, tools: Tools) -> list[Path]:
    """Figure 5: AUROC of each in-domain class against each class of the other set."""
    detector = Detector.from_pretrained(task.model, method=_uncalibrated(method))
    labelled = [task.inside, *task.outside]
    sides = []
    for source in labelled:
        distances = _distances(detector, source, folder, tools)[..., 0]
        labels = tools.labels(source)[: source.count()]
        if len(labels) != len(distances):
            raise SourceError(
                f"{source.name}: {len(distances)} images scored, {len(labels)} labels; "
                "some images can't be read"
            )
        scores = aggregate(torch.from_numpy(distances), detector.method.aggregate)
        sides.append((scores.double().numpy(), labels))
    made = []
    for other, side in zip(task.outside, sides[1:], strict=True):
        names = tools.title(task.inside), tools.title(other)
        path = folder / f"figure5-{'-'.join(names)}.png"
        _draw_heat_map(class_by_class(*sides[0], *side), *names, path)
        made.append(path)
    return made


def class_by_class(
    scores_in: Float[np.ndarray, " n"],
    labels_in: Int[np.ndarray, " n"],
    scores_out: Float[np.ndarray, " m"],
    labels_out: Int[np.ndarray, " m"],
) -> Float[np.ndarray, "classes_in classes_out"]:
    """AUROC of each pair of classes, in the order of their labels."""
    others = [scores_out[labels_out == label] for label in np.unique(labels_out)]
    mine = [scores_in[labels_in == label] for label in np.unique(labels_in)]
    return np.array([[auroc(one, other) for other in others] for one in mine])


def _draw_heat_map(values: np.ndarray, inside: str, outside: str, path: Path) -> None:
    from matplotlib.figure import Figure as Canvas

    rows, columns = values.shape
    canvas = Canvas(figsize=(1.6 + 0.42 * columns, 1.2 + 0.36 * rows), layout="constrained")
    axis = canvas.subplots()
    shown = axis.imshow(values, cmap="viridis", vmin=min(0.5, values.min()), vmax=1.0)
    for row in range(rows):
        for column in range(columns):
            value = values[row, column]
            colour = "black" if value > 0.8 else "white"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", size=6, color=colour)
    axis.set(xticks=range(columns), yticks=range(rows))
    axis.set_xlabel(f"class of {outside}", fontsize=8)
    axis.set_ylabel(f"class of {inside} (in-domain)", fontsize=8)
    canvas.colorbar(shown, label="AUROC")
    with atomic_path(path) as temporary:
        canvas.savefig(temporary, dpi=110, format="png")


def attempts_curves(
    inside: Float[np.ndarray, "n attempts kinds"], outside: Float[np.ndarray, "m attempts kinds"]
) -> Float[np.ndarray, "kinds attempts"]:
    """AUROC of the median of the first 1, 2, ... attempts, for each distance."""

    def scores(distances: np.ndarray, kind: int, count: int) -> np.ndarray:
        attempts: Tensor = torch.from_numpy(distances[:, :count, kind])
        return aggregate(attempts).double().numpy()

    counts, kinds = range(1, inside.shape[1] + 1), range(inside.shape[2])
    return np.array([
        [auroc(scores(inside, kind, count), scores(outside, kind, count)) for count in counts]
        for kind in kinds
    ])  # fmt: skip


FIGURES: dict[str, Figure] = {
    "figure4": Figure("examples", PAIRS, draw_examples),
    "figure5": Figure("class by class", ((C10, SVHN), (SVHN, C10)), draw_classes),
    "figure6": Figure("faces", LARGE_PAIRS[:1], partial(_draw_masked, name="figure6")),
    "figure7": Figure("bedrooms", LARGE_PAIRS[1:], partial(_draw_masked, name="figure7")),
    "figure10": Figure("LaMa", (*LARGE_PAIRS[:1], (C10, SVHN)), draw_lama),
    "figure11": Figure("a masked autoencoder", ((C10, SVHN),), draw_autoencoder),
    "figure9": Figure("number of attempts", ((MNIST, KMNIST), (KMNIST, MNIST)), draw_attempts),
}


def _uncalibrated(method: Method) -> Method:
    """The method with the paper's single distance, which needs no calibration."""
    return replace(method, distance="lpips", norms=False, early_stop=None)


def _distances(detector: Detector, source: Source, folder: Path, tools: Tools) -> np.ndarray:
    """(n, attempts, kinds) of a source's images, kept in a table named after its making."""
    weights, precision = detector.model.checkpoint.weights_key, detector.denoiser.precision
    made_of = (weights, detector.method.key, precision, detector.preparation, data_key(source))
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    table = folder / "distances" / f"{_short(source)}-{key}.parquet"
    if not table.exists():
        with tools.scoring(source) as on_batch:
            score_source(detector, source, table, to="distances", on_batch=on_batch)
    return read_distances(table)[1]


def _short(source: Source) -> str:
    """The source's name as part of a file name."""
    tail = "-".join(source.name.rstrip("/").split("/")[-2:])
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in tail).strip("-")
