"""Lift, Map, Detect, whole: the file to read first. Each stage is a module; here is their order.

pixels -> hidden (masks) -> redraws (inpaint) -> distances -> score (aggregate)
-> p-value and decision (calibrate)
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL.Image import Image
from torch import Tensor

from liftmap.diffusion.checkpoints import Checkpoint, load_checkpoint, save_about, save_checkpoint
from liftmap.diffusion.denoiser import Precision
from liftmap.diffusion.noise import ImageNoise, attempt_seed
from liftmap.diffusion.noise_norms import noise_norms
from liftmap.diffusion.training import TrainingSettings
from liftmap.errors import CalibrationError, ModelError, SettingsError
from liftmap.fitting import FitListener, HoldOut, fit_checkpoint, is_main_process
from liftmap.images.entry import Source
from liftmap.images.prepare import Picture, Preparation, fingerprint, to_image, to_model_range
from liftmap.images.sources import open_source
from liftmap.images.store import PreparedImages
from liftmap.scorer import preparation_of
from liftmap.stages.aggregate import PAIR, Rule, rule_rows, until_settled
from liftmap.stages.calibrate import Calibration
from liftmap.stages.distances import load_distances
from liftmap.stages.explanation import Explanation
from liftmap.stages.inpaint import inpaint, noise_and_denoise
from liftmap.stages.masks import hidden_masks
from liftmap.stages.method import Method, find_method
from liftmap.stages.mixture import COMPONENTS, MOST, Mixture

MAPPED = 64  # in-domain images whose distance maps fix the colours of all
CALM = 0.999  # share of their pixels that are drawn in the darker half of the colours
EVEN = 16  # larger batches of redraws are multiples of this


class Measured(NamedTuple):
    """What scores come from: redraws' distances, and norms of the score if the method asks."""

    distances: Float[Tensor, "b attempts kinds"]
    norms: Float[Tensor, "b levels"]  # no levels if the method doesn't ask

    def rows(self, chosen: Tensor) -> "Measured":
        """Those images' alone."""
        return Measured(self.distances[chosen], self.norms[chosen])


class Scored(NamedTuple):
    """Scores of a batch, higher = more out-of-distribution, and what they come from."""

    scores: Float[Tensor, " b"]
    distances: Float[Tensor, "b attempts kinds"]  # NaN where an attempt was not needed
    norms: Float[Tensor, "b levels"]
    attempts: Int[Tensor, " b"]


class _Batch(NamedTuple):
    """Images on the device, with what each distance compares redraws to, and their seeds."""

    original: Float[Tensor, "b c h w"]
    references: list[Any]
    seeds: list[int]


class Predictions(NamedTuple):
    """Scores, the share of in-domain images at least as odd (p-value), and the decisions."""

    scores: Float[Tensor, " b"]
    p_values: Float[Tensor, " b"]
    is_ood: Bool[Tensor, " b"]


class Detector:
    """Finds the images that don't belong.

    A score is a function of the image and the method's seed, whatever the batch it comes in.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        method: Method | str = "fast",
        device: str | torch.device | None = None,
        precision: Precision | None = None,
        rows: int | None = None,
    ) -> None:
        """Compose a detector from a checkpoint.

        Args:
            device: where the network runs; the first CUDA device by default, if there is one.
            precision: "bf16" or "float32"; bf16 by default where the hardware has it.
            rows: redraws that the network handles at once; halves itself when memory runs out.
        """
        self.checkpoint = checkpoint
        self.method = find_method(method) if isinstance(method, str) else method
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.denoiser = checkpoint.denoiser(self.device, precision=precision)
        self.distances = load_distances(self.method.distance)
        self.preparation = preparation_of(checkpoint)
        height, width = self.preparation.height, self.preparation.width
        # 256 rows of 32x32 keep two cores busy; larger images get fewer
        self.rows = rows or max(1, 256 * 1024 // (height * width))

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "Detector":
        """Load a model folder, a packaged model ("fashion-mnist") or a diffusers hub id.

        Raises:
            ModelError: nothing there, or what is there can't be used; the message says why.
        """
        return cls(load_checkpoint(model), **options)

    @classmethod
    def fit(
        cls,
        source: str | Path | Source,
        output: str | Path,
        *,
        preset: str = "tiny",
        preparation: Preparation | None = None,
        training: TrainingSettings | None = None,
        hold_out: HoldOut | None = None,
        initial: str | Path | None = None,
        resume: bool = False,
        listener: FitListener | None = None,
        **options: Any,
    ) -> "Detector":
        """Train on a source of in-domain images, calibrate on those held out, save to `output`.

        Args:
            initial: a model to go on from, as `from_pretrained` takes it; `preset` is then its own.
        """
        source = open_source(source) if isinstance(source, str | Path) else source
        checkpoint, train, held_out = fit_checkpoint(
            source,
            Path(output),
            preset=preset,
            preparation=preparation or Preparation(32, 32, 3),
            settings=training or TrainingSettings(minutes=40),
            hold_out=hold_out or HoldOut(),
            initial=initial,
            resume=resume,
            listener=listener,
        )
        detector = cls(checkpoint, **options)
        if is_main_process():
            if len(held_out) > 2:  # fewer can't give scales and calibrate
                detector.learn(
                    train, held_out, on_batch=listener.on_calibrated if listener else None
                )
            detector.save(output)
        return detector

    def score_pixels(self, pixels: UInt8[Tensor, "b c h w"]) -> Scored:
        """Score prepared images; everything else comes down to this.

        Raises:
            CalibrationError: several distances without the scales that a calibration gives.
        """
        method, rule = self.method, self.rule
        rule.check(method.distance, norms=method.norms)
        batch = self._batch(pixels)
        norms = self._norms(batch)
        surprise = self._surprise(norms)
        distances = torch.full((len(pixels), method.attempts, len(self.distances)), float("nan"))

        def take(images: Tensor, first: int, last: int) -> Tensor:
            distances[images, first:last] = self._measure(batch, images, first, last)
            known = None if surprise is None else surprise[images]
            return rule.evidence(distances[images, first:last], known)

        scores, attempts = until_settled(
            take, len(pixels), method.attempts, rule.settled, method.aggregate
        )
        return Scored(scores, distances, norms, attempts)

    def scores(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """The scores alone of prepared images; raises as `score_pixels` does."""
        return self.score_pixels(pixels).scores

    def measure(self, pixels: UInt8[Tensor, "b c h w"]) -> Measured:
        """All that a score may come from, every attempt included."""
        batch, images = self._batch(pixels), torch.arange(len(pixels))
        distances = self._measure(batch, images, 0, self.method.attempts)
        return Measured(distances, self._norms(batch))

    def _norms(self, batch: _Batch) -> Float[Tensor, "b levels"]:
        """Norms of the score, `self.rows` images at a time; without levels if nobody asks."""
        if not self.method.norms:
            return torch.empty(len(batch.original), 0)
        found = []
        for rows in torch.split(torch.arange(len(batch.original)), self.rows):
            even = _evened(rows).to(batch.original.device)
            found.append(noise_norms(self.denoiser, batch.original[even])[: len(rows)])
        return torch.cat(found)

    def _surprise(self, norms: Float[Tensor, "b levels"]) -> Float[Tensor, " b"] | None:
        """Minus the log-density of the norms, if the method asks for them."""
        if not self.method.norms:
            return None
        density = self.density
        if density is None:
            raise CalibrationError(
                "the model has no density of score norms: run `liftmap calibrate`"
            )
        return -density.log_density(norms)

    def _batch(self, pixels: Tensor) -> _Batch:
        original = to_model_range(pixels).to(self.device)
        references = [d.reference(original) for d in self.distances.values()]
        return _Batch(original, references, [fingerprint(image) for image in pixels])

    def _measure(self, batch: _Batch, images: Tensor, first: int, last: int) -> Tensor:
        """(images, attempts from first to last, kinds) of the distances."""
        found = torch.empty(len(images) * (last - first), len(self.distances))
        for redraw, index, rows in self._redraws(batch, images, first, last):
            found[rows] = self._values(batch.references, redraw, index)
        return found.view(len(images), last - first, len(self.distances))

    def _values(self, references: list[Any], redraw: Tensor, index: Tensor) -> Tensor:
        """(redraws, kinds) of the distances."""
        pairs = zip(self.distances.values(), references, strict=True)
        return torch.stack([d.values(r, redraw, index).float().cpu() for d, r in pairs], 1)

    def _redraws(
        self, batch: _Batch, images: Tensor, first: int, last: int
    ) -> Iterable[tuple[Tensor, ...]]:
        """Some attempts of some images, `self.rows` at a time: (redraw, image index, rows).

        The last row may come several times, alike each time (`_evened`).
        """
        method = self.method
        channels, height, width = batch.original.shape[1:]
        masks = hidden_masks(method.mask, height, width, method.attempts, seed=method.seed)
        each = last - first
        total, begin = len(images) * each, 0
        while begin < total:
            rows = _evened(torch.arange(begin, min(total, begin + self.rows)))
            index, attempt = images[rows // each], first + rows % each
            pairs = zip(index.tolist(), attempt.tolist(), strict=True)
            row_seeds = [attempt_seed(batch.seeds[i], method.seed, a) for i, a in pairs]
            noise = ImageNoise(row_seeds, (channels, height, width), self.device)
            try:
                original, hidden = batch.original[index], masks[attempt].to(self.device)
                redraw = self._redraw(original, hidden, noise)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self._halve_rows(error)
                continue
            yield redraw, index.to(self.device), rows
            begin = int(rows[-1]) + 1

    def _redraw(self, original: Tensor, hidden: Tensor, noise: ImageNoise) -> Tensor:
        method = self.method
        if method.noised_to is not None:
            return noise_and_denoise(
                self.denoiser, original, noise, method.sampler, method.noised_to
            )
        return inpaint(self.denoiser, original, hidden, noise, method.sampler, method.resampling)

    def _halve_rows(self, error: Exception) -> None:
        """Take fewer rows at once after memory ran out; any other error goes on."""
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise error
        if self.rows == 1:
            raise ModelError("not enough memory for a single redraw: free some") from error
        self.rows //= 2

    def score(self, images: Picture | Iterable[Picture]) -> Float[Tensor, " b"]:
        """How far each image is from its redraws; higher = more out-of-distribution.

        Args:
            images: one or many of: PIL image, path, uint8 or [0, 1] array (H, W[, C]) or tensor
                (C, H, W); a 4-D array or tensor is a batch.

        Raises:
            ImageError: one of them can't be used; the message says which and why.
        """
        return self.score_pixels(self.prepare(images)).scores

    def predict(
        self, images: Picture | Iterable[Picture], *, false_alarms: float = 0.05
    ) -> Predictions:
        """Scores, conformal p-values and decisions at a false-alarm rate in (0, 1).

        Raises:
            CalibrationError: the model isn't calibrated for this method, or on too few images.
        """
        calibration = self.calibration
        calibration.threshold(false_alarms)  # refuse a rate it can't support before the work
        scores = self.score(images)
        return Predictions(
            scores, calibration.p_values(scores), calibration.is_ood(scores, false_alarms)
        )

    def explain(self, image: Picture) -> Explanation:
        """What was hidden, what the model drew there, and where the redraw differs."""
        batch, method = self._batch(self.prepare(image)), self.method
        redraws, maps, values = [], [], []
        for redraw, index, _ in self._redraws(batch, torch.arange(1), 0, method.attempts):
            redraws.append(redraw.cpu())
            pairs = zip(self.distances.values(), batch.references, strict=True)
            maps.append(torch.stack([d.maps(r, redraw, index).float().cpu() for d, r in pairs], 1))
            values.append(self._values(batch.references, redraw, index))
        height, width = batch.original.shape[2:]
        attempts = method.attempts
        distances, rule = torch.cat(values)[None, :attempts], self.rule
        rule.check(method.distance, norms=method.norms)
        surprise = self._surprise(self._norms(batch))
        score = rule.scores(distances, method.aggregate, surprise)
        stored = self.checkpoint.about.get("calibrations", {}).get(method.key)
        p_value = None if stored is None else self.calibration.p_values(score).item()
        return Explanation(
            original=batch.original[0].cpu(),
            hidden=hidden_masks(method.mask, height, width, method.attempts, seed=method.seed),
            redraws=torch.cat(redraws)[:attempts],
            maps=torch.cat(maps)[:attempts],
            evidence=rule.evidence(distances, surprise)[0],
            score=score.item(),
            surprise=None
            if surprise is None or rule.surprise is None
            else rule.surprise.standard(surprise).item(),
            p_value=p_value,
            map_top=None if stored is None else stored.get("map_top"),
        )

    def prepare(self, images: Picture | Iterable[Picture]) -> UInt8[Tensor, "b c h w"]:
        """Any accepted form of one or many images as the model's input."""
        many = _as_list(images)
        return torch.stack([self.preparation(to_image(image)) for image in many])

    @property
    def batch(self) -> int:
        """Images whose attempts, or first pair of attempts, fill the network's rows."""
        attempts = self.method.attempts
        return max(1, self.rows // (attempts if self.rule.settled is None else min(PAIR, attempts)))

    @property
    def calibration(self) -> Calibration:
        """The held-out in-domain scores of this method.

        Raises:
            CalibrationError: there are none for this method.
        """
        found = self.checkpoint.about.get("calibrations", {}).get(self.method.key)
        if found is None:
            raise CalibrationError(
                "the model has no calibration for this method: run `liftmap calibrate` with it on "
                "in-domain images that were not trained on"
            )
        try:
            return Calibration.from_scores(found["scores"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the model's calibration is damaged ({error}): redo it") from error

    @property
    def rule(self) -> Rule:
        """How distances become scores, as this method's calibration fixed it.

        Without one, the scales of another calibration with the same distances serve, and all
        attempts are taken.
        """
        stored: dict[str, Any] = self.checkpoint.about.get("calibrations", {})
        method = self.method
        try:
            if method.key in stored:
                return Rule.from_json(stored[method.key]["rule"])
            for other in stored.values():
                has = other["method"]
                if has["distance"] == method.distance and has["norms"] >= method.norms:
                    rule = Rule.from_json(other["rule"])
                    return Rule(rule.scales, rule.surprise if method.norms else None)
        except (AttributeError, KeyError, TypeError, SettingsError) as error:
            raise ModelError(f"the model's calibration is damaged ({error}): redo it") from error
        return Rule()

    def learn(
        self,
        train: PreparedImages,
        held_out: PreparedImages,
        *,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        """Learn how usual score norms are, and calibrate; the model is trained already (`fit`)."""
        if self.method.norms:
            self.learn_density(train)
        self.calibrate(held_out, on_batch=on_batch)

    @property
    def density(self) -> Mixture | None:
        """The model's density of in-domain images' score norms, if it has learnt one.

        Raises:
            ModelError: it is damaged.
        """
        stored = self.checkpoint.about.get("density")
        if stored is None:
            return None
        try:
            return Mixture.from_json(stored)
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"the model's density is damaged ({error}): calibrate anew") from error

    def learn_density(self, images: PreparedImages) -> None:
        """Fit a mixture to the score norms of in-domain images, at most MOST of them.

        It belongs to the network's weights, and serves every method.

        Raises:
            CalibrationError: too few images.
        """
        found = []
        for first in range(0, min(MOST, len(images)), self.rows):
            rows = torch.arange(first, min(first + self.rows, MOST, len(images)))
            found.append(noise_norms(self.denoiser, images.take(rows).to(self.device)))
        self._fit_density(torch.cat(found))

    def _fit_density(self, norms: Float[Tensor, "n levels"]) -> None:
        try:
            mixture = Mixture.fit(norms, COMPONENTS)
        except SettingsError as error:
            raise CalibrationError(f"score norms: {error}") from error
        self.checkpoint.about["density"] = mixture.to_json()

    @property
    def evaluations(self) -> int:
        """Network evaluations of one image that takes all attempts."""
        return self.method.evaluations

    def calibrate(
        self, images: PreparedImages, *, on_batch: Callable[[int, int], None] | None = None
    ) -> Calibration:
        """Score in-domain images that the model has not seen, and keep the scores with the model.

        Args:
            on_batch: called with the number of images scored so far, and of all.
        """
        found: list[Measured] = []
        for first in range(0, len(images), self.batch):
            rows = torch.arange(first, min(first + self.batch, len(images)))
            found.append(self.measure(images.pixels(rows)))
            if on_batch:
                on_batch(first + len(rows), len(images))
        made = self.calibrate_on(
            Measured(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        )
        self.fix_colours(images.pixels(torch.arange(min(MAPPED, len(images)))))
        return made

    def calibrate_on(self, found: Measured) -> Calibration:
        """Calibrate on what `measure` gave for in-domain images.

        With several distances, score norms or an early stop, some of the images set the rule and
        take no further part (`aggregate.rule_rows`): so it is fixed before the others are scored by
        it, as the conformal guarantee asks. A model without a density, not trained by `fit`, learns
        it from every other image, which take no further part either.

        Raises:
            CalibrationError: too few images, or distances that no scale can be taken from.
        """
        method, rule = self.method, Rule()
        if method.norms and self.density is None:
            self._fit_density(found.norms[::2])
            found = Measured(found.distances[1::2], found.norms[1::2])
        if len(self.distances) > 1 or method.norms or method.early_stop is not None:
            for_rule = rule_rows(len(found.distances))
            kept = torch.ones(len(found.distances), dtype=torch.bool)
            kept[for_rule] = False
            distances, norms = found.rows(for_rule)
            surprise = self._surprise(norms)
            rule = Rule.from_distances(distances, method.early_stop, method.aggregate, surprise)
            found = found.rows(kept)
        surprise = self._surprise(found.norms)
        scores = rule.scores(found.distances, method.aggregate, surprise)
        return self.set_calibration(scores.tolist(), rule)

    def fix_colours(self, pixels: UInt8[Tensor, "b c h w"]) -> None:
        """Let in-domain images say which distance is drawn brightest, in all maps of this method.

        It is twice the quantile CALM of the pixels of their maps: a normal image then looks calm.
        It is kept with the method's calibration, which must be there.
        """
        maps = torch.stack([self.explain(image).distance_map for image in pixels])
        top = 2 * float(np.quantile(maps.numpy(), CALM))
        self.checkpoint.about["calibrations"][self.method.key]["map_top"] = top

    def set_calibration(self, scores: Iterable[float], rule: Rule | None = None) -> Calibration:
        """Keep held-out in-domain scores of this method, made by the rule, with the model."""
        calibration = Calibration.from_scores(scores)
        stored = self.checkpoint.about.setdefault("calibrations", {})
        stored[self.method.key] = {
            "method": asdict(self.method),
            "rule": asdict(rule or Rule()),
            "scores": list(calibration.scores),
        }
        return calibration

    def save(self, folder: str | Path, *, weights: bool = True) -> None:
        """Write the model folder; `weights=False` replaces only liftmap.json."""
        self.checkpoint.about["preparation"] = asdict(self.preparation)
        if weights:
            save_checkpoint(self.checkpoint, Path(folder))
        else:
            save_about(self.checkpoint, Path(folder))


def _evened(rows: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
    """The rows, of more than 32 the last repeated until they are a multiple of 16.

    The CPU's library keeps code and buffers for each shape of batch that it has met. How many
    images go on after a look differs from batch to batch, and how many a service has to score at
    once; so they share a few shapes.
    """
    if len(rows) <= 2 * EVEN:
        return rows
    return torch.cat([rows, rows[-1:].expand(-len(rows) % EVEN)])


def _as_list(images: Picture | Iterable[Picture]) -> list[Picture]:
    """One or many images as a list; 4-D arrays and tensors are batches."""
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | Path | bytes | Image):
        return [images]
    return list(images)
