"""Writing files so that a crash, a full disk or Ctrl-C leaves the old one or the new one whole.

Also who may write: one process at a time, and only the run that a file belongs to.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from glob import escape
from pathlib import Path
from platform import node
from typing import IO, Any

from safetensors import SafetensorError

from liftmap.errors import OutputError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    Raises:
        OutputError: the folder can't be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{node()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers make files that only their owner can read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path} can't be written ({error}): free space or choose another place"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@cache  # once a process: a folder may hold many files
def _sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes of this machine have left in a folder."""
    if os.name != "posix":
        return
    for left in folder.glob(f".*.{escape(node())}.*.tmp"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not _is_running(int(pid)):
            with suppress(OSError):
                left.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


class Run:
    """What a folder or a journal belongs to: a run goes on in its own alone.

    about: the settings that must be as they were, by the names that people give them.
    """

    def __init__(
        self, about: Mapping[str, Any], *, formerly: Mapping[str, Any] | None = None
    ) -> None:
        """Take plain data.

        Args:
            formerly: what earlier versions of liftmap called the same values of some settings.
        """
        self.about: dict[str, Any] = json.loads(json.dumps(about))
        self._formerly = formerly or {}

    def check(self, before: Any, place: object) -> None:
        """Refuse to go on in what another run left.

        Args:
            before: the settings that were kept there.

        Raises:
            OutputError: it names what differs.
        """
        if not isinstance(before, dict):
            raise OutputError(f"{place} is damaged: delete it, or choose another --output")
        differs = [
            f"{name} was {_short(before.get(name))}, is now {_short(value)}"
            for name, value in self.about.items()
            if not self._same(name, before)
        ]
        if differs:
            raise OutputError(
                f"{place} is of another run ({'; '.join(differs)}): use the same settings, choose "
                "another --output, or delete it to start anew"
            )

    def _same(self, name: str, before: dict[str, Any]) -> bool:
        values = [self.about[name]]
        values += [self._formerly[name]] if name in self._formerly else []
        return before.get(name) in values

    def begin(self, path: Path) -> None:
        """Keep the settings in a file, or check those that an earlier run kept there.

        Raises:
            OutputError: as `check` does, or the file can't be written.
        """
        if path.exists():
            self.check(read_object(path), path)
        else:
            self.keep(path)

    def keep(self, path: Path) -> None:
        """Keep the settings in a file, in place of those that are there.

        Raises:
            OutputError: the file can't be written.
        """
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.about, indent=1) + "\n", encoding="utf-8")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if it holds anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def hold(file: IO[Any]) -> None:
    """Keep other processes from holding the same file until this one closes it or ends.

    Raises:
        OutputError: another one holds it.
    """
    _lock(file.fileno(), file.name)


@contextmanager
def held(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Keep other processes of this machine from holding a folder, made here, during the block.

    Args:
        patience: seconds to wait for another one that holds it.

    Raises:
        OutputError: another one holds it, or it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} can't be made ({error}): choose another place") from error
    if os.name != "posix":  # no other system opens folders
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{folder} can't be opened ({error}): choose another place") from error
    try:
        _lock(handle, folder, patience)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, name: object, patience: float = 0.0) -> None:
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise OutputError(
                    f"{name} is being written by another run: wait for it, "
                    "or choose another --output"
                ) from error
            time.sleep(0.02)
        except OSError:  # no such locks on this file system, as on some networks
            return
