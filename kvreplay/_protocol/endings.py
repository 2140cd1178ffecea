"""How a run ends: with an answer, without a trace, or in doubt.

* *With an answer*: it takes the place of the run's claim.
* *Without a trace*: the handler never began, or said that nothing happened. What was there before
  the claim is put back.
* *In doubt*: everything else. The claim stays, and says that its run has ended.

The last two are tried once and not more, since whatever broke the run off may have broken the
store too. The caller is told what ended the run, not what failed after it.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from kvreplay._protocol.failures import encode_failure
from kvreplay._protocol.record import (
    ReplayRecord,
    State,
    decode,
    encode,
    encode_fields,
    encode_response,
)
from kvreplay._protocol.steps import READ, CheckAndPut, Flow, HeldClaim, Log, Policy, Request
from kvreplay.errors import (
    ClaimLostError,
    IndeterminateError,
    InDoubtError,
    InvalidResponseError,
    KVReplayError,
    NotAppliedError,
    OutcomeUnknownError,
    RecordError,
    ResponseNotStorableError,
    StoreError,
)
from kvreplay.events import EventKind

__all__ = [
    "IN_DOUBT",
    "NOTHING_KEPT",
    "NO_TRACE",
    "UNDONE",
    "answer_of",
    "claim_of",
    "complete",
    "end_in_doubt",
    "failure_of",
    "in_doubt",
    "is_final",
    "leaves_doubt",
    "says_unchanged",
    "tells_of_doubt",
    "withdraw",
]

# With an answer. What the error says if it cannot be stored:

IN_DOUBT: Final = "the handler ran, nothing was answered, and the key is in doubt until settled"
NO_TRACE: Final = "the handler ran, nothing was stored, and a retry runs it again (lease=None)"
NOTHING_KEPT: Final = "the handler ran, its answer was not to be kept, and a retry runs it again"
UNDONE: Final = "the handler's writes were undone, and nothing happened"


def answer_of(
    record: ReplayRecord,
    response: object,
    now: int,
    expected: bytes | None,
    request: Request,
    policy: Policy,
    consequence: str,
) -> tuple[bytes, CheckAndPut]:
    """Encode what a handler returned, and make the step that stores it.

    Raises:
        ResponseNotStorableError: it cannot be stored; the error carries it.
    """
    try:
        packed = encode_response(response, consequence, request.codec)
        return packed, complete(record, packed, now, request.ttl, expected, policy, consequence)
    except InvalidResponseError as error:
        raise ResponseNotStorableError(str(error), response=response) from error.__cause__


def failure_of(
    record: ReplayRecord,
    failure: Exception | None,
    now: int,
    expected: bytes | None,
    request: Request,
    policy: Policy,
) -> CheckAndPut:
    """Make the step that stores a final failure, without its arguments if they cannot be stored."""
    assert failure is not None  # it is not taken yet
    answer = now, request.ttl, expected, policy
    try:
        return _fail(record, encode_failure(failure), *answer)
    except InvalidResponseError:
        return _fail(record, encode_failure(failure, arguments=False), *answer)


def _fail(record: ReplayRecord, packed: bytes, *answer: Any) -> CheckAndPut:
    return complete(record, packed, *answer, state=State.FAILED, event="failed")


def complete(
    record: ReplayRecord,
    response: bytes,
    now: int,
    ttl: int,
    expected: bytes | None,
    policy: Policy,
    consequence: str = "nothing was changed",
    *,
    state: State = State.COMPLETED,
    event: EventKind = "completed",
) -> CheckAndPut:
    """Make the step that stores an answer. The store may drop it when its tombstone ends.

    Args:
        state: that of the record: an answer, or a final failure.

    Raises:
        InvalidResponseError: the record would be larger than ``max_record_bytes``.
    """
    expires_at = now + ttl
    data = encode_fields(
        *(state, record.key, record.params, response),
        *(record.created_at, expires_at, None),
    )
    if len(data) > policy.max_record_bytes:
        raise InvalidResponseError(
            f"a response makes a record of {len(data)} bytes, more than max_record_bytes"
            f" ({policy.max_record_bytes}): {consequence}"
        )
    return CheckAndPut(expected, data, expires_at + policy.tombstone_ttl, event)


def is_final(error: BaseException | None, policy: Policy) -> bool:
    """Say whether what a handler raised is a final failure. No group is, nor is kvreplay's own.

    If ``doubt_on`` names it too, the class that is nearer to its own decides, and at the same
    distance the doubt: ``store_errors=(OSError,)`` makes no answer of a ``TimeoutError``.
    """
    if not isinstance(error, policy.store_errors) or isinstance(
        error, KVReplayError | BaseExceptionGroup
    ):
        return False
    if not leaves_doubt(error, policy.doubt_on):
        return True
    return _distance(error, policy.store_errors) < _distance(error, policy.doubt_on)


def _distance(error: BaseException, named: tuple[type[BaseException], ...]) -> int:
    classes = type(error).__mro__
    return next((far for far, each in enumerate(classes) if each in named), len(classes))


# Without a trace, or in doubt.


def leaves_doubt(error: BaseException, doubt_on: tuple[type[BaseException], ...]) -> bool:
    """Say whether a handler that raised this may have had its effect.

    An exception group does if anything in it does, at any depth; causes are not looked at.
    ``ConnectionError`` does not mean ``ConnectionRefusedError``, since then nothing was sent. Its
    own name does, and so does a class above ``ConnectionError``.
    """
    beside_refused = tuple(each for each in doubt_on if each is not ConnectionError)
    pending = [error]
    while pending:
        each = pending.pop()
        if isinstance(each, BaseExceptionGroup):
            pending.extend(each.exceptions)
        if isinstance(each, _END_UNKNOWN):
            return True
        named = beside_refused if isinstance(each, ConnectionRefusedError) else doubt_on
        if isinstance(each, named) and not isinstance(each, NotAppliedError):
            return True
    return False


# Whatever ``doubt_on`` says. All but IndeterminateError come from another request or a store that
# the handler has used.
_END_UNKNOWN: Final = (InDoubtError, OutcomeUnknownError, ClaimLostError)


def tells_of_doubt(error: BaseException, raised: bool) -> bool:
    """Say whether the caller is told this exception, which left the key in doubt, as it is.

    That is so if it is no ``Exception``, or says of this very key how its run ended. For every
    other exception the caller is told :func:`in_doubt`.

    Args:
        raised: it is the handler's own, so all but an IndeterminateError may be about another key.
    """
    of_this_key = IndeterminateError if raised else (InDoubtError, ClaimLostError)
    return not isinstance(error, Exception) or isinstance(error, of_this_key)


def in_doubt(error: BaseException, response: object) -> InDoubtError:
    """Return what the caller is told instead of an exception that left the key in doubt.

    Args:
        response: what the handler had returned before it; ``None``: nothing.
    """
    return InDoubtError(
        f"the handler ran, and its run ended with a {type(error).__name__}, so its effect may or"
        " may not have happened: the key is in doubt; find out, then resolve() or release() it",
        response=response,
    )


def says_unchanged(error: BaseException) -> bool:
    """Say whether a check-and-put that raised this has changed nothing."""
    return isinstance(error, StoreError) and not isinstance(error, OutcomeUnknownError)


def withdraw(held: HeldClaim, before: bytes | None, error: BaseException) -> Flow[None]:
    """Put back what was there before the claim."""
    event: EventKind = "released" if before is None else "in_doubt"
    try:
        found, _ = yield CheckAndPut(held.data, before, event=event)
        if found != held.data and claim_of(found, held.token) is not None:
            yield CheckAndPut(found, before, event=event)  # a renewal seemed to have failed
    except Exception as failure:  # the store's or the clock's: the run's own error is told
        try:
            error.add_note(
                f"kvreplay could not release the claim, so the key is in doubt: {failure}"
            )
        except AttributeError:  # a frozen exception takes no note
            yield Log("a run could not release its claim, so its key is in doubt: %r", failure)


def end_in_doubt(token: bytes) -> Flow[None]:
    """Say in the claim that its run has ended, so that nobody waits for its owner."""
    try:
        found, now = yield READ
        record = claim_of(found, token)
        if record is not None and record.claim is not None:
            ended = attrs.evolve(record.claim, ended_at=now)
            data = encode(attrs.evolve(record, claim=ended))
            yield CheckAndPut(found, data, event="doubt_begun")
    except Exception as failure:  # likewise
        yield Log("a run left its key in doubt, and could not tell other processes: %r", failure)


def claim_of(found: bytes | None, token: bytes) -> ReplayRecord | None:
    """Return the record that was found, if it is the claim with this token."""
    try:
        record = None if found is None else decode(found)
    except RecordError:
        return None
    if record is None or record.claim is None or record.claim.token != token:
        return None
    return record
