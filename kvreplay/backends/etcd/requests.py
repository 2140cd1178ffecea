"""What is said to etcd: requests of its v3 API, as its JSON gateway takes them.

https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/ and the messages of ``rpc.proto``. Keys and
values are in base64, which needs no quoting in JSON.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Sequence
from typing import Final

import attrs

from kvreplay.backends.etcd.layout import Range

__all__ = [
    "Asked",
    "are_absent",
    "delete",
    "delete_all",
    "get",
    "is_absent",
    "is_value",
    "newest",
    "one",
    "put",
    "read",
    "step",
    "transaction",
    "within",
]

_RANGE: Final = "/v3/kv/range"
_TXN: Final = "/v3/kv/txn"


@attrs.frozen(eq=False, repr=False)
class Asked:
    """A request.

    Attributes:
        path: of the gateway.
        changes: if its answer is lost, nobody knows whether it happened.
        most: the most bytes that its answer may have; ``None``: any number.
    """

    path: str
    body: bytes
    changes: bool = False
    most: int | None = None


def read(what: bytes) -> Asked:
    """Ask for what :func:`one`, :func:`within` or :func:`newest` names; it is linearizable."""
    return Asked(_RANGE, what)


def transaction(
    compare: Sequence[bytes],
    then: Sequence[bytes],
    otherwise: Sequence[bytes] = (),
    *,
    changes: bool = True,
    most: int | None = None,
) -> Asked:
    """Ask for one transaction: ``then`` if all that is compared is so, or else ``otherwise``."""
    return Asked(_TXN, _together(compare, then, otherwise), changes, most)


def _together(compare: Sequence[bytes], then: Sequence[bytes], otherwise: Sequence[bytes]) -> bytes:
    parts = b",".join(compare), b",".join(then), b",".join(otherwise)
    return b'{"compare":[%b],"success":[%b],"failure":[%b]}' % parts


# What a transaction does.


def get(what: bytes) -> bytes:
    """Read what :func:`one`, :func:`within` or :func:`newest` names."""
    return b'{"request_range":%b}' % what


def put(key: bytes, value: bytes) -> bytes:
    """Put a value."""
    return b'{"request_put":{"key":"%b","value":"%b"}}' % (_base64(key), _base64(value))


def delete(key: bytes) -> bytes:
    """Delete a key."""
    return b'{"request_delete_range":{"key":"%b"}}' % _base64(key)


def delete_all(keys: Range) -> bytes:
    """Delete the keys of a range."""
    named = _base64(keys[0]), _base64(keys[1])
    return b'{"request_delete_range":{"key":"%b","range_end":"%b"}}' % named


def step(compare: Sequence[bytes], then: Sequence[bytes], otherwise: Sequence[bytes]) -> bytes:
    """Do a transaction inside of another one."""
    return b'{"request_txn":%b}' % _together(compare, then, otherwise)


# What is read.


def one(key: bytes) -> bytes:
    """Name one key."""
    return b'{"key":"%b"}' % _base64(key)


def within(keys: Range, limit: int, *, keys_only: bool = False) -> bytes:
    """Name the first keys of a range, in their order."""
    return _range(keys, limit, keys_only, b"")


def newest(keys: Range, limit: int, *, keys_only: bool, until: int | None) -> bytes:
    """Name the keys of a range that were created last, that one first.

    Args:
        until: the last revision that counts; ``None``: all do.
    """
    order = b',"sort_target":"CREATE","sort_order":"DESCEND"'
    if until is not None:
        order += b',"max_create_revision":"%d"' % until
    return _range(keys, limit, keys_only, order)


def _range(keys: Range, limit: int, keys_only: bool, order: bytes) -> bytes:
    named = _base64(keys[0]), _base64(keys[1]), limit, order, b',"keys_only":true' * keys_only
    return b'{"key":"%b","range_end":"%b","limit":"%d"%b%b}' % named


# What is compared. That a key is absent is never said by its value: that would not be true.


def is_absent(key: bytes) -> bytes:
    """Whether there is no such key."""
    return b'{"key":"%b","target":"VERSION","result":"EQUAL","version":"0"}' % _base64(key)


def are_absent(keys: Range) -> bytes:
    """Whether a range is empty."""
    named = _base64(keys[0]), _base64(keys[1])
    absent = b'"target":"VERSION","result":"EQUAL","version":"0"'
    return b'{"key":"%b","range_end":"%b",%b}' % (*named, absent)


def is_value(key: bytes, value: bytes) -> bytes:
    """Whether a key is there and has this value."""
    named = _base64(key), _base64(value)
    return b'{"key":"%b","target":"VALUE","result":"EQUAL","value":"%b"}' % named


def _base64(data: bytes) -> bytes:
    return b2a_base64(data, newline=False)
