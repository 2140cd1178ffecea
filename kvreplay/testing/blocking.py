"""An asynchronous store with blocking calls, so that :class:`StoreContract` can test it.

An event loop in a thread of its own makes the calls, each in a task. It is one loop for all stores
of a process; a forked child begins another one.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from os import getpid
from typing import Any, Final, Self, cast

from kvreplay.store import AsyncKVTransaction, ForkSafeLock, KVTransaction, ThreadBound

__all__ = ["Blocking"]


class Blocking:
    """An asynchronous store whose calls block, on any thread::

        class TestMyStore(StoreContract):
            def open(self, path: Path) -> Blocking:
                return Blocking(MyAsyncStore, path)

    It has the methods that the asynchronous store has, and no more. A thread whose transaction is
    open makes all its calls in the task of that transaction; any other call is a task of its own.

    Args:
        opens: called on the loop; returns the store, or is awaited for it.
        args: what it is called with.
    """

    def __init__(self, opens: Callable[..., Any], *args: Any) -> None:
        self._tasks: dict[tuple[int, int], _Task] = {}  # of open transactions
        self.inner: Any = self._ask(opens, *args)

    def __repr__(self) -> str:
        return f"<Blocking over {self.inner!r}>"

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Read; see :meth:`kvreplay.KVStoreSync.read`."""
        found: bytes = self._ask(self.inner.read, primary_namespace, secondary_namespace, key)
        return found

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace; see :meth:`kvreplay.KVStoreSync.write`."""
        self._ask(self.inner.write, primary_namespace, secondary_namespace, key, value)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present; see :meth:`kvreplay.KVStoreSync.remove`."""
        self._ask(self.inner.remove, primary_namespace, secondary_namespace, key, lazy)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the keys; see :meth:`kvreplay.KVStoreSync.list`."""
        found: list[str] = self._ask(self.inner.list, primary_namespace, secondary_namespace)
        return found

    def close(self) -> None:
        """Close the asynchronous store."""
        self._ask(self.inner.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        """Return what only some stores have, if the asynchronous store has it."""
        if name.startswith("_") or name == "inner":  # while it is opened, there is none
            raise AttributeError(f"Blocking has no {name}")
        there = getattr(self.inner, name)
        if name == "list_all_keys":
            return self._walk
        if name == "transaction":
            return self._transaction
        return partial(self._ask, there) if inspect.iscoroutinefunction(there) else there

    def _ask(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call it on the loop, await what it returns, and return that."""
        call = partial(function, *args, **options)
        task = self._tasks.get(_here())
        if task is not None:
            return task.ask(call)
        return asyncio.run_coroutine_threadsafe(_awaited(call), _loop()).result()

    def _walk(self) -> Iterator[tuple[str, str, str]]:
        walk = self._ask(self.inner.list_all_keys)
        try:
            while (address := self._ask(anext, walk, None)) is not None:
                yield address
        finally:
            if hasattr(walk, "aclose"):
                self._ask(walk.aclose)

    def _transaction(self) -> AbstractContextManager[KVTransaction]:
        return ThreadBound(self._block())

    def _block(self) -> Generator[KVTransaction, None, None]:
        here = _here()
        outer = self._tasks.get(here)
        task = self._tasks[here] = outer or _Task()
        try:
            block = self._ask(self.inner.transaction)
            transaction = self._ask(block.__aenter__)
            try:
                yield cast(KVTransaction, _Transaction(self._ask, transaction))
            except BaseException as error:
                if not self._ask(block.__aexit__, type(error), error, error.__traceback__):
                    raise
            else:
                self._ask(block.__aexit__, None, None, None)
        finally:
            if outer is None:
                del self._tasks[here]
                task.end()


class _Transaction:
    """The calls in a transaction. By another thread they are those of another task."""

    def __init__(self, ask: Callable[..., Any], transaction: AsyncKVTransaction) -> None:
        self._ask = ask
        self._transaction = transaction

    def __getattr__(self, name: str) -> Any:
        return partial(self._ask, getattr(self._transaction, name))


class _Task:
    """A task that makes one call after the other."""

    def __init__(self) -> None:
        self._loop = _loop()
        self._calls: asyncio.Queue[tuple[Callable[[], Any], Future[Any]] | None] = asyncio.Queue()
        asyncio.run_coroutine_threadsafe(self._work(), self._loop)

    def ask(self, call: Callable[[], Any]) -> Any:
        answer: Future[Any] = Future()
        self._put((call, answer))
        return answer.result()

    def end(self) -> None:
        self._put(None)

    def _put(self, item: tuple[Callable[[], Any], Future[Any]] | None) -> None:
        self._loop.call_soon_threadsafe(self._calls.put_nowait, item)

    async def _work(self) -> None:
        while (item := await self._calls.get()) is not None:
            call, answer = item
            try:
                answer.set_result(await _awaited(call))
            except BaseException as error:  # whatever it is, who asks gets it
                answer.set_exception(error)


async def _awaited(call: Callable[[], Any]) -> Any:
    value = call()
    return await value if inspect.isawaitable(value) else value


def _here() -> tuple[int, int]:
    """Return this process and this thread."""
    return getpid(), threading.get_ident()


_lock: Final = ForkSafeLock()
_loops: Final[dict[int, asyncio.AbstractEventLoop]] = {}
"""The loop of each process, by its pid. A parent's stays, since to close it would disturb it."""


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        loop = _loops.get(getpid())
        if loop is None:
            loop = _loops[getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="kvreplay-loop", daemon=True).start()
    return loop
