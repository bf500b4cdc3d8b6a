"""Images as they arrive: in a folder, or as paths that come line by line."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from liftmap.errors import SourceError
from liftmap.images.decode import decode
from liftmap.images.entry import Entry
from liftmap.images.sources import open_source

TOGETHER = 0.5  # seconds that names from a pipe are gathered for
MOST_WAITING = 10_000  # names from a pipe that are read ahead


def from_folder(
    folder: Path, stop: threading.Event, *, every: float = 2.0, settle: float = 1.0
) -> Iterator[list[Entry]]:
    """All images of a folder by their files' times, again and again until told to stop.

    Args:
        every: seconds between looks.
        settle: a file that was changed within so many seconds may still be being written. One whose
            time lies ahead, as after the clock was set back, waits as long unchanged.
    """
    waiting: dict[str, tuple[float, float]] = {}  # a file's time, and since when it has that one
    while not stop.is_set():
        settled = time.time() - settle
        found = []
        try:
            for entry in open_source(folder):
                changed = _changed(folder / entry.id)
                if changed is None:
                    continue
                if changed <= settled or _waited(waiting, entry.id, changed, settle):
                    found.append((changed, entry.id, entry))
        except SourceError:
            if not folder.is_dir():
                raise
        yield [entry for _, _, entry in sorted(found, key=lambda item: item[:2])]
        stop.wait(every)


def _waited(
    waiting: dict[str, tuple[float, float]], id: str, changed: float, settle: float
) -> bool:
    """Whether a file has kept its time for so many seconds of a clock that nobody sets."""
    known = waiting.get(id)
    if known is None or known[0] != changed:
        known = waiting[id] = (changed, time.monotonic())
    return time.monotonic() - known[1] >= settle


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None  # gone again


def from_lines(lines: Iterable[str], stop: threading.Event) -> Iterator[list[Entry]]:
    """Images whose paths come as lines, as from `find` or a message queue's client."""
    waiting: queue.Queue[str | None] = queue.Queue(maxsize=MOST_WAITING)

    def read() -> None:
        for line in lines:
            waiting.put(line.rstrip("\n"))
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    ended = False
    while not ended and not stop.is_set():
        found, until = [], time.monotonic() + TOGETHER
        while (left := until - time.monotonic()) > 0:
            try:
                path = waiting.get(timeout=left)
            except queue.Empty:
                break
            if path is None:
                ended = True
                break
            if path:
                found.append(Entry(path, partial(decode, Path(path))))
        yield found
