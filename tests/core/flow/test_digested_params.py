"""A record keeps a digest of its params, if the policy has secrets."""

from __future__ import annotations

import attrs
import pytest

from kvreplay import ConfigError, ParamsMismatchError
from kvreplay._protocol.digests import ParamsDigest, ParamsKeys, packed_digest, unpacked_digest
from kvreplay._protocol.flow import Decision, decide, execute
from kvreplay._protocol.record import decode, encode
from support.final_failures import Declined
from support.flow_script import (
    KEY,
    NOW,
    OTHER,
    PARAMS,
    POLICY,
    REQUEST,
    Script,
    completed,
    executing,
)


def test_a_claim_a_failure_and_an_answer_keep_the_digest() -> None:
    keys = ParamsKeys([b"k" * 16])
    for end in ("r", Declined()):
        script = executing(params_keys=keys, store_errors=(Declined,)).reads(None).begins().puts()
        assert decode(script.stored).params == keys.digest(KEY, PARAMS)
        assert PARAMS not in script.stored
        if isinstance(end, Exception):
            script.raises(end)
        else:
            script.calls(end)
        assert decode(script.step.value).params == keys.digest(KEY, PARAMS)


def test_a_digest_is_compared_by_the_secret_that_made_it() -> None:
    old, new = b"o" * 16, b"n" * 16
    stored = attrs.evolve(decode(completed()), params=ParamsKeys([old]).digest(KEY, PARAMS))
    for secrets in ([old], [new, old]):
        keys = ParamsKeys(secrets)
        assert decide(stored, PARAMS, NOW, keys) is Decision.REPLAY
        assert decide(stored, OTHER, NOW, keys) is Decision.MISMATCH
    for unknown in (None, ParamsKeys([new])):
        with pytest.raises(ConfigError, match="nothing ran"):
            decide(stored, PARAMS, NOW, unknown)
        assert decide(attrs.evolve(stored, expires_at=NOW), PARAMS, NOW, unknown) is (
            Decision.EXPIRED
        )
    script = Script(execute(REQUEST, attrs.evolve(POLICY, params_keys=ParamsKeys([new, old]))))
    with pytest.raises(ParamsMismatchError):
        script.reads(encode(attrs.evolve(stored, params=ParamsKeys([old]).digest(KEY, OTHER))))


def test_a_digest_is_packed_as_an_extension() -> None:
    digest = ParamsKeys([b"k" * 16]).digest(KEY, PARAMS)
    packed = packed_digest(digest)
    assert (packed.code, len(packed.data)) == (1, 40)
    assert unpacked_digest(packed) == digest
    assert unpacked_digest(type(packed)(2, packed.data)) is None
    assert unpacked_digest(type(packed)(1, packed.data[1:])) is None
    assert isinstance(digest, ParamsDigest)
    assert "\\x" not in repr(digest)
