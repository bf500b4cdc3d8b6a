"""Writing files so that a crash, a full disk or Ctrl-C leaves the old one or the new one whole."""

import os
import time
from collections.abc import Iterator
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
