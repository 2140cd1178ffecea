"""Params that must not lie in clear: a record keeps a keyed digest of them instead.

The digest is HMAC-SHA-256 (RFC 2104) over the key's identity and the canonical params. Beside it
stands an id of the secret, so that a record of another secret is told from other params.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final

import attrs
import msgpack

from kvreplay._protocol.keys import ReplayKey, identity
from kvreplay.errors import ConfigError

__all__ = ["ParamsDigest", "ParamsKeys", "packed_digest", "unpacked_digest"]

EXTENSION: Final = 1
"""The code of msgpack's extension type."""

LEAST: Final = 16
"""Bytes that a secret must have."""

_ID_SIZE: Final = 8
_DIGEST_SIZE: Final = 32


@attrs.frozen(repr=False)
class ParamsDigest:
    """What a record keeps instead of params.

    Attributes:
        key_id: tells which secret made it, and nothing of the secret.
        digest: the HMAC.
    """

    key_id: bytes
    digest: bytes


class ParamsKeys:
    """The caller's secrets. The first digests what is written; all can be compared with."""

    __slots__ = ("_first", "_secrets")

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = {_hmac(each, b"kvreplay params_key")[:_ID_SIZE]: each for each in secrets}
        self._first = next(iter(self._secrets))

    def __repr__(self) -> str:
        return f"<{len(self._secrets)} params keys>"

    def digest(self, key: ReplayKey, params: bytes, key_id: bytes | None = None) -> ParamsDigest:
        """Digest canonical params for one replay key, by the first secret or by that of ``key_id``.

        Raises:
            ConfigError: no secret has that id.
        """
        key_id = self._first if key_id is None else key_id
        if key_id not in self._secrets:
            raise unknown_key()
        whose = identity(key)
        text = len(whose).to_bytes(8, "big") + whose + params
        return ParamsDigest(key_id, _hmac(self._secrets[key_id], text))

    def packed(self, key: ReplayKey, params: bytes) -> msgpack.ExtType:
        """Return what a record that is made now holds in the place of params."""
        return packed_digest(self.digest(key, params))

    def is_of(self, digest: ParamsDigest, key: ReplayKey, params: bytes) -> bool:
        """Say whether the digest is that of these params.

        Raises:
            ConfigError: it was made with a secret that is not here.
        """
        own = self.digest(key, params, digest.key_id)
        return hmac.compare_digest(own.digest, digest.digest)


def unknown_key() -> ConfigError:
    """Return the error for a record whose secret was not given."""
    return ConfigError(
        "a record of this key keeps a digest of its params, made with a params_key that this replay"
        " was not given, so nobody can say whether the params are the same; nothing ran, and the"
        " record is untouched: give that key too, params_key=(new, old)"
    )


def _hmac(secret: bytes, text: bytes) -> bytes:
    return hmac.digest(secret, text, "sha256")


def packed_digest(digest: ParamsDigest) -> msgpack.ExtType:
    """Return what a record holds in the place of params."""
    return msgpack.ExtType(EXTENSION, digest.key_id + digest.digest)


def unpacked_digest(packed: msgpack.ExtType) -> ParamsDigest | None:
    """Return the digest again; ``None``: it is another extension, or of another size."""
    if packed.code != EXTENSION or len(packed.data) != _ID_SIZE + _DIGEST_SIZE:
        return None
    return ParamsDigest(packed.data[:_ID_SIZE], packed.data[_ID_SIZE:])
