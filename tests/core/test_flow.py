"""The protocol without any I/O: the decision table, and each path step by step."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvreplay import (
    NOT_APPLIED,
    Applied,
    ClaimLostError,
    ConfigError,
    CorruptRecordError,
    ExpiredError,
    IndeterminateError,
    InDoubtError,
    InFlightError,
    InvalidParamsError,
    OutcomeUnknownError,
    ParamsMismatchError,
    RecordError,
    ReplayKey,
    ReplayRecord,
    ResponseNotStorableError,
    StoreFullError,
)
from kvreplay._protocol.flow import (
    Decision,
    decide,
    execute,
    execute_in_transaction,
    lookup,
    prune,
    renew,
    settle,
)
from kvreplay._protocol.params import canonical
from kvreplay._protocol.record import Claim, State, answer_in, decode, encode, encode_response
from kvreplay._protocol.steps import (
    BEGIN,
    READ,
    Call,
    CheckAndPut,
    Flow,
    HeldClaim,
    InDoubtPolicy,
    Policy,
    Probe,
    Raised,
    Reconcile,
    Request,
    Returned,
    Settled,
    Transact,
    Wait,
)

KEY = ReplayKey("lsp", "session")
PARAMS = canonical({"amount": 1})
OTHER = canonical({"amount": 2})
NOW = 1_000_000
TOKEN = b"T" * 16
POLICY = Policy(
    lease=30_000,
    tombstone_ttl=0,
    wait_timeout=0,
    on_in_doubt=InDoubtPolicy.RAISE,
    max_record_bytes=10_000,
)
REQUEST = Request(KEY, PARAMS, ttl=60_000)
OTHERS = [b"", b"\xff"]  # what another may have stored: less than any record, or greater


def completed(params: bytes = PARAMS, expires_at: int = NOW + 1, response: object = "r") -> bytes:
    return encode(record(State.COMPLETED, params, expires_at, encode_response(response, "")))


def claimed(
    params: bytes = PARAMS, lease_expires_at: int = NOW + 1, token: bytes = b"C" * 16
) -> bytes:
    claim = Claim(token, lease_expires_at, "owner")
    return encode(ReplayRecord(State.IN_PROGRESS, KEY, params, None, NOW - 5, None, claim))


def tombstone(expires_at: int = NOW + 1) -> bytes:
    return encode(record(State.TOMBSTONE, b"", expires_at, None))


def record(state: State, params: bytes, expires_at: int, response: bytes | None) -> ReplayRecord:
    return ReplayRecord(state, KEY, params, response, NOW - 10, expires_at, None)


@pytest.mark.parametrize(
    ("stored", "params", "decision"),
    [
        (None, PARAMS, Decision.FREE),
        (completed(), PARAMS, Decision.REPLAY),
        (completed(), OTHER, Decision.MISMATCH),
        (completed(expires_at=NOW), PARAMS, Decision.EXPIRED),
        (completed(expires_at=NOW), OTHER, Decision.EXPIRED),
        (completed(expires_at=NOW - 1), PARAMS, Decision.EXPIRED),
        (tombstone(), PARAMS, Decision.EXPIRED),
        (tombstone(), OTHER, Decision.EXPIRED),
        (tombstone(NOW), PARAMS, Decision.FREE),
        (claimed(), PARAMS, Decision.CLAIMED),
        (claimed(), OTHER, Decision.MISMATCH),
        (claimed(lease_expires_at=0), PARAMS, Decision.CLAIMED),
        (claimed(lease_expires_at=0), OTHER, Decision.MISMATCH),
    ],
)
def test_decision_table(stored: bytes | None, params: bytes, decision: Decision) -> None:
    found = None if stored is None else decode(stored, KEY)
    assert decide(found, params, NOW) is decision


@given(
    stored=st.sampled_from(
        [
            completed(),
            completed(OTHER),
            completed(expires_at=NOW),
            completed(response=None),
            claimed(),
            tombstone(),
            encode(attrs.evolve(decode(completed()), key=ReplayKey("lsp", "other"))),
            b"",
        ]
    ),
    params=st.sampled_from([PARAMS, OTHER]),
    now=st.sampled_from([NOW - 1, NOW, NOW + 1]),
    flipped=st.none() | st.integers(0, 8 * 60 - 1),
)
def test_the_short_way_to_an_answer_agrees_with_the_long_one(
    stored: bytes, params: bytes, now: int, flipped: int | None
) -> None:
    data = bytearray(stored)
    if flipped is not None and flipped < 8 * len(data):
        data[flipped // 8] ^= 1 << flipped % 8
    short = answer_in(bytes(data), KEY.scope, KEY.id, params, now)
    try:
        found = decode(bytes(data), KEY)
    except RecordError:
        assert short is None
        return
    replays = decide(found, params, now) is Decision.REPLAY
    assert short == (found.response if replays else None)


class Script:
    """Drives a flow by hand: each expectation names the step and gives its answer."""

    def __init__(self, flow: Flow[Any]) -> None:
        self._flow = flow
        self.step: Any = next(flow)
        self.result: Any = None

    def reads(self, found: bytes | None, now: int = NOW) -> Script:
        assert self.step is READ
        return self._send((found, now))

    def begins(self) -> Script:
        assert self.step is BEGIN
        return self._send((TOKEN, "me"))

    def probes(self, runs: bool | None) -> Script:
        assert isinstance(self.step, Probe)
        return self._send(runs)

    def puts(self, found: bytes | type | None = bytes, now: int = NOW) -> Script:
        """Answer a check-and-put; by default it succeeds."""
        assert isinstance(self.step, CheckAndPut)
        return self._send((self.step.expected if found is bytes else found, now))

    def calls(self, response: object, now: int = NOW) -> Script:
        assert isinstance(self.step, Call)
        return self._send((Returned(response), now))

    def raises(self, error: Exception) -> Script:
        assert isinstance(self.step, Call)
        return self._send((Raised(error), NOW))

    def waits(self) -> int:
        assert isinstance(self.step, Wait)
        delay = self.step.delay
        self._send(None)
        return delay

    def reconciles(self, verdict: object) -> Script:
        assert isinstance(self.step, Reconcile)
        return self._send((verdict, NOW))

    def fails(self, error: BaseException) -> Script:
        self.step = self._flow.throw(error)
        return self

    def _send(self, answer: object) -> Script:
        try:
            self.step = self._flow.send(answer)
        except StopIteration as returned:
            self.step, self.result = None, returned.value
        return self


def executing(**policy: Any) -> Script:
    return Script(execute(REQUEST, attrs.evolve(POLICY, **policy)))


def transacting(**policy: Any) -> Script:
    return Script(execute_in_transaction(REQUEST, attrs.evolve(POLICY, **policy)))


def settling(response: bytes | None = None) -> Script:
    return Script(settle(KEY, response, 60_000, POLICY))


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
        script.puts(found=claimed())


@pytest.mark.parametrize("found", [None, b"damaged", completed(), claimed(token=b"Z" * 16)])
def test_a_completion_that_finds_no_claim_of_its_own_has_lost(found: bytes | None) -> None:
    script = executing().reads(None).begins().puts().calls("mine")
    with pytest.raises(ClaimLostError):
        script.puts(found=found)


def test_an_exception_of_the_handler_releases_the_claim() -> None:
    script = executing().reads(None).begins()
    claim = script.step.value
    script.puts().raises(ValueError("declined"))
    assert (script.step.expected, script.step.value) == (claim, None)
    with pytest.raises(ValueError, match="declined"):
        script.puts()


@pytest.mark.parametrize(
    "error",
    [
        IndeterminateError("?"),
        OutcomeUnknownError("of the ledger"),
        InDoubtError("of a nested request"),
        ClaimLostError("of a nested request"),
        ResponseNotStorableError("of a nested request"),
    ],
)
def test_a_handler_that_does_not_know_its_end_keeps_the_claim(error: Exception) -> None:
    with pytest.raises(type(error)):
        executing().reads(None).begins().puts().raises(error)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(1), OSError("not the handler's")]
)
def test_whatever_else_ends_a_call_keeps_the_claim(error: BaseException) -> None:
    with pytest.raises(type(error)):
        executing().reads(None).begins().puts().fails(error)


def test_a_completion_follows_its_own_claim_whose_renewal_seemed_to_fail() -> None:
    script = executing().reads(None).begins()
    claim = decode(script.step.value, KEY)
    assert claim.claim is not None
    moved = encode(attrs.evolve(claim, claim=attrs.evolve(claim.claim, lease_expires_at=NOW * 2)))
    script.puts().calls("r").puts(found=moved)
    assert script.step.expected == moved
    assert script.puts().result == Settled(encode_response("r", ""), replayed=False)


def test_a_release_that_fails_is_noted_on_the_handlers_own_exception() -> None:
    script = executing().reads(None).begins().puts().raises(ValueError("declined"))
    with pytest.raises(ValueError, match="declined") as error:
        script.fails(StoreFullError("no room"))
    assert "in doubt: no room" in error.value.__notes__[0]


@pytest.mark.parametrize("failure", [StoreFullError("full"), OutcomeUnknownError("?")])
def test_a_completion_that_cannot_be_stored_leaves_the_key_in_doubt(failure: Exception) -> None:
    script = executing().reads(None).begins().puts().calls("r")
    with pytest.raises(InDoubtError) as error:
        script.fails(failure)
    assert error.value.__cause__ is failure


def test_a_response_that_cannot_be_stored_keeps_the_claim() -> None:
    with pytest.raises(ResponseNotStorableError):
        executing().reads(None).begins().puts().calls(object())
    with pytest.raises(ResponseNotStorableError, match="max_record_bytes"):
        executing().reads(None).begins().puts().calls("x" * 10_000)
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
    with pytest.raises(ResponseNotStorableError, match=f"record of {size} bytes"):
        ended(how, max_record_bytes=size - 1)


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
    with pytest.raises(ExpiredError):  # also when somebody else was faster
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


def test_waiting_for_another_owner_has_a_limit_and_looks_again() -> None:
    script = executing(wait_timeout=20).reads(claimed())
    delays = []
    for _ in range(4):
        script.probes(runs=True)
        delays.append(script.waits())
        script.reads(claimed())
    assert delays == [2, 4, 8, 6]
    with pytest.raises(InFlightError) as error:
        script.probes(runs=True)
    assert 0 < error.value.retry_after <= 1


def test_waiting_looks_again_at_least_ten_times_a_second() -> None:
    script = executing(wait_timeout=10_000).reads(claimed())
    delays = []
    for _ in range(8):
        delays.append(script.probes(runs=True).waits())
        script.reads(claimed())
    assert delays == [2, 4, 8, 16, 32, 64, 100, 100]


def test_waiting_ends_with_the_other_owners_answer() -> None:
    script = executing(wait_timeout=20).reads(claimed()).probes(runs=True)
    script.waits()
    assert script.reads(completed()).result.replayed


@pytest.mark.parametrize(
    ("runs", "lease_expires_at", "error"),
    [
        (True, NOW + 1, InFlightError),
        (True, NOW - 1, InFlightError),  # an owner that lives is never in doubt
        (False, NOW + 1, InDoubtError),  # one that is gone is so at once
        (None, NOW + 1, InFlightError),
        (None, NOW, InDoubtError),
    ],
)
def test_when_a_claim_is_in_doubt(
    runs: bool | None, lease_expires_at: int, error: type[Exception]
) -> None:
    stored = claimed(lease_expires_at=lease_expires_at)
    for flow in (execute(REQUEST, POLICY), lookup(REQUEST, POLICY)):
        with pytest.raises(error):
            Script(flow).reads(stored).probes(runs).reads(stored)


@pytest.mark.parametrize("policy", [InDoubtPolicy.RAISE, InDoubtPolicy.RECONCILE])
def test_what_its_owner_ended_before_we_looked_for_it_is_not_in_doubt(
    policy: InDoubtPolicy,
) -> None:
    script = executing(on_in_doubt=policy).reads(claimed()).probes(runs=False)
    assert script.reads(completed()).result.replayed
    for found in OTHERS:
        with pytest.raises(CorruptRecordError):
            executing(on_in_doubt=policy).reads(claimed()).probes(runs=False).reads(found)
    script = Script(lookup(REQUEST, POLICY)).reads(claimed(lease_expires_at=NOW)).probes(runs=None)
    assert script.reads(None).result is None


def test_rerun_takes_the_claim_over_before_it_runs() -> None:
    stored = claimed()
    script = executing(on_in_doubt=InDoubtPolicy.RERUN).reads(stored).probes(runs=False).begins()
    assert script.step.expected == stored
    assert script.step.event == "taken_over"
    script.puts()
    assert isinstance(script.step, Call)


def test_a_lost_take_over_does_not_run() -> None:
    def taking_over() -> Script:
        script = executing(on_in_doubt=InDoubtPolicy.RERUN).reads(claimed()).probes(runs=False)
        return script.begins()

    assert taking_over().puts(found=completed()).result.replayed
    for found in OTHERS:
        with pytest.raises(CorruptRecordError):
            taking_over().puts(found=found)


def reconciling() -> Script:
    script = executing(on_in_doubt=InDoubtPolicy.RECONCILE).reads(claimed()).probes(runs=False)
    return script.reads(claimed())


def test_reconcile_records_what_the_ledger_says() -> None:
    script = reconciling()
    assert script.step.record.load_params() == {"amount": 1}
    script.reconciles(Applied("from the ledger"))
    assert script.step.expected == claimed()
    assert decode(script.step.value, KEY).load_response() == "from the ledger"
    assert script.puts().result == Settled(encode_response("from the ledger", ""), replayed=True)


def test_reconcile_that_finds_nothing_runs_after_a_take_over() -> None:
    script = reconciling().reconciles(NOT_APPLIED).begins()
    assert script.step.expected == claimed()
    assert script.step.event == "taken_over"
    script.puts()
    assert isinstance(script.step, Call)


def test_an_answer_of_the_ledger_is_void_if_the_claim_has_moved() -> None:
    script = reconciling().reconciles(Applied("old"))
    assert script.puts(found=completed(response="new")).result == Settled(
        encode_response("new", ""), replayed=True
    )
    for found in OTHERS:
        with pytest.raises(CorruptRecordError):
            reconciling().reconciles(Applied("old")).puts(found=found)


@pytest.mark.parametrize("verdict", [None, "yes", Applied])
def test_a_reconciler_must_give_a_verdict(verdict: object) -> None:
    with pytest.raises(ConfigError, match=rf"a {type(verdict).__name__}; .* Applied\(response\)"):
        reconciling().reconciles(verdict)


def test_without_a_lease_there_is_no_claim() -> None:
    script = executing(lease=None).reads(None)
    assert script.step.held is None
    script.calls("r")
    assert (script.step.expected, script.step.expires_at) == (None, NOW + 60_000)
    assert script.puts().result == Settled(encode_response("r", ""), replayed=False)


def test_a_record_was_created_when_its_run_began() -> None:
    outside = executing(lease=None).reads(None)
    inside = Script(transacting().reads(None).step.flow).reads(None)
    for script in (outside, inside):
        done = decode(script.calls("r", now=NOW + 7).step.value, KEY)
        assert (done.created_at, done.expires_at) == (NOW, NOW + 60_007)


def test_without_a_lease_the_loser_gets_the_winners_answer_and_runs_once() -> None:
    script = executing(lease=None).reads(None).calls("mine")
    assert script.puts(found=completed(response="theirs")).result == Settled(
        encode_response("theirs", ""), replayed=True
    )
    for stored in (completed(OTHER), completed(expires_at=NOW), claimed()):
        with pytest.raises(ClaimLostError, match="the handler ran"):
            executing(lease=None).reads(None).calls("mine").puts(found=stored)
    foreign = attrs.evolve(decode(completed()), key=ReplayKey("lsp", "other"))
    with pytest.raises(CorruptRecordError):
        executing(lease=None).reads(None).calls("mine").puts(found=encode(foreign))
    script = executing(lease=None).reads(tombstone(NOW)).calls("mine")
    assert script.step.expected == tombstone(NOW)
    script.puts(found=None)
    assert script.step.expected is None
    assert not script.puts().result.replayed


def test_without_a_lease_an_exception_of_the_handler_leaves_no_trace() -> None:
    with pytest.raises(ValueError, match="declined"):
        executing(lease=None).reads(None).raises(ValueError("declined"))


def test_a_transaction_waits_for_a_claim_and_never_overtakes_it() -> None:
    script = transacting(wait_timeout=2).reads(claimed()).probes(runs=True)
    assert script.waits() == 2
    with pytest.raises(InFlightError):
        script.reads(claimed()).probes(runs=True)
    with pytest.raises(InDoubtError):
        transacting().reads(claimed()).probes(runs=False).reads(claimed())


def test_a_transaction_decides_again_inside() -> None:
    script = Script(execute_in_transaction(REQUEST, POLICY)).reads(None)
    assert isinstance(script.step, Transact)
    inner = Script(script.step.flow).reads(None).calls("r")
    assert (inner.step.expected, inner.step.expires_at) == (None, NOW + 60_000)
    assert inner.puts().result == Settled(encode_response("r", ""), replayed=False)
    inner = Script(transacting().reads(tombstone(NOW)).step.flow).reads(tombstone(NOW)).calls("r")
    assert inner.step.expected == tombstone(NOW)
    moved = Script(execute_in_transaction(REQUEST, POLICY)).reads(None)
    free = Script(moved.step.flow).reads(completed()).result
    assert moved._send(free).result.replayed


def test_a_transactions_response_that_cannot_be_stored_undoes_it() -> None:
    for response in (object(), "x" * 10_000):
        script = Script(execute_in_transaction(REQUEST, POLICY)).reads(None)
        with pytest.raises(ResponseNotStorableError, match="undone"):
            Script(script.step.flow).reads(None).calls(response)


def test_lookup_never_runs() -> None:
    assert Script(lookup(REQUEST, POLICY)).reads(None).result is None
    assert Script(lookup(REQUEST, POLICY)).reads(completed()).result.replayed
    rerun = attrs.evolve(POLICY, on_in_doubt=InDoubtPolicy.RERUN, wait_timeout=1000)
    with pytest.raises(InDoubtError):
        Script(lookup(REQUEST, rerun)).reads(claimed()).probes(runs=False).reads(claimed())
    with pytest.raises(InFlightError):
        Script(lookup(REQUEST, rerun)).reads(claimed()).probes(runs=True)


def test_settle_completes_or_frees_a_key_in_doubt() -> None:
    response = encode_response("found out", "")
    script = Script(settle(KEY, response, 60_000, POLICY)).reads(claimed()).probes(runs=False)
    assert decode(script.step.value, KEY).response == response
    assert script.puts().result is True
    script = Script(settle(KEY, None, 0, POLICY)).reads(claimed()).probes(runs=False)
    assert script.step.value is None
    assert script.puts().result is True


@pytest.mark.parametrize("stored", [None, completed(), tombstone()])
def test_settle_leaves_a_key_alone_that_is_not_claimed(stored: bytes | None) -> None:
    assert Script(settle(KEY, None, 0, POLICY)).reads(stored).result is False


def test_settle_refuses_a_running_key_and_follows_a_moving_one() -> None:
    with pytest.raises(InFlightError):
        Script(settle(KEY, None, 0, POLICY)).reads(claimed()).probes(runs=True)
    script = Script(settle(KEY, None, 0, POLICY)).reads(claimed()).probes(runs=False)
    assert script.puts(found=completed()).result is False
    for found in OTHERS:
        with pytest.raises(CorruptRecordError):
            settling().reads(claimed()).probes(runs=False).puts(found=found)


@pytest.mark.parametrize(
    ("left", "seconds"), [(5000, 1.0), (250, 0.25), (1, 0.001), (0, 1.0), (-1, 1.0)]
)
def test_a_key_in_flight_says_when_to_try_again(left: int, seconds: float) -> None:
    for script in (executing(), Script(lookup(REQUEST, POLICY)), settling()):
        with pytest.raises(InFlightError) as error:
            script.reads(claimed(lease_expires_at=NOW + left)).probes(runs=True)
        assert error.value.retry_after == seconds


def test_settle_believes_the_lease_where_the_owner_cannot_be_looked_up() -> None:
    with pytest.raises(InFlightError):
        settling().reads(claimed(lease_expires_at=NOW + 1)).probes(runs=None)
    script = settling().reads(claimed(lease_expires_at=NOW)).probes(runs=None)
    assert script.puts().result is True


def test_settle_leaves_a_record_of_another_key_alone() -> None:
    foreign = attrs.evolve(decode(claimed()), key=ReplayKey("lsp", "other"))
    with pytest.raises(CorruptRecordError):
        settling().reads(encode(foreign))


def held() -> HeldClaim:
    return HeldClaim(decode(claimed(), KEY))


def test_renewal_moves_the_lease_of_the_claim_that_is_held() -> None:
    claim = held()
    script = Script(renew(claim, KEY, 30_000)).reads(claim.data)
    moved = script.step.value
    assert decode(moved, KEY).claim == Claim(b"C" * 16, NOW + 30_000, "owner")
    assert script.puts().result is True
    assert claim.data == moved


def test_renewal_stops_at_the_first_refusal() -> None:
    claim = held()
    before = claim.data
    for found in (None, *OTHERS):
        assert Script(renew(claim, KEY, 30_000)).reads(found).result is False
        script = Script(renew(claim, KEY, 30_000)).reads(before)
        assert script.puts(found=found).result is False
        assert claim.data == before


@pytest.mark.parametrize("happened", [True, False])
def test_a_renewal_of_unknown_outcome_reads_what_happened(happened: bool) -> None:
    claim = held()
    before = claim.data
    script = Script(renew(claim, KEY, 30_000)).reads(before)
    moved = script.step.value
    script.fails(OutcomeUnknownError("?")).reads(moved if happened else before)
    assert script.result is True
    assert claim.data == (moved if happened else before)


@pytest.mark.parametrize("found", [None, *OTHERS])
def test_a_renewal_of_unknown_outcome_may_find_that_the_claim_is_lost(found: bytes | None) -> None:
    claim = held()
    before = claim.data
    script = Script(renew(claim, KEY, 30_000)).reads(before).fails(OutcomeUnknownError("?"))
    assert script.reads(found).result is False
    assert claim.data == before


def test_a_prune_says_whether_the_entry_is_gone() -> None:
    stored = completed(expires_at=NOW)
    expired = decode(stored)
    assert Script(prune(stored, expired, NOW, POLICY)).puts().result is True
    for found in (None, *OTHERS):
        assert Script(prune(stored, expired, NOW, POLICY)).puts(found=found).result is False
    later = attrs.evolve(POLICY, tombstone_ttl=1)
    assert Script(prune(stored, expired, NOW, later)).puts().result is False, "a tombstone is left"
