"""An answer that is not kept."""

from __future__ import annotations

import pytest

from kvreplay import InDoubtError, InvalidResponseError, NotStored, StoreFullError
from kvreplay._protocol.record import encode_response
from kvreplay._protocol.steps import InDoubtPolicy, Settled
from support.flow_script import NOW, Script, claimed, executing, transacting


def test_an_answer_that_is_not_kept_takes_its_claim_away() -> None:
    script = executing().reads(None).begins().puts()
    claim = script.stored
    script.calls(NotStored("r"), now=NOW + 7)
    step = script.step
    assert (step.expected, step.value, step.event) == (claim, None, "released")
    settled = script.puts().result
    assert settled == Settled(encode_response("r", ""), replayed=False)
    assert (settled.created_at, settled.expires_at) == (NOW, None)


def test_under_rerun_it_puts_the_doubt_back() -> None:
    before = claimed()
    script = executing(on_in_doubt=InDoubtPolicy.RERUN).reads(before).probes(False)
    script.begins().puts().calls(NotStored("r"))
    assert (script.step.value, script.step.event) == (before, "in_doubt")
    assert script.puts().result.response == encode_response("r", "")


def test_its_encoding_comes_when_the_key_is_free() -> None:
    script = executing().reads(None).begins().puts().calls(NotStored(object()))
    assert script.step.value is None
    with pytest.raises(InvalidResponseError, match="not to be kept"):
        script.puts()


def test_its_claim_that_cannot_be_taken_away_is_in_doubt() -> None:
    script = executing().reads(None).begins().puts().calls(NotStored("r"))
    script.fails(StoreFullError("no room"))
    with pytest.raises(InDoubtError) as told:
        script.ends_in_doubt()
    assert told.value.response == "r"


def test_without_a_claim_it_stores_nothing() -> None:
    script = executing(lease=None).reads(None).calls(NotStored("r"))
    assert script.result.expires_at is None
    inner = Script(transacting().reads(None).step.flow).reads(None).calls(NotStored("r"))
    assert inner.result.expires_at is None
