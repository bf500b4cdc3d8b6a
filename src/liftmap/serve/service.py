"""What the routes do: prepare, score, decide, explain."""

import asyncio
import base64
import io
from collections.abc import Awaitable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fastapi import HTTPException, Response
from fastapi.responses import JSONResponse
from PIL.Image import Image

from liftmap.detector import Detector
from liftmap.errors import CalibrationError, ImageError, SettingsError
from liftmap.images.decode import decode
from liftmap.images.prepare import Prepared
from liftmap.serve.asked import Given, decoded
from liftmap.serve.batcher import Batcher, BusyError, OneScore
from liftmap.serve.guard import Metrics
from liftmap.serve.schema import (
    About,
    Answer,
    Judged,
    ServiceSettings,
    Typical,
    Typicals,
)
from liftmap.stages.calibrate import largest_flagged
from liftmap.stages.explanation import Explanation, draw_explanations, in_words

STEPS = 200  # of the page's slider, a tenth of a percent each


def typicals(detector: Detector, typical: Sequence[tuple[str, Image]]) -> Typicals:
    if not typical:
        return Typicals(images=[])
    found = detector.predict([image for _, image in typical])
    return Typicals(
        images=[
            Typical(id=id, score=float(score), p_value=float(p), picture=_data_url(image))
            for (id, image), score, p in zip(typical, found.scores, found.p_values, strict=True)
        ]
    )


def _data_url(image: Image) -> str:
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


class Service:
    """What the routes do."""

    def __init__(
        self, detector: Detector, batcher: Batcher, settings: ServiceSettings, metrics: Metrics
    ) -> None:
        self.detector, self.judge, self.batcher = detector, detector.judge, batcher
        self.settings, self.metrics = settings, metrics

    async def score(self, given: Sequence[Given], rate: float | None) -> Answer | JSONResponse:
        """Scores and decisions; an image that can't be used costs itself alone."""
        if len(given) > self.settings.most_images:
            raise HTTPException(
                413, f"{len(given)} images: at most {self.settings.most_images} a request"
            )
        rate = self.settings.false_alarms if rate is None else rate
        try:
            self.judge.decides_by.limit(rate)
        except (CalibrationError, SettingsError) as error:
            raise HTTPException(422, str(error)) from error
        prepared: list[tuple[str, Prepared | ImageError]] = []
        for name, data in given:
            prepared.append((str(name), await asyncio.to_thread(self._prepare, data)))
        usable = [(name, image) for name, image in prepared if not isinstance(image, ImageError)]
        images = [image.pixels for _, image in usable]
        found = await self._within_time(self.batcher.score(images)) if usable else []
        judged = iter(self._judged(usable, found, rate))
        results = [
            self._unusable(name, image) if isinstance(image, ImageError) else next(judged)
            for name, image in prepared
        ]
        answer = Answer(false_alarms=rate, results=results)
        if usable:
            return answer
        reasons = "; ".join(f"{result.id}: {result.error}" for result in results)
        return JSONResponse(answer.model_dump() | {"detail": reasons}, 422)

    def _unusable(self, name: str, reason: ImageError) -> Judged:
        self.metrics.images.labels("unusable").inc()
        return Judged(id=name, error=str(reason))

    def _judged(
        self, images: list[tuple[str, Prepared]], found: Sequence[OneScore], rate: float
    ) -> list[Judged]:
        """What is said of each usable image."""
        scores = torch.tensor([one.score for one in found], dtype=torch.float64)
        verdict = self.judge.decide(scores, rate)
        said = zip(images, found, verdict.p_values.tolist(), verdict.is_ood.tolist(), strict=True)
        made = []
        for (name, image), one, p_value, is_ood in said:
            self.metrics.images.labels("flagged" if is_ood else "in-domain").inc()
            made.append(
                Judged(
                    id=name,
                    score=one.score,
                    p_value=p_value,
                    is_ood=is_ood,
                    words=in_words(p_value),
                    attempts=one.attempts,
                    notes=list(image.remarks),
                )
            )
        return made

    def _prepare(self, data: bytes | str) -> Prepared | ImageError:
        try:
            file = decoded(data) if isinstance(data, str) else data
            return self.detector.preparation.prepared(decode(file))
        except ImageError as error:
            return error

    async def explain(self, given: Given, form: str) -> Response:
        """One image's explanation, as a PNG or as JSON."""
        name, data = given
        image = await asyncio.to_thread(self._prepare, data)
        if isinstance(image, ImageError):
            raise HTTPException(422, f"{name}: {image}")
        pixels = image.pixels
        found = await self._within_time(self.batcher.call(lambda: self.detector.explain(pixels)))
        if form == "png":
            picture = await asyncio.to_thread(_picture, found)
            return Response(picture, media_type="image/png")
        return JSONResponse(
            {
                "score": found.score,
                "surprise": found.surprise,
                "p_value": found.p_value,
                "evidence": found.evidence.tolist(),
                "distance_map": found.distance_map.tolist(),
                "map_top": found.map_top,
                "notes": list(image.remarks),
            }
        )

    async def _within_time(self, answer: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(answer, self.settings.seconds)
        except BusyError as error:
            wait = {"Retry-After": str(round(error.after))}
            raise HTTPException(429, str(error), headers=wait) from error
        except TimeoutError as error:
            raise HTTPException(503, f"not done after {self.settings.seconds:g} s") from error

    def about(self) -> About:
        """The model and the settings."""
        detector, calibration = self.detector, self.judge.decides_by
        model, preparation = detector.model, detector.preparation
        return About(
            weights=model.checkpoint.weights_key,
            height=preparation.height,
            width=preparation.width,
            channels=preparation.channels,
            trained_on=model.trained_on,
            calibrated_on=len(calibration.scores),
            smallest_false_alarms=1 / (len(calibration.scores) + 1),
            false_alarms=self.settings.false_alarms,
            limits=[largest_flagged(step / 1000) for step in range(1, STEPS + 1)],
            attempts=detector.method.attempts,
            distance=detector.method.distance,
        )


def _picture(explanation: Explanation) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "explanation.png"
        draw_explanations([explanation], path)
        return path.read_bytes()
