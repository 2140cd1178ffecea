"""One replay namespace of one store: what ``Replay`` and ``AsyncReplay`` share.

Settings checked once, requests made from what a caller gives, a follower's share in a flight, and
the events.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

import attrs

from kvreplay._protocol.keys import ReplayKey, name, scope_name
from kvreplay._protocol.params import canonical, comparable
from kvreplay._protocol.record import ReplayRecord, answer_in, decode_response
from kvreplay._protocol.steps import InDoubtPolicy, Policy, Request, Settled
from kvreplay._runtime.singleflight import Flight, flights, fresh
from kvreplay.clock import Clock, Duration, SystemClock, to_ms
from kvreplay.errors import (
    ClaimLostError,
    ConfigError,
    CorruptRecordError,
    ExpiredError,
    InDoubtError,
    InFlightError,
    InvalidParamsError,
    KeyNotFoundError,
    ParamsMismatchError,
)
from kvreplay.events import EventKind, ReplayEvent, logger
from kvreplay.store import (
    AtomicKVStore,
    ExpiringKVStore,
    SweepResult,
    TransactionalKVStore,
    check_namespace,
)

__all__ = [
    "Key",
    "Outcome",
    "ReplayNamespace",
    "arguments_of",
    "outcome_of",
    "refuse_own_flight",
    "replay_key",
]

Key = ReplayKey | tuple[str, str]
"""A replay key, or its ``(scope, id)``."""

Reconciler = Callable[[ReplayRecord], Any]


# What an error says about the key, for those that are decisions.
_EVENT_OF: Final[Mapping[type[BaseException], EventKind]] = {
    ParamsMismatchError: "params_mismatch",
    ExpiredError: "expired",
    InDoubtError: "in_doubt",
    ClaimLostError: "claim_lost",
    CorruptRecordError: "corrupt_record",
}


@attrs.define  # not frozen, which costs a replay some percent: it is the caller's own
class Outcome:
    """A request's answer. ``response`` is a copy of the caller's own, as decoded from the record.

    ``replayed`` tells that the handler did not run for this request.
    """

    response: Any = attrs.field(repr=False)
    replayed: bool


class ReplayNamespace:
    """The settings of one replay namespace, checked, and its place in a store."""

    def __init__(
        self,
        store: AtomicKVStore,
        namespace: str,
        *,
        ttl: Duration,
        lease: Duration | None,
        tombstone_ttl: Duration,
        wait_timeout: Duration,
        on_in_doubt: str | Reconciler,
        max_record_bytes: int,
        renew: bool,
        clock: Clock | None,
        on_event: Callable[[ReplayEvent], object] | None,
    ) -> None:
        _check_capability(store, AtomicKVStore, "Replay")
        check_namespace(namespace, "")
        if not namespace:
            raise ConfigError("namespace is empty; give the replay records one of their own")
        if lease is not None and not to_ms(lease, "lease"):
            raise ConfigError("lease is 0; give some seconds, or None for no claim")
        if renew and lease is None:
            raise ConfigError("renew=True needs a lease to renew; lease is None")
        if type(max_record_bytes) is not int or max_record_bytes < 1:
            raise ConfigError("max_record_bytes must be an int of at least 1")
        self.store = store
        self.name = namespace
        self.ttl = to_ms(ttl, "ttl")
        self.renew = renew
        self.clock: Clock = SystemClock() if clock is None else clock
        self.reconcile = on_in_doubt if callable(on_in_doubt) else None
        self.policy = Policy(
            lease=None if lease is None else to_ms(lease, "lease"),
            tombstone_ttl=to_ms(tombstone_ttl, "tombstone_ttl"),
            wait_timeout=to_ms(wait_timeout, "wait_timeout"),
            on_in_doubt=_in_doubt_policy(on_in_doubt),
            max_record_bytes=max_record_bytes,
        )
        self.sweeps_itself = not missing_methods(store, ExpiringKVStore)
        self._has_transactions = not missing_methods(store, TransactionalKVStore)
        self._on_event = on_event
        self.is_observed = on_event is not None
        self._identity: Hashable = getattr(store, "identity", None) or id(store)

    def request(
        self,
        key: Key,
        params: object,
        ttl: Duration | None,
        packed: bytes | None = None,
        absent_at: int | None = None,
    ) -> Request:
        """Check and encode what a caller gives, before anything runs."""
        return Request(
            replay_key(key),
            canonical(params, packed),
            self.ttl if ttl is None else to_ms(ttl, "ttl"),
            absent_at,
        )

    def flight_key(self, key: ReplayKey) -> Hashable:
        """Return what names the key in this process, whichever store object leads to it."""
        return self._identity, self.name, key.scope, key.id

    def peek(self, key: Any, params: object, ttl: Duration | None) -> Outcome | Request:
        """Answer from a live record: one read, and no guard, which an answer does not need.

        A request is what the flow has the say about, also about a key or params that are wrong.
        """
        if ttl is not None:
            to_ms(ttl, "ttl")  # a wrong one is told, also where it is not needed
        packed = comparable(params)
        if type(key) is tuple and len(key) == 2:
            scope, own = key
            plain = type(scope) is type(own) is str and own != ""
        else:
            key = replay_key(key)
            scope, own, plain = key.scope, key.id, True
        if packed is None or not plain:
            return self.request(key, params, ttl)
        try:
            data = self.store.read(self.name, scope_name(scope), name(own))
        except (KeyNotFoundError, UnicodeEncodeError):
            return self.request(key, params, ttl, packed, self.clock.now_ms())
        response = answer_in(data, scope, own, packed, self.clock.now_ms())
        if response is None:
            return self.request(key, params, ttl)
        if flights.table and flights.bound(self.flight_key(replay_key(key))) is not None:
            # An answer that can be read may not be durable yet: follow its run.
            return self.request(key, params, ttl)
        if self._on_event is not None:
            self.emit("replayed", replay_key(key))
        return Outcome(decode_response(response), True)

    def refuse_running(self, request: Request) -> None:
        """Raise for a key that this process is running."""
        flight = flights.bound(self.flight_key(request.key))
        if flight is None:
            return
        if flight.params != request.params:
            self.emit("params_mismatch", request.key)
            raise _running_with_others()
        raise InFlightError("this process is running the key; nothing was changed", 1.0)

    def require_transactions(self, what: str) -> None:
        """Raise a ConfigError that names what the store lacks for them."""
        if not self._has_transactions:
            _check_capability(self.store, TransactionalKVStore, what)

    def shared(self, flight: Flight[object], request: Request) -> Outcome | None:
        """Return or raise a follower's own copy of the leader's end; ``None``: start over."""
        if flight.params != request.params:
            if flight.bound:
                self.emit("params_mismatch", request.key)
                raise _running_with_others()
            return None
        outcome = flight.result
        if isinstance(outcome, Settled):
            self.emit("replayed", request.key)
            return outcome_of(outcome, replayed=True)
        if isinstance(outcome, Exception):
            raise fresh(outcome) from outcome
        return None  # interrupted: its record tells what became of it

    def emit(
        self, kind: EventKind, key: ReplayKey | None, swept: SweepResult | None = None
    ) -> None:
        """Tell the observer, whose own failure never becomes the request's."""
        if self._on_event is None:
            return
        digest = None if key is None else key.digest()
        try:
            self._on_event(ReplayEvent(kind, self.name, digest, self.clock.now_ms(), swept))
        except Exception:  # the observer's own, whatever it is
            logger().exception("on_event raised on %r; the request goes on", kind)

    def emit_error(self, error: BaseException, key: ReplayKey) -> None:
        """Tell the observer about an error that is a decision."""
        kind = _EVENT_OF.get(type(error))
        if kind is not None:
            self.emit(kind, key)

    def emit_settled(self, settled: Settled, key: ReplayKey) -> None:
        """Tell the observer how a request was answered; a completion was told when it was put."""
        if settled.replayed:
            self.emit("replayed", key)


def replay_key(key: Key) -> ReplayKey:
    """Return a ReplayKey, made from a ``(scope, id)`` tuple if need be."""
    if isinstance(key, ReplayKey):
        return key
    if isinstance(key, tuple) and len(key) == 2:
        return ReplayKey(*key)
    raise InvalidParamsError("a key is a ReplayKey or a tuple (scope, id) of texts; nothing ran")


def refuse_own_flight(flight: Flight[object]) -> None:
    """A handler that asks for its own key would wait for itself."""
    if flights.is_aboard(flight):
        raise InFlightError(
            "a handler asked for the very key that it is running; nothing ran a second time", 1.0
        )


def outcome_of(settled: Settled, *, replayed: bool) -> Outcome:
    """Decode a copy of the answer for one caller."""
    return Outcome(decode_response(settled.response), replayed)


def arguments_of(function: Callable[..., object]) -> Callable[..., dict[str, Any]]:
    """Return what turns a call's arguments into a dict by parameter name, defaults included."""
    signature = inspect.signature(function)

    def arguments(*args: Any, **kwargs: Any) -> dict[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    return arguments


def _running_with_others() -> ParamsMismatchError:
    return ParamsMismatchError(
        "this key is being run with other params; nothing ran here, and that run is untouched"
    )


def missing_methods(store: object, capability: type[Any]) -> list[str]:
    """Return what a store lacks of a protocol.

    Not ``isinstance``, which since Python 3.12 does not see what a proxy passes on.
    """
    methods = {each for cls in capability.__mro__ for each in vars(cls) if not each.startswith("_")}
    return [each for each in sorted(methods) if not callable(getattr(store, each, None))]


def _in_doubt_policy(on_in_doubt: object) -> InDoubtPolicy:
    if callable(on_in_doubt):
        return InDoubtPolicy.RECONCILE
    if on_in_doubt in ("raise", "rerun"):
        return InDoubtPolicy(on_in_doubt)
    raise ConfigError(
        f"on_in_doubt is {on_in_doubt!r}; it can be 'raise', 'rerun' or a callable that reconciles"
    )


def _check_capability(store: object, capability: type[Any], what: str) -> None:
    missing = missing_methods(store, capability)
    if missing:
        raise ConfigError(
            f"{what} needs a store that is {capability.__name__}, and {type(store).__name__} has no"
            f" {', no '.join(missing)}"
            + (
                "; a plain KVStoreSync of one process can be wrapped in InProcessAtomicStore"
                if capability is AtomicKVStore
                else ""
            )
        )
