"""The digest of params that must not lie in clear: golden bytes, and what is no digest."""

from __future__ import annotations

import hashlib
import hmac

import msgpack
import pytest

from kvreplay import ReplayKey
from kvreplay._protocol.digests import ParamsKeys, packed_digest, unpacked_digest
from kvreplay._protocol.keys import identity

KEY = ReplayKey("lsp", "session")
SECRET = b"k" * 16
GOLDEN = (  # ext 8, 40 bytes, type 1; the id of the secret; the HMAC
    "c728011b4cf968b98e8cebbd6eac1360a88cd60a768d6f597291d5f68ade4069c1f16379af8bf4f9c53f4b"
)


def test_golden_digest() -> None:
    packed = packed_digest(ParamsKeys([SECRET]).digest(KEY, b"\x80"))
    assert msgpack.packb(packed).hex() == GOLDEN
    whose = identity(KEY)
    text = len(whose).to_bytes(8, "big") + whose + b"\x80"
    secret_id = hmac.new(SECRET, b"kvreplay params_key", hashlib.sha256).digest()[:8]
    assert packed.data == secret_id + hmac.new(SECRET, text, hashlib.sha256).digest()


@pytest.mark.parametrize("code", [0, 2, 127])
def test_another_extension_is_no_digest(code: int) -> None:
    packed = packed_digest(ParamsKeys([SECRET]).digest(KEY, b"\x80"))
    assert unpacked_digest(msgpack.ExtType(packed.code, packed.data)) is not None
    assert unpacked_digest(msgpack.ExtType(code, packed.data)) is None


def test_another_size_is_no_digest() -> None:
    packed = packed_digest(ParamsKeys([SECRET]).digest(KEY, b"\x80"))
    for data in (b"", packed.data[:-1], packed.data + b"\0"):
        assert unpacked_digest(msgpack.ExtType(packed.code, data)) is None


def test_secrets_are_not_shown() -> None:
    assert repr(ParamsKeys([SECRET])) == "<1 params keys>"
    assert repr(ParamsKeys([SECRET, b"other secret key"])) == "<2 params keys>"
