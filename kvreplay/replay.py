"""``Replay``: answer a request once, and every retry with the same answer. Blocking calls."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from kvreplay._protocol import flow
from kvreplay._protocol.record import ReplayRecord
from kvreplay._protocol.steps import Flow, Request, Verdict
from kvreplay._runtime.any_replay import LOOK_AGAIN, AnyReplay, Protocol
from kvreplay._runtime.blocking import drive
from kvreplay._runtime.renewal import Renewer
from kvreplay._runtime.requests import Key, Outcome, outcome_of, peek
from kvreplay._runtime.run import Run
from kvreplay._runtime.singleflight import Flight, flights
from kvreplay._runtime.sweeping import Sweeper
from kvreplay._runtime.walking import records
from kvreplay.clock import Duration, to_ms
from kvreplay.errors import ConfigError
from kvreplay.store import KVTransaction, SweepResult

__all__ = ["Replay"]


class Replay(AnyReplay[Verdict]):
    """Restart-safe request replay in one namespace of a store.

    What holds, over threads, processes and restarts, for one key while its answer lives:

    * The handler runs once. It runs again only after it raised an ``Exception`` (which says that
      nothing happened), or where ``on_in_doubt`` allows it.
    * Everybody with the same params gets the same response, and nobody with others gets one.
    * An answer that was returned is stored, durably at the store's level.
    * A run whose process died is *in doubt*, and is never silently run again.

    With ``renew=True`` a thread of this object's moves the leases, while there is a handler whose
    claim has one.
    """

    def _set_up(self) -> None:
        super()._set_up()
        self._renewing = Renewer(self._settings) if self._settings.renew else None

    def execute(
        self,
        key: Key,
        params: object,
        handler: Callable[[], Any],
        *,
        ttl: Duration | None = None,
    ) -> Outcome:
        """Run ``handler()`` once for this key and params, or return the answer it gave.

        A call for a key that this process is running waits for that run and shares its end. If the
        handler raises an ``Exception``, nothing is stored, the exception propagates, and a retry
        runs again; if it raises :class:`~kvreplay.IndeterminateError` or anything that is not an
        ``Exception``, the key is in doubt. So it is if it lets pass on that it does not know: an
        ``OutcomeUnknownError`` of its store, or an in-doubt error of a request nested in it.

        Followers of a run in this process wait without a time limit, so two handlers must not
        ask for each other's key, nor a handler for its own from a thread that it starts.

        Args:
            key: a ReplayKey or a ``(scope, id)`` tuple.
            params: what must be equal in a retry; dict, list, tuple, str, bytes, int,
                float, bool and None.
            ttl: overrides the instance's.

        Raises:
            ParamsMismatchError, ExpiredError: stale flows.
            InFlightError: another process runs the key, longer than ``wait_timeout``.
            InDoubtError: a run began and its end is unknown, or could not be stored.
                With ``lease=None``: this run's answer may not be stored.
            ClaimLostError: the handler ran, and another owner had taken the key over.
            ResponseNotStorableError: the handler ran, and the key is in doubt.
            InvalidParamsError, ConfigError, RecordError, StoreError: nothing ran.
        """
        seen = peek(self._settings, key, params, ttl)
        if isinstance(seen, Outcome):
            return seen
        return self._execute(seen, flow.execute, handler)

    def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[KVTransaction], Any],
        *,
        ttl: Duration | None = None,
    ) -> Outcome:
        """Commit the writes of ``handler(transaction)`` and its answer together: exactly once.

        One commit, no claim, nothing in doubt: after a crash either both are there or neither.
        The handler holds the store's write lock, so it must do no network I/O, and must change
        the store through its transaction only.

        Raises:
            ConfigError: the store has no transactions.
            StoreError: nothing was changed; after ``OutcomeUnknownError`` a retry tells.
            ResponseNotStorableError: the writes were undone.
            StaleFlowError, InFlightError, InDoubtError: as :meth:`execute`.
        """
        self._settings.require_transactions("execute_in_transaction")
        seen = peek(self._settings, key, params, ttl)
        if isinstance(seen, Outcome):
            return seen
        return self._execute(seen, flow.execute_in_transaction, handler)

    def lookup(self, key: Key, params: object) -> Outcome | None:
        """Return the stored answer, or ``None`` if there is none; never run, wait or take over.

        Raises:
            ParamsMismatchError, ExpiredError: as :meth:`execute`; an expired record is pruned.
            InFlightError: the key is running.
            InDoubtError: its run was abandoned.
        """
        steps, run = self._looking_up(key, params)
        return self._found(self._drive(steps, run), run)

    def resolve(self, key: Key, *, response: object, ttl: Duration | None = None) -> bool:
        """Settle a key in doubt whose effect happened: record ``response`` as its answer.

        Returns:
            Whether this call settled it; ``False``: the key was not claimed, nothing was changed.

        Raises:
            InFlightError: its owner is alive, or may be; nothing was changed.
            ResponseNotStorableError: nothing was changed.
        """
        return drive(*self._resolving(key, response, ttl))

    def release(self, key: Key) -> bool:
        """Settle a key in doubt whose effect did not happen: the next request runs it.

        Returns and raises as :meth:`resolve`.
        """
        return drive(*self._releasing(key))

    def records(self) -> Iterator[ReplayRecord]:
        """Yield every record of the namespace in no promised order, expired ones too.

        It walks the keys of the whole store.

        Raises:
            RecordError: after all others were yielded, if some could not be read.
        """
        return records(self._settings)

    def sweep(self, limit: int = 1000) -> SweepResult:
        """Remove at most ``limit`` records that nobody needs any more; claims are never removed.

        On an expiring store this costs what it removes. On any other it visits the next ``limit``
        records of the namespace, round and round, and walks the keys of the whole store for it.

        Raises:
            InvalidValueError: ``limit`` is not an int of at least 1; nothing was swept.
        """
        return self._emit_swept(self._walk.sweep(limit))

    def sweeping(
        self, every: Duration = 60.0, limit: int = 1000
    ) -> AbstractContextManager[Sweeper]:
        """Sweep periodically, from a thread of the block's own.

        Each round sweeps until nothing more is due. A failing store is logged, and tried again in
        the next round.
        """
        return Sweeper(self.sweep, to_ms(every, "every"), limit)

    def _replaying(
        self,
        function: Callable[..., Any],
        call_of: Callable[..., tuple[Key, object, Callable[[], Any]]],
        ttl: Duration | None,
    ) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):
            raise ConfigError("a coroutine function is decorated by AsyncReplay's idempotent")

        def replayed(*args: Any, **kwargs: Any) -> Any:
            return self.execute(*call_of(*args, **kwargs), ttl=ttl).response

        return replayed

    def _execute(
        self, request: Request, protocol: Protocol, handler: Callable[..., Any]
    ) -> Outcome:
        while True:
            own = self._flight_of(request)
            try:
                flight = flights.board(own)
                if flight is own:
                    steps = protocol(request, self._settings.policy)
                    run = Run(self._settings, request.key, own)
                    settled = self._drive(steps, run, handler)
                    flights.land(own, settled)
                    self._settings.observer.emit_answer(settled, request.key)
                    return outcome_of(settled, replayed=settled.replayed)
            except BaseException as error:  # even an interrupt: nobody may wait for ever
                flights.land(own, error)
                raise
            outcome = self._follow(flight, request)
            if outcome is not None:
                return outcome
            request.absent_at = None  # that was before the other's run

    def _follow(self, flight: Flight[object], request: Request) -> Outcome | None:
        """Share the leader's result; ``None``: it has none to share, start over."""
        until_bound = self._begin_to_follow(flight, request)
        changed = threading.Event()
        while flights.wake_on_change(flight, changed.set, until_bound=until_bound):
            while not changed.wait(LOOK_AGAIN):
                flights.give_up(flight)
            changed.clear()
        return self._share(flight, request)

    def _drive(self, steps: Flow[Any], run: Run, handler: Callable[..., Any] | None = None) -> Any:
        try:
            return drive(steps, run, handler, renewing=self._renewing)
        except Exception as error:
            run.emit_error(error)
            raise
