"""From a table of scores, its model and its images to what the page shows, as plain data."""

import base64
import io
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from liftmap.detector import Detector
from liftmap.errors import ImageError, SettingsError
from liftmap.images.entry import Source
from liftmap.images.ranges import eight_bits
from liftmap.stages.calibrate import Calibration, largest_flagged
from liftmap.stages.explanation import Explanation, draw_explanations, in_words

SHOWN = 24  # images in the gallery
THUMBNAIL = 96  # pixels a side
WINDOWS = 40  # of the chart over the table's order, at most
SMALLEST_WINDOW = 50  # images
STEPS = 200  # of the slider, a tenth of a percent each
POINTS = 200  # of a ROC curve, at most

Scores = Float[np.ndarray, " _"]


@dataclass(frozen=True)
class Pictured:
    """An image of the gallery; pictures are data URLs."""

    id: str
    score: float
    p_value: float
    words: str
    thumbnail: str
    explanation: str


@dataclass(frozen=True)
class Curve:
    """How well known out-of-distribution images separate from the in-domain ones.

    auroc, fpr95: (value, low, high), the last two a 95% bootstrap interval.
    points: (false-alarm rate, share of OOD images caught) along the ROC curve.
    """

    name: str
    n_in: int
    n_out: int
    auroc: tuple[float, float, float]
    fpr95: tuple[float, float, float]
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Page:
    """Everything that the page shows.

    rows: (id, score, p-value, attempts) of each scored image, in the table's order.
    skipped: (id, reason). windows: (first row, images, flagged, low, high), the last two the 95%
    interval of how many are flagged when all are in-domain.
    limit: the largest p-value that is flagged at the rate. limits: at each tenth of a percent, for
    the page's slider.
    chance: the chance that as many or more are flagged when all images are in-domain.
    """

    title: str
    rate: float
    rows: list[tuple[str, float, float, int]]
    skipped: list[tuple[str, str]]
    calibration: list[float]
    limit: float
    limits: list[float]
    expected: tuple[float, float]
    chance: float
    windows: list[tuple[int, int, int, float, float]]
    gallery: list[Pictured]
    curves: list[Curve]
    settings: dict[str, str]

    @property
    def flagged(self) -> int:
        """Images that are flagged at the page's rate."""
        return sum(row[2] <= self.limit for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """What the page's script reads."""
        return asdict(self)


def collect(
    table: Iterable[dict[str, Any]],
    detector: Detector,
    source: Source | None,
    *,
    title: str,
    rate: float = 0.05,
    shown: int = SHOWN,
    ood_ids: str | None = None,
    ood_scores: dict[str, Scores] | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Page:
    """What the page shows of a table of scores with p-values.

    Args:
        table: rows as `score` writes them.
        source: the images that were scored, for the gallery; None for a page without pictures.
        ood_ids: a pattern of the ids that are known to be out-of-distribution, as "digits/*".
        ood_scores: scores of further images that are known to be, by what they are called.
        on_image: called with how many gallery images are explained, and of how many.

    Raises:
        SettingsError: the table has no p-values, none of its images is in the source, or the
            pattern fits none or all of its ids.
        CalibrationError: the model's calibration can't support the rate.
    """
    rows, skipped = [], []
    for row in table:
        if row["reason"]:
            skipped.append((row["id"], row["reason"]))
        elif row["p_value"] is None:
            raise SettingsError("the table has no p-values: score without --uncalibrated")
        else:
            rows.append((row["id"], row["score"], row["p_value"], row["attempts"]))
    scored = {row[0] for row in rows}  # a watched image may have become whole
    skipped = [row for row in skipped if row[0] not in scored]
    calibration = detector.judge.decides_by
    p_values = torch.tensor([row[2] for row in rows], dtype=torch.float64)
    flags = calibration.flagged(p_values, rate).numpy()
    low, high = interval(calibration, rate, len(rows))
    order = sorted(range(len(rows)), key=lambda i: (rows[i][2], -rows[i][1]))[:shown]
    gallery = []
    if source is not None and order:
        gallery = _gallery([rows[i] for i in order], detector, source, on_image)
    return Page(
        title=title,
        rate=rate,
        rows=rows,
        skipped=skipped,
        calibration=list(calibration.scores),
        limit=calibration.limit(rate),
        limits=[largest_flagged(step / 1000) for step in range(1, STEPS + 1)],
        expected=(low, high),
        chance=chance(calibration, rate, len(rows), int(flags.sum())),
        windows=windows(calibration, rate, flags),
        gallery=gallery,
        curves=curves(rows, ood_ids, ood_scores or {}),
        settings=_settings(detector),
    )


def curves(
    rows: list[tuple[str, float, float, int]], ood_ids: str | None, ood_scores: dict[str, Scores]
) -> list[Curve]:
    """A ROC curve for each group of images that is known to be out-of-distribution.

    Raises:
        SettingsError: the pattern fits no id, or all.
    """
    known = np.array([ood_ids is not None and fnmatchcase(row[0], ood_ids) for row in rows])
    scores = np.array([row[1] for row in rows])
    groups = dict(ood_scores)
    if ood_ids is not None:
        if not known.any() or known.all():
            raise SettingsError(
                f"the pattern {ood_ids!r} fits {int(known.sum())} of {len(rows)} ids: need some, "
                "and some that it doesn't fit"
            )
        groups[ood_ids] = scores[known]
    return [_curve(name, scores[~known], group) for name, group in groups.items()]


def _curve(name: str, inside: Scores, outside: Scores) -> Curve:
    from liftmap.evaluation.metrics import evaluate_scores, roc_points  # slow to import

    found = evaluate_scores(inside, outside)
    fpr, tpr = roc_points(inside, outside)
    every = np.linspace(0, len(fpr) - 1, min(POINTS, len(fpr))).round().astype(int)
    points = list(zip(fpr[every].tolist(), tpr[every].tolist(), strict=True))
    auroc, fpr95 = astuple(found.auroc), astuple(found.fpr95)
    return Curve(name, found.n_in, found.n_out, auroc, fpr95, points)


def _flags(calibration: Calibration, rate: float, images: int) -> Any:
    """The distribution of how many of so many in-domain images are flagged.

    Beta-binomial: the binomial's own chance and the calibration set's (Vovk 2012; see Calibration).
    """
    from scipy.stats import betabinom

    known = len(calibration.scores)
    k = calibration.allowed(rate)
    return betabinom(images, k, known + 1 - k)


def interval(calibration: Calibration, rate: float, images: int) -> tuple[float, float]:
    """How many of so many in-domain images are flagged, in 95 of 100 cases."""
    low, high = _flags(calibration, rate, images).interval(0.95)
    return float(low), float(high)


def chance(calibration: Calibration, rate: float, images: int, flagged: int) -> float:
    """The chance of so many flags or more when all images are in-domain."""
    return float(_flags(calibration, rate, images).sf(flagged - 1)) if images else 1.0


def windows(
    calibration: Calibration, rate: float, flags: np.ndarray
) -> list[tuple[int, int, int, float, float]]:
    """Flags along the table's order, in equal stretches; see `Page`."""
    count = max(1, min(WINDOWS, len(flags) // SMALLEST_WINDOW))
    found = []
    for part in np.array_split(np.arange(len(flags)), count):
        if len(part):
            low, high = interval(calibration, rate, len(part))
            found.append((int(part[0]), len(part), int(flags[part].sum()), low, high))
    return found


def _gallery(
    wanted: list[tuple[str, float, float, int]],
    detector: Detector,
    source: Source,
    on_image: Callable[[int, int], None],
) -> list[Pictured]:
    ids = {row[0] for row in wanted}
    images: dict[str, Image.Image] = {}
    for entry in source:
        if entry.id in ids:
            try:
                images[entry.id] = eight_bits(entry.load(), detector.preparation.value_range)
            except ImageError:
                continue
        if len(images) == len(ids):
            break
    if not images:
        raise SettingsError(f"{source.name} has none of the table's images: name what was scored")
    found = {}
    for id, image in images.items():
        found[id] = detector.explain(image)
        on_image(len(found), len(images))
    return [
        Pictured(
            id=id,
            score=score,
            p_value=p,
            words=in_words(p) + found[id].shares,
            thumbnail=_thumbnail(images[id]),
            explanation=_picture(found[id]),
        )
        for id, score, p, _ in wanted
        if id in found
    ]


def _thumbnail(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    with io.BytesIO() as file:
        small.save(file, "WEBP", quality=80)
        return _data_url(file.getvalue(), "webp")


def _picture(explanation: Explanation) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "e.png"
        draw_explanations([explanation], path)
        return _data_url(path.read_bytes(), "png")


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _settings(detector: Detector) -> dict[str, str]:
    """The model and the method in a few lines."""
    method, model, preparation = detector.method, detector.model, detector.preparation
    channels = "grey" if preparation.channels == 1 else "RGB"
    training = model.training
    trained = f"{training.images} of {training.source}" if training else model.trained_on
    return {
        "images are taken as": f"{preparation.height}x{preparation.width} {channels}",
        "model trained on": trained,
        "calibrated on": f"{len(detector.judge.decides_by.scores)} held-out images",
        "sampler": f"{method.sampler.name}, {method.sampler.steps} steps",
        "attempts": f"at most {method.attempts}",
        "distance": method.distance,
        "weights": model.checkpoint.weights_key,
    }
