"""The one request that every benchmark makes, and stores full of its records.

8 params and a response, 0.7 KB together. Ids are spread over the key space, as random ids are.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn

import msgpack

from kvreplay import ReplayKey, TransactionalKVStore
from kvreplay._protocol.params import canonical
from kvreplay._protocol.record import Claim, ReplayRecord, State, encode, encode_response

NAMESPACE: Final = "request_invoice"
SCOPE: Final = "02" + "ab" * 32
PARAMS: Final = {
    "hash_index": "42",
    "payment_hash": "11" * 32,
    "amount_msat": 250_000,
    "asset_id": "rgb:" + "a" * 40,
    "asset_amount": 1000,
    "description_hash": "22" * 32,
    "invoice_expiry_sec": 3600,
    "min_final_cltv_expiry_delta": 18,
}
RESPONSE: Final = {"payment_hash": "11" * 32, "bolt11": "lnbcrt2500u1p" + "q" * 260}

FAR: Final = 4_000_000_000_000
"""When live records expire, in milliseconds since the epoch: in 2096."""

LONG_AGO: Final = 1_000_000_000_000
"""When due records expired: in 2001."""

_OWNER: Final = f"{'0' * 36}:64769:1048577:{2**61}:4026531836:12345:1234567"
_CHUNK: Final = 10_000  # records in one transaction


def request_id(number: int) -> str:
    """Return the id of a request: a different one for each number below 2**32."""
    return f"claim-session-{number * 2_654_435_761 % 2**32:08x}"


def respond(*_: object) -> dict[str, str]:
    """A handler that returns the answer at once."""
    return RESPONSE


def never(*_: object) -> NoReturn:
    """The handler of a request that is replayed: it must not run."""
    raise AssertionError("a hit does not run the handler")


def url_of(engine: str, folder: Path) -> str:
    """Return the URL of an engine's store in a folder."""
    return "memory:" if engine == "memory" else f"{engine}:{folder / 'store'}"


def completed(number: int, expires_at: int) -> tuple[ReplayKey, bytes]:
    """Return a request's key and the record of its answer, as ``Replay`` stores it."""
    key = ReplayKey(SCOPE, request_id(number))
    record = ReplayRecord(State.COMPLETED, key, _PARAMS, _RESPONSE, FAR, expires_at, None)
    return key, encode(record)


def claimed(number: int) -> bytes:
    """Return the record of a request's claim."""
    key = ReplayKey(SCOPE, request_id(number))
    claim = Claim(bytes(16), FAR, _OWNER)
    return encode(ReplayRecord(State.IN_PROGRESS, key, _PARAMS, None, FAR, None, claim))


def fill(store: Any, numbers: Iterable[int], expires_at: int) -> None:
    """Store the answers to requests; the n-th answer expires n ms after ``expires_at``."""
    answers = enumerate(numbers)
    while chunk := list(islice(answers, _CHUNK)):
        transactional = isinstance(store, TransactionalKVStore)
        with store.transaction() if transactional else nullcontext(store) as writer:
            for offset, number in chunk:
                key, record = completed(number, expires_at + offset)
                writer.check_and_put(
                    NAMESPACE,
                    key.scope,
                    key.id,
                    expected=None,
                    value=record,
                    expires_at=expires_at + offset,
                )


_PARAMS: Final = canonical(PARAMS)
_RESPONSE: Final = encode_response(RESPONSE, "")

AS_ONE_MAP: Final[bytes] = msgpack.packb(
    {
        "scope": SCOPE,
        "id": request_id(0),
        "params": PARAMS,
        "response": RESPONSE,
        "created_at": FAR,
        "expires_at": FAR,
    }
)
"""The content of a record as the raw floor stores it."""
