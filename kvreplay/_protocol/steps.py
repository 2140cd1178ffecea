"""What the replay protocol is told, what it asks for step by step, and what comes out.

:mod:`kvreplay._protocol.flow` yields these steps, and a driver answers each. All times are
milliseconds since the epoch, UTC; durations are milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from enum import Enum
from typing import Any, Final, Generic, TypeVar

import attrs

from kvreplay._protocol.codec import Codec
from kvreplay._protocol.digests import ParamsKeys
from kvreplay._protocol.keys import ReplayKey
from kvreplay._protocol.record import Claim, ReplayRecord, encode
from kvreplay.errors import ConfigError
from kvreplay.events import EventKind
from kvreplay.store.durations import Duration, seconds_of

__all__ = [
    "BEGIN",
    "NOT_APPLIED",
    "READ",
    "UNDO",
    "Applied",
    "Begin",
    "Call",
    "CheckAndPut",
    "ExpiredPolicy",
    "Flow",
    "Free",
    "HeldClaim",
    "InDoubtPolicy",
    "Log",
    "NotApplied",
    "NotStored",
    "Policy",
    "Probe",
    "Raised",
    "Read",
    "Reconcile",
    "Request",
    "Returned",
    "Settled",
    "Step",
    "Transact",
    "Undo",
    "Unknown",
    "Verdict",
    "Wait",
]

T = TypeVar("T")


# What a flow is told. An object that each request makes anew is not frozen: frozen, it takes twice
# the time to make.


class InDoubtPolicy(Enum):
    """What a request does when it finds its key in doubt."""

    RAISE = "raise"
    RERUN = "rerun"
    RECONCILE = "reconcile"


class ExpiredPolicy(Enum):
    """What a request does when it finds that its key's answer has expired."""

    STALE = "stale"
    RERUN = "rerun"


@attrs.frozen
class Policy:
    """How a replay namespace behaves; durations in milliseconds.

    ``doubt_on``: the exceptions of a handler that leave its end unknown.
    ``store_errors``: those that are final failures, and are stored.
    ``params_keys``: the secrets of digests that are stored instead of params.
    """

    lease: int | None
    tombstone_ttl: int
    on_in_doubt: InDoubtPolicy
    max_record_bytes: int
    doubt_on: tuple[type[BaseException], ...]
    store_errors: tuple[type[Exception], ...] = ()
    on_expired: ExpiredPolicy = ExpiredPolicy.STALE
    params_keys: ParamsKeys | None = None


@attrs.define(repr=False)
class Request:
    """One request: the key, its canonical params, and for how long (ms) its answer is kept.

    ``absent_at``: when its key was last seen without a record; ``None``: not known, so read.
    ``codec``: what makes of its response what can be stored; ``None``: it can be.
    ``began``: when, in seconds of a clock that only goes forward; 0: nobody wants to know.
    """

    key: ReplayKey
    params: bytes
    ttl: int
    absent_at: int | None = None
    codec: Codec[Any] | None = None
    began: float = 0.0


# What a flow asks for, and what it is sent.


@attrs.define(repr=False)
class Read:
    """Read the key's entry: sent ``(bytes | None, now)``."""


@attrs.define(repr=False)
class CheckAndPut:
    """The store's primitive on the key's entry: sent ``(found, now)``.

    ``event``: the event to emit if it succeeds.
    """

    expected: bytes | None
    value: bytes | None
    expires_at: int | None = None
    event: EventKind | None = None


@attrs.define(repr=False)
class Begin:
    """Make a token that counts as running here until the flow ends: sent ``(token, owner)``."""


@attrs.define(repr=False)
class Probe:
    """Look up the claim's owner: sent True (runs), False (gone) or None (the lease decides)."""

    claim: Claim


@attrs.define(repr=False)
class Call:
    """Run the handler: sent ``(Returned | Raised, now)``. ``held``: the claim to renew, or None.

    The driver sets ``begun`` just before it calls the handler. An exception that is *thrown* here
    is not an ``Exception`` that the handler raised: if the handler had begun, nobody knows how it
    ended, else nothing ran. ``response`` is what it returned, if it had returned by then;
    ``failed_at``: when it raised, if the flow of a transaction has noted it.
    """

    held: HeldClaim | None
    begun: bool = False
    response: Any = None
    failed_at: int | None = None


@attrs.define(repr=False)
class Returned:
    """The handler returned this response."""

    response: Any


@attrs.define(repr=False)
class Raised:
    """The handler itself raised this ``Exception``."""

    error: Exception | None

    def take(self) -> Exception:
        """Return the exception, to be raised again, and forget it.

        Its traceback will hold the frames that hold this object. If this object still held it, all
        of that would stay in memory until a collection.
        """
        error, self.error = self.error, None
        assert error is not None  # it is taken once
        return error


@attrs.define(repr=False)
class Wait:
    """Another owner runs the key with the same params: wait (ms).

    Sent whether there was time to wait: if not, the request's time to wait is over.
    """

    delay: int


@attrs.define(repr=False)
class Reconcile:
    """Ask the caller's reconciler about a key in doubt: sent ``(Verdict, now)``."""

    record: ReplayRecord


@attrs.define(repr=False)
class Log:
    """Log a failure that the caller is not told of, as a warning: sent None."""

    text: str
    failure: Exception


@attrs.define(repr=False)
class Transact:
    """Drive the whole ``flow`` inside one write transaction: sent what it returns."""

    flow: Flow[Settled | Free]


@attrs.define(repr=False)
class Undo:
    """Undo all that this run has changed in the caller's transaction: sent None."""


Step = Read | CheckAndPut | Begin | Probe | Call | Wait | Reconcile | Transact | Undo | Log
Flow = Generator[Step, Any, T]

READ: Final = Read()
BEGIN: Final = Begin()
UNDO: Final = Undo()


# What comes out.


@attrs.define(repr=False, unsafe_hash=True)
class Settled:
    """The key's answer, as stored.

    ``replayed``: the handler did not run for this request. ``created_at`` and ``expires_at``: when
    its run began, and until when it is kept (ms); ``None``: it is not kept. ``failure``: the answer
    is this final failure, and ``response`` is empty.
    """

    response: bytes
    replayed: bool
    created_at: int = attrs.field(default=0, eq=False)
    expires_at: int | None = attrs.field(default=None, eq=False)
    failure: ReplayRecord | None = None


@attrs.define(repr=False, unsafe_hash=True)
class Free:
    """The key may be claimed if its entry is still ``found``; ``in_doubt``: that is a claim."""

    found: bytes | None
    now: int
    in_doubt: bool = False


class HeldClaim:
    """This run's claim as it is stored now; a renewer moves its lease."""

    __slots__ = ("data", "record", "token")

    def __init__(self, record: ReplayRecord) -> None:
        assert record.claim is not None  # what is held is a claim
        self.record = record
        self.token = record.claim.token
        self.data = encode(record)


@attrs.frozen(repr=False)
class NotStored(Generic[T]):
    """What a handler returns instead of a response that must not be kept.

    Its caller, and those who wait for this run in the process, get ``response``. No record stays:
    the next request runs the handler again.
    """

    response: T


@attrs.frozen(repr=False)
class Applied:
    """A reconciler's answer: the effect happened, and this is the response to it."""

    response: Any


class NotApplied(Enum):
    """The type of :data:`NOT_APPLIED`."""

    NOT_APPLIED = "not applied"


NOT_APPLIED: Final = NotApplied.NOT_APPLIED
"""A reconciler's answer: the effect did not happen, *and cannot any more*, so run the handler.

That the ledger does not know of it yet is not enough: a process that died a moment ago may have
sent a request that is still on its way. If that is possible, answer :class:`Unknown`.
"""


def _seconds(retry_after: Duration | None) -> float | None:
    left = None if retry_after is None else seconds_of(retry_after, "retry_after")
    if left is not None and not 0 <= left < math.inf:  # true for NaN too
        raise ConfigError(
            f"retry_after is {left!r} s; give a time of at least 0, or None; the key is still in"
            " doubt"
        )
    return left


@attrs.frozen
class Unknown:
    """A reconciler's answer: nobody knows yet. The request gets an ``InDoubtError`` at once.

    Nothing runs and nothing is stored.

    Args:
        retry_after: in what time to ask again, which the error tells in seconds: seconds, a
            timedelta, or text such as ``"10min"``; ``None``: not known.

    Raises:
        ConfigError: it is no time, or negative.
    """

    retry_after: float | None = attrs.field(default=None, converter=_seconds)


Verdict = Applied | NotApplied | Unknown
"""What a reconciler returns."""
