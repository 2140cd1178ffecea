"""The standard streams: nothing fails for want of one, or for a character that one cannot show."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO

__all__ = ["complain", "have_streams", "write_no_more"]


def have_streams() -> None:
    """Let a closed stream swallow all, and one that cannot show a character escape it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # until the process ends
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def complain(line: str) -> None:
    """Print a line on the standard error, if that can be written."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        write_no_more(sys.stderr)  # what is left in it would fail again at the end


def write_no_more(stream: TextIO) -> None:
    """Let a stream that cannot be written swallow what it still holds."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
