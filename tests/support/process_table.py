"""The processes of this machine, out of ``/proc``."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

__all__ = ["children_of", "processes", "state_of"]


def processes() -> Iterator[tuple[int, int, str]]:
    """Each process, its parent, and its state: ``"T"``: it is stopped; ``"Z"``: it has ended, and its parent looks away."""
    for name in os.listdir("/proc"):
        stat = _stat_of(int(name)) if name.isdigit() else ()
        if stat:
            yield int(name), int(stat[1]), stat[0]


def children_of(pid: int) -> Collection[int]:
    """The processes that it has started, or inherited; those too that have ended while it looks away."""
    return {each for each, parent, _ in processes() if parent == pid}


def state_of(pid: int) -> str:
    """As :func:`processes` says it; ``""``: there is no such process."""
    stat = _stat_of(pid)
    return stat[0] if stat else ""


def _stat_of(pid: int) -> Sequence[str]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()  # it has ended
    return stat.rpartition(") ")[2].split()
