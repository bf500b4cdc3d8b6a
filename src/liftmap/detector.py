"""Lift, Map, Detect, whole: the file to read first. Each stage is a module; here is their order.

pictures -> pixels (images.prepare) -> measured redraws (stages.redraw) -> verdict (stages.judge)
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from liftmap.diffusion.denoiser import Precision
from liftmap.diffusion.noise_norms import noise_norms
from liftmap.diffusion.schedule import TrainingSettings
from liftmap.fitting import FitListener, fit_model, is_main_process
from liftmap.images.entry import Source
from liftmap.images.prepare import Picture, Preparation, as_list
from liftmap.images.sources import open_source
from liftmap.images.store import HoldOut, PreparedImages
from liftmap.model import Model
from liftmap.stages.explanation import Explanation, brightest
from liftmap.stages.judge import Judge, Scored, Verdict, learn_density
from liftmap.stages.method import Method, find_method
from liftmap.stages.mixture import MOST
from liftmap.stages.outlook import calibration_scores
from liftmap.stages.redraw import Measured, Redraw

MAPPED = 64  # in-domain images whose distance maps fix the colours of all


class Detector:
    """Finds the images that don't belong.

    A score is a function of the image and the method's seed, whatever the batch it comes in.
    """

    def __init__(
        self,
        model: Model,
        *,
        method: Method | str = "fast",
        device: str | torch.device | None = None,
        precision: Precision | None = None,
        at_once: int | None = None,
    ) -> None:
        """Compose a detector from a model.

        Args:
            device: where the network runs; the first CUDA device by default, if there is one.
            precision: "bf16" or "float32"; by default the calibration's, else the hardware's.
            at_once: redraws that the network handles together; halved when memory runs out.
        """
        self.model = model
        self.method = find_method(method) if isinstance(method, str) else method
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        precision = precision or model.judge(self.method).precision
        self.denoiser = model.checkpoint.denoiser(self.device, precision=precision)
        self.preparation = model.preparation
        self.redraw = Redraw(self.denoiser, self.method, model.preparation.size, at_once=at_once)

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "Detector":
        """Load a model folder, a packaged model ("fashion-mnist") or a diffusers hub id.

        Raises:
            ModelError: nothing there, or what is there can't be used; the message says why.
        """
        return cls(Model.load(model), **options)

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
        limit: int | None = None,
        method: Method | str = "fast",
        initial: str | Path | None = None,
        resume: bool = False,
        listener: FitListener | None = None,
        **options: Any,
    ) -> "Detector":
        """Train on a source of in-domain images, calibrate on those held out, save to `output`.

        initial: a model to go on from, whose preset it is then; limit: of the source's images.
        """
        model, train, held_out = fit_model(
            open_source(source) if isinstance(source, str | Path) else source,
            Path(output),
            preset=preset,
            preparation=preparation or Preparation(32, 32, 3),
            settings=training or TrainingSettings(minutes=40),
            hold_out=hold_out or HoldOut(),
            limit=limit,
            method=find_method(method) if isinstance(method, str) else method,
            initial=initial,
            resume=resume,
            listener=listener,
        )
        detector = cls(model, method=method, **options)
        if is_main_process():
            if calibration_scores(detector.method, len(train), len(held_out)):
                on_batch = listener.on_calibrated if listener else None
                detector.learn(train, held_out, on_batch=on_batch)
            detector.save(output)
        return detector

    @property
    def judge(self) -> Judge:
        """What scores and decides by this method, as the model's calibration fixed it."""
        return self.model.judge(self.method).running_in(self.denoiser.precision)

    def prepare(self, images: Picture | Iterable[Picture]) -> UInt8[Tensor, "b c h w"]:
        """Any accepted form of one or many images as the model's input."""
        return torch.stack([self.preparation(image) for image in as_list(images)])

    def measure(self, pixels: UInt8[Tensor, "b c h w"]) -> Measured:
        """All that a score may come from, every attempt included."""
        return self.redraw(pixels)

    def score_pixels(self, pixels: UInt8[Tensor, "b c h w"]) -> Scored:
        """Score prepared images; everything else comes down to this.

        Raises:
            CalibrationError: several distances without the scales that a calibration gives.
        """
        judge = self.judge
        judge.check()
        found = self.redraw(pixels, None if judge.settled is None else judge.looks_settled)
        return Scored(judge.scores(found), *found)

    def scores(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """The scores alone of prepared images; raises as `score_pixels` does."""
        return self.score_pixels(pixels).scores

    def score(self, images: Picture | Iterable[Picture]) -> Float[Tensor, " b"]:
        """How far each image is from its redraws; higher = more out-of-distribution.

        Args:
            images: one or many of: PIL image, path, uint8 or [0, 1] array (H, W[, C]) or tensor
                (C, H, W); a 4-D array or tensor is a batch.

        Raises:
            ImageError: one of them can't be used; the message says which and why.
        """
        return self.scores(self.prepare(images))

    def predict(
        self, images: Picture | Iterable[Picture], *, false_alarms: float = 0.05
    ) -> Verdict:
        """Scores, conformal p-values and decisions at a false-alarm rate in (0, 1).

        Raises:
            CalibrationError: no calibration by this method in this precision, or on too few images.
        """
        judge = self.judge
        judge.decides_by.limit(false_alarms)  # refuse a rate it can't support before the work
        scores = self.score(images)
        return judge.decide(scores, false_alarms)

    def explain(self, image: Picture) -> Explanation:
        """What was hidden, what the model drew there, and where the redraw differs."""
        judge = self.judge
        calibration = None if judge.calibration is None else judge.decides_by
        pictures, found = self.redraw.pictures(self.prepare(image))
        scores, unusual = judge.scores(judge.stopped(found)), judge.unusual(found.norms)
        return Explanation(
            *pictures,
            evidence=judge.evidence(found)[0],
            score=scores.item(),
            surprise=None if unusual is None else unusual.item(),
            p_value=None if calibration is None else calibration.p_values(scores).item(),
            map_top=judge.map_top,
        )

    @property
    def batch(self) -> int:
        """Images that are best scored at once."""
        return self.redraw.batch(stops=self.judge.settled is not None)

    @property
    def evaluations(self) -> int:
        """Network evaluations of one image that takes all attempts."""
        return self.method.evaluations

    def learn(
        self,
        train: PreparedImages,
        held_out: PreparedImages,
        *,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        """Learn how usual noise norms are, and calibrate; the model is trained already (`fit`)."""
        if self.method.norms:
            self.learn_density(train)
        self.calibrate(held_out, on_batch=on_batch)

    def learn_density(self, images: PreparedImages) -> None:
        """Fit a mixture to the noise norms of in-domain images, at most MOST of them.

        It belongs to the network's weights, and serves every method.

        Raises:
            CalibrationError: too few images.
        """
        found = []
        for rows in torch.split(torch.arange(min(MOST, len(images))), self.redraw.at_once):
            found.append(noise_norms(self.denoiser, images.take(rows).to(self.device)))
        self.model = self.model.with_density(learn_density(torch.cat(found)))

    def calibrate(
        self, images: PreparedImages, *, on_batch: Callable[[int, int], None] | None = None
    ) -> None:
        """Measure in-domain images that the model has not seen, and calibrate on them.

        Args:
            on_batch: called with the number of images measured so far, and of all.
        """
        found: list[Measured] = []
        for rows in torch.split(torch.arange(len(images)), self.batch):
            found.append(self.measure(images.pixels(rows)))
            if on_batch:
                on_batch(int(rows[-1]) + 1, len(images))
        self.calibrate_on(Measured(*(torch.cat(parts) for parts in zip(*found, strict=True))))
        self.fix_colours(images.pixels(torch.arange(min(MAPPED, len(images)))))

    def calibrate_on(self, found: Measured) -> None:
        """Calibrate on what `measure` gave for in-domain images; see `Judge.learn`."""
        precision = self.denoiser.precision
        judge = Judge.learn(self.method, found, self.model.density, precision=precision)
        self.model = self.model.with_judge(judge)

    def fix_colours(self, pixels: UInt8[Tensor, "b c h w"]) -> None:
        """Let in-domain images say which distance is drawn brightest, in all maps of this method.

        It is kept with the method's calibration, which must be there.
        """
        top = brightest([self.explain(image) for image in pixels])
        self.model = self.model.with_judge(replace(self.judge, map_top=top))

    def save(self, folder: str | Path, *, weights: bool = True) -> None:
        """Write the model folder; `weights=False` replaces only liftmap.json."""
        self.model.save(folder, weights=weights)
