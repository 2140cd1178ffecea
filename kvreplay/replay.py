"""``Replay``: answer a request once, and every retry with the same answer. Blocking calls."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final, ParamSpec

from kvreplay._protocol import flow
from kvreplay._protocol.record import ReplayRecord, encode_response
from kvreplay._protocol.steps import Flow, Request, Settled, Verdict
from kvreplay._runtime.blocking import drive
from kvreplay._runtime.renewal import Renewer
from kvreplay._runtime.run import Run
from kvreplay._runtime.settings import (
    Key,
    Outcome,
    ReplayNamespace,
    arguments_of,
    outcome_of,
    refuse_own_flight,
    replay_key,
)
from kvreplay._runtime.singleflight import Flight, flights
from kvreplay._runtime.sweeping import Sweeper
from kvreplay._runtime.walking import Walk, records, sweep
from kvreplay.clock import Clock, Duration, to_ms
from kvreplay.errors import ConfigError
from kvreplay.events import ReplayEvent
from kvreplay.store import AtomicKVStore, KVTransaction, SweepResult

__all__ = ["Replay"]

P = ParamSpec("P")

_LOOK_AGAIN: Final = 1.0  # seconds, until a follower looks whether its leader's loop was closed


class Replay:
    """Restart-safe request replay in one namespace of a store.

    What holds, over threads, processes and restarts, for one key while its answer lives:

    * The handler runs once. It runs again only after it raised an ``Exception`` (which says that
      nothing happened), or where ``on_in_doubt`` allows it.
    * Everybody with the same params gets the same response, and nobody with others gets one.
    * An answer that was returned is stored, durably at the store's level.
    * A run whose process died is *in doubt*, and is never silently run again.

    It opens no file and starts no thread; the store stays its owner's to close.

    Args:
        store: an :class:`~kvreplay.AtomicKVStore`.
        namespace: the primary namespace that holds the replay records, and nothing else.
        ttl: how long an answer is kept after completion, in seconds or a timedelta; 0: it is given
            once, and expired from then on.
        lease: how long a machine that cannot look this process up believes its claim. ``None``:
            no claim is stored, which saves a commit; then a crash in the handler leaves no trace,
            and two processes may both run it, of which one's answer becomes everybody's.
        tombstone_ttl: how long an expired key goes on answering ``ExpiredError`` after expiry.
        wait_timeout: how long to wait for another process that runs the key; 0: not at all.
        on_in_doubt: ``"raise"``, ``"rerun"``, or a callable that is given the
            :class:`~kvreplay.ReplayRecord` in doubt, asks whatever the handler acts on, and
            returns ``Applied(response)`` or ``NOT_APPLIED``.
        max_record_bytes: the largest record to store, params and response together.
        renew: keep moving the lease while a handler runs, from a thread of this object's that
            lives while there are such handlers.
        clock: an object with ``now_ms()``; the system's clock by default.
        on_event: called with a :class:`~kvreplay.ReplayEvent` for each decision, on the thread that
            takes it; what it raises is logged, and never fails a request.

    Raises:
        ConfigError: a setting is wrong, or the store lacks a capability; it names which.
    """

    def __init__(
        self,
        store: AtomicKVStore,
        namespace: str,
        *,
        ttl: Duration,
        lease: Duration | None = 30.0,
        tombstone_ttl: Duration = 0.0,
        wait_timeout: Duration = 10.0,
        on_in_doubt: str | Callable[[ReplayRecord], Verdict] = "raise",
        max_record_bytes: int = 1024 * 1024,
        renew: bool = False,
        clock: Clock | None = None,
        on_event: Callable[[ReplayEvent], object] | None = None,
    ) -> None:
        self._namespace = ReplayNamespace(
            store,
            namespace,
            ttl=ttl,
            lease=lease,
            tombstone_ttl=tombstone_ttl,
            wait_timeout=wait_timeout,
            on_in_doubt=on_in_doubt,
            max_record_bytes=max_record_bytes,
            renew=renew,
            clock=clock,
            on_event=on_event,
        )
        self._renewing = Renewer(self._namespace) if renew else None
        self._walk = Walk(self._namespace)

    def __repr__(self) -> str:
        return f"<Replay {self._namespace.name!r} on {self._namespace.store!r}>"

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
        seen = self._namespace.peek(key, params, ttl)
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
        self._namespace.require_transactions("execute_in_transaction")
        seen = self._namespace.peek(key, params, ttl)
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
        request = self._namespace.request(key, params, None)
        self._namespace.refuse_running(request)
        settled = self._drive(flow.lookup(request, self._namespace.policy), request, None, None)
        if settled is None:
            return None
        self._namespace.emit_settled(settled, request.key)
        return outcome_of(settled, replayed=True)

    def idempotent(
        self,
        *,
        key: Callable[P, Key],
        params: Callable[P, object] | None = None,
        ttl: Duration | None = None,
    ) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
        """Decorate a function so that a call with the same key returns its first response.

        ``key`` and ``params`` are called with the call's own arguments; without ``params`` all
        arguments are compared, by name and with their defaults.
        """

        def decorate(function: Callable[P, Any]) -> Callable[P, Any]:
            if inspect.iscoroutinefunction(function):
                raise ConfigError("a coroutine function is decorated by AsyncReplay's idempotent")
            params_of = params or arguments_of(function)

            @functools.wraps(function)
            def replayed(*args: P.args, **kwargs: P.kwargs) -> Any:
                return self.execute(
                    key(*args, **kwargs),
                    params_of(*args, **kwargs),
                    lambda: function(*args, **kwargs),
                    ttl=ttl,
                ).response

            return replayed

        return decorate

    def resolve(self, key: Key, *, response: object, ttl: Duration | None = None) -> bool:
        """Settle a key in doubt whose effect happened: record ``response`` as its answer.

        Returns:
            Whether this call settled it; ``False``: the key was not claimed, nothing was changed.

        Raises:
            InFlightError: its owner is alive, or may be; nothing was changed.
            ResponseNotStorableError: nothing was changed.
        """
        return self._settle(key, encode_response(response, "nothing was changed"), ttl)

    def release(self, key: Key) -> bool:
        """Settle a key in doubt whose effect did not happen: the next request runs it.

        Returns and raises as :meth:`resolve`.
        """
        return self._settle(key, None, None)

    def records(self) -> Iterator[ReplayRecord]:
        """Yield every record of the namespace in no promised order, expired ones too.

        It walks the keys of the whole store.

        Raises:
            RecordError: after all others were yielded, if some could not be read.
        """
        return records(self._namespace)

    def sweep(self, limit: int = 1000) -> SweepResult:
        """Remove at most ``limit`` records that nobody needs any more; claims are never removed.

        On an expiring store this costs what it removes. On any other it visits the next ``limit``
        records of the namespace, round and round, and walks the keys of the whole store for it.
        """
        result = sweep(self._namespace, self._walk, limit)
        self._namespace.emit("swept", None, result)
        return result

    def sweeping(
        self, every: Duration = 60.0, limit: int = 1000
    ) -> AbstractContextManager[Sweeper]:
        """Sweep periodically, from a thread of the block's own.

        Each round sweeps until nothing more is due. A failing store is logged, and tried again in
        the next round.
        """
        return Sweeper(self.sweep, to_ms(every, "every"), limit)

    def _settle(self, key: Key, response: bytes | None, ttl: Duration | None) -> bool:
        namespace = self._namespace
        own = replay_key(key)
        ttl_ms = namespace.ttl if ttl is None else to_ms(ttl, "ttl")
        return drive(flow.settle(own, response, ttl_ms, namespace.policy), Run(namespace, own))

    def _execute(
        self,
        request: Request,
        protocol: Callable[[Request, Any], Flow[Settled]],
        handler: Callable[..., Any],
    ) -> Outcome:
        while True:
            own: Flight[object] = Flight(self._namespace.flight_key(request.key), request.params)
            try:
                flight = flights.board(own)
                if flight is own:
                    steps = protocol(request, self._namespace.policy)
                    settled = self._drive(steps, request, own, handler)
                    flights.land(own, settled)
                    self._namespace.emit_settled(settled, request.key)
                    return outcome_of(settled, replayed=settled.replayed)
            except BaseException as error:  # an interrupt too: nobody may wait for ever
                flights.land(own, error)
                raise
            outcome = self._follow(flight, request)
            if outcome is not None:
                return outcome
            request.absent_at = None  # that was before the other's run

    def _follow(self, flight: Flight[object], request: Request) -> Outcome | None:
        """Share the leader's end; ``None``: it has none to share, start over."""
        refuse_own_flight(flight)
        others = flight.params != request.params
        if not others:
            self._namespace.emit("waited", request.key)
        changed = threading.Event()
        while flights.wake_on_change(flight, changed.set, until_bound=others):
            while not changed.wait(_LOOK_AGAIN):
                flights.give_up(flight)
            changed.clear()
        return self._namespace.shared(flight, request)

    def _drive(
        self,
        steps: Flow[Any],
        request: Request,
        flight: Flight[object] | None,
        handler: Callable[..., Any] | None,
    ) -> Any:
        run = Run(self._namespace, request.key, flight)
        try:
            return drive(steps, run, handler, renewing=self._renewing)
        except Exception as error:
            run.emit_error(error)
            raise
