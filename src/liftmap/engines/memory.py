"""The process's memory allocator, set for large tensors that come and go.

glibc gives freed blocks of some hundred kilobytes back to the system and asks for them again at the
next layer, and the system clears every page anew. Kept with the process, the network runs a
tenth faster and training more (docs/results/speed.md).
"""

import sys

# of glibc's malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
LARGE = 1 << 30


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for its next tensors; whether the system could.

    For programs whose process it is, as liftmap's commands; a library leaves its host alone. The
    most that the process ever holds stays held until it ends. One arena serves all threads: others
    can't hold large blocks.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes  # for commands that do work, not for --help

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    wanted = ((MMAP_THRESHOLD, LARGE), (TRIM_THRESHOLD, LARGE), (ARENA_MAX, 1))
    return all(mallopt(option, value) == 1 for option, value in wanted)
