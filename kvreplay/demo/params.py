"""The parameters of ``async_order.request_invoice``: checked and normalised first.

Two spellings of one value must not look like two requests, so hex becomes lower case, and a
decimal string loses its leading zeros.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import attrs

__all__ = ["InvalidFieldError", "InvoiceRequest", "check_fields", "payment_hash_of"]

T = TypeVar("T")

_MAX_TEXT: Final = 256
_MAX_UINT64: Final = 2**64 - 1
_MAX_MSAT: Final = 10**14 - 1
"""Less than 1000 bitcoin: bolt11 2.2.0 writes 1000 bitcoin as 1."""

_is_hash = re.compile(r"[0-9A-Fa-f]{64}").fullmatch
_is_public_key = re.compile(r"0[23][0-9A-Fa-f]{64}").fullmatch
_is_decimal = re.compile(r"[0-9]{1,256}").fullmatch

_JSON: Final[Mapping[type, str]] = {
    str: "a string",
    int: "a number",
    float: "a number with a fraction or exponent",
    bool: "a boolean",
    type(None): "null",
    list: "an array",
    dict: "an object",
}


class InvalidFieldError(ValueError):
    """A parameter is unknown, missing or wrong; the message does not show its value."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class _Wrong(Exception):
    """What is wrong with a value; the caller adds the field's name."""


@attrs.frozen(repr=False)
class InvoiceRequest:
    """One request, normalised. Equal requests are equal objects."""

    lsp_node_id: str
    claim_session_id: str
    hash_index: str
    payment_hash: str
    amount_msat: int
    asset_id: str
    asset_amount: int
    description_hash: str
    invoice_expiry_sec: int
    min_final_cltv_expiry_delta: int

    @classmethod
    def read(cls, params: Mapping[str, object]) -> InvoiceRequest:
        """Check and normalise a JSON object.

        Raises:
            InvalidFieldError: it names the first field that is unknown, missing or wrong.
        """
        check_fields(params, _READERS)
        values: dict[str, Any] = {
            field: _read(field, reader, params[field]) for field, reader in _READERS.items()
        }
        return cls(**values)

    @property
    def key(self) -> tuple[str, str]:
        """The replay key: who asks, and for which session."""
        return self.lsp_node_id, self.claim_session_id

    @property
    def params(self) -> dict[str, Any]:
        """Everything that must be equal in a retry: all fields."""
        return attrs.asdict(self)


def payment_hash_of(params: Mapping[str, object]) -> str:
    """Read an object whose only field is ``payment_hash``; raises as ``InvoiceRequest.read``."""
    check_fields(params, ("payment_hash",))
    return _read("payment_hash", _hash, params["payment_hash"])


def check_fields(params: Mapping[str, object], fields: Iterable[str]) -> None:
    """Check that exactly these fields are there; raises as ``InvoiceRequest.read``."""
    known = tuple(fields)
    for field in params:
        if field not in known:
            raise InvalidFieldError(field[:64], "there is no such field")
    for field in known:
        if field not in params:
            raise InvalidFieldError(field, "it is missing")


def _read(field: str, reader: Callable[[object], T], value: object) -> T:
    try:
        return reader(value)
    except _Wrong as wrong:
        raise InvalidFieldError(field, str(wrong)) from None


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"it is {_JSON[type(value)]}, not a string")
    return value


def _text(value: object) -> str:
    text = _string(value)
    if not 1 <= len(text) <= _MAX_TEXT:
        raise _Wrong(f"it has {len(text)} characters; from 1 to {_MAX_TEXT} are allowed")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Wrong("it has a lone surrogate, which is not text") from None
    return text


def _node_id(value: object) -> str:
    """Any text; a public key (33 bytes in hex) becomes lower case, since it is the same key."""
    text = _text(value)
    return text.lower() if _is_public_key(text) else text


def _hash(value: object) -> str:
    text = _string(value)
    if not _is_hash(text):
        raise _Wrong("it is not 32 bytes in hex (64 digits)")
    return text.lower()


def _index(value: object) -> str:
    text = _string(value)
    if not _is_decimal(text) or int(text) > _MAX_UINT64:
        raise _Wrong("it is not a decimal number from 0 to 2**64 - 1 in a string")
    return str(int(text))


def _integer(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _Wrong(f"it is {_JSON[type(value)]}, not an integer")
        if not low <= value <= high:
            raise _Wrong(f"it is not from {low} to {high}")
        return value

    return read


_READERS: Final[Mapping[str, Callable[[object], str | int]]] = {
    "lsp_node_id": _node_id,
    "claim_session_id": _text,
    "hash_index": _index,
    "payment_hash": _hash,
    "amount_msat": _integer(1, _MAX_MSAT),
    "asset_id": _text,
    "asset_amount": _integer(1, _MAX_UINT64),
    "description_hash": _hash,
    "invoice_expiry_sec": _integer(1, 366 * 86_400),
    "min_final_cltv_expiry_delta": _integer(1, 65_535),
}
