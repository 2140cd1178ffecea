"""A run: the claim, the call, and each way in which it ends."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from kvreplay import (
    ClaimLostError,
    ExpiredError,
    InDoubtError,
    InvalidParamsError,
    InvalidResponseError,
    OutcomeUnknownError,
    ParamsMismatchError,
    ReplayRecord,
    ResponseNotStorableError,
    StoreFullError,
)
from kvreplay._protocol.flow import execute, execute_in_transaction, prune
from kvreplay._protocol.record import Claim, State, decode, encode, encode_response
from kvreplay._protocol.steps import READ, CheckAndPut, Settled
from support.flow_script import (
    KEY,
    NOW,
    OTHER,
    OTHERS,
    PARAMS,
    POLICY,
    REQUEST,
    TOKEN,
    Script,
    claimed,
    completed,
    executing,
    tombstone,
    transacting,
)


def test_a_miss_claims_calls_and_completes() -> None:
    script = executing().reads(None).begins()
    claim = script.step
    assert (claim.expected, claim.expires_at) == (None, None)
    held = decode(claim.value, KEY)
    assert held.state is State.IN_PROGRESS
    assert held.params == PARAMS
    assert held.claim == Claim(TOKEN, NOW + 30_000, "me")
    script.puts()
    assert script.step.held.data == claim.value
    script.calls({"b": 1}, now=NOW + 7)
    completion = script.step
    assert completion.expected == claim.value
    assert completion.expires_at == NOW + 7 + 60_000
    done = decode(completion.value, KEY)
    assert (done.state, done.created_at, done.expires_at) == (State.COMPLETED, NOW, NOW + 60_007)
    assert done.load_response() == {"b": 1}
    assert script.puts().result == Settled(encode_response({"b": 1}, ""), replayed=False)


def seen_absent(at: int = NOW, **policy: Any) -> Script:
    """A request whose key was without a record when somebody last looked."""
    request = attrs.evolve(REQUEST, absent_at=at)
    return Script(execute(request, attrs.evolve(POLICY, **policy)))


def test_a_key_that_was_seen_absent_is_claimed_without_another_read() -> None:
    script = seen_absent().begins()
    claim = script.step
    assert claim.expected is None
    assert decode(claim.value, KEY).created_at == NOW
    assert script.puts().calls("mine").puts().result == Settled(
        encode_response("mine", ""), replayed=False
    )


def test_a_key_that_was_seen_absent_may_have_been_answered_since() -> None:
    assert seen_absent().begins().puts(found=completed()).result.replayed
    with pytest.raises(ParamsMismatchError):
        seen_absent().begins().puts(found=completed(OTHER))


def test_without_a_claim_a_key_that_was_seen_absent_is_read_again() -> None:
    assert seen_absent(lease=None).step is READ
    assert seen_absent(lease=None).reads(completed()).result.replayed


def test_a_key_that_was_seen_absent_is_read_again_inside_the_transaction() -> None:
    script = Script(execute_in_transaction(attrs.evolve(REQUEST, absent_at=NOW), POLICY))
    inner = Script(script.step.flow)
    assert inner.step is READ
    assert inner.reads(completed()).result.found == completed()


def test_a_hit_is_one_read() -> None:
    assert executing().reads(completed()).result == Settled(encode_response("r", ""), replayed=True)


def test_another_owner_that_claims_first_is_decided_on_without_reading_again() -> None:
    script = executing().reads(None).begins()
    assert script.puts(found=completed()).result.replayed
    with pytest.raises(ParamsMismatchError):
        executing().reads(None).begins().puts(found=completed(OTHER))
    with pytest.raises(ParamsMismatchError):
        executing().reads(None).begins().puts(found=claimed(OTHER))


def test_a_completion_that_finds_another_claim_has_lost() -> None:
    script = executing().reads(None).begins().puts().calls("mine")
    with pytest.raises(ClaimLostError):
        script.puts(found=claimed()).reads(claimed())


@pytest.mark.parametrize("found", [None, b"damaged", completed(), claimed(token=b"Z" * 16)])
def test_a_completion_that_finds_no_claim_of_its_own_has_lost(found: bytes | None) -> None:
    script = executing().reads(None).begins().puts().calls("mine")
    with pytest.raises(ClaimLostError):
        script.puts(found=found).reads(found)


def test_an_exception_of_the_handler_releases_the_claim() -> None:
    script = executing().reads(None).begins()
    claim = script.step.value
    script.puts().raises(ValueError("declined"))
    assert (script.step.expected, script.step.value) == (claim, None)
    with pytest.raises(ValueError, match="declined"):
        script.puts()


def test_a_completion_follows_its_own_claim_whose_renewal_seemed_to_fail() -> None:
    script = executing().reads(None).begins()
    claim = decode(script.step.value, KEY)
    assert claim.claim is not None
    moved = encode(attrs.evolve(claim, claim=attrs.evolve(claim.claim, lease_expires_at=NOW * 2)))
    script.puts().calls("r").puts(found=moved)
    assert script.step.expected == moved
    assert script.puts().result == Settled(encode_response("r", ""), replayed=False)


@pytest.mark.parametrize("failure", [StoreFullError("full"), OutcomeUnknownError("?")])
def test_a_completion_that_cannot_be_stored_leaves_the_key_in_doubt(failure: Exception) -> None:
    script = executing().reads(None).begins().puts().calls("r").fails(failure)
    with pytest.raises(InDoubtError) as error:
        script.ends_in_doubt()
    assert error.value.__cause__ is failure
    assert error.value.response == "r"


@pytest.mark.parametrize("response", [object(), "x" * 10_000])
def test_a_response_that_cannot_be_stored_keeps_the_claim(response: object) -> None:
    script = executing().reads(None).begins().puts().calls(response)
    with pytest.raises(
        ResponseNotStorableError, match=r"cannot be stored|max_record_bytes"
    ) as error:
        script.ends_in_doubt()
    assert error.value.response is response


def test_a_response_that_just_fits_is_stored() -> None:
    assert isinstance(executing().reads(None).begins().puts().calls("x" * 9_000).step, CheckAndPut)


def test_params_too_large_are_refused_before_anything_is_stored() -> None:
    with pytest.raises(InvalidParamsError, match="max_record_bytes"):
        executing(max_record_bytes=50).reads(None).begins()
    with pytest.raises(InvalidParamsError, match="max_record_bytes"):
        executing(max_record_bytes=30, lease=None).reads(None)
    small = attrs.evolve(POLICY, max_record_bytes=30)
    script = Script(execute_in_transaction(REQUEST, small)).reads(None)
    with pytest.raises(InvalidParamsError, match="max_record_bytes"):
        Script(script.step.flow).reads(None)


def begun(how: str, **policy: Any) -> Script:
    """A run of each kind, up to the first step after its params were taken."""
    if how == "in a transaction":
        return Script(transacting(**policy).reads(None).step.flow).reads(None)
    if how == "claimless":
        return executing(lease=None, **policy).reads(None)
    return executing(**policy).reads(None).begins()


def ended(how: str, **policy: Any) -> Script:
    script = begun(how, **policy)
    return (script.puts() if how == "claimed" else script).calls("x" * 200)


@pytest.mark.parametrize("how", ["claimed", "claimless", "in a transaction"])
def test_a_record_may_have_max_record_bytes_and_no_more(how: str) -> None:
    bare = encode(ReplayRecord(State.IN_PROGRESS, KEY, PARAMS, None, NOW, None, None))
    size = len(begun(how).step.value if how == "claimed" else bare)
    assert begun(how, max_record_bytes=size).step
    with pytest.raises(InvalidParamsError, match=f"record of {size} bytes"):
        begun(how, max_record_bytes=size - 1)
    size = len(ended(how).step.value)
    assert ended(how, max_record_bytes=size).step
    error = InvalidResponseError if how == "in a transaction" else ResponseNotStorableError
    with pytest.raises(error, match=f"record of {size} bytes"):
        script = ended(how, max_record_bytes=size - 1)
        script.ends_in_doubt()


def test_without_a_lease_the_messages_speak_of_no_claim() -> None:
    for response in (object(), "x" * 10_000):
        with pytest.raises(ResponseNotStorableError, match="a retry runs it again"):
            executing(lease=None).reads(None).calls(response)
    with pytest.raises(InDoubtError, match="a retry runs the handler again"):
        executing(lease=None).reads(None).calls("r").fails(StoreFullError("full"))


def test_an_expired_record_is_pruned_only_as_what_it_was() -> None:
    stored = completed(expires_at=NOW)
    script = executing().reads(stored)
    assert script.step == CheckAndPut(stored, None)
    with pytest.raises(ExpiredError):
        script.puts()
    with pytest.raises(ExpiredError):  # even when somebody else was faster
        executing().reads(stored).puts(found=claimed())


def test_a_tombstone_takes_the_place_of_an_expired_record() -> None:
    stored = completed(expires_at=NOW)
    script = executing(tombstone_ttl=500).reads(stored)
    put = script.step
    assert put.expires_at == NOW + 500
    left = decode(put.value, KEY)
    assert (left.state, left.params, left.response) == (State.TOMBSTONE, b"", None)
    assert left.expires_at == NOW + 500
    with pytest.raises(ExpiredError):
        script.puts()
    with pytest.raises(ExpiredError):
        executing(tombstone_ttl=500).reads(tombstone())
    script = executing(tombstone_ttl=500).reads(tombstone(NOW)).begins()
    assert script.step.expected == tombstone(NOW)


def test_a_completion_lives_in_the_store_as_long_as_its_tombstone() -> None:
    script = executing(tombstone_ttl=500).reads(None).begins().puts().calls("r")
    assert script.step.expires_at == NOW + 60_000 + 500


def test_a_prune_says_whether_the_entry_is_gone() -> None:
    stored = completed(expires_at=NOW)
    expired = decode(stored)
    assert Script(prune(stored, expired, NOW, POLICY)).puts().result is True
    for found in (None, *OTHERS):
        assert Script(prune(stored, expired, NOW, POLICY)).puts(found=found).result is False
    later = attrs.evolve(POLICY, tombstone_ttl=1)
    assert Script(prune(stored, expired, NOW, later)).puts().result is False, "a tombstone is left"
