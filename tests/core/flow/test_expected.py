"""What is stored takes the place of what was found, even where an expired answer was."""

from __future__ import annotations

import pytest

from kvreplay import CorruptRecordError, ReplayKey
from kvreplay._protocol.flow import forget
from kvreplay._protocol.steps import ExpiredPolicy, Transact
from support.final_failures import Declined
from support.flow_script import NOW, Script, completed, executing, transacting

EXPIRED = completed(expires_at=NOW)
RERUN = ExpiredPolicy.RERUN
FINAL = (Declined,)


def test_a_failure_without_a_claim_takes_the_place_of_an_expired_answer() -> None:
    script = executing(lease=None, on_expired=RERUN, store_errors=FINAL).reads(EXPIRED)
    script.raises(Declined())
    assert (script.step.expected, script.step.event) == (EXPIRED, "failed")
    with pytest.raises(Declined):
        script.puts()


def test_an_answer_without_a_claim_takes_the_place_of_one_that_has_expired_meanwhile() -> None:
    script = executing(lease=None, on_expired=RERUN).reads(None).calls("r")
    assert script.step.expected is None
    script.puts(EXPIRED)
    assert (script.step.expected, script.step.event) == (EXPIRED, "completed")
    assert script.puts().result.replayed is False


def test_a_transactions_failure_takes_the_place_of_an_expired_answer() -> None:
    script = transacting(on_expired=RERUN, store_errors=FINAL).reads(EXPIRED)
    assert isinstance(script.step, Transact)
    inside = Script(script.step.flow).reads(EXPIRED)
    with pytest.raises(Declined) as raised:
        inside.raises(Declined())
    script.fails(raised.value)
    assert (script.step.expected, script.step.event) == (EXPIRED, "failed")
    with pytest.raises(Declined):
        script.puts()


def test_a_record_of_another_key_is_not_forgotten() -> None:
    assert Script(forget(ReplayKey("lsp", "session"), None)).reads(EXPIRED).puts().result is True
    with pytest.raises(CorruptRecordError):
        Script(forget(ReplayKey("lsp", "other"), None)).reads(EXPIRED)
