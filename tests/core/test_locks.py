"""The lock of stores: what a fork or an interrupt finds of it."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvreplay.store.locks import ForkSafeLock


def test_a_child_finds_a_lock_free(fork: Any) -> None:
    """Whether another thread of its parent holds it, or the thread that forks."""
    lock = ForkSafeLock()
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            assert lock.is_mine
            held.set()
            assert over.wait(30)

    def child() -> None:
        assert not lock.is_mine
        assert lock.acquire(timeout=0)
        assert lock.is_mine
        lock.release()
        assert not lock.is_mine

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    fork(child).join()
    assert not lock.acquire(timeout=0), "in the parent it is held as before"
    assert not lock.acquire(blocking=False)
    over.set()
    holder.join()
    with lock:
        fork(child).join()
        assert lock.is_mine
    assert not lock.is_mine


def test_a_lock_is_left_by_an_exception() -> None:
    lock = ForkSafeLock()
    with pytest.raises(ZeroDivisionError), lock, lock:
        raise ZeroDivisionError
    assert not lock.is_mine
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lock.acquire, timeout=0).result()


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
