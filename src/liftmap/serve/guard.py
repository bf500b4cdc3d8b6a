"""What surrounds every request: the key, the counters, the log."""

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import APIKeyHeader
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from liftmap.serve.batcher import Batcher

log = logging.getLogger("liftmap.serve")


class Metrics:
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


def key_check(api_key: str) -> Callable[..., None]:
    """A dependency that lets a request through only with the key, compared in constant time."""
    header = APIKeyHeader(name="X-API-Key", auto_error=False)

    def check(given: Annotated[str | None, Depends(header)]) -> None:
        if not hmac.compare_digest((given or "").encode(), api_key.encode()):
            raise HTTPException(401, "send the API key as X-API-Key")

    return check


def add_guard(app: FastAPI, metrics: Metrics) -> None:
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
