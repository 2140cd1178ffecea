"""How an answer of a type is stored."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from kvreplay import InvalidResponseError
from kvreplay._protocol.codec import Codec
from kvreplay._protocol.flow import execute
from kvreplay._protocol.record import decode, encode_response
from kvreplay._protocol.steps import Call, CheckAndPut
from support.flow_script import POLICY, REQUEST, Script


def test_a_codec_makes_what_is_stored_and_a_hook_is_tried_both_ways() -> None:
    codec: Codec[Any] = Codec(str, int, "an int", is_typed=False)
    assert encode_response(7, "", codec) == encode_response("7", "")
    for wrong in (
        Codec(lambda value: 1 / 0, int, "an int", is_typed=False),
        Codec(str, lambda value: 1 / 0, "an int", is_typed=False),
        Codec(lambda value: {1, 2}, int, "an int", is_typed=False),
    ):
        with pytest.raises(InvalidResponseError, match="the consequence"):
            encode_response(7, "the consequence", wrong)
    request = attrs.evolve(REQUEST, codec=codec)
    script = Script(execute(request, POLICY)).reads(None).begins().puts()
    assert isinstance(script.step, Call)
    script.calls(7)
    assert isinstance(script.step, CheckAndPut)
    assert decode(script.step.value).load_response() == "7"
