"""Images as they arrive: in a folder, or as paths that come line by line.

A file that can't be read may be one that is still being written. So it is offered again when it has
changed, and a last time once it has stayed as it is for long.
"""

import queue
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from liftmap.errors import ImageError, SourceError
from liftmap.images.decode import decode
from liftmap.images.entry import Entry, printable, raw_name
from liftmap.images.kinds import ending
from liftmap.images.picture import Decoded
from liftmap.images.sources import open_source

SETTLE = 1.0  # seconds; a file that was changed since is left alone
PATIENCE = 60.0  # seconds; one that was not changed for so long is as whole as it will get
TOGETHER = 0.5  # seconds that names from a pipe are gathered for
MOST_WAITING = 10_000  # names from a pipe that are read ahead
# ends of names that files have until they are whole, whatever is in them already
UNFINISHED = frozenset(
    (".part", ".partial", ".tmp", ".temp", ".filepart", ".crdownload", ".download", ".upload")
)


class Arrival(NamedTuple):
    """An image, and what becomes of it if it can't be read.

    "record": it gets its row, with the reason. "leave": nothing, as it is offered again, now or at
    the next start. "hold": likewise, but it has its row if it stays unreadable until the end.
    """

    entry: Entry
    unreadable: Literal["record", "leave", "hold"] = "record"


class _Stamp(NamedTuple):
    """What changes with a file. A replaced one has another `altered`, whatever its time says."""

    written: int  # nanoseconds
    altered: int  # nanoseconds; can't be set, as `written` can
    size: int


class _Sighting:
    """A file since it was found as it is now."""

    __slots__ = ("_since", "offers", "stamp")

    def __init__(self, stamp: _Stamp | None, *, offers: int = 0) -> None:
        self.stamp, self.offers = stamp, offers
        self._since = time.monotonic()

    def due(self, settle: float, patience: float) -> Literal["", "first", "last"]:
        """Whether it should be offered, and whether that is the last time as long as it is so."""
        if self.offers < 2 and self._kept(max(settle, patience), certain=True):
            self.offers = 2
            return "last"
        if self.offers < 1 and self._kept(settle, certain=False):
            self.offers = 1
            return "first"
        return ""

    def _kept(self, seconds: float, *, certain: bool) -> bool:
        """Whether it is unchanged for so long, by its own times or by a clock that nobody sets.

        Its own may lie ahead, as after the clock was set back, and then say nothing. `written` may
        have been set by whoever still writes the file.
        """
        if time.monotonic() - self._since >= seconds:
            return True
        if self.stamp is None:
            return False
        changed = max(self.stamp[:2]) if certain else self.stamp.written
        return time.time() - changed / 1e9 >= seconds


def _stamp(path: Path) -> _Stamp | None:
    """None if there is no such file, or it is no ordinary one, as a pipe."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # gone again; a name with a zero byte
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return _Stamp(found.st_mtime_ns, found.st_ctime_ns, found.st_size)


def from_folder(
    folder: Path,
    stop: threading.Event,
    *,
    every: float = 2.0,
    settle: float = SETTLE,
    patience: float = PATIENCE,
) -> Iterator[list[Arrival]]:
    """All images of a folder by their files' times; then, until told to stop, those that changed.

    Args:
        every: seconds between looks.
        settle: a file is offered when it was not changed for so many seconds.
        patience: and once more after so many, then to be recorded even if it can't be read.

    Raises:
        SourceError: there is no such folder, or no longer.
    """
    if folder.exists() and not folder.is_dir():
        raise SourceError(f"{folder} is no folder: `liftmap score` takes archives and single files")
    known: dict[str, _Sighting] = {}
    while not stop.is_set():
        before, known = known, {}
        found = []
        for entry, stamp in _listed(folder):
            sighting = known[entry.id] = _again(before.get(entry.id), stamp)
            if turn := sighting.due(settle, patience):
                arrival = Arrival(entry, "record" if turn == "last" else "leave")
                found.append((stamp.written if stamp else 0, entry.id, arrival))
        yield [arrival for *_, arrival in sorted(found, key=lambda item: item[:2])]
        stop.wait(every)


def _again(before: _Sighting | None, stamp: _Stamp | None) -> _Sighting:
    """What is known of a file, or a fresh start if it isn't as it was."""
    return before if before is not None and before.stamp == stamp else _Sighting(stamp)


def _listed(folder: Path) -> Iterator[tuple[Entry, _Stamp | None]]:
    """The images of a folder and how their files are now; none while it has none."""
    try:
        for entry in open_source(folder):
            if ending(entry.id) in UNFINISHED:
                continue
            path = folder / raw_name(entry.id)
            stamp = _stamp(path)
            if stamp is not None or path.exists():
                yield entry, stamp
    except (OSError, SourceError) as error:
        if not folder.is_dir():
            raise SourceError(f"{folder}: no such folder, or no longer") from error


def from_lines(
    lines: Iterable[str],
    stop: threading.Event,
    *,
    settle: float = SETTLE,
    patience: float = PATIENCE,
) -> Iterator[list[Arrival]]:
    """Images whose paths come as lines, as from `find` or a message queue's client.

    Each is offered at once. One that can't be read, or isn't there yet, is offered again as those
    of a folder are, and a last time when the lines end.
    """
    waiting = _read_ahead(lines)
    broken: dict[str, _Sighting] = {}  # paths that are to be offered again
    ended = False
    while not ended and not stop.is_set():
        paths, ended = _gathered(waiting)
        found = [Arrival(_entry(path, partial(_tried, broken, path)), "hold") for path in paths]
        yield [*_once_more(broken, settle, patience), *found]
    if ended:
        yield [Arrival(_entry(path, partial(decode, Path(path)))) for path in broken]


def _read_ahead(lines: Iterable[str]) -> "queue.Queue[str | None]":
    """The lines, read by a thread of their own; None after the last."""
    waiting: queue.Queue[str | None] = queue.Queue(maxsize=MOST_WAITING)

    def read() -> None:
        try:
            for line in lines:
                waiting.put(line.rstrip("\n"))
        finally:
            waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    return waiting


def _gathered(waiting: "queue.Queue[str | None]") -> tuple[list[str], bool]:
    """The paths that come within a moment, and whether they have ended."""
    paths: list[str] = []
    until = time.monotonic() + TOGETHER
    while (left := until - time.monotonic()) > 0:
        try:
            path = waiting.get(timeout=left)
        except queue.Empty:
            break
        if path is None:
            return paths, True
        if path:
            paths.append(path)
    return paths, False


def _once_more(broken: dict[str, _Sighting], settle: float, patience: float) -> Iterator[Arrival]:
    """Those of the unreadable files whose turn it is; after its last one a file is forgotten."""
    for path in list(broken):
        sighting = broken[path] = _again(broken[path], _stamp(Path(path)))
        turn = sighting.due(settle, patience)
        if turn == "first":
            yield Arrival(_entry(path, partial(_tried, broken, path)), "hold")
        elif turn == "last":
            del broken[path]
            yield Arrival(_entry(path, partial(decode, Path(path))))


def _entry(path: str, load: Callable[[], Decoded]) -> Entry:
    return Entry(printable(path), load)


def _tried(broken: dict[str, _Sighting], path: str) -> Decoded:
    """The image of a path, which is noted among the broken ones if it can't be read."""
    stamp = _stamp(Path(path))  # before it is read: if it changes meanwhile, it has changed
    try:
        image = decode(Path(path))
    except ImageError:
        if path not in broken or broken[path].stamp != stamp:
            broken[path] = _Sighting(stamp, offers=1)
        raise
    broken.pop(path, None)
    return image
