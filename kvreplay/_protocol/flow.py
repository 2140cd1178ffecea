"""The replay protocol as generators: no I/O, no clock, no threads.

A flow *yields* the step that it needs next and is *sent* the step's answer. A step that fails is
*thrown* its exception. The code that does this *drives* the flow: ``_runtime/blocking.py`` with
blocking calls, ``_runtime/awaiting.py`` with awaits, and a simulator in the tests in any order it
likes.
All times are milliseconds since the epoch, UTC, and come with the answers.

What is always true:

* A key's record changes only by a check-and-put that expects exactly the bytes that were read.
  The loser learns what the winner has stored, and decides again.
* The handler runs only after this run's claim is stored. (With ``lease=None`` there is no claim,
  and in a transaction none is needed. In one of the caller's own there is a claim as a placeholder,
  which keeps other owners waiting. Only a handler that commits by itself commits it unanswered.)
* A claim ends in one of three ways: an answer takes its place; it is withdrawn, since the handler
  never began or said that nothing happened; or it stays and says that its run has *ended*. Whatever
  breaks a run off, one of these is tried. ``endings.py`` tells which.
* A claim that is withdrawn leaves a free key. Only what a *rerun* has replaced is put back, since
  nobody knows yet how that earlier run ended.
* A claim that has ended, or whose owner is gone, is *in doubt*.
* A key in doubt is never run again, unless the policy or the caller's reconciler says so.
* A failure that the policy names as final is an answer: it is stored, and raised for every retry.
* A response is returned only after it is stored. It is decoded from the stored bytes.
* A request whose params differ from the record's changes nothing, whatever state the record is in.
  Once a record has expired, params are not compared any more.

The path of a miss::

    Read -> decide -> Begin -> CheckAndPut(claim) -> Call -> CheckAndPut(completed)

and of a hit: ``Read -> decide``. Most hits do not even reach this file:
``_runtime/requests.py`` answers them after one read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import TypeVar

import attrs

from kvreplay._protocol.digests import ParamsDigest, ParamsKeys, unknown_key
from kvreplay._protocol.endings import (
    IN_DOUBT,
    NO_TRACE,
    NOTHING_KEPT,
    UNDONE,
    answer_of,
    claim_of,
    complete,
    end_in_doubt,
    failure_of,
    in_doubt,
    is_final,
    leaves_doubt,
    says_unchanged,
    tells_of_doubt,
    withdraw,
)
from kvreplay._protocol.keys import ReplayKey
from kvreplay._protocol.record import (
    Claim,
    ReplayRecord,
    State,
    decode,
    decode_response,
    encode,
    encode_response,
)
from kvreplay._protocol.steps import (
    BEGIN,
    NOT_APPLIED,
    READ,
    UNDO,
    Applied,
    Call,
    CheckAndPut,
    ExpiredPolicy,
    Flow,
    Free,
    HeldClaim,
    InDoubtPolicy,
    NotStored,
    Policy,
    Probe,
    Raised,
    Reconcile,
    Request,
    Settled,
    Transact,
    Unknown,
    Wait,
)
from kvreplay.errors import (
    ClaimLostError,
    ConfigError,
    ExpiredError,
    InDoubtError,
    InFlightError,
    InvalidParamsError,
    OutcomeUnknownError,
    ParamsMismatchError,
    RecordError,
)
from kvreplay.events import EventKind

__all__ = [
    "Decision",
    "decide",
    "execute",
    "execute_in_transaction",
    "execute_joined",
    "forget",
    "is_in_doubt",
    "lookup",
    "prune",
    "renew",
    "settle",
]

E = TypeVar("E", bound=Settled | Raised)


class Decision(Enum):
    """What a record means for a request."""

    FREE = "free"
    REPLAY = "replay"
    MISMATCH = "mismatch"
    EXPIRED = "expired"
    CLAIMED = "claimed"


def decide(
    record: ReplayRecord | None,
    params: bytes,
    now: int,
    params_keys: ParamsKeys | None = None,
    on_expired: ExpiredPolicy = ExpiredPolicy.STALE,
) -> Decision:
    """Decide from what one read found. The params of an expired answer are not compared.

    Raises:
        ConfigError: the record has a digest of its params that none of ``params_keys`` has made.
    """
    if record is None:
        return Decision.FREE
    is_over = record.expires_at is not None and now >= record.expires_at
    if is_over or record.state is State.TOMBSTONE:
        is_absent = is_over and record.state is State.TOMBSTONE
        if is_absent or on_expired is ExpiredPolicy.RERUN:
            return Decision.FREE
        return Decision.EXPIRED
    if not _has_params(record, params, params_keys):
        return Decision.MISMATCH
    return Decision.CLAIMED if record.expires_at is None else Decision.REPLAY


def _has_params(record: ReplayRecord, params: bytes, params_keys: ParamsKeys | None) -> bool:
    if not isinstance(record.params, ParamsDigest):
        return record.params == params
    if params_keys is None:
        raise unknown_key()
    return params_keys.is_of(record.params, record.key, params)


# The protocol.


def execute(request: Request, policy: Policy) -> Flow[Settled]:
    """Answer from the record, or run the handler once and record its answer."""
    run = _run_claimless if policy.lease is None else _run_claimed
    # The key may have a record by now. A claim compares; a run without a claim reads again.
    absent_at = None if policy.lease is None else request.absent_at
    return _admit_and_run(request, policy, absent_at, run)


def execute_in_transaction(request: Request, policy: Policy) -> Flow[Settled]:
    """Answer from the record, or commit the handler's writes and its answer together."""
    return _admit_and_run(request, policy, request.absent_at, _transact)


def execute_joined(request: Request, policy: Policy) -> Flow[Settled | Raised]:
    """Answer from the record, or put the answer into the transaction that the caller has begun.

    It is driven inside that transaction, in a block that undoes all if this raises. ``Raised``: the
    handler's final failure, which is put there, and is to be raised once the block has ended.
    """
    return _admit_and_run(request, policy, None, _run_joined)


def lookup(request: Request, policy: Policy) -> Flow[Settled | None]:
    """Answer from the record, or say that there is none; never run, wait or take over."""
    only_look = attrs.evolve(policy, on_in_doubt=InDoubtPolicy.RAISE)
    found, now = yield READ
    entry = yield from _admit(found, now, request, only_look, None)
    return entry if isinstance(entry, Settled) else None


def settle(
    key: ReplayKey,
    response: bytes | None,
    ttl: int,
    policy: Policy,
    seen: ReplayRecord | None = None,
) -> Flow[bool]:
    """Settle a key in doubt: complete it with ``response``, or free it if that is None.

    Returns whether this call did it. A key that is not claimed is left alone, and so is a claim
    that is not the one of the record ``seen``.
    """
    found, now = yield READ
    while found is not None:
        record = decode(found, key)
        if record.claim is None or not (seen is None or _is_same_claim(seen.claim, record.claim)):
            break
        if (yield from _is_running(record.claim, now)):
            raise InFlightError(
                "the key's owner is running it, or may be; nothing was changed: try again later",
                _retry_after(record.claim, now),
            )
        if response is None:
            step = CheckAndPut(found, None, event="released_by_operator")
        else:
            step = complete(record, response, now, ttl, found, policy, event="resolved")
        there, now = yield step
        if there == found:
            return True
        found = there
    return False


def forget(key: ReplayKey, seen: ReplayRecord | None) -> Flow[bool]:
    """Remove an answer before its time; say whether this call did it.

    A key without a record is left alone, and so is a record that is not equal to ``seen``.
    """
    found, now = yield READ
    while found is not None:
        record = decode(found, key)
        if record.claim is not None:
            if (yield from _is_running(record.claim, now)):
                raise InFlightError(
                    "the key's owner is running it, or may be; nothing was changed: try again"
                    " later",
                    _retry_after(record.claim, now),
                )
            there, now = yield READ
            if there != found:  # its owner has answered, and was gone when we looked
                found = there
                continue
            raise InDoubtError(
                "the key is in doubt, and has no answer to forget; nothing was changed: find out,"
                " then resolve() or release() it"
            )
        if seen is not None and record != seen:
            break
        there, now = yield CheckAndPut(found, None, event="forgotten")
        if there == found:
            return True
        found = there
    return False


def is_in_doubt(record: ReplayRecord, now: int) -> Flow[bool]:
    """Say whether the record is a claim whose owner is gone, or whose run has ended.

    It is not if the key has another record by now: its owner has answered, and was gone when we
    looked.
    """
    claim = record.claim
    while claim is not None and not (yield from _is_running(claim, now)):
        found, now = yield READ
        there = None if found is None else decode(found, record.key).claim
        if there == claim:
            return True
        claim = there if _is_same_claim(there, claim) else None  # the same, if it was renewed
    return False


def _is_same_claim(seen: Claim | None, claim: Claim) -> bool:
    """Compare the tokens: a renewal changes the bytes of a claim."""
    return seen is not None and seen.token == claim.token


def renew(held: HeldClaim, lease: int) -> Flow[bool]:
    """Renew the lease of a claim once; say whether the claim is still held.

    It may have another lease than ``held`` knows of, if a renewal seemed to have failed.
    """
    found, now = yield READ
    if claim_of(found, held.token) is None:
        return False
    claim = held.record.claim
    assert claim is not None  # what is held is a claim
    moved = encode(
        attrs.evolve(held.record, claim=attrs.evolve(claim, lease_expires_at=now + lease))
    )
    try:
        there, _ = yield CheckAndPut(found, moved)
        found = moved if there == found else there
    except OutcomeUnknownError:
        found, _ = yield READ
    if claim_of(found, held.token) is None:
        return False
    held.data = found
    return True


def prune(found: bytes, record: ReplayRecord, now: int, policy: Policy) -> Flow[bool]:
    """Replace an expired record by its tombstone, or remove it, if it is still that record.

    Returns whether the entry is gone.
    """
    if record.expires_at is None or now < record.expires_at:
        return False
    until = record.expires_at
    if record.state is not State.TOMBSTONE:
        until += policy.tombstone_ttl
    if now >= until:
        step = CheckAndPut(found, None)
    else:
        tombstone = attrs.evolve(
            record, state=State.TOMBSTONE, params=b"", response=None, expires_at=until
        )
        step = CheckAndPut(found, encode(tombstone), until)
    seen, _ = yield step
    return bool(seen == found and step.value is None)


def _delays() -> Iterator[int]:
    """Yield how long (ms) to wait each time before looking at another owner's run again."""
    delay = 2
    while True:
        yield delay
        delay = min(2 * delay, 100)


def _admit_and_run(
    request: Request,
    policy: Policy,
    absent_at: int | None,
    run: Callable[[Free, Request, Policy], Flow[E | Free]],
) -> Flow[Settled | E]:
    """Answer from the record, or ``run``; begin again if another owner was faster.

    ``absent_at``: when the key was seen without a record, for a ``run`` that compares before it
    calls the handler. It saves the first read. ``None``: read.
    """
    found, now = (yield READ) if absent_at is None else (None, absent_at)
    delays = _delays()
    while True:
        entry: Settled | E | Free = Free(None, now)
        if found is not None:
            entry = yield from _admit(found, now, request, policy, delays)
        if isinstance(entry, Free):
            entry = yield from run(entry, request, policy)
        if not isinstance(entry, Free):
            return entry
        found, now = entry.found, entry.now


def _admit(
    found: bytes | None,
    now: int,
    request: Request,
    policy: Policy,
    delays: Iterator[int] | None,
) -> Flow[Settled | Free]:
    """Decide, and wait or reconcile where needed, until the key is settled or free.

    ``delays``: how long to wait each time for another owner; ``None``: never wait.
    """
    while True:
        record = None if found is None else decode(found, request.key)
        decision = _decide(record, request, now, policy)
        if decision is Decision.FREE:
            return Free(found, now)
        assert found is not None  # only FREE has no record
        assert record is not None
        if decision is Decision.REPLAY:
            return _settled(record)
        if decision is Decision.MISMATCH:
            raise _mismatch()
        if decision is Decision.EXPIRED:
            yield from prune(found, record, now, policy)
            raise _expired()
        claim = record.claim
        assert claim is not None  # of a record in progress
        if (yield from _is_running(claim, now)):
            if delays is None or not (yield Wait(next(delays))):
                raise InFlightError(
                    "another owner is running this key with these params; nothing ran here",
                    _retry_after(claim, now),
                )
            found, now = yield READ
            continue
        if policy.on_in_doubt is InDoubtPolicy.RERUN:
            return Free(found, now, in_doubt=True)
        seen, now = yield READ
        if seen != found:  # its owner changed it, and was gone when we looked
            found = seen
            continue
        if policy.on_in_doubt is InDoubtPolicy.RAISE:
            raise InDoubtError(
                "a run of this key began and did not end: its effect may or may not have happened,"
                " and nothing ran now; find out, then resolve() or release() the key"
            )
        verdict, now = yield Reconcile(record)
        if verdict is NOT_APPLIED:
            return Free(found, now, in_doubt=True)
        if isinstance(verdict, Unknown):
            raise InDoubtError(
                "a run of this key began and did not end, and on_in_doubt does not know yet whether"
                " its effect happened; nothing ran now",
                retry_after=verdict.retry_after,
            )
        if not isinstance(verdict, Applied):
            raise ConfigError(
                f"on_in_doubt returned a {type(verdict).__name__}; it must return"
                " Applied(response), NOT_APPLIED or Unknown(); nothing ran, and the key is still in"
                " doubt"
            )
        response = encode_response(
            verdict.response,
            "on_in_doubt returned it; nothing ran, and the key is still in doubt",
            request.codec,
        )
        until = now + request.ttl
        step = complete(record, response, now, request.ttl, found, policy, event="reconciled")
        seen, now = yield step
        if seen == found:
            return Settled(response, True, record.created_at, until)
        found = seen


def _is_rerun(entry: Free, policy: Policy) -> bool:
    """Say whether a failure of this run says nothing about the one before, whose claim stays."""
    return entry.in_doubt and policy.on_in_doubt is InDoubtPolicy.RERUN


def _run_claimed(entry: Free, request: Request, policy: Policy) -> Flow[Settled | Free]:
    """Claim the key, run the handler, record its answer; ``Free`` if another owner was faster."""
    assert policy.lease is not None  # or there is no claim
    token, owner = yield BEGIN
    claim = Claim(token, entry.now + policy.lease, owner)
    held = HeldClaim(_record_of(request, entry.now, policy, claim))
    _check_size(held.data, policy)
    event: EventKind | None = "taken_over" if entry.in_doubt else None
    reran = _is_rerun(entry, policy)
    before = entry.found if reran else None
    call, claimed, raised, told = Call(held), False, False, False
    try:
        found, now = yield CheckAndPut(entry.found, held.data, event=event)
        if found != entry.found:
            return Free(found, now)
        claimed = True
        end, now = yield call
        if isinstance(end, Raised):
            if is_final(end.error, policy) and not reran:
                yield from _record_failure(held, end, now, request, policy)
                told = True
            raised = True
            raise end.take()
        if isinstance(end.response, NotStored):
            left: EventKind = "released" if before is None else "in_doubt"
            step = CheckAndPut(held.data, before, event=left)
            yield from _replace_claim(held, step, end.response.response)
            told = True
            return _not_kept(end.response, held.record, NOTHING_KEPT, request)
        return (yield from _record_answer(held, end.response, now, request, policy))
    except GeneratorExit:
        raise  # nobody answers any more
    except BaseException as error:  # whatever breaks the run off, even an interrupt
        if told or (not claimed and says_unchanged(error)):
            raise
        if not call.begun or (raised and not leaves_doubt(error, policy.doubt_on)):
            yield from withdraw(held, before, error)
            raise
        yield from end_in_doubt(token)
        if tells_of_doubt(error, raised):
            raise
        raise in_doubt(error, call.response) from error


def _record_answer(
    held: HeldClaim, response: object, now: int, request: Request, policy: Policy
) -> Flow[Settled]:
    """Put the answer in the place of this run's claim."""
    packed, step = answer_of(held.record, response, now, held.data, request, policy, IN_DOUBT)
    yield from _replace_claim(held, step, response)
    return Settled(packed, False, held.record.created_at, now + request.ttl)


def _record_failure(
    held: HeldClaim, end: Raised, now: int, request: Request, policy: Policy
) -> Flow[None]:
    """Put a final failure in the place of this run's claim."""
    try:
        step = failure_of(held.record, end.error, now, held.data, request, policy)
        yield from _replace_claim(held, step)
    except (InDoubtError, ClaimLostError) as error:
        error.add_note(f"the handler had raised a {type(end.error).__name__}, a final failure")
        raise


def _not_kept(
    answer: NotStored[object], record: ReplayRecord, consequence: str, request: Request
) -> Settled:
    """Encode an answer that is only for those who wait for it now."""
    packed = encode_response(answer.response, consequence, request.codec)
    return Settled(packed, False, record.created_at)


def _replace_claim(held: HeldClaim, step: CheckAndPut, response: object = None) -> Flow[None]:
    """Make the put that ends this run."""
    while True:
        try:
            found, _ = yield step
        except Exception as error:  # the store's or the clock's
            raise InDoubtError(
                "the handler ran, but the store may not have saved its response: the key is in"
                " doubt unless it did; lookup() shows which, then resolve() or release() a key in"
                " doubt",
                response=response,
            ) from error
        if found == step.expected:
            return
        if claim_of(found, held.token) is None:
            raise ClaimLostError(
                "the handler ran, but another owner took this key over meanwhile: that owner's"
                " answer counts, and this response was not stored"
            )
        # Our own claim, with a lease whose renewal seemed to have failed.
        step = attrs.evolve(step, expected=found)


def _run_claimless(entry: Free, request: Request, policy: Policy) -> Flow[Settled | Free]:
    """Run the handler without a claim; the first to store an answer decides for all."""
    record = _record_of(request, entry.now, policy)
    _check_size(encode(record), policy)
    call = Call(None)
    try:
        end, now = yield call
    except Exception as error:  # not the handler's own
        if not call.begun:
            raise
        raise InDoubtError(
            "the handler ran, but its response was not stored; there is no claim (lease=None), so a"
            " retry runs the handler again",
            response=call.response,
        ) from error
    if isinstance(end, Raised):
        answer = None
        if is_final(end.error, policy) and not _is_rerun(entry, policy):
            step = failure_of(record, end.error, now, entry.found, request, policy)
            answer = yield from _put_first(step, request, policy, None)
        if answer is not None:
            return answer
        raise end.take()
    if isinstance(end.response, NotStored):
        return _not_kept(end.response, record, NOTHING_KEPT, request)
    packed, step = answer_of(record, end.response, now, entry.found, request, policy, NO_TRACE)
    answer = yield from _put_first(step, request, policy, end.response)
    return answer or Settled(packed, False, record.created_at, now + request.ttl)


def _put_first(
    step: CheckAndPut, request: Request, policy: Policy, response: object
) -> Flow[Settled | None]:
    """Put an answer that was made without a claim; return another owner's, if that was faster."""
    while True:
        try:
            found, now = yield step
        except Exception as error:  # the store's or the clock's
            raise InDoubtError(
                "the handler ran, but the store may not have saved its response; there is no claim"
                " (lease=None), so a retry runs the handler again if the response was not saved",
                response=response,
            ) from error
        if found == step.expected:
            return None
        try:
            winner = None if found is None else decode(found, request.key)
            decision = _decide(winner, request, now, policy)
            if decision is Decision.REPLAY:
                assert winner is not None  # it has the response
                return _settled(winner)
        except (RecordError, ConfigError) as error:
            raise InDoubtError(
                "the handler ran without a claim (lease=None), and meanwhile a record that cannot"
                " be used has taken the key: this response was not stored",
                response=response,
            ) from error
        if decision is not Decision.FREE:
            raise ClaimLostError(
                "the handler ran without a claim (lease=None), and meanwhile another owner has"
                f" taken the key ({decision.value}): this response was not stored"
            )
        step = attrs.evolve(step, expected=found)


def _transact(entry: Free, request: Request, policy: Policy) -> Flow[Settled | Free]:
    """Run the handler inside a transaction; a final failure is stored when that is undone."""
    call = Call(None)
    try:
        end: Settled | Free = yield Transact(_run_in_transaction(entry, request, policy, call))
        return end
    except Exception as error:  # the handler's, once its writes are undone
        if call.failed_at is None or not is_final(error, policy) or _is_rerun(entry, policy):
            raise
        now, record = call.failed_at, _record_of(request, entry.now, policy)
        step = failure_of(record, error, now, entry.found, request, policy)
        found, now = yield step  # nothing has happened: if this fails, a retry runs it again
        if found == step.expected:
            raise
    return Free(found, now)


def _run_in_transaction(
    entry: Free, request: Request, policy: Policy, call: Call
) -> Flow[Settled | Free]:
    """Run the handler inside the transaction that this flow is driven in."""
    found, now = yield READ
    if found != entry.found:
        return Free(found, now)
    record = _record_of(request, now, policy)
    _check_size(encode(record), policy)
    end, now = yield call
    if isinstance(end, Raised):
        call.failed_at = now
        raise end.take()
    if isinstance(end.response, NotStored):
        settled = _not_kept(end.response, record, UNDONE, request)
        if found is not None and not _is_rerun(entry, policy):
            yield CheckAndPut(found, None)  # what had expired, or was found not to be applied
        return settled
    packed = encode_response(end.response, UNDONE, request.codec)
    yield complete(record, packed, now, request.ttl, found, policy, UNDONE)
    return Settled(packed, False, record.created_at, now + request.ttl)


def _run_joined(entry: Free, request: Request, policy: Policy) -> Flow[Settled | Raised | Free]:
    """Run the handler in the caller's transaction, behind a placeholder that keeps others waiting.

    The placeholder is a claim. If the handler commits the transaction, nobody knows whether its
    answer would have followed: then the key is in doubt.
    """
    token, owner = yield BEGIN
    claim = Claim(token, entry.now + (policy.lease or 0), owner)
    record = _record_of(request, entry.now, policy, claim)
    placeholder = encode(record)
    _check_size(placeholder, policy)
    found, now = yield CheckAndPut(entry.found, placeholder)
    if found != entry.found:
        return Free(found, now)
    end, now = yield Call(None)
    reran = _is_rerun(entry, policy)
    if isinstance(end, Raised):
        if not is_final(end.error, policy) or reran:
            raise end.take()
        yield UNDO
        step = failure_of(record, end.error, now, entry.found, request, policy)
        found, now = yield step
        return end if found == step.expected else Free(found, now)
    if isinstance(end.response, NotStored):
        settled = _not_kept(end.response, record, UNDONE, request)
        yield from _replace_placeholder(CheckAndPut(placeholder, entry.found if reran else None))
        return settled
    packed = encode_response(end.response, UNDONE, request.codec)
    step = complete(record, packed, now, request.ttl, placeholder, policy, UNDONE)
    yield from _replace_placeholder(step)
    return Settled(packed, False, record.created_at, now + request.ttl)


def _replace_placeholder(step: CheckAndPut) -> Flow[None]:
    found, _ = yield step
    if found != step.expected:
        raise ClaimLostError(
            "the handler ran, but it has ended the transaction that it was given, or has undone"
            " more than its own changes: what it has committed stands, and no answer is stored;"
            " let only the caller commit and roll back"
        )


def _decide(record: ReplayRecord | None, request: Request, now: int, policy: Policy) -> Decision:
    return decide(record, request.params, now, policy.params_keys, policy.on_expired)


def _record_of(
    request: Request, now: int, policy: Policy, claim: Claim | None = None
) -> ReplayRecord:
    keys = policy.params_keys
    params = request.params if keys is None else keys.digest(request.key, request.params)
    return ReplayRecord(State.IN_PROGRESS, request.key, params, None, now, None, claim)


def _check_size(data: bytes, policy: Policy) -> None:
    if len(data) > policy.max_record_bytes:
        raise InvalidParamsError(
            f"the params make a record of {len(data)} bytes, more than max_record_bytes"
            f" ({policy.max_record_bytes}); nothing ran"
        )


def _is_running(claim: Claim, now: int) -> Flow[bool]:
    if claim.ended_at is not None:
        return False
    runs = yield Probe(claim)
    return now < claim.lease_expires_at if runs is None else bool(runs)


def _settled(record: ReplayRecord) -> Settled:
    """Return what a record answers; its response is one that everybody can decode.

    Raises:
        CorruptRecordError: it is not msgpack, or no failure where it should be one.
    """
    assert record.response is not None  # decode() checked it for an answer
    times = record.created_at, record.expires_at
    if record.load_failure() is not None:
        return Settled(b"", True, *times, record)
    decode_response(record.response)
    return Settled(record.response, True, *times)


def _retry_after(claim: Claim, now: int) -> float:
    """Return seconds: at most one, since a run usually ends long before its lease."""
    left = claim.lease_expires_at - now
    return min(left, 1000) / 1000 if left > 0 else 1.0


def _mismatch() -> ParamsMismatchError:
    return ParamsMismatchError(
        "this key is bound to other params; nothing ran, and its record is untouched"
    )


def _expired() -> ExpiredError:
    return ExpiredError(
        "this key was answered, and the answer has expired; nothing ran: start a new flow"
    )
