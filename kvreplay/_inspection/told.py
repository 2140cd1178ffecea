"""What is told of a record in JSON. Times are ISO 8601, in UTC; bytes are hexadecimal."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack

from kvreplay._inspection.condition import Inspection
from kvreplay._inspection.entries import Seen
from kvreplay._protocol.digests import ParamsDigest
from kvreplay._protocol.record import ReplayRecord
from kvreplay.errors import CorruptRecordError
from kvreplay.http import HTTPRequest, answer_of, downstream_key, request_of

__all__ = ["datetime_of", "iso", "request_of_http", "told", "told_payload"]


def datetime_of(ms: int | None) -> datetime | None:
    """Return a time in milliseconds since the epoch; one beyond the year 9999 is its end."""
    try:
        return None if ms is None else datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def iso(ms: int | None) -> str | None:
    found = datetime_of(ms)
    return None if found is None else found.isoformat(timespec="milliseconds")


def told(seen: Seen, inspection: Inspection, *, payload: bool = False) -> dict[str, Any]:
    """Return what is told of a record in JSON. Times are ISO 8601, in UTC."""
    primary, secondary, name = seen.address
    condition = inspection.condition(seen)
    every: dict[str, Any] = {
        "namespace": primary,
        "state": condition.value,
        "address": [primary, secondary, name],
        "bytes": len(seen.entry.value),
        "sweep_at": iso(seen.entry.expires_at),
    }
    record = seen.found
    if not isinstance(record, ReplayRecord):
        return {**every, "problem": str(record).partition(":")[0]}
    every |= {
        "digest": record.key.digest(),
        "scope": record.key.scope,
        "id": record.key.id,
        "operation": record.key.operation,
        "created_at": iso(record.created_at),
        "expires_at": iso(record.expires_at),
    }
    if request_of_http(record) is not None:
        every["downstream_key"] = downstream_key(record.key)
    if (claim := record.claim) is not None:
        owner = inspection.owner(claim)
        every["claim"] = {
            "owner": owner.liveness,
            "pid": owner.pid,
            "this_boot": owner.here,
            "lease_expires_at": iso(claim.lease_expires_at),
            "ended_at": iso(claim.ended_at),
        }
    if payload:
        every |= told_payload(record)
    return every


def request_of_http(record: ReplayRecord) -> HTTPRequest | None:
    """Return the HTTP request that a record keeps; ``None``: it keeps none, or a digest."""
    try:
        return request_of(record)
    except CorruptRecordError:
        return None


def told_payload(record: ReplayRecord) -> dict[str, Any]:
    """Return the params, and the response or the failure if there is one, as JSON can hold them.

    What an HTTP layer has stored is told as HTTP: the request, and the answer.
    """
    try:
        return _payload(record)
    except CorruptRecordError:
        return {"problem": "its checksum is right, and its payload cannot be decoded"}


def _payload(record: ReplayRecord) -> dict[str, Any]:
    if (request := request_of(record)) is not None:
        return {"request": _request(request)} | _http_answer(record)
    if isinstance(record.params, ParamsDigest):
        params: Any = {"keyed digest": record.params.digest.hex()}
    else:
        params = _plain(record.load_params())
    if (failure := record.load_failure()) is not None:
        return {"params": params, "failure": {"class": failure[0], "arguments": _plain(failure[1])}}
    if record.response is None:
        return {"params": params}
    return {"params": params, "response": _plain(record.load_response())}


def _request(request: HTTPRequest) -> dict[str, Any]:
    return {
        "method": request.method,
        "path": _text(request.path),
        "query": _text(request.query),
        "body_sha256": request.body_sha256.hex(),
    }


def _http_answer(record: ReplayRecord) -> dict[str, Any]:
    answer = answer_of(record)
    if answer is None:
        return {}
    return {
        "status": answer.status,
        "headers": [[_text(name), _text(value)] for name, value in answer.headers],
        "body": _text(answer.body or b""),
    }


def _text(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _plain(each) for key, each in value.items()}
        return {"pairs": [[_plain(key), _plain(each)] for key, each in value.items()]}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, msgpack.ExtType | msgpack.Timestamp):
        return {"msgpack": repr(value)}
    return value
