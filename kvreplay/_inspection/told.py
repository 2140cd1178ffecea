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

__all__ = ["datetime_of", "told", "told_payload"]


def datetime_of(ms: int | None) -> datetime | None:
    """Return a time in milliseconds since the epoch; one beyond the year 9999 is its end."""
    try:
        return None if ms is None else datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _iso(ms: int | None) -> str | None:
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
        "sweep_at": _iso(seen.entry.expires_at),
    }
    record = seen.found
    if not isinstance(record, ReplayRecord):
        return {**every, "problem": str(record).partition(":")[0]}
    every |= {
        "digest": record.key.digest(),
        "scope": record.key.scope,
        "id": record.key.id,
        "operation": record.key.operation,
        "created_at": _iso(record.created_at),
        "expires_at": _iso(record.expires_at),
    }
    if (claim := record.claim) is not None:
        owner = inspection.owner(claim)
        every["claim"] = {
            "owner": owner.liveness,
            "pid": owner.pid,
            "this_boot": owner.here,
            "lease_expires_at": _iso(claim.lease_expires_at),
            "ended_at": _iso(claim.ended_at),
        }
    if payload:
        every |= told_payload(record)
    return every


def told_payload(record: ReplayRecord) -> dict[str, Any]:
    """Return the params, and the response or the failure if there is one, as JSON can hold them."""
    if isinstance(record.params, ParamsDigest):
        params: Any = {"keyed digest": record.params.digest.hex()}
    else:
        params = _plain(record.load_params())
    if (failure := record.load_failure()) is not None:
        return {"params": params, "failure": {"class": failure[0], "arguments": _plain(failure[1])}}
    if record.response is None:
        return {"params": params}
    return {"params": params, "response": _plain(record.load_response())}


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
