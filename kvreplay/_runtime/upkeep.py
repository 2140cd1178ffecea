"""What is done with the records of a replay besides answering: blocking calls.

A person or a program looks at them, settles what is in doubt, forgets, sweeps, and shuts down.
``aio_upkeep.py`` has the same, awaited.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from kvreplay._protocol.record import ReplayRecord, State
from kvreplay._runtime.any_replay import AnyReplay
from kvreplay._runtime.blocking import drive
from kvreplay._runtime.requests import Key, replay_key
from kvreplay._runtime.sweeping import Sweeper
from kvreplay._runtime.walking import Records, in_doubt, look, record
from kvreplay.clock import Duration, to_ms
from kvreplay.store import AtomicKVStore, SweepResult

__all__ = ["Upkeep"]

V = TypeVar("V")


class Upkeep(AnyReplay[AtomicKVStore, V]):
    """The part of :class:`~kvreplay.Replay` that answers no request."""

    def record(self, key: Key, *, operation: str | None = None) -> ReplayRecord | None:
        """Return the key's record as it is stored, expired or not; ``None`` if there is none.

        It compares no params, and changes nothing.

        Args:
            operation: as in :meth:`lookup`.

        Raises:
            RecordError: it cannot be read; ``addresses`` says where it is.
        """
        return look(record(self._settings, replay_key(key, operation)), self._settings)

    def is_in_doubt(self, record: ReplayRecord) -> bool:
        """Say whether the key of a record is in doubt: a run began and ended without an answer.

        ``False``: it is answered, or its run goes on, or may go on (an owner on another machine
        whose lease is not over).

        Args:
            record: as :meth:`record` or :meth:`records` shows it.
        """
        return look(in_doubt(self._settings, record), self._settings)

    def resolve(
        self,
        key: Key,
        *,
        response: object,
        ttl: Duration | None = None,
        operation: str | None = None,
        seen: ReplayRecord | None = None,
        returns: object = None,
    ) -> bool:
        """Settle a key in doubt whose effect happened: record ``response`` as its answer.

        Any process may settle a key whose run has ended.

        Args:
            key: as in :meth:`execute`.
            response: the answer; what msgpack can hold.
            ttl: as in :meth:`execute`.
            operation: as in :meth:`lookup`.
            seen: the record that was looked at, as :meth:`record` or :meth:`records` shows it. Then
                only that run is settled, and never one that has claimed the key since.
            returns: as in :meth:`lookup`.

        Returns:
            Whether this call settled it. ``False``: there was no claim, or another one than that of
            the record ``seen``; nothing was changed.

        Raises:
            InFlightError: its owner is alive, or may be; nothing was changed.
            InvalidResponseError: it cannot be stored; nothing was changed.
        """
        return drive(*self._resolving(key, operation, response, ttl, seen, returns))

    def release(
        self, key: Key, *, operation: str | None = None, seen: ReplayRecord | None = None
    ) -> bool:
        """Settle a key in doubt whose effect did not happen: the next request runs it.

        It takes, returns and raises the same as :meth:`resolve`.
        """
        return drive(*self._releasing(key, operation, seen))

    def forget(
        self, key: Key, *, operation: str | None = None, seen: ReplayRecord | None = None
    ) -> bool:
        """Remove an answer before its time: the next request for the key runs the handler again.

        It removes a stored failure and a tombstone too. A key that is running or in doubt has no
        answer yet, and is left alone.

        Args:
            operation: as in :meth:`lookup`.
            seen: the record that was looked at. If the key has another one by now, that stays.

        Returns:
            Whether this call removed it. ``False``: there is none, or another one than ``seen``.

        Raises:
            InFlightError, InDoubtError: the key is running or in doubt; nothing was changed.
        """
        return drive(*self._forgetting(key, operation, seen))

    def records(
        self, *, state: State | None = None, in_doubt: bool | None = None
    ) -> Iterator[ReplayRecord]:
        """Yield the records of the namespace in no promised order, even expired ones.

        It walks the keys of the whole store.

        Args:
            state: only those in this state.
            in_doubt: only those whose key is in doubt now (``True``), or is not (``False``).

        Raises:
            RecordError: some records could not be read; all others were yielded before, and
                ``addresses`` says where they are.
        """
        return self._each(Records(self._settings, state, in_doubt))

    def _each(self, walk: Records) -> Iterator[ReplayRecord]:
        while (found := look(walk.next(), self._settings)) is not None:
            yield found

    def close(self, timeout: Duration | None = None) -> int:
        """Let no handler begin any more, and wait for those that this object is running.

        Answers that are stored are still replayed, and the store stays open: close it afterwards.
        What is left running is logged as a warning; if its process ends now, its key is in doubt.
        A handler that this very thread runs is left, and not waited for: it has called this, or a
        signal handler has that interrupted it. With ``AsyncReplay`` a handler must not await this:
        it would wait for itself.

        Args:
            timeout: how long to wait: seconds, a timedelta, or text; ``None``: no limit.

        Returns:
            How many handlers are left running.
        """
        limit = None if timeout is None else to_ms(timeout, "timeout")
        settings = self._settings
        return settings.running.close(settings.name, limit, settings.monotonic)

    def sweep(self, limit: int = 1000) -> SweepResult:
        """Remove at most ``limit`` records that nobody needs any more; claims are never removed.

        On an expiring store this visits only what is due. On any other it visits the next ``limit``
        records of the namespace, and begins anew after the last one. For this it walks the keys of
        the whole store.

        Raises:
            InvalidValueError: ``limit`` is not an int of at least 1; nothing was swept.
        """
        began = self._settings.observer.began()
        return self._emit_swept(self._walk.sweep(limit), began)

    def sweeping(
        self, every: Duration = 60.0, limit: int = 1000
    ) -> AbstractContextManager[Sweeper]:
        """Sweep periodically, from a thread that lives as long as the ``with`` block.

        Each round sweeps until nothing more is due. If a sweep fails, that is logged, and the next
        round tries again.

        Args:
            every: the time between two rounds: seconds, a timedelta, or text such as ``"1min"``.

        Raises:
            ConfigError: ``every`` is not a time, or 0.
        """
        return Sweeper(self.sweep, to_ms(every, "every"), limit)
