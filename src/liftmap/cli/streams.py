"""Standard output and error that take whatever is printed, and outlast their readers."""

import codecs
import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

# plain characters for those of sparklines, tables and bars; as wide, but for "+-"
PLAIN = dict(zip("▁▂▃▄▅▆▇█…━─╸╺│┃•", "_.-:=+*#~----||*", strict=True)) | {"±": "+-"}


def plain(error: UnicodeError) -> tuple[str, int]:
    r"""What is printed for characters that an encoding lacks; a handler for `codecs`.

    >>> codecs.register_error("plain", plain)
    >>> "▁▂█ 1±2 grün caf\udce9".encode("ascii", "plain").decode()
    '_.# 1+-2 gr\\xfcn caf\\xe9'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(character) or _escaped(character) for character in lacking), error.end


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("ascii", "backslashreplace").decode()


class _Lasting(FileIO):
    """A file that goes nowhere once nobody reads it any more, as behind `| head -1`."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def make_lasting() -> None:
    """Let this process's standard output and error be so; what stands in for them is left alone."""
    codecs.register_error("plain", plain)
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, TextIOWrapper):
        sys.stdout = _lasting(sys.stdout)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, TextIOWrapper):
        sys.stderr = _lasting(sys.stderr)


def _lasting(stream: TextIOWrapper) -> TextIOWrapper:
    below = getattr(stream.buffer, "raw", stream.buffer)
    if type(below) is not FileIO:  # a console of Windows
        stream.reconfigure(errors="plain")
        return stream
    stream.flush()
    file = _Lasting(stream.fileno(), "wb", closefd=False)
    return TextIOWrapper(
        file if stream.buffer is below else BufferedWriter(file),  # as `python -u` leaves it
        encoding=stream.encoding,
        errors="plain",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
