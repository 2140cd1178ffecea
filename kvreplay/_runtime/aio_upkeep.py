"""What is done with the records of a replay besides answering: awaited.

``upkeep.py`` has the same as blocking calls, and says what each promises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeVar

from kvreplay._protocol.record import ReplayRecord, State
from kvreplay._runtime.aio_sweeping import AsyncSweeper
from kvreplay._runtime.any_replay import AnyReplay
from kvreplay._runtime.awaiting import AsyncDriver
from kvreplay._runtime.requests import Key, replay_key
from kvreplay._runtime.walking import Records, in_doubt, record
from kvreplay.clock import Duration, to_ms
from kvreplay.store import AsyncAtomicKVStore, AtomicKVStore, SweepResult

__all__ = ["AsyncUpkeep"]

V = TypeVar("V")

_PAGE: Final = 100  # records that are brought back at once: one call in a thread


class AsyncUpkeep(AnyReplay[AtomicKVStore | AsyncAtomicKVStore, V]):
    """The part of :class:`~kvreplay.AsyncReplay` that answers no request."""

    _awaits = True

    def _set_up(self) -> None:
        super()._set_up()
        self._driver = AsyncDriver(self._settings)

    async def record(self, key: Key, *, operation: str | None = None) -> ReplayRecord | None:
        """Return the key's record as it is stored; see :meth:`kvreplay.Replay.record`."""
        return await self._driver.look(record(self._settings, replay_key(key, operation)))

    async def is_in_doubt(self, record: ReplayRecord) -> bool:
        """Say whether the key of a record is in doubt; see :meth:`kvreplay.Replay.is_in_doubt`."""
        return await self._driver.look(in_doubt(self._settings, record))

    async def resolve(
        self,
        key: Key,
        *,
        response: object,
        ttl: Duration | None = None,
        operation: str | None = None,
        seen: ReplayRecord | None = None,
        returns: object = None,
    ) -> bool:
        """Record ``response`` for a key in doubt; see :meth:`kvreplay.Replay.resolve`."""
        return await self._driver.drive(
            *self._resolving(key, operation, response, ttl, seen, returns)
        )

    async def release(
        self, key: Key, *, operation: str | None = None, seen: ReplayRecord | None = None
    ) -> bool:
        """Free a key in doubt; see :meth:`kvreplay.Replay.release`."""
        return await self._driver.drive(*self._releasing(key, operation, seen))

    async def forget(
        self, key: Key, *, operation: str | None = None, seen: ReplayRecord | None = None
    ) -> bool:
        """Remove an answer before its time; see :meth:`kvreplay.Replay.forget`."""
        return await self._driver.drive(*self._forgetting(key, operation, seen))

    async def records(
        self, *, state: State | None = None, in_doubt: bool | None = None
    ) -> AsyncIterator[ReplayRecord]:
        """Yield the records of the namespace; see :meth:`kvreplay.Replay.records`."""
        walk = Records(self._settings, state, in_doubt)
        while page := await self._driver.look(walk.page(_PAGE)):
            for each in page:
                if isinstance(each, Exception):
                    raise each
                yield each

    async def close(self, timeout: Duration | None = None) -> int:
        """Let no handler begin any more, and wait; see :meth:`kvreplay.Replay.close`.

        It waits for the handlers of all event loops that this object was used on.
        """
        limit = None if timeout is None else to_ms(timeout, "timeout")
        settings = self._settings
        return await self._driver.wait(
            settings.running.close, settings.name, limit, settings.monotonic
        )

    async def sweep(self, limit: int = 1000) -> SweepResult:
        """Remove at most ``limit`` records that nobody needs; see :meth:`kvreplay.Replay.sweep`."""
        began = self._settings.observer.began()
        return self._emit_swept(await self._driver.sweep(self._walk, limit), began)

    def sweeping(
        self, every: Duration = 60.0, limit: int = 1000
    ) -> AbstractAsyncContextManager[AsyncSweeper]:
        """Sweep from a task during an ``async with``; see :meth:`kvreplay.Replay.sweeping`."""
        return AsyncSweeper(self.sweep, to_ms(every, "every"), limit)
