"""The HTTP service: what may be asked, what is answered, and what is refused.

No path and no address is taken from a client: images come in the request. Nothing of an image is
logged.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import PlainTextResponse
from PIL.Image import Image
from prometheus_client import generate_latest

from liftmap.detector import Detector
from liftmap.serve.asked import asked_explanation, asked_scores
from liftmap.serve.batcher import Batcher, model_thread
from liftmap.serve.guard import Metrics, add_guard, key_check
from liftmap.serve.schema import (
    EXPLAIN_BODY,
    REFUSALS,
    SCORE_BODY,
    About,
    Answer,
    ServiceSettings,
    Typicals,
)
from liftmap.serve.service import Service, typicals

# for bodies that are an image alone; what a form or JSON says goes before
RateQuery = Annotated[float | None, Query(gt=0, lt=1, description="of a body that names none")]
FormQuery = Annotated[Literal["png", "json"] | None, Query(alias="format")]


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
    detector.judge.decides_by.limit(settings.false_alarms)
    thread = thread or model_thread()
    shown = thread.submit(typicals, detector, typical).result()
    batcher = Batcher(detector, most_waiting=settings.most_waiting, thread=thread)
    metrics = Metrics(batcher)

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
    add_guard(app, metrics)
    allowed = [Depends(key_check(settings.api_key))] if settings.api_key is not None else []
    _add_scoring(app, Service(detector, batcher, settings, metrics), shown, allowed)
    _add_health(app, batcher, metrics)
    for address, name, kind in _PAGE:
        app.get(address, include_in_schema=False)(_file(name, kind))
    return app


def _add_scoring(app: FastAPI, service: Service, shown: Typicals, allowed: list[Any]) -> None:
    """What needs the key: scores, explanations, and what is known of the model."""

    @app.post(
        "/v1/score",
        response_model=Answer,
        dependencies=allowed,
        responses=REFUSALS,
        openapi_extra={"requestBody": SCORE_BODY},
    )
    async def score(request: Request, false_alarms: RateQuery = None) -> Any:
        """Score and decide on images: files in a form, base64 in JSON, or one file as the body."""
        given, rate = await asked_scores(request, service.settings.most_images)
        return await service.score(given, false_alarms if rate is None else rate)

    @app.post(
        "/v1/explain",
        dependencies=allowed,
        responses=REFUSALS,
        openapi_extra={"requestBody": EXPLAIN_BODY},
    )
    async def explain(request: Request, form: FormQuery = None) -> Response:
        """What was hidden, what the model drew there, where it differs: a picture, or numbers."""
        given, chosen = await asked_explanation(request)
        return await service.explain(given, chosen or form or "png")

    @app.get("/v1/model", dependencies=allowed)
    async def model() -> About:
        """Which model answers, and how."""
        return service.about()

    @app.get("/v1/typical", dependencies=allowed)
    async def compared() -> Typicals:
        """Normal images to compare with."""
        return shown


def _add_health(app: FastAPI, batcher: Batcher, metrics: Metrics) -> None:
    """What whoever runs the service asks."""

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
