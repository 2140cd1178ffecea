"""The settings of a replay namespace: named, explained, checked and typed here, and only here.

A new setting is an argument of :class:`Configured`, with its line of documentation and its check,
a field of :class:`Settings` or of its :class:`~kvreplay._protocol.steps.Policy`, and a line each in
:class:`ReplaySettings` and :data:`IN_A_FILE`, if a file can hold it.
"""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Final, Generic, Literal, Required, Self, TypedDict, TypeVar, cast

import attrs

from kvreplay._protocol.codec import Codec
from kvreplay._protocol.digests import LEAST, ParamsKeys
from kvreplay._protocol.failures import name_of
from kvreplay._protocol.keys import ReplayKey
from kvreplay._protocol.record import ReplayRecord
from kvreplay._protocol.steps import ExpiredPolicy, InDoubtPolicy, Policy, Verdict
from kvreplay._runtime.observer import Observer, OnEvent
from kvreplay._runtime.patience import patience_ms
from kvreplay._runtime.running import Running
from kvreplay.clock import Clock, Duration, SystemClock, to_ms
from kvreplay.errors import ConfigError, InvalidNameError, KVReplayError
from kvreplay.store import (
    AsyncAtomicKVStore,
    AsyncJoinableKVStore,
    AsyncTransactionalKVStore,
    AtomicKVStore,
    ExpiringKVStore,
    JoinableKVStore,
    TransactionalKVStore,
    check_namespace,
    missing_methods,
)

__all__ = ["IN_A_FILE", "Configured", "ReplaySettings", "Settings", "hooks"]

S = TypeVar("S")
V = TypeVar("V")

_LARGEST_RECORD: Final = 1024 * 1024  # bytes, unless a store carries less


class ReplaySettings(TypedDict, total=False):
    """Keyword arguments for ``Replay`` and ``AsyncReplay``; durations are seconds."""

    namespace: Required[str]
    ttl: Required[float]
    lease: float | None
    tombstone_ttl: float
    wait_timeout: float | None
    on_in_doubt: Literal["raise", "rerun"] | Callable[[ReplayRecord], Verdict]
    on_expired: Literal["stale", "rerun"]
    max_record_bytes: int
    renew: bool | None


IN_A_FILE: Final[Mapping[str, str | tuple[str, ...]]] = {
    "ttl": "duration",
    "lease": "lease",
    "tombstone_ttl": "duration",
    "wait_timeout": "time limit",
    "on_in_doubt": ("raise", "rerun"),
    "on_expired": ("stale", "rerun"),
    "max_record_bytes": "size",
    "renew": "boolean",
}
"""The settings that a configuration file can hold, each with the kind of its value."""


@attrs.frozen(repr=False, eq=False)
class Settings:
    """The checked settings of one replay namespace, and its place in a store.

    Attributes:
        ttl: milliseconds.
        wait_timeout: milliseconds; ``None``: no limit.
        monotonic: seconds, on a clock that only goes forward.
        asked: the store that answers reads and check-and-puts: ``store``, or its awaited twin.
        awaits: the calls of ``asked`` are awaited.
        is_only_awaited: those of ``store`` are too: it has no blocking ones.
        sweeps_itself: ``asked`` has an index of expiry.
        owners_file: where its owners hold their locks; ``None``: it has no such file.
        codec: the caller's ``encode`` and ``decode``.
        params_keys: those of the policy; a hit asks for them here: bench_hit.
        running: the handlers that are running.
    """

    store: AtomicKVStore
    asked: Any
    awaits: bool
    is_only_awaited: bool
    name: str
    ttl: int
    wait_timeout: int | None
    policy: Policy
    reconcile: Callable[[ReplayRecord], Any] | None
    renew: bool
    clock: Clock
    monotonic: Callable[[], float]
    observer: Observer
    sweeps_itself: bool
    has_transactions: bool
    owners_file: str | None
    codec: Codec[Any] | None
    params_keys: ParamsKeys | None
    running: Running
    _identity: Hashable

    def now(self) -> int:
        """Return the clock's time, which goes into records; it must be an int.

        Raises:
            ConfigError: it is not.
        """
        now = self.clock.now_ms()
        if type(now) is not int:
            raise ConfigError(
                f"the clock's now_ms() returned a {type(now).__name__}; it must return an int, the"
                " milliseconds since the epoch"
            )
        return now

    def is_in_transaction(self) -> bool:
        """Say whether this thread holds the store's write lock, and sees what may be undone."""
        return bool(getattr(self.store, "in_transaction", False))

    def flight_key(self, key: ReplayKey) -> Hashable:
        """Return what names the key in this process, for every store object on the same entries."""
        return self._identity, self.name, key.scope, key.id, key.operation

    def require_transactions(self, what: str) -> None:
        """Raise a ConfigError if the store has no transactions; it names what is missing."""
        if not self.has_transactions:
            needed = AsyncTransactionalKVStore if self.is_only_awaited else TransactionalKVStore
            _check_capability(self.store, needed, what)

    def joinable(self, *, awaits: bool) -> Any:
        """Return the store that joins callers' transactions: ``store``, or its awaited twin.

        Args:
            awaits: the connection is an asynchronous one.

        Raises:
            ConfigError: it joins none; the error names what is missing.
        """
        store = (_twin_of(self.store) if awaits else None) or self.store
        needed = AsyncJoinableKVStore if awaits else JoinableKVStore
        what = "execute_in_transaction with connection="
        _check_capability(store, needed, what)
        if awaits and not inspect.iscoroutinefunction(store.read):
            raise ConfigError(
                f"{what} on an event loop needs a store that is AsyncJoinableKVStore, and the calls"
                f" of {type(store).__name__} block: use Replay in a thread; nothing ran"
            )
        return store


class Configured(Generic[S, V]):
    """An object with the settings of a replay namespace.

    ``S``: what kind of store it takes. ``V``: what a reconciler returns.
    """

    _awaits: ClassVar[bool] = False
    """Whether what a reconciler returns is awaited, and the calls of an asynchronous store are."""

    def __init__(
        self,
        store: S,
        namespace: str,
        *,
        ttl: Duration,
        lease: Duration | None = 30.0,
        tombstone_ttl: Duration = 0.0,
        wait_timeout: Duration | None = 10.0,
        on_in_doubt: Literal["raise", "rerun"] | Callable[[ReplayRecord], V] = "raise",
        on_expired: Literal["stale", "rerun"] = "stale",
        max_record_bytes: int | None = None,
        renew: bool | None = None,
        doubt_on: tuple[type[BaseException], ...] = (TimeoutError, ConnectionError),
        store_errors: tuple[type[Exception], ...] = (),
        params_key: bytes | Sequence[bytes] | None = None,
        encode: Callable[[Any], object] | None = None,
        decode: Callable[[Any], Any] | None = None,
        clock: Clock | None = None,
        on_event: OnEvent | Sequence[OnEvent] | None = None,
    ) -> None:
        """Check the settings. No file is opened and no thread started. The caller closes the store.

        Durations are seconds, a timedelta, or text such as ``"10min"``.

        Args:
            store: an :class:`~kvreplay.AtomicKVStore`. ``AsyncReplay`` awaits its twin ``awaited``,
                if it has one; it also takes an :class:`~kvreplay.AsyncAtomicKVStore`.
            namespace: the primary namespace that holds the replay records, and nothing else.
            ttl: how long an answer is kept after completion. With 0 it is given once, and has
                expired from then on.
            lease: how long those who cannot look up this process believe its claim: on another
                machine, and on a store without an ``owners_file``. With ``None`` no claim is
                stored, which saves a commit. Then a crash in the handler leaves no trace, and two
                processes may both run the handler; all get the answer that is stored first.
            tombstone_ttl: how long an expired key goes on raising ``ExpiredError``.
            wait_timeout: how long a request waits while somebody else runs its key, in this process
                or in another one; 0: not at all; ``None``: no limit. It is one budget for the whole
                request, and a change of the wall clock makes it neither shorter nor longer.
            on_in_doubt: ``"raise"``, ``"rerun"``, or a callable. The callable is given the
                :class:`~kvreplay.ReplayRecord` in doubt, asks the system that the handler acts on,
                and returns ``Applied(response)``, ``NOT_APPLIED`` if the effect did not happen *and
                cannot any more*, or ``Unknown(retry_after=seconds)``.
            on_expired: ``"stale"``: a request for an expired key raises ``ExpiredError``, for as
                long as ``tombstone_ttl`` lasts whether or not a sweep came first. ``"rerun"``: an
                expired answer counts as absent, so the handler runs anew; so does its tombstone.
            max_record_bytes: the largest record to store, params and response together. ``None``:
                1 MiB, or what the store can carry, if that is less: half of its
                ``max_change_bytes``, since a change has the former record and the new one.
            renew: keep renewing the lease while a handler runs. ``None``: if there is a lease, and
                the store says that it ``spans_machines``, where nothing else shows that this
                process lives.
            doubt_on: exception classes of a handler that leave it unknown whether its effect
                happened, also inside an exception group, at any depth. The key is then in doubt
                instead of free. ``ConnectionError`` does not mean ``ConnectionRefusedError``. Add
                those of your client library; with ``(Exception,)`` a handler frees its key only by
                ``NotAppliedError``. With ``lease=None`` there is no claim that could stay.
            store_errors: exception classes of a handler that are final failures, such as a declined
                card. Such a failure is stored like an answer, by its class's name and its
                arguments, and raised for every retry. Only a class that is itself in this tuple is
                built again, and only if it comes out with the same arguments; for others a retry
                gets a :class:`~kvreplay.StoredFailureError`. If ``doubt_on`` names the exception
                too, the class that is nearer to its own decides: ``(OSError,)`` makes no answer of
                a ``TimeoutError``. A handler of a transaction has its writes undone first. Neither
                exception groups nor kvreplay's own errors are stored.
            params_key: a secret of at least 16 bytes, or several: a record then keeps a keyed
                digest (HMAC-SHA-256) of the params, not the params. The first one digests what is
                stored now; all are compared with, so that a new one can be put first. A record with
                a digest by a key that is not here is a ``ConfigError``.
            encode: makes of each response what msgpack can hold, unless a call says ``returns=``.
            decode: makes the response again; given if ``encode`` is.
            clock: an object with ``now_ms()``. By default it is the store's own ``clock``, such as
                that of a server, or else the system's. Leases and expiry go by it, so machines that
                share a server agree about them, even if their own clocks differ. It may also have
                ``monotonic()``, by which waiting is measured; see :class:`~kvreplay.clock.Clock`.
            on_event: called with a :class:`~kvreplay.ReplayEvent` for each decision, on the thread
                that makes it; or several such functions. What one raises is logged, and never fails
                a request.

        Raises:
            ConfigError: a setting is wrong, or the store lacks a capability; it names which.
        """
        asked = _asked_of(store, self._awaits, type(self).__name__)
        _check_own_namespace(namespace)
        if lease is not None and not to_ms(lease, "lease"):
            raise ConfigError("lease is 0; give some seconds, or None for no claim")
        if renew is None:
            renew = lease is not None and bool(getattr(store, "spans_machines", False))
        if renew and lease is None:
            raise ConfigError("renew=True needs a lease to renew; lease is None")
        _check_reconciler(on_in_doubt, self._awaits)
        _check_doubt_on(doubt_on)
        _check_store_errors(store_errors, doubt_on)
        secrets = _params_keys(params_key)
        clock = getattr(store, "clock", None) if clock is None else clock
        clock = SystemClock() if clock is None else clock
        monotonic = getattr(clock, "monotonic", time.monotonic)
        self._settings = Settings(
            store=cast(AtomicKVStore, store),
            asked=asked,
            awaits=asked is not store or _is_awaited(store),
            is_only_awaited=_is_awaited(store),
            name=namespace,
            ttl=to_ms(ttl, "ttl"),
            wait_timeout=patience_ms(wait_timeout),
            policy=Policy(
                lease=None if lease is None else to_ms(lease, "lease"),
                tombstone_ttl=to_ms(tombstone_ttl, "tombstone_ttl"),
                on_in_doubt=_in_doubt_policy(on_in_doubt),
                max_record_bytes=_largest_record(max_record_bytes, asked),
                doubt_on=doubt_on,
                store_errors=store_errors,
                on_expired=_expired_policy(on_expired),
                params_keys=secrets,
            ),
            reconcile=on_in_doubt if callable(on_in_doubt) else None,
            renew=renew,
            clock=clock,
            monotonic=monotonic,
            observer=Observer(namespace, clock, monotonic, _listeners(on_event)),
            sweeps_itself=not missing_methods(asked, ExpiringKVStore),
            has_transactions=not missing_methods(store, TransactionalKVStore),
            owners_file=getattr(store, "owners_file", None),
            codec=hooks(encode, decode),
            params_keys=secrets,
            running=Running(),
            identity=getattr(store, "identity", None) or id(store),
        )
        self._set_up()

    def _set_up(self) -> None:
        """Make what the settings ask for."""

    def _with_policy(self, **changes: Any) -> Self:
        """Return one more object on the same records; ``close()`` of either is that of both.

        Args:
            changes: fields of :class:`~kvreplay._protocol.steps.Policy`.
        """
        own, settings = copy.copy(self), self._settings
        own._settings = attrs.evolve(settings, policy=attrs.evolve(settings.policy, **changes))
        own._set_up()
        return own

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.name!r} on {self._settings.store!r}>"


def _largest_record(given: object, store: object) -> int:
    """Return how large a record may be, so that every change of it can be made."""
    carried: int | None = getattr(store, "max_change_bytes", None)
    most = math.inf if carried is None else carried // 2
    if given is None:
        return int(min(_LARGEST_RECORD, most))
    if type(given) is not int or given < 1:
        raise ConfigError("max_record_bytes must be an int of at least 1, or None")
    if given > most:
        raise ConfigError(
            f"max_record_bytes is {given}, but a change of this store carries {carried} bytes, the"
            f" former record and the new one together: give at most {most}, or let the store carry"
            " more"
        )
    return given


def _is_awaited(store: object) -> bool:
    """Say whether a store has only awaited calls."""
    return inspect.iscoroutinefunction(getattr(store, "read", None))


def _twin_of(store: Any) -> Any:
    """Return a store's twin for event loops, or ``None``.

    A wrapper that passes on what it lacks has none: its own calls would be left out.
    """
    return None if inspect.getattr_static(store, "awaited", None) is None else store.awaited


def _asked_of(store: object, awaits: bool, what: str) -> object:
    """Return the store that answers: this one, or its twin for event loops; check it.

    Args:
        awaits: its calls may be awaited.
        what: the class that asks.
    """
    if _is_awaited(store):
        if not awaits:
            raise ConfigError(
                f"{what} makes blocking calls, and {type(store).__name__} has only awaited ones:"
                " use AsyncReplay; nothing ran"
            )
        _check_capability(store, AsyncAtomicKVStore, what)
        return store
    _check_capability(store, AtomicKVStore, what)
    twin = _twin_of(store) if awaits else None
    if twin is None:
        return store
    _check_capability(twin, AsyncAtomicKVStore, f"{what} on the awaited {type(store).__name__}")
    return twin


def _check_own_namespace(namespace: object) -> None:
    if not namespace:
        raise ConfigError("namespace is empty; give the replay records one of their own")
    try:
        check_namespace(namespace, "")  # type: ignore[arg-type]  # it says what is wrong
    except InvalidNameError as error:
        raise ConfigError(str(error).removeprefix("the primary ")) from error


def _in_doubt_policy(on_in_doubt: object) -> InDoubtPolicy:
    if callable(on_in_doubt):
        return InDoubtPolicy.RECONCILE
    if on_in_doubt in ("raise", "rerun"):
        return InDoubtPolicy(on_in_doubt)
    raise ConfigError(
        f"on_in_doubt is {on_in_doubt!r}; it can be 'raise', 'rerun' or a callable that reconciles"
    )


def _check_reconciler(on_in_doubt: object, awaits: bool) -> None:
    if inspect.iscoroutinefunction(on_in_doubt) and not awaits:
        raise ConfigError(
            "on_in_doubt is a coroutine function, and nobody awaits it here: give a plain function,"
            " or use AsyncReplay"
        )


def _expired_policy(on_expired: object) -> ExpiredPolicy:
    if on_expired in ("stale", "rerun"):
        return ExpiredPolicy(on_expired)
    raise ConfigError(f"on_expired is {on_expired!r}; it can be 'stale' or 'rerun'")


def _params_keys(params_key: object) -> ParamsKeys | None:
    """Check the secrets, which no message shows."""
    if params_key is None:
        return None
    secrets = [params_key] if isinstance(params_key, bytes) else params_key
    if not isinstance(secrets, list | tuple) or not secrets:
        raise ConfigError(
            f"params_key is a {type(params_key).__name__}; give a secret as bytes, or a tuple of"
            " them"
        )
    for each in secrets:
        if not isinstance(each, bytes) or len(each) < LEAST:
            raise ConfigError(
                f"params_key must be at least {LEAST} random bytes, such as those of"
                " secrets.token_bytes(32)"
            )
    return ParamsKeys(secrets)


def _listeners(on_event: object) -> tuple[OnEvent, ...]:
    if on_event is None:
        return ()
    listeners = tuple(on_event) if isinstance(on_event, list | tuple) else (on_event,)
    for each in listeners:
        if not callable(each):
            raise ConfigError(
                f"on_event is a {type(each).__name__}; give a function of an event, or several"
            )
        if inspect.iscoroutinefunction(each):
            raise ConfigError(
                "on_event is a coroutine function, and nobody awaits it; give a plain function,"
                " which may put the event into a queue"
            )
    return listeners


def hooks(encode: object, decode: object) -> Codec[Any] | None:
    """Return the codec of a caller's two functions; ``None`` if there are none.

    Raises:
        ConfigError: only one was given, or one is no function.
    """
    if encode is None and decode is None:
        return None
    if not (callable(encode) and callable(decode)):
        raise ConfigError(
            "encode= and decode= belong together: give two functions; nothing was stored by them"
        )
    return Codec(encode, decode, "decode= makes it", is_typed=False)


def _check_store_errors(store_errors: object, doubt_on: tuple[type[BaseException], ...]) -> None:
    if not isinstance(store_errors, tuple):
        raise ConfigError(
            f"store_errors is a {type(store_errors).__name__}; give a tuple of exception classes,"
            " such as (CardDeclined,)"
        )
    for each in store_errors:
        if not (isinstance(each, type) and issubclass(each, Exception)):
            raise ConfigError(f"store_errors names {each!r}, which is not a class of Exception")
        if issubclass(each, KVReplayError | BaseExceptionGroup):
            raise ConfigError(
                f"store_errors names {each.__name__}, which is never a final failure: it says that"
                " something else failed"
            )
        if each in doubt_on:
            raise ConfigError(
                f"store_errors names {each.__name__}, and so does doubt_on: either it leaves the"
                " key in doubt, or it is the final answer; name it in one of them"
            )
    if len(set(map(name_of, store_errors))) < len(set(store_errors)):
        raise ConfigError(
            "store_errors names two classes of one name, which a record could not tell apart: give"
            " one of them another __qualname__"
        )


def _check_doubt_on(doubt_on: object) -> None:
    if not isinstance(doubt_on, tuple):
        raise ConfigError(
            f"doubt_on is a {type(doubt_on).__name__}; give a tuple of exception classes, such as"
            " (TimeoutError, ConnectionError)"
        )
    for each in doubt_on:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise ConfigError(f"doubt_on names {each!r}, which is not an exception class")


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
