"""A forked child that may be struck."""

from __future__ import annotations

import os
import signal

from kvreplay.testing import forking

__all__ = ["Child"]


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
