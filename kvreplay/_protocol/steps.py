"""What the replay protocol is told, what it asks for step by step, and what comes out.

:mod:`kvreplay._protocol.flow` yields these steps, and a driver answers each. All times are
milliseconds since the epoch, UTC; durations are milliseconds.
"""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum
from typing import Any, Final, TypeVar

import attrs

from kvreplay._protocol.keys import ReplayKey
from kvreplay._protocol.record import Claim, ReplayRecord, encode
from kvreplay.events import EventKind

__all__ = [
    "BEGIN",
    "NOT_APPLIED",
    "READ",
    "Applied",
    "Begin",
    "Call",
    "CheckAndPut",
    "Flow",
    "Free",
    "HeldClaim",
    "InDoubtPolicy",
    "NotApplied",
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


@attrs.frozen
class Policy:
    """How a replay namespace behaves; durations in milliseconds."""

    lease: int | None
    tombstone_ttl: int
    wait_timeout: int
    on_in_doubt: InDoubtPolicy
    max_record_bytes: int


@attrs.define(repr=False)
class Request:
    """One request: the key, its canonical params, and for how long (ms) its answer is kept.

    ``absent_at``: when its key was last seen without a record; ``None``: not known, so read.
    """

    key: ReplayKey
    params: bytes
    ttl: int
    absent_at: int | None = None


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

    An exception that is *thrown* here is not an ``Exception`` that the handler raised: nobody knows
    how the handler ended.
    """

    held: HeldClaim | None


@attrs.define(repr=False)
class Returned:
    """The handler returned this response."""

    response: Any


@attrs.define(repr=False)
class Raised:
    """The handler itself raised this ``Exception``."""

    error: Exception


@attrs.define(repr=False)
class Wait:
    """Another owner runs the key with the same params: wait (ms); sent None."""

    delay: int


@attrs.define(repr=False)
class Reconcile:
    """Ask the caller's reconciler about a key in doubt: sent ``(Applied | NOT_APPLIED, now)``."""

    record: ReplayRecord


@attrs.define(repr=False)
class Transact:
    """Drive the whole ``flow`` inside one write transaction: sent what it returns."""

    flow: Flow[Settled | Free]


Step = Read | CheckAndPut | Begin | Probe | Call | Wait | Reconcile | Transact
Flow = Generator[Step, Any, T]

READ: Final = Read()
BEGIN: Final = Begin()


# What comes out.


@attrs.define(repr=False, unsafe_hash=True)
class Settled:
    """The key's answer, as stored; ``replayed``: the handler did not run for this request."""

    response: bytes
    replayed: bool


@attrs.define(repr=False, unsafe_hash=True)
class Free:
    """The key may be claimed if its entry is still ``found``; ``in_doubt``: that is a claim."""

    found: bytes | None
    now: int
    in_doubt: bool = False


class HeldClaim:
    """This run's claim as it is stored now; a renewer moves its lease."""

    __slots__ = ("data", "record")

    def __init__(self, record: ReplayRecord) -> None:
        self.record = record
        self.data = encode(record)


@attrs.frozen(repr=False)
class Applied:
    """A reconciler's answer: the effect happened, and this is the response to it."""

    response: Any


class NotApplied(Enum):
    """The type of :data:`NOT_APPLIED`."""

    NOT_APPLIED = "not applied"


NOT_APPLIED: Final = NotApplied.NOT_APPLIED
"""A reconciler's answer: the effect did not happen and never will, so run the handler."""

Verdict = Applied | NotApplied
"""What a reconciler returns."""
