"""Scoring that goes on: a stream, a service."""

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from liftmap.cli.base import (
    AtOnceOption,
    DeviceOption,
    MethodOption,
    ModelOption,
    PrecisionOption,
    RateOption,
    console,
    load_detector,
    method_of,
    open_images,
)
from liftmap.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable

    from liftmap.engines.arrivals import Arrival
    from liftmap.engines.watch import Watched

PatienceOption = Annotated[
    float,
    typer.Option(
        help="Seconds that a file which can't be read must be unchanged, until it is skipped.",
        min=0.0,
    ),
]


def watch(
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="Folder for the scores, in Parquet parts.")],
    folder: Annotated[
        Path | None, typer.Argument(help="Folder to watch; without it, paths come from stdin.")
    ] = None,
    false_alarms: RateOption = 0.05,
    images_between: Annotated[
        float,
        typer.Option(
            "--images-between-false-alarms",
            help="Normal images that pass on average, at least, before drift is announced wrongly.",
            min=10.0,
        ),
    ] = 100_000.0,
    every: Annotated[float, typer.Option(help="Seconds between looks at the folder.")] = 2.0,
    patience: PatienceOption = 60.0,
    stop_at_alarm: Annotated[
        bool, typer.Option("--stop-at-alarm", help="End with exit code 4 when drift is announced.")
    ] = False,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics on this port (extra: serve).")
    ] = None,
    method: MethodOption = "fast",
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    at_once: AtOnceOption = None,
) -> None:
    """Score images as they arrive, each once, and say when the stream as a whole has drifted.

    Stopped and started again, it goes on. A scored file is not looked at again: new images need new
    names. One that can't be read may still be on its way: it is skipped after --patience, and still
    scored when it becomes readable later.

    Exit codes: 0 stopped (Ctrl-C, SIGTERM, the end of stdin), 1 an error, 4 --stop-at-alarm.
    """
    from liftmap.engines.watch import expose
    from liftmap.engines.watch import watch as run_watch

    tell = expose(metrics_port) if metrics_port is not None else lambda seen: None
    detector = load_detector(model, method_of(method, None, None, None), device, precision, at_once)
    with _until_told_to_stop() as stop:
        news = _News(output, tell, stop if stop_at_alarm else None)
        shown = escape(str(folder or "stdin"))
        console.print(f"watching {shown}; Ctrl-C ends it, the same command goes on")
        seen = run_watch(
            detector,
            _arrivals(folder, stop, every, patience),
            output,
            false_alarms=false_alarms,
            run=images_between,
            stop=stop,
            on_batch=news,
        )
    console.print(f"{_counts(seen)}; written: {escape(str(output))}")
    if stop_at_alarm and news.new:
        raise typer.Exit(4)


def _counts(seen: "Watched") -> str:
    return (
        f"{seen.images} images, {seen.flagged} flagged, {seen.skipped} skipped, {seen.alarms} "
        f"alarms; evidence of drift {seen.evidence:.3g} of {seen.run:g}"
    )


def _arrivals(
    folder: Path | None, stop: Event, every: float, patience: float
) -> "Iterator[list[Arrival]]":
    from liftmap.engines.arrivals import from_folder, from_lines

    if folder is None:
        return from_lines(_names(), stop, patience=patience)
    return from_folder(folder, stop, every=every, patience=patience)


def _names() -> Iterable[str]:
    """The lines of stdin as names of files: whatever bytes they are."""
    if isinstance(sys.stdin, TextIOWrapper):
        encoding = sys.getfilesystemencoding() if os.name == "posix" else sys.stdin.encoding
        sys.stdin.reconfigure(encoding=encoding, errors="surrogateescape")
    return sys.stdin


class _News:
    """Tells of each batch's outcome, and of an alarm as soon as it rings."""

    def __init__(self, output: Path, tell: "Callable[[Watched], None]", stop: Event | None) -> None:
        self._output, self._tell, self._stop = output, tell, stop
        self._alarms: int | None = None  # those that earlier runs have told of, then all
        self.new = False

    def __call__(self, seen: "Watched") -> None:
        self._tell(seen)
        if self._alarms is not None and seen.alarms > self._alarms:
            self.new = True
            told = f"drift at image {seen.images}: see {self._output}/alarms.jsonl"
            console.print(f"[bold red]alarm:[/] {escape(told)}")
            if self._stop:
                self._stop.set()
        self._alarms = seen.alarms


def serve(
    model: Annotated[str, typer.Argument(help="Model folder, packaged name or hub id.")],
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 8000,
    method: MethodOption = "fast",
    false_alarms: RateOption = 0.05,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="LIFTMAP_API_KEY", help="Clients must send it as X-API-Key.", show_envvar=True
        ),
    ] = None,
    compare_with: Annotated[
        str | None, typer.Option(help="SOURCE of normal images: the page shows its first twelve.")
    ] = None,
    most_bytes: Annotated[int, typer.Option(help="Of a request.")] = 20_000_000,
    most_images: Annotated[int, typer.Option(help="In a request.")] = 64,
    most_waiting: Annotated[int, typer.Option(help="Images in the queue.")] = 256,
    seconds: Annotated[float, typer.Option(help="A request is given up after.")] = 60.0,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
) -> None:
    """An HTTP service and a page that score and explain images (extra: serve)."""
    import logging

    try:
        import uvicorn

        from liftmap.images.entry import readable
        from liftmap.serve.app import create_app
        from liftmap.serve.batcher import model_thread
        from liftmap.serve.schema import ServiceSettings
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from error
    settings = ServiceSettings(
        false_alarms, api_key, most_bytes, most_images, most_waiting, seconds
    )
    thread, chosen = model_thread(), method_of(method, None, None, None)
    detector = thread.submit(load_detector, model, chosen, device, precision, None).result()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    typical = []
    if compare_with:
        typical = list(islice(readable(open_images(compare_with, None, False, None)), 12))
    served = create_app(detector, settings, typical, thread)
    console.print(f"http://{host}:{port}  (description of the interface: /openapi.json)")
    uvicorn.run(served, host=host, port=port, log_level="warning")


@contextmanager
def _until_told_to_stop() -> Iterator[Event]:
    """An event that Ctrl-C and SIGTERM set, in place of what they do otherwise."""
    stop = Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
