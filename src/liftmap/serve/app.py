"""The HTTP service: what may be asked, what is answered, and what is refused.

No path and no address is taken from a client: images come in the request. Nothing of an image is
logged.
"""

import asyncio
import base64
import hmac
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import APIKeyHeader
from PIL.Image import Image
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import UploadFile as Uploaded
from torch import Tensor

from liftmap.detector import Detector
from liftmap.errors import CalibrationError, ImageError, SettingsError
from liftmap.images.prepare import decode
from liftmap.serve.batcher import Batcher, BusyError, OneScore, model_thread
from liftmap.stages.explanation import Explanation, draw_explanations, in_words

log = logging.getLogger("liftmap.serve")


@dataclass(frozen=True)
class ServiceSettings:
    """Limits of the service.

    api_key: what clients must send as X-API-Key; None for an open service.
    most_bytes: of a request's body. most_images: in a request. most_waiting: images in the queue.
    seconds: a request is given up after so long.
    """

    false_alarms: float = 0.05
    api_key: str | None = None
    most_bytes: int = 20_000_000
    most_images: int = 64
    most_waiting: int = 256
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.api_key == "":
            raise SettingsError("the API key is empty: set one, or none for an open service")
        for name in ("most_bytes", "most_images", "most_waiting", "seconds"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name}={getattr(self, name)}: need more than 0")
        if self.most_images > self.most_waiting:
            raise SettingsError(
                f"most_images={self.most_images}, most_waiting={self.most_waiting}: a request of "
                "so many would never fit the queue"
            )


class Rate(BaseModel):
    """The false-alarm rate of a request; the service's own by default."""

    false_alarms: float | None = Field(default=None, gt=0, lt=1, examples=[0.05])


class Encoded(Rate):
    """One or many images as base64 of their files."""

    images: list[str] = Field(min_length=1, examples=[["iVBORw0KGgo..."]])


class Judged(BaseModel):
    """What is said of an image; `error` stands alone where it can't be used."""

    id: str = Field(description="the file's name, or the place in the request")
    score: float | None = Field(default=None, description="higher = more out-of-distribution")
    p_value: float | None = Field(default=None, description="share of in-domain images as odd")
    is_ood: bool | None = None
    words: str | None = None
    attempts: int | None = None
    error: str | None = None


class Answer(BaseModel):
    """The answer to a request for scores."""

    false_alarms: float
    results: list[Judged]


class Typical(BaseModel):
    """A normal image to compare with; `picture` is a data URL."""

    id: str
    score: float
    p_value: float
    picture: str


class Typicals(BaseModel):
    """The normal images to compare with; none unless the service was given some."""

    images: list[Typical]


class About(BaseModel):
    """Which model answers, and how."""

    weights: str
    height: int
    width: int
    channels: int
    trained_on: str
    calibrated_on: int
    smallest_false_alarms: float
    false_alarms: float
    attempts: int
    distance: str


class _Metrics:
    """What Prometheus is told."""

    def __init__(self, batcher: Batcher) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "liftmap_requests", "requests", ["path", "status"], registry=self.registry
        )
        self.images = Counter(
            "liftmap_images", "images by outcome", ["outcome"], registry=self.registry
        )
        self.seconds = Histogram(
            "liftmap_request_seconds", "seconds a request took", ["path"], registry=self.registry
        )
        self.batches = Histogram(
            "liftmap_batch_images",
            "images scored at once",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.registry,
        )
        waiting = Gauge("liftmap_waiting_images", "images in the queue", registry=self.registry)
        waiting.set_function(lambda: batcher.pending)
        batcher.on_batch = lambda images, seconds: self.batches.observe(images)


def create_app(
    detector: Detector,
    settings: ServiceSettings | None = None,
    typical: Sequence[tuple[str, Image]] = (),
    thread: ThreadPoolExecutor | None = None,
) -> FastAPI:
    """The service around a detector.

    Args:
        typical: ids and normal images that the page shows for comparison.
        thread: where the detector was loaded (`model_thread`), and then stays.

    Raises:
        CalibrationError: the model can't decide at the default false-alarm rate.
    """
    settings = settings or ServiceSettings()
    detector.calibration.threshold(settings.false_alarms)
    thread = thread or model_thread()
    shown = thread.submit(_typicals, detector, typical).result()
    batcher = Batcher(detector, most_waiting=settings.most_waiting, thread=thread)
    metrics = _Metrics(batcher)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    app = FastAPI(
        title="liftmap",
        description="Finds the images that don't belong.",
        lifespan=lifespan,
        docs_url=None,  # these pages fetch their scripts from elsewhere
        redoc_url=None,
        max_body_size=settings.most_bytes,
    )
    _add_guard(app, metrics, settings)
    allowed = [Depends(_key_check(settings.api_key))] if settings.api_key is not None else []
    service = _Service(detector, batcher, settings, metrics)

    @app.post(
        "/v1/score",
        response_model=Answer,
        dependencies=allowed,
        responses=_REFUSALS,
        openapi_extra={"requestBody": _SCORE_BODY},
    )
    async def score(request: Request) -> Any:
        """Score and decide on one or many images: files in a form, or base64 in JSON."""
        if request.headers.get("content-type", "").startswith("application/json"):
            try:
                asked = Encoded.model_validate_json(await request.body())
            except ValidationError as error:
                raise HTTPException(422, _told(error)) from error
            return await service.score(list(enumerate(asked.images)), asked.false_alarms)
        async with request.form(max_files=settings.most_images + 1) as form:
            try:
                rate = Rate.model_validate({"false_alarms": form.get("false_alarms")})
            except ValidationError as error:
                raise HTTPException(422, _told(error)) from error
            given = [f for f in form.getlist("images") if isinstance(f, Uploaded)]
            if not given:
                raise HTTPException(422, "images: need at least one file in the form")
            named = [(f.filename or i, await f.read()) for i, f in enumerate(given)]
        return await service.score(named, rate.false_alarms)

    @app.post("/v1/explain", dependencies=allowed, responses=_REFUSALS)
    async def explain(
        image: Annotated[UploadFile, File(description="an image file")],
        form: Annotated[Literal["png", "json"], Form(alias="format")] = "png",
    ) -> Response:
        """What was hidden, what the model drew there, where it differs: a picture, or numbers."""
        return await service.explain(image.filename or "image", await image.read(), form)

    @app.get("/v1/model", dependencies=allowed)
    async def model() -> About:
        """Which model answers, and how."""
        return service.about()

    @app.get("/v1/typical", dependencies=allowed)
    async def compared() -> Typicals:
        """Normal images to compare with."""
        return shown

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """Whether the process is alive."""
        return "ok"

    @app.get("/readyz", response_class=PlainTextResponse)
    async def readyz() -> str:
        """Whether images are taken."""
        if not batcher.running:
            raise HTTPException(503, "closing")
        return "ready"

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    for address, name, kind in _PAGE:
        app.get(address, include_in_schema=False)(_file(name, kind))
    return app


# the page's files; it loads nothing from elsewhere, and its policy says so
_PAGE = (
    ("/", "page.html", "text/html"),
    ("/page.css", "page.css", "text/css"),
    ("/page.js", "page.js", "text/javascript"),
)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' data:; "
    "img-src 'self' blob: data:; media-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def _file(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    text = (files("liftmap.serve") / name).read_text(encoding="utf-8")

    async def answer() -> Response:
        return Response(text, media_type=kind, headers={"Content-Security-Policy": _POLICY})

    return answer


def _typicals(detector: Detector, typical: Sequence[tuple[str, Image]]) -> Typicals:
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


_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the form is no multipart data"},
    401: {"description": "the API key is missing or wrong"},
    413: {"description": "the request is too large, or holds too many images"},
    422: {"description": "the request, its false-alarm rate or every image of it can't be used"},
    429: {"description": "too many images wait; Retry-After says for how long"},
    503: {"description": "it took too long"},
}


_SCORE_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {
                    "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    "false_alarms": {"type": "number", "example": 0.05},
                },
            }
        },
        "application/json": {"schema": Encoded.model_json_schema()},
    },
}


def _told(error: ValidationError) -> str:
    """What is wrong with a request, in one line."""
    return "; ".join(
        f"{'.'.join(map(str, part['loc'])) or 'body'}: {part['msg']}" for part in error.errors()
    )


class _Service:
    """What the routes do."""

    def __init__(
        self, detector: Detector, batcher: Batcher, settings: ServiceSettings, metrics: _Metrics
    ) -> None:
        self.detector, self.batcher = detector, batcher
        self.settings, self.metrics = settings, metrics

    async def score(
        self, given: Sequence[tuple[str | int, bytes | str]], rate: float | None
    ) -> Answer | JSONResponse:
        if len(given) > self.settings.most_images:
            raise HTTPException(
                413, f"{len(given)} images: at most {self.settings.most_images} a request"
            )
        rate = self.settings.false_alarms if rate is None else rate
        try:
            self.detector.calibration.threshold(rate)
        except (CalibrationError, SettingsError) as error:
            raise HTTPException(422, str(error)) from error
        prepared: list[tuple[str, Tensor | ImageError]] = []
        for name, data in given:
            prepared.append((str(name), await asyncio.to_thread(self._prepare, data)))
        usable = [image for _, image in prepared if not isinstance(image, ImageError)]
        scores = iter(await self._within_time(self.batcher.score(usable)) if usable else [])
        results = [self._judge(name, image, scores, rate) for name, image in prepared]
        answer = Answer(false_alarms=rate, results=results)
        if usable:
            return answer
        reasons = "; ".join(f"{result.id}: {result.error}" for result in results)
        return JSONResponse(answer.model_dump() | {"detail": reasons}, 422)

    def _judge(self, name: str, image: Any, scores: Any, rate: float) -> Judged:
        if isinstance(image, ImageError):
            self.metrics.images.labels("unusable").inc()
            return Judged(id=name, error=str(image))
        found: OneScore = next(scores)
        is_ood = found.p_value <= rate + 1e-12
        self.metrics.images.labels("flagged" if is_ood else "in-domain").inc()
        return Judged(
            id=name,
            score=found.score,
            p_value=found.p_value,
            is_ood=is_ood,
            words=in_words(found.p_value),
            attempts=found.attempts,
        )

    def _prepare(self, data: bytes | str) -> Tensor | ImageError:
        if isinstance(data, str):
            try:
                data = base64.b64decode(data, validate=True)
            except ValueError as error:  # binascii.Error is one; characters beyond ASCII another
                return ImageError(f"not base64 ({error})")
        try:
            return self.detector.preparation(decode(data))
        except ImageError as error:
            return error

    async def explain(self, name: str, data: bytes, form: str) -> Response:
        image = await asyncio.to_thread(self._prepare, data)
        if isinstance(image, ImageError):
            raise HTTPException(422, f"{name}: {image}")
        found = await self._within_time(self.batcher.call(lambda: self.detector.explain(image)))
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
        detector, calibration = self.detector, self.detector.calibration
        preparation = detector.preparation
        return About(
            weights=detector.checkpoint.weights_key,
            height=preparation.height,
            width=preparation.width,
            channels=preparation.channels,
            trained_on=str(detector.checkpoint.about.get("training", {}).get("source", "unknown")),
            calibrated_on=len(calibration.scores),
            smallest_false_alarms=1 / (len(calibration.scores) + 1),
            false_alarms=self.settings.false_alarms,
            attempts=detector.method.attempts,
            distance=detector.method.distance,
        )


def _picture(explanation: Explanation) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "explanation.png"
        draw_explanations([explanation], path)
        return path.read_bytes()


def _key_check(api_key: str) -> Callable[..., None]:
    """A dependency that lets a request through only with the key, compared in constant time."""
    header = APIKeyHeader(name="X-API-Key", auto_error=False)

    def check(given: Annotated[str | None, Depends(header)]) -> None:
        if not hmac.compare_digest((given or "").encode(), api_key.encode()):
            raise HTTPException(401, "send the API key as X-API-Key")

    return check


def _add_guard(app: FastAPI, metrics: _Metrics, settings: ServiceSettings) -> None:
    """Count, time and log every request; a line holds no more of it than path and size."""

    @app.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        begun = time.perf_counter()
        response = await call_next(request)
        seconds = time.perf_counter() - begun
        route = request.scope.get("route")
        path = getattr(route, "path", "other")  # not what was asked: that could be anything
        metrics.requests.labels(path, response.status_code).inc()
        metrics.seconds.labels(path).observe(seconds)
        line = {
            "path": path,
            "status": response.status_code,
            "bytes": request.headers.get("content-length"),
            "ms": round(1000 * seconds, 1),
        }
        log.info(json.dumps(line))
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response
