"""The replay record: what is stored for a key, byte for byte.

One msgpack array, positional, version first::

    [1, state, scope, id, params, response, created_at, expires_at, claim, crc]

``docs/format.md`` describes each field. ``crc`` is the CRC-32 (zlib) of all bytes before its own
five, as a fixed-width msgpack uint32. A later version keeps the first and the last element,
so that this code can tell *newer* from *damaged*.
"""

from __future__ import annotations

import zlib
from enum import IntEnum
from typing import Any, Final

import attrs
import msgpack

from kvreplay._protocol.codec import Codec
from kvreplay._protocol.culprit import culprit
from kvreplay._protocol.digests import ParamsDigest, packed_digest, unpacked_digest
from kvreplay._protocol.keys import ReplayKey, stored_id
from kvreplay._protocol.packing import packer
from kvreplay.errors import (
    CorruptRecordError,
    InvalidResponseError,
    UnsupportedRecordVersionError,
)

__all__ = [
    "Claim",
    "ReplayRecord",
    "State",
    "decode",
    "decode_response",
    "encode",
    "encode_fields",
    "encode_response",
]

VERSION: Final = 1
TOKEN_SIZE: Final = 16

_FIELDS: Final = 10
_CRC_SIZE: Final = 5  # the marker of a uint32, then its four bytes
_UINT32: Final = b"\xce"

_pack: Final = packer()
_unpackb: Final = msgpack.unpackb
_crc32: Final = zlib.crc32


class State(IntEnum):
    """The state of a key's record."""

    IN_PROGRESS = 1
    COMPLETED = 2
    TOMBSTONE = 3
    FAILED = 4


_COMPLETED: Final = int(State.COMPLETED)


@attrs.frozen
class Claim:
    """Who runs the handler, and until when a machine that cannot look up the owner believes it.

    Times are milliseconds since the epoch, UTC. ``ended_at``: when the run ended without an answer;
    the key is then in doubt at once, for everybody. ``None``: the run has not said that it ended.
    """

    token: bytes = attrs.field(repr=False)
    lease_expires_at: int
    owner: str
    ended_at: int | None = None


@attrs.frozen(repr=False)
class ReplayRecord:
    """One key's record. Times are milliseconds since the epoch, UTC.

    ``params`` and ``response`` are msgpack bytes; :meth:`load_params`, :meth:`load_response` and
    :meth:`load_failure` decode them. With ``params_key`` the params are a keyed digest.
    ``response`` is ``None`` until the run is complete, and in a tombstone, whose
    ``params`` are empty bytes too. ``expires_at`` is ``None`` for a run in progress, which has a
    ``claim`` instead.
    """

    state: State
    key: ReplayKey
    params: bytes | ParamsDigest
    response: bytes | None
    created_at: int
    expires_at: int | None
    claim: Claim | None

    def __repr__(self) -> str:
        return (
            f"<ReplayRecord {self.state.name.lower()} of {self.key!r}"
            f" created_at={self.created_at} expires_at={self.expires_at}>"
        )

    def load_params(self) -> Any:
        """Decode the original parameters, tuples as lists; ``None`` for a tombstone or a digest."""
        if self.state is State.TOMBSTONE or isinstance(self.params, ParamsDigest):
            return None
        return decode_response(self.params)

    def load_response(self) -> Any:
        """Decode the response, as msgpack holds it; ``None`` if there is none."""
        if self.response is None or self.state is State.FAILED:
            return None
        return decode_response(self.response)

    def load_failure(self) -> tuple[str, list[Any] | None] | None:
        """Decode a stored failure: its class's full name, and its arguments.

        The arguments are ``None`` if msgpack could not hold them. ``None``: it is no failure.

        Raises:
            CorruptRecordError: somebody has written something else there.
        """
        if self.response is None or self.state is not State.FAILED:
            return None
        match decode_response(self.response):
            case [str(name), list(arguments)]:
                return name, arguments
            case [str(name), None]:
                return name, None
        raise _corrupt("holds no failure where its state says so")


def encode(record: ReplayRecord) -> bytes:
    """Return the bytes that :func:`decode` decodes."""
    return encode_fields(
        record.state,
        record.key,
        record.params,
        record.response,
        record.created_at,
        record.expires_at,
        record.claim,
    )


def encode_fields(
    state: State,
    key: ReplayKey,
    params: bytes | ParamsDigest,
    response: bytes | None,
    created_at: int,
    expires_at: int | None,
    claim: Claim | None,
) -> bytes:
    """Return the bytes of a record with these fields."""
    held = claim and (claim.token, claim.lease_expires_at, claim.owner, claim.ended_at)
    packed: bytes = _pack(
        (
            VERSION,
            state,
            key.scope,
            stored_id(key.id, key.operation),
            packed_digest(params) if isinstance(params, ParamsDigest) else params,
            response,
            created_at,
            expires_at,
            held,
            0xFFFFFFFF,  # as wide as the checksum that takes its place
        )
    )
    body = packed[:-_CRC_SIZE]
    return body + _UINT32 + _crc32(body).to_bytes(4, "big")


def decode(data: bytes, key: ReplayKey | None = None) -> ReplayRecord:
    """Decode stored bytes, all of them or none.

    Args:
        key: the key that the record must carry; ``None``: any.

    Raises:
        CorruptRecordError: cut short, changed, of another shape, or of another key.
        UnsupportedRecordVersionError: intact, and written by a newer kvreplay.
    """
    if data[-_CRC_SIZE:-4] != _UINT32 or data[-4:] != zlib.crc32(data[:-_CRC_SIZE]).to_bytes(
        4, "big"
    ):
        raise _corrupt("fails its checksum")
    fields = decode_response(data)
    if type(fields) is list and fields and type(fields[0]) is int and fields[0] > VERSION:
        raise UnsupportedRecordVersionError(
            f"a stored record has version {fields[0]}, this kvreplay reads up to {VERSION}:"
            " upgrade kvreplay; the record was not touched"
        )
    record = _record_of(fields)
    if key is not None and record.key != key:
        raise _corrupt("belongs to another key")
    return record


def _corrupt(problem: str) -> CorruptRecordError:
    return CorruptRecordError(
        f"a stored record {problem}: it was not used, and is left as it is; restore it from a"
        " backup, or find out how the request ended and then remove that entry of the store"
    )


def _record_of(fields: Any) -> ReplayRecord:
    """Check every field's type and the shape that its state demands."""
    if type(fields) is list and len(fields) == _FIELDS:
        version, state, scope, id_, params, response, created_at, expires_at, claim, _ = fields
        if type(params) is msgpack.ExtType and version == VERSION:
            params = unpacked_digest(params)
            if params is None:
                raise UnsupportedRecordVersionError(
                    "a stored record holds params of a kind that only a later kvreplay writes:"
                    " upgrade kvreplay; the record was not touched"
                )
        shape = _SHAPES.get(state) if type(state) is int else None
        if (
            shape == (response is not None, expires_at is not None, claim is not None)
            and version == VERSION
            and type(version) is int
            and (key := _key_of(scope, id_)) is not None
            and type(params) in (bytes, ParamsDigest)
            and (response is None or type(response) is bytes)
            and type(created_at) is int
            and (expires_at is None or type(expires_at) is int)
        ):
            return ReplayRecord(
                _STATES[state],
                key,
                params,
                response,
                created_at,
                expires_at,
                None if claim is None else _claim_of(claim),
            )
    raise _corrupt("does not have the shape of its version")


def _key_of(scope: Any, id_: Any) -> ReplayKey | None:
    """Return the key of a stored scope and id; ``None``: no key has them."""
    parts = id_ if type(id_) is list and len(id_) == 2 else [id_]
    if type(scope) is str and all(type(part) is str and part for part in parts):
        return ReplayKey(scope, parts[-1], *parts[:-1])
    return None


# state -> whether it has a response, an expiry, a claim
_SHAPES: Final = {
    1: (False, False, True),
    2: (True, True, False),
    3: (False, True, False),
    4: (True, True, False),
}
_STATES: Final = {int(state): state for state in State}


def _claim_of(packed: Any) -> Claim:
    if type(packed) is list and len(packed) == 4:
        token, lease_expires_at, owner, ended_at = packed
        if (
            type(token) is bytes
            and len(token) == TOKEN_SIZE
            and type(lease_expires_at) is int
            and type(owner) is str
            and (ended_at is None or type(ended_at) is int)
        ):
            return Claim(token, lease_expires_at, owner, ended_at)
    raise _corrupt("has a malformed claim")


def answer_in(
    data: bytes, scope: str, id_: str | list[str], params: object, now: int
) -> tuple[bytes, int, int] | None:
    """Return the response, and from when until when it is kept (ms).

    It does so if these bytes are plainly that key's live answer to these params. ``None``: they are
    not; :func:`decode` finds out what they are.

    Args:
        id_: as :func:`~kvreplay._protocol.keys.stored_id` makes it.
        params: bytes, or the packed digest of params.
    """
    try:  # quick way, for decode(): bench_hit
        version, state, own_scope, own_id, own, response, created, until, claim, crc = _unpackb(
            data
        )
        if (
            own == params
            and now < until
            and crc == _crc32(data[:-_CRC_SIZE])
            and data[-_CRC_SIZE] == _UINT32[0]
            and version is VERSION  # not ==, since True and 1.0 are no versions
            and state is _COMPLETED
            and own_scope == scope
            and own_id == id_
            and claim is None
            and type(response) is bytes
            and type(created) is type(until) is int
        ):
            return response, created, until
    except (TypeError, ValueError):
        pass  # not a record; decode() says what is wrong
    return None


def encode_response(response: object, consequence: str, codec: Codec[Any] | None = None) -> bytes:
    """Encode a response: what msgpack can hold, tuples as lists; or what ``codec`` makes such.

    Args:
        consequence: what the error says about the handler and the key.

    Raises:
        InvalidResponseError: it cannot be encoded, or not be decoded afterwards.
    """
    if codec is None:
        return _packed(response, response, consequence)
    try:
        plain = codec.encode(response)
    except Exception as error:  # the caller's own code, or that of a type
        # A type's own says where the culprit is; a caller's may show a payload.
        if codec.is_typed:
            raise _not_storable(response, f"as {codec.name}", error, consequence) from error
        why = f"encode= raised a {type(error).__name__}"
        raise _not_storable(response, "by your encode=", why, consequence) from error
    packed = _packed(plain, response, consequence)
    if not codec.is_typed:  # one of a type has tried this
        try:
            codec.decode(decode_response(packed))
        except Exception as error:  # likewise
            why = f"decode= raised a {type(error).__name__}"
            raise _not_storable(response, "and made again", why, consequence) from error
    return packed


def _packed(plain: object, response: object, consequence: str) -> bytes:
    try:
        packed: bytes = msgpack.packb(plain)
        msgpack.unpackb(packed, strict_map_key=False)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        why = f"response{culprit(plain)}"
        raise _not_storable(response, "as msgpack", why, consequence) from error
    return packed


def _not_storable(
    response: object, how: str, why: object, consequence: str
) -> InvalidResponseError:
    return InvalidResponseError(
        f"a response ({type(response).__name__}) cannot be stored {how} ({why}): {consequence}"
    )


def decode_response(packed: bytes) -> Any:
    """Decode what :func:`encode_response` made: a fresh copy each time.

    Raises:
        CorruptRecordError: they are not msgpack. Neither it nor what it refers to shows them.
    """
    try:
        return _unpackb(packed, strict_map_key=False)
    except (TypeError, ValueError, OverflowError, RecursionError):
        pass  # it may hold a part of the bytes, so it is not the context of our own
    raise _corrupt("holds what is not msgpack")
