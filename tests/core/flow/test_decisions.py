"""The decision table, and the short way to an answer beside the long one."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvreplay import RecordError, ReplayKey
from kvreplay._protocol.flow import Decision, decide
from kvreplay._protocol.record import answer_in, decode, encode
from support.flow_script import KEY, NOW, OTHER, PARAMS, claimed, completed, tombstone


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
    assert (short and short[0]) == (found.response if replays else None)
