"""Signals to processes that may have ended meanwhile."""

from __future__ import annotations

import os

from support.process_table import state_of
from support.waiting import until

__all__ = ["send"]


def send(number: int, pid: int, wanted: str | None = None) -> None:
    """Send a signal, and wait until it has made this state of the process, if it lives."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    if wanted is not None:
        until(lambda: state_of(pid) in (wanted, "Z", ""))
