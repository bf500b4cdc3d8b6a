"""What a run has scored so far, on disk after each batch, so that a killed one can go on."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from liftmap.engines.tables import Row
from liftmap.errors import OutputError
from liftmap.files import Run, hold
from liftmap.images.entry import Entry


class Journal:
    """Finished batches as JSON lines, after a first line that says which run they belong to."""

    def __init__(self, path: Path, run: Run) -> None:
        self.path, self.run = path, run

    def open(self) -> TextIO:
        """Open to append; starts the file, or cuts it back to its last whole batch."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a", encoding="utf-8")
            hold(file)
            if self.path.stat().st_size:
                self._cut()
            if not self.path.stat().st_size:
                self._begin(file)
            return file
        except OSError as error:
            raise self._unwritable(error) from error

    def _begin(self, file: TextIO) -> None:
        os.truncate(self.path, 0)
        file.write(json.dumps(self.run.about) + "\n")
        file.flush()

    def _cut(self) -> None:
        with self.path.open("rb") as file:
            header = file.readline()
            if not header.endswith(b"\n"):
                os.truncate(self.path, 0)
                return
            self._check_run(header)
            whole = file.tell()
            for lines, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                if lines % self.run.about["batch"] == 0:
                    whole = file.tell()
        os.truncate(self.path, whole if whole > len(header) else 0)

    def _check_run(self, header: bytes) -> None:
        try:
            before = json.loads(header)
        except ValueError:
            before = None
        self.run.check(before, self.path)

    def rows(self) -> Iterator[Row]:
        """The rows that are in it, one by one."""
        with self.path.open(encoding="utf-8") as file:
            next(file, None)
            for line in file:
                yield json.loads(line)

    def compare(
        self, file: TextIO, entries: Iterator[Entry], is_same: Callable[[Row, Entry], bool]
    ) -> tuple[list[Entry], int | None]:
        """Cut it back to before the batch of the first image that isn't the one that was scored.

        Returns the images of that batch that were taken from `entries`, and the number of the image
        that isn't the same, counted from 1; nothing, and None, if all are.

        Args:
            file: as `open` gave it.
            is_same: whether a row is of that image as it is now.
        """
        again: list[Entry] = []
        with self.path.open("rb") as lines:
            begun = first = len(lines.readline())
            end = first
            for place, line in enumerate(lines):
                if place % self.run.about["batch"] == 0:
                    begun, again = end, []
                end += len(line)
                entry = next(entries, None)
                if entry is not None:
                    again.append(entry)
                if entry is None or not is_same(json.loads(line), entry):
                    self._cut_to(begun, first, file)
                    return again, place + 1
        return [], None

    def _cut_to(self, end: int, first: int, file: TextIO) -> None:
        """Keep so many bytes; without any row the run's settings are written as they are now."""
        try:
            if end == first:
                self._begin(file)
            else:
                os.truncate(self.path, end)
        except OSError as error:
            raise self._unwritable(error) from error

    def append(self, file: TextIO, rows: list[Row]) -> None:
        """Add a batch; it is on disk when this returns."""
        try:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path} can't be written ({error.strerror}): free space or choose another "
            "--output; a rerun continues after the last whole batch"
        )
