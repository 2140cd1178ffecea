"""``Replay``: answer a request once, and every retry with the same answer. Blocking calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from threading import get_ident
from typing import Any, Literal, ParamSpec, TypeVar, overload

from kvreplay._protocol import flow
from kvreplay._protocol.steps import Flow, NotStored, Request, Settled, Verdict
from kvreplay._runtime.any_replay import Protocol
from kvreplay._runtime.blocking import drive, join
from kvreplay._runtime.decorating import Calling
from kvreplay._runtime.patience import FROM_SETTINGS, FromSettings, Patience
from kvreplay._runtime.renewal import Renewer
from kvreplay._runtime.requests import (
    JOINED_FUNCTION,
    NO_CONNECTION,
    PLAIN_FUNCTION,
    Key,
    Outcome,
    check_handler,
    peek,
)
from kvreplay._runtime.run import Run
from kvreplay._runtime.singleflight import Abandoned, Flight, flights
from kvreplay._runtime.upkeep import Upkeep
from kvreplay.clock import Duration
from kvreplay.errors import ConfigError, InFlightError, InvalidParamsError
from kvreplay.store import Bell, KVTransaction

__all__ = ["Replay"]

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Replay(Upkeep[Verdict]):
    """Restart-safe request replay in one namespace of a store.

    For one key, while its answer lives, this holds over threads, processes and restarts:

    * The handler runs once. It runs again only after it raised an ``Exception`` that ``doubt_on``
      does not name (which says that nothing happened), or where ``on_in_doubt`` allows it.
    * Every request with the same params gets the same response, and none with other params does.
    * An answer is returned only after it is stored, as durably as the store declares.
    * A run whose process died, or that does not know how it ended, leaves its key *in doubt*. It is
      never run again silently.
    * What fails before the handler has begun leaves the key free.

    With ``lease=None`` no claim is stored: then the first and the last point do not hold over
    processes and restarts.

    With ``renew=True`` a thread of this object renews the leases. It lives while a handler runs.
    """

    def _set_up(self) -> None:
        super()._set_up()
        self._renewing = Renewer(self._settings) if self._settings.renew else None

    @overload
    def execute(
        self,
        key: Key,
        params: object,
        handler: Callable[[], T | NotStored[T]],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: type[T],
    ) -> Outcome[T]: ...
    @overload
    def execute(
        self,
        key: Key,
        params: object,
        handler: Callable[[], Any],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: type[Any],
    ) -> Outcome[object]: ...  # the handler returns something else
    @overload
    def execute(
        self,
        key: Key,
        params: object,
        handler: Callable[[], Any],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: object = None,
    ) -> Outcome[Any]: ...
    def execute(
        self,
        key: Key,
        params: object,
        handler: Callable[[], Any],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: object = None,
    ) -> Outcome[Any]:
        """Run ``handler()`` once for this key and params, or return the answer it gave.

        If somebody else is running the key already, the call waits for that run, up to
        ``wait_timeout``. From a run in this process it returns or raises the same.

        If the handler raises an ``Exception``, nothing is stored, the exception propagates, and a
        retry runs again. Some errors leave the key in doubt instead, alone or
        inside an exception group: those that ``doubt_on`` names, an ``OutcomeUnknownError`` of the
        handler's store, and the ``InDoubtError`` or ``ClaimLostError`` of a request nested in the
        handler. The caller then gets an ``InDoubtError`` from that error. A handler that cannot
        tell raises :class:`~kvreplay.IndeterminateError`, which propagates, as does anything that
        is not an ``Exception``. :class:`~kvreplay.NotAppliedError` frees the key, whatever
        ``doubt_on`` says.

        Under ``on_in_doubt="rerun"`` a run that raises says nothing about the run before it: its
        exception propagates, and the key stays in doubt.

        Two handlers that ask for each other's key wait for each other until ``wait_timeout`` is
        over, and so does a handler that asks for its own from a thread that it starts.

        An exception of ``store_errors`` is a final failure: it is stored like an answer,
        propagates, and is raised for every retry. A handler that returns
        :class:`~kvreplay.NotStored` is answered like any other, and frees its key.

        Args:
            key: a ReplayKey or a ``(scope, id)`` tuple.
            params: what must be equal in a retry; dict, list, tuple, str, bytes, int,
                float, bool and None.
            handler: called without arguments; returns what msgpack can hold, or what ``returns``
                says. Pass a key derived from this one to the system it acts on, so that even a
                second run acts once.
            ttl: how long this answer is kept: seconds, a timedelta, or text such as ``"10min"``; by
                default the setting.
            wait_timeout: how long this call waits while somebody else runs the key, likewise; 0:
                not at all; ``None``: no limit; by default the setting.
            returns: the type of the response: a class of attrs, a dataclass, a pydantic model,
                ``list[Invoice]``, and so on (the extra ``typed``). Every retry gets that type too.

        Raises:
            ParamsMismatchError, ExpiredError: the request is stale; nothing ran.
            InFlightError: somebody else still runs the key after ``wait_timeout``, and goes on; or
                a handler asks for its own key. Nothing ran here. ``retry_after`` says when to ask
                again.
            InDoubtError: a run began, and its end is unknown or could not be stored; ``response``
                is an answer that may not be stored. With ``lease=None``: the handler ran, and its
                answer may not be stored.
            ResponseNotStorableError: an InDoubtError: the response is not what can be stored. With
                ``lease=None``: a retry runs it again.
            ClaimLostError: the handler ran, but another owner had taken the key over.
            ResponseTypeError: the stored answer does not fit ``returns``; nothing ran.
            StoredFailureError: the answer is a final failure whose class ``store_errors`` lacks.
            ReplayClosedError: ``close()`` was called; nothing ran.
            InvalidParamsError, ConfigError, RecordError, StoreError: nothing ran.
            InvalidResponseError: a reconciler's response cannot be stored; nothing ran.
        """
        limit, settings = self._limit_of(wait_timeout), self._settings
        codec = settings.codec if returns is None else self._codec_of(returns)
        seen = peek(settings, key, params, ttl, codec)
        if isinstance(seen, Outcome):
            return seen
        self._check_answer(handler, seen)
        return self._execute(seen, limit, flow.execute, handler)

    @overload
    def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[KVTransaction], T | NotStored[T]],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: type[T],
    ) -> Outcome[T]: ...
    @overload
    def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[KVTransaction], Any],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: type[Any],
    ) -> Outcome[object]: ...  # the handler returns something else
    @overload
    def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[KVTransaction], Any],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: object = None,
    ) -> Outcome[Any]: ...
    @overload
    def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[C], T | NotStored[T]],
        *,
        connection: C,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: type[T],
    ) -> Outcome[T]: ...
    @overload
    def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[C], Any],
        *,
        connection: C,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: type[Any],
    ) -> Outcome[object]: ...  # the handler returns something else
    @overload
    def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[C], Any],
        *,
        connection: C,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: object = None,
    ) -> Outcome[Any]: ...
    def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[Any], Any],
        *,
        connection: object = NO_CONNECTION,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: object = None,
    ) -> Outcome[Any]:
        """Commit the writes of ``handler(transaction)`` and its answer together: exactly once.

        There is one commit and no claim, so no key is left in doubt: after a crash either both are
        there or neither is.

        Without ``connection`` the transaction is one of the store's, which the handler is given.
        The handler holds the store's write lock, so it must do no network I/O, and must change
        the store through its transaction only. A final failure (``store_errors``) is stored when
        its writes have been undone, by a commit of its own. The writes of a handler that returns
        :class:`~kvreplay.NotStored` are committed, and no answer is kept with them.

        With ``connection`` it is the transaction that you have open there, on the store's own
        database, and that you commit: the rows of your ledger and the answer, which is then the
        outcome, count together, once you have committed. After a rollback the key is as it was. So
        tell nobody the answer before the commit. The handler is given the connection, and must
        neither commit nor roll back. If this raises, all that the handler has changed is undone,
        and your transaction can go on. A duplicate in another transaction waits for the end of
        yours, up to ``wait_timeout``. What the database says of a conflict between transactions
        comes out as the driver's own exception: roll back, and run the whole transaction again.

        Args:
            connection: of a kind that the store knows, with a transaction open; see
                ``docs/ledger.md``. By default there is none.

        Raises:
            ConfigError: the store has no transactions, or cannot join that of the connection: it
                has none open, is of another database, or cannot write. Nothing ran.
            ClaimLostError: the handler has ended the transaction of the connection itself. What it
                has committed stands, and no answer is stored.
            StoreError: nothing was changed. An ``OutcomeUnknownError`` means that it is not known,
                and a retry finds out.
            InvalidResponseError: the response cannot be stored; the writes were undone.
            StaleFlowError, InFlightError, InDoubtError: as in :meth:`execute`.
        """
        if connection is not NO_CONNECTION:
            return self._execute_joined(
                *(connection, key, params, handler, ttl, wait_timeout, returns)
            )
        self._settings.require_transactions("execute_in_transaction")
        limit = self._limit_of(wait_timeout)
        seen = peek(self._settings, key, params, ttl, self._codec_of(returns))
        if isinstance(seen, Outcome):
            return seen
        self._check_answer(handler, seen)
        return self._execute(seen, limit, flow.execute_in_transaction, handler)

    @overload
    def lookup(
        self, key: Key, params: object, *, operation: str | None = None, returns: type[T]
    ) -> Outcome[T] | None: ...
    @overload
    def lookup(
        self, key: Key, params: object, *, operation: str | None = None, returns: object = None
    ) -> Outcome[Any] | None: ...
    def lookup(
        self, key: Key, params: object, *, operation: str | None = None, returns: object = None
    ) -> Outcome[Any] | None:
        """Return the stored answer, or ``None`` if there is none; never run, wait or take over.

        A stored failure is raised.

        Args:
            operation: that of the decorated function whose key it is, if it has one.
            returns: as in :meth:`execute`; by default as the decorated function says.

        Raises:
            ParamsMismatchError, ExpiredError: as in :meth:`execute`; an expired record is pruned.
            InFlightError: the key is running.
            InDoubtError: the key is in doubt.
        """
        steps, run, request = self._looking_up(key, operation, params, returns)
        return self._found(self._drive(steps, run), run, request)

    @overload
    def idempotent(
        self,
        *,
        key: Callable[..., Key],
        params: Callable[..., object] | None = None,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        operation: str | None = None,
        returns: object = None,
        encode: Callable[[Any], object] | None = None,
        decode: Callable[[Any], Any] | None = None,
        outcome: Literal[False] = False,
    ) -> Callable[[Callable[P, R | NotStored[R]]], Callable[P, R]]: ...
    @overload
    def idempotent(
        self,
        *,
        key: Callable[..., Key],
        params: Callable[..., object] | None = None,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        operation: str | None = None,
        returns: object = None,
        encode: Callable[[Any], object] | None = None,
        decode: Callable[[Any], Any] | None = None,
        outcome: Literal[True],
    ) -> Callable[[Callable[P, R | NotStored[R]]], Callable[P, Outcome[R]]]: ...
    def idempotent(
        self,
        *,
        key: Callable[..., Key],
        params: Callable[..., object] | None = None,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        operation: str | None = None,
        returns: object = None,
        encode: Callable[[Any], object] | None = None,
        decode: Callable[[Any], Any] | None = None,
        outcome: bool = False,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorate a function so that a call with the same key returns its first response.

        ``Replay`` decorates plain functions, ``AsyncReplay`` coroutine functions. A second function
        of one replay needs an operation of its own, so that no two of them share an answer.

        The function's return annotation says how its answers are stored: what msgpack can hold
        needs nothing; a class of attrs, a dataclass, a pydantic model, ``tuple``, ``datetime`` and
        so on needs the extra ``typed``. An annotation that nothing can store is refused here.

        Args:
            key: called with the call's own arguments; returns its key.
            params: called in the same way; returns what must be equal in a retry. Without it all
                arguments are compared, by name and with their defaults, except the ``self`` of a
                method and the ``cls`` of a class method. So what tells two objects apart belongs
                into the key.
            ttl: how long an answer is kept; by default the setting.
            wait_timeout: how long a call waits for others; by default the setting.
            operation: the name that the stored keys of this function have, so that other functions
                have other keys; ``lookup``, ``record``, ``resolve``, ``release`` and ``forget``
                take it too. A new name forgets all answers, so do not derive it from the function's
                own.
            returns: the type of the response, if the annotation does not say it.
            encode: makes of each response what msgpack can hold, instead of a type.
            decode: makes the response again; given if ``encode`` is.
            outcome: a call returns the :class:`~kvreplay.Outcome`, and not the response alone.

        Raises:
            ConfigError: an argument is wrong, the function is the wrong kind, another function of
                this replay has the operation, or the annotated answer cannot be stored.
        """
        return self._decorator(
            key=key,
            params=params,
            ttl=ttl,
            wait_timeout=wait_timeout,
            operation=operation,
            returns=returns,
            encode=encode,
            decode=decode,
            outcome=outcome,
        )

    def _replaying(self, function: Callable[..., Any], calling: Calling) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):
            raise ConfigError("decorate a coroutine function with AsyncReplay's idempotent")

        def replayed(*args: Any, **kwargs: Any) -> Any:
            called = calling.of(*args, **kwargs)
            limit = self._limit_of(calling.wait_timeout)
            try:
                seen = peek(
                    self._settings, called.key, called.params, calling.ttl, calling.answers.codec
                )
            except InvalidParamsError:
                calling.explain(called.params)
                raise
            if isinstance(seen, Request):
                seen = self._execute(seen, limit, flow.execute, called.handler)
            return seen if calling.outcome else seen.response

        return replayed

    def _execute(
        self,
        request: Request,
        limit: int | None,
        protocol: Protocol,
        handler: Callable[..., Any],
    ) -> Outcome[Any]:
        if protocol is flow.execute:
            check_handler(handler, awaited=False)
        else:
            check_handler(handler, awaited=False, instead=PLAIN_FUNCTION)
        # What a caller's transaction sees may be undone, so it is shared with nobody. And it waits
        # for nobody, since it holds the write lock. So others start over when it has ended.
        unshared = Abandoned() if self._settings.is_in_transaction() else None
        patience = Patience(limit if unshared is None else 0, self._settings.monotonic)
        while True:
            own = self._flight_of(request)
            leader = run = None
            result: Settled | BaseException = Abandoned()
            try:
                leader = flights.board(own)
                if leader is not own and unshared is not None:
                    self._refuse(request)
                    leader = own  # the other one has not begun, and waits for the write lock
                if leader is own:
                    leader = None
                    steps = protocol(request, self._settings.policy)
                    run = Run(self._settings, request.key, own, patience, began=request.began)
                    result = self._drive(steps, run, handler)
            except Exception as error:
                result = self._shared(error)
                raise
            finally:  # even after an interrupt: nobody may wait for ever
                try:
                    flights.land(own, unshared or result)
                except BaseException:  # an interrupt
                    flights.land(own, unshared or result)
                    raise
                if isinstance(result, Exception):
                    del own, result  # its traceback holds this frame
            if isinstance(result, Settled):
                assert run is not None  # it has the result
                return self._outcome(result, run, request)
            assert leader is not None  # or this call has a result
            try:
                outcome = self._follow(leader, request, patience)
            except Exception as error:
                self._tell(error, request)
                raise
            if outcome is not None:
                return outcome
            request.absent_at = None  # it was seen before the other's run

    def _execute_joined(
        self,
        connection: object,
        key: Key,
        params: object,
        handler: Callable[[Any], Any],
        ttl: Duration | None,
        wait_timeout: Duration | FromSettings | None,
        returns: object,
    ) -> Outcome[Any]:
        """Answer in the caller's transaction. What that sees may be undone: it is not shared."""
        store = self._settings.joinable(awaits=False)
        check_handler(handler, awaited=False, instead=JOINED_FUNCTION)
        run, request, steps = self._joining(key, params, handler, ttl, wait_timeout, returns)
        try:
            end = join(store, connection, steps, run, handler)
        except Exception as error:
            stopped = run.failed(error)
            if stopped is None:
                raise
        else:
            return self._joined(end, run, request)
        try:
            raise stopped
        finally:
            del stopped  # its traceback holds this frame

    def _follow(
        self, flight: Flight[object], request: Request, patience: Patience
    ) -> Outcome[Any] | None:
        """Share the leader's result; ``None``: there is nothing to share, start over."""
        # A signal handler's call, one on a loop's thread, or one out of on_event.
        if flight.thread == get_ident() and not flights.is_aboard(flight):
            raise InFlightError(
                "this very thread is running the key, and cannot wait for itself; nothing ran a"
                " second time: ask again when that run has ended",
                1.0,
            )
        until_bound = self._begin_to_follow(flight, request, patience)
        changed = Bell()
        wake = changed.ring

        def follow() -> None:
            while flights.wake_on_change(flight, wake, until_bound=until_bound):
                changed.wait(self._time_to_follow(patience))
                flights.give_up(flight)

        try:
            follow()  # a loop of its own: an interrupt in its jump back is inside the try
        finally:
            flight.wakers.pop(wake, None)
        return self._share(flight, request, patience)

    def _drive(self, steps: Flow[Any], run: Run, handler: Callable[..., Any] | None = None) -> Any:
        try:
            return drive(steps, run, handler, renewing=self._renewing)
        except Exception as error:
            stopped = run.failed(error)
            if stopped is None:
                raise
        try:
            raise stopped
        finally:
            del stopped  # its traceback holds this frame
