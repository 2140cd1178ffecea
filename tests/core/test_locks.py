"""The lock of stores: what a fork or an interrupt finds of it."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from kvreplay.backends.memory import MemoryStore
from kvreplay.store import locks
from kvreplay.store.locks import ForkSafeLock


def test_a_fork_gives_up_waiting(fork: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvreplay.store.locks.FORK_PATIENCE", 0.01)
    lock = ForkSafeLock(brief=True)
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            assert lock.is_mine
            held.set()
            assert over.wait(30)

    def child() -> None:
        assert not lock.is_mine
        assert lock.acquire(0)
        lock.release()

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    fork(child).join()
    assert not lock.acquire(0), "in the parent it is held as before"
    over.set()
    holder.join()
    assert lock.acquire(0)
    fork(lambda: None).join()
    assert lock.is_mine
    lock.release()


def test_fork_safe_locks_are_not_kept() -> None:
    before = len(locks._fork_safe_locks)
    MemoryStore()
    assert len(locks._fork_safe_locks) == before


@pytest.mark.untraced
def test_a_ctrl_c_at_any_moment_leaves_a_lock_free() -> None:
    """Thousands of interrupts, each somewhere in taking the lock, holding it and leaving it."""
    lock = ForkSafeLock()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(3000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 10e-6 + number % 50 * 4e-6)
                while True:
                    with lock:
                        pass
            except KeyboardInterrupt:
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert not lock.is_mine
    finally:
        signal.signal(signal.SIGALRM, previous)
