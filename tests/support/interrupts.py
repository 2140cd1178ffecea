"""Ctrl-C, even in a run that was started in the background: there it is ignored, and by all children too."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from support.waiting import until

__all__ = ["hearing_ctrl_c", "interrupted_when"]


@contextmanager
def hearing_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C interrupt this process, and every process that it starts meanwhile."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interrupted_when(true: Callable[[], bool]) -> Iterator[None]:
    """Send this thread a Ctrl-C as soon as something is true."""

    def send() -> None:
        until(true)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with hearing_ctrl_c():
        sender = threading.Thread(target=send)
        sender.start()
        try:
            yield
        finally:
            sender.join()
