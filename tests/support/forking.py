"""A forked child that may be struck."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time

from kvreplay.testing import forking

__all__ = ["BareChild", "Child"]


class Child(forking.Child):
    """A forked child that may be struck meanwhile."""

    def kill(self) -> bool:
        """Kill it; say whether it was still running."""
        os.kill(self.pid, signal.SIGKILL)
        code = self.wait()
        assert code in (0, -signal.SIGKILL), "the forked child failed before it was killed"
        return code != 0

    def wait_for_stop(self) -> int | None:
        """Wait until it has stopped itself, or has ended: then return what ``wait`` would."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        return None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


class BareChild(forking.Child):
    """A child that only the C library knows to be one."""

    def _fork(self) -> int:
        _wait_until_the_others_wait()
        # PyDLL keeps the interpreter's lock, so the child goes on as the thread that called.
        return int(ctypes.PyDLL(None).fork())


def _wait_until_the_others_wait() -> None:
    """Wait until each other thread sleeps on a lock of its own.

    A thread that waits for the interpreter's lock would take a part of it into nowhere: CPython
    mends that in a hook. Whoever wants that lock gets it at one of the reads here.
    """
    calm, end = 0, time.monotonic() + 60
    while calm < 50:
        assert time.monotonic() < end, "the other threads do not come to rest"
        others = set(os.listdir("/proc/self/task")) - {str(threading.get_native_id())}
        is_calm = {_state_of(thread) for thread in others} <= {"S"} and not _pool_connects()
        calm = calm + 1 if is_calm else 0


def _pool_connects() -> bool:
    """Say whether a thread of psycopg's pool connects: it waits for a server, and comes back soon."""
    workers = (thread for thread in threading.enumerate() if "-worker-" in thread.name)
    return any("poll" in _place_of(str(worker.native_id)) for worker in workers)


def _place_of(thread: str) -> str:
    """Return where in the kernel it waits; a thread may have ended."""
    try:
        with open(f"/proc/self/task/{thread}/wchan", encoding="ascii") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _state_of(thread: str) -> str:
    """Return its state as in ``proc(5)``; a thread that was joined may end only now."""
    try:
        with open(f"/proc/self/task/{thread}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
