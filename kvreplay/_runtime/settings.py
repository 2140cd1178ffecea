"""The settings of a replay namespace: named, explained, checked and typed here, and only here.

A new setting is an argument of :class:`Configured`, with its line of documentation and its check,
a field of :class:`Settings` or of its :class:`~kvreplay._protocol.steps.Policy`, and a line each in
:class:`ReplaySettings` and :data:`IN_A_FILE`, if a file can hold it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, Generic, Literal, Required, TypedDict, TypeVar

import attrs

from kvreplay._protocol.keys import ReplayKey
from kvreplay._protocol.record import ReplayRecord
from kvreplay._protocol.steps import InDoubtPolicy, Policy, Verdict
from kvreplay._runtime.observer import Observer
from kvreplay._runtime.patience import patience_ms
from kvreplay.clock import Clock, Duration, SystemClock, to_ms
from kvreplay.errors import ConfigError, InvalidNameError
from kvreplay.events import ReplayEvent
from kvreplay.store import (
    AtomicKVStore,
    ExpiringKVStore,
    TransactionalKVStore,
    check_namespace,
    missing_methods,
)

__all__ = ["IN_A_FILE", "Configured", "ReplaySettings", "Settings"]

V = TypeVar("V")


class ReplaySettings(TypedDict, total=False):
    """Keyword arguments for ``Replay`` and ``AsyncReplay``; durations are seconds."""

    namespace: Required[str]
    ttl: Required[float]
    lease: float | None
    tombstone_ttl: float
    wait_timeout: float | None
    on_in_doubt: Literal["raise", "rerun"] | Callable[[ReplayRecord], Verdict]
    max_record_bytes: int
    renew: bool


IN_A_FILE: Final[Mapping[str, str | tuple[str, ...]]] = {
    "ttl": "duration",
    "lease": "lease",
    "tombstone_ttl": "duration",
    "wait_timeout": "time limit",
    "on_in_doubt": ("raise", "rerun"),
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
        sweeps_itself: the store has an index of expiry.
        owners_file: where its owners hold their locks; ``None``: it has no such file.
    """

    store: AtomicKVStore
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
            _check_capability(self.store, TransactionalKVStore, what)


class Configured(Generic[V]):
    """An object with the settings of a replay namespace. ``V``: what a reconciler returns."""

    def __init__(
        self,
        store: AtomicKVStore,
        namespace: str,
        *,
        ttl: Duration,
        lease: Duration | None = 30.0,
        tombstone_ttl: Duration = 0.0,
        wait_timeout: Duration | None = 10.0,
        on_in_doubt: str | Callable[[ReplayRecord], V] = "raise",
        max_record_bytes: int = 1024 * 1024,
        renew: bool = False,
        doubt_on: tuple[type[BaseException], ...] = (TimeoutError, ConnectionError),
        clock: Clock | None = None,
        on_event: Callable[[ReplayEvent], object] | None = None,
    ) -> None:
        """Check the settings. No file is opened and no thread started. The caller closes the store.

        Durations are seconds or a timedelta.

        Args:
            store: an :class:`~kvreplay.AtomicKVStore`.
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
            max_record_bytes: the largest record to store, params and response together.
            renew: keep renewing the lease while a handler runs.
            doubt_on: exception classes of a handler that leave it unknown whether its effect
                happened, also inside an exception group, at any depth. The key is then in doubt
                instead of free. ``ConnectionError`` does not mean ``ConnectionRefusedError``. Add
                those of your client library; with ``(Exception,)`` a handler frees its key only by
                ``NotAppliedError``. With ``lease=None`` there is no claim that could stay.
            clock: an object with ``now_ms()``; the system's clock by default. It may also have
                ``monotonic()``, by which waiting is measured; see :class:`~kvreplay.clock.Clock`.
            on_event: called with a :class:`~kvreplay.ReplayEvent` for each decision, on the thread
                that makes it. What it raises is logged, and never fails a request.

        Raises:
            ConfigError: a setting is wrong, or the store lacks a capability; it names which.
        """
        _check_capability(store, AtomicKVStore, type(self).__name__)
        _check_own_namespace(namespace)
        if lease is not None and not to_ms(lease, "lease"):
            raise ConfigError("lease is 0; give some seconds, or None for no claim")
        if renew and lease is None:
            raise ConfigError("renew=True needs a lease to renew; lease is None")
        if type(max_record_bytes) is not int or max_record_bytes < 1:
            raise ConfigError("max_record_bytes must be an int of at least 1")
        _check_doubt_on(doubt_on)
        clock = SystemClock() if clock is None else clock
        self._settings = Settings(
            store=store,
            name=namespace,
            ttl=to_ms(ttl, "ttl"),
            wait_timeout=patience_ms(wait_timeout),
            policy=Policy(
                lease=None if lease is None else to_ms(lease, "lease"),
                tombstone_ttl=to_ms(tombstone_ttl, "tombstone_ttl"),
                on_in_doubt=_in_doubt_policy(on_in_doubt),
                max_record_bytes=max_record_bytes,
                doubt_on=doubt_on,
            ),
            reconcile=on_in_doubt if callable(on_in_doubt) else None,
            renew=renew,
            clock=clock,
            monotonic=getattr(clock, "monotonic", time.monotonic),
            observer=Observer(namespace, clock, on_event),
            sweeps_itself=not missing_methods(store, ExpiringKVStore),
            has_transactions=not missing_methods(store, TransactionalKVStore),
            owners_file=getattr(store, "owners_file", None),
            identity=getattr(store, "identity", None) or id(store),
        )
        self._set_up()

    def _set_up(self) -> None:
        """Make what the settings ask for."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.name!r} on {self._settings.store!r}>"


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
