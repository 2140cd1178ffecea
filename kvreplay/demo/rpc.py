"""JSON-RPC 2.0 (https://www.jsonrpc.org/specification): bytes in, bytes out, no I/O.

Parameters are given by name. A batch is answered one request after the other.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

__all__ = [
    "INTERNAL_ERROR",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "METHOD_NOT_FOUND",
    "PARSE_ERROR",
    "Method",
    "RpcError",
    "answer",
]

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603

MAX_BATCH: Final = 100

Method = Callable[[Mapping[str, Any]], object]

_log: Final = logging.getLogger("kvreplay.demo")


class RpcError(Exception):
    """An error object: ``code``, ``message`` and ``data`` as they go over the wire."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(code, message, data)
        self.code = code
        self.message = message
        self.data = data

    def __str__(self) -> str:
        return f"error {self.code} {self.message}" + (f" {self.data}" if self.data else "")


def answer(body: bytes, methods: Mapping[str, Method]) -> bytes | None:
    """Call what the body asks for; ``None``: it asked for no answer (a notification)."""
    try:
        request = _parse(body)
    except RpcError as error:
        return _encode(_failure(None, error))
    if not isinstance(request, list):
        response = _respond(request, methods)
        return None if response is None else _encode(response)
    if not 1 <= len(request) <= MAX_BATCH:
        problem = f"invalid request: a batch has 1 to {MAX_BATCH} requests"
        return _encode(_failure(None, RpcError(INVALID_REQUEST, problem)))
    responses = [each for each in (_respond(one, methods) for one in request) if each is not None]
    return _encode(responses) if responses else None


def _parse(body: bytes) -> object:
    try:
        return json.loads(
            body.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_object_of
        )
    except (ValueError, RecursionError):
        raise RpcError(PARSE_ERROR, "parse error: the body is not JSON in UTF-8") from None


def _respond(request: object, methods: Mapping[str, Method]) -> dict[str, object] | None:
    """Answer one request; ``None``: it is a notification."""
    id_ = request.get("id") if isinstance(request, dict) else None
    # bool is an int for Python, not for JSON.
    if isinstance(id_, bool) or not isinstance(id_, str | int | float | None):
        id_ = None
    try:
        method, params = _read(request)
    except RpcError as error:
        return _failure(id_, error)  # even without an id: no valid request, so no notification
    assert isinstance(request, dict)
    try:
        if method not in methods:
            raise RpcError(METHOD_NOT_FOUND, "method not found", {"methods": sorted(methods)})
        if not isinstance(params, dict):
            raise RpcError(INVALID_PARAMS, "invalid params: give them by name, in an object")
        response = {"jsonrpc": "2.0", "result": methods[method](params), "id": id_}
    except RpcError as error:
        response = _failure(id_, error)
    except Exception as error:  # a bug: only the log says where
        # The log does not show its message, which may hold a payload.
        where = "".join(traceback.format_tb(error.__traceback__))
        _log.error("a bug in %s\n%s%s", method, where, type(error).__name__)
        response = _failure(id_, RpcError(INTERNAL_ERROR, "internal error"))
    return response if "id" in request else None


def _read(request: object) -> tuple[str, object]:
    """Return the method and the params of a valid request."""
    if not isinstance(request, dict):
        _invalid("it is not an object")
    if request.get("jsonrpc") != "2.0":
        _invalid('jsonrpc is not "2.0"')
    if not isinstance(method := request.get("method"), str):
        _invalid("method is not a string")
    params = request.get("params", {})
    if not isinstance(params, dict | list):
        _invalid("params is neither an object nor an array")
    id_ = request.get("id")
    if isinstance(id_, bool) or not isinstance(id_, str | int | float | None):
        _invalid("id is neither a string nor a number nor null")
    return method, params


def _invalid(problem: str) -> NoReturn:
    raise RpcError(INVALID_REQUEST, f"invalid request: {problem}")


def _failure(id_: object, error: RpcError) -> dict[str, object]:
    body: dict[str, object] = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    return {"jsonrpc": "2.0", "error": body, "id": id_}


def _encode(response: object) -> bytes:
    return json.dumps(response, separators=(",", ":")).encode()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):  # nobody knows which of the two is meant
        raise ValueError("a name is repeated")
    return members
