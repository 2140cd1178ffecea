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
    """Send this thread a Ctrl-C as soon as something is true.

    One that comes just before the thread waits for a lock is heard only after that: another signal, of
    which nothing comes, wakes it.
    """
    main, heard = threading.main_thread().ident or 0, threading.Event()

    def send() -> None:
        until(true)
        signal.pthread_kill(main, signal.SIGINT)
        while not heard.wait(0.1):
            signal.pthread_kill(main, signal.SIGURG)

    before = signal.signal(signal.SIGURG, lambda *_: None)
    try:
        with hearing_ctrl_c():
            sender = threading.Thread(target=send)
            sender.start()
            try:
                yield
            finally:
                heard.set()
                sender.join()
    finally:
        signal.signal(signal.SIGURG, before)
