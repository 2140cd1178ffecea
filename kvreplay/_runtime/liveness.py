"""Who holds a claim, and whether that process still runs, where it can be looked up.

An owner is ``boot id:pid namespace:pid:start time`` as Linux shows them in ``/proc`` (proc(5)).
On the same boot and in the same PID namespace a process can be looked up. For its own claims a
process has a set of the running handlers' tokens. Anywhere else only the claim's lease is known.
"""

from __future__ import annotations

import os
from enum import Enum
from functools import lru_cache
from typing import Final

from kvreplay._protocol.record import TOKEN_SIZE, Claim

__all__ = ["Liveness", "begin", "end", "look_up", "this_process"]


class Liveness(Enum):
    """What is known about a claim's owner."""

    RUNNING = "running"
    GONE = "gone"
    UNKNOWN = "unknown"  # on another boot, machine or PID namespace: the lease decides


_running: Final[dict[tuple[int, bytes], bool]] = {}
"""The tokens of running handlers, each with its pid: a forked child inherits its parent's."""


def begin() -> bytes:
    """Return a fresh token, noted as running in this process until :func:`end`."""
    token = os.urandom(TOKEN_SIZE)
    _running[os.getpid(), token] = (
        True  # an operator: no interrupt comes between this and the return
    )
    return token


def end(token: bytes) -> None:
    """Note that the token's handler does not run any more, however it ended."""
    _running.pop((os.getpid(), token), None)


def this_process() -> str:
    """Return this process as an owner; without ``/proc``, a name that nobody can look up."""
    return _owner(os.getpid())


@lru_cache(maxsize=1)  # by pid, since a forked child is another owner
def _owner(pid: int) -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot_id = file.read().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
        _, start, _ = _stat(pid)
    except OSError:
        return f"{os.urandom(16).hex()}:0:{pid}:0"
    return f"{boot_id}:{namespace}:{pid}:{start}"


def look_up(claim: Claim) -> Liveness:
    """Look the claim's owner up."""
    mine = this_process()
    if claim.owner == mine:
        runs = (os.getpid(), claim.token) in _running
        return Liveness.RUNNING if runs else Liveness.GONE
    place, _, process = claim.owner.partition(":")
    namespace, _, process = process.partition(":")
    pid, _, start = process.partition(":")
    if not mine.startswith(f"{place}:{namespace}:") or not (pid.isdecimal() and start):
        return Liveness.UNKNOWN
    return _look_up_process(int(pid), start)


def _look_up_process(pid: int, start: str) -> Liveness:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return Liveness.GONE
    except PermissionError:
        pass  # it exists, and belongs to another user
    except OverflowError:
        return Liveness.UNKNOWN
    try:
        state, started, threads = _stat(pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return Liveness.UNKNOWN  # ended just now, or hidden from this user
    except OSError:
        return Liveness.RUNNING  # this process can open no file now; but the owner was there
    # A zombie does nothing more, unless it has other threads: one of a killed process may still be
    # in the system call that stores its answer. Another start time means another process.
    lives = state not in "ZX" or threads > 1
    return Liveness.RUNNING if started == start and lives else Liveness.GONE


def _stat(pid: int) -> tuple[str, str, int]:
    """Return a process's state, its start in clock ticks since boot, and its threads."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return fields[0], fields[19], int(fields[17])
