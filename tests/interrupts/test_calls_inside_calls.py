"""A signal handler or a finalizer calls the store while its own thread is inside a call of it.

The call works, or it is refused at once and changes nothing. It never waits for itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from interrupts.points import Points
from kvreplay import KeyNotFoundError, Replay, StoreError
from support.replaying import Caller
from support.waiting import PATIENCE

pytestmark = pytest.mark.untraced

_STEP = {"memory": 1, "lmdb": 1, "filesystem": 7, "sqlite": 3, "postgresql": 17, "etcd": 17}
"""Which points are tried: a file takes long, and its calls are many."""


class _Nested(BaseException):
    """Raised, and caught, where a signal handler is called."""


class Everywhere(Points):
    """Makes another call at each point of a call, as a signal handler does; no exception comes out."""

    def __init__(self, nested: Callable[[], Any]) -> None:
        super().__init__(_Nested)
        self._nested = nested
        self.refused = 0
        self.worked = 0

    def run_at(self, call: Callable[[], Any], at: int) -> Any:
        ended = self.run(call, at)
        assert ended.error is None, ended.stack
        return ended

    def _handle(self, signum: int, frame: Any) -> None:
        try:
            super()._handle(signum, frame)
        except _Nested:
            try:
                self._nested()
                self.worked += 1
            except StoreError:
                self.refused += 1


def in_time(call: Callable[[], Any]) -> None:
    """Fail instead of hanging for ever, from outside of the main thread."""
    over = threading.Event()

    def watch() -> None:
        if not over.wait(PATIENCE):
            import faulthandler
            import os

            faulthandler.dump_traceback()
            os._exit(70)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        over.set()
        watcher.join()


def value_of(store: Any, key: str) -> bytes | None:
    try:
        value: bytes = store.read("p", "s", key)
    except KeyNotFoundError:
        return None
    return value


CALLS: dict[str, Callable[[Any], Any]] = {
    "write": lambda store: store.write("p", "s", "outer", b"v"),
    "check_and_put": lambda store: store.check_and_put(
        *("p", "s", "outer"), expected=value_of(store, "outer"), value=b"v", expires_at=5
    ),
    "read": lambda store: store.read("p", "s", "there"),
    "sweep": lambda store: store.sweep("p", 10, 10),
}


@pytest.mark.parametrize("inner", ["write", "read", "close"])
@pytest.mark.parametrize("outer", CALLS)
def test_a_signal_handler_calls_the_store_at_any_point_of_a_call(
    engine: Any, outer: str, inner: str
) -> None:
    store = engine.open(**engine.hasty)
    store.write("p", "s", "there", b"v")
    other = engine.open(**engine.hasty) if inner == "close" and engine.durable else store
    told: list[bytes | None] = []

    def nested() -> None:
        if inner == "write":
            store.write("p", "s", "inner", b"%d" % len(told))
            told.append(b"%d" % len(told))
        elif inner == "read":
            assert store.read("p", "s", "there") == b"v"
        else:
            other.close()

    def walk() -> None:
        at = 0
        while True:
            at += _STEP[engine.name]
            everywhere = Everywhere(nested)
            ended = everywhere.run(lambda: CALLS[outer](store), at)
            if ended.point is None:
                assert at > 4
                return
            assert ended.error is None or inner == "close", ended.stack
            assert everywhere.worked + everywhere.refused == 1
            if inner == "write":
                assert value_of(store, "inner") == (told[-1] if told else None)
            if inner == "close" and not engine.durable:
                return  # it is closed and empty

    in_time(walk)
    if inner != "close":
        store.write("p", "s", "after", b"v")
        assert Caller(store.read, "p", "s", "after").result() == b"v"


@pytest.fixture
def store(engine: Any) -> Any:
    """Quick ones: the points are the same."""
    return engine.open(**engine.hasty)


def test_a_signal_handler_asks_for_the_key_that_its_thread_runs(engine: Any, store: Any) -> None:
    """At any point of the run: it gets the answer, or is told at once why not."""

    def is_tried(at: int) -> bool:
        runs: list[int] = []
        seen: list[Any] = []
        replay = Replay(store, "pay", ttl=60, wait_timeout=0)

        def handler() -> str:
            runs.append(at)
            return "answer"

        def ask() -> Any:
            return replay.execute(("s", f"k{at}"), {}, handler).response

        def nested() -> None:
            try:
                seen.append(ask())
            except Exception as error:
                seen.append(error)

        ended = Everywhere(nested).run(ask, at)
        assert len(runs) == 1, ended.stack
        assert len(seen) == (ended.point is not None)
        assert ended.result == "answer" or seen == ["answer"], ended.stack
        return ended.point is not None

    def walk() -> None:
        at = _STEP[engine.name]
        while is_tried(at):
            at += _STEP[engine.name]
        assert at > 100

    in_time(walk)


def test_a_finalizer_calls_the_store_during_a_call(engine: Any, store: Any) -> None:
    store.write("p", "s", "there", b"v")
    told: list[str] = []

    class Dying:
        def __del__(self) -> None:
            assert store.read("p", "s", "there") == b"v"
            try:
                store.write("p", "s", "finalizer", b"v")
                told.append("worked")
            except StoreError:
                told.append("refused")

    def walk() -> None:
        at = 0
        while True:
            at += _STEP[engine.name]
            ended = Everywhere(Dying).run(lambda: store.write("p", "s", "k", b"v"), at)
            assert ended.error is None
            if ended.point is None:
                return

    in_time(walk)
    assert "refused" in told or len(told) > 4
    store.write("p", "s", "after", b"v")
