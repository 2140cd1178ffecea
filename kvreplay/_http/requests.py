"""An HTTP request: what a record keeps of it, and what the application is told."""

from __future__ import annotations

import hashlib
from typing import Any, Final, Literal
from urllib.parse import unquote_to_bytes

import attrs

from kvreplay import ReplayKey, ReplayRecord
from kvreplay.errors import ConfigError

__all__ = [
    "ENDINGS",
    "Ending",
    "HTTPRequest",
    "IdempotentRequest",
    "Incoming",
    "downstream_key",
    "request_of",
]

Ending = Literal["kept", "freed", "in doubt"]
"""How a run of the application ends for its key.

``kept``: its answer is the answer for every retry. ``freed``: nothing happened, and the next
request runs anew. ``in doubt``: nobody knows whether something happened.
"""

ENDINGS: Final[tuple[Ending, ...]] = ("kept", "freed", "in doubt")


@attrs.define(repr=False)  # not frozen, which takes twice the time to make
class Incoming:
    """What the layer looks at of a request. ``root``: where the application is mounted.

    ``field``: the value of the key's header; ``None``: there is none.
    """

    method: str
    path: bytes
    root: bytes
    query: bytes
    field: str | None


class IdempotentRequest:
    """What the application is told: ``kvreplay.request`` in the ASGI scope or the WSGI environ.

    Attributes:
        key: the caller, and the key that they sent; :func:`~kvreplay.http.downstream_key` makes of
            it the key for a system that the application acts on.
        ending: set by the application, it decides how the run ends, whatever the status of the
            answer: ``"kept"``, ``"freed"`` (nothing happened, and cannot any more) or
            ``"in doubt"``. ``None``: the status decides.
    """

    __slots__ = ("_ending", "key")

    def __init__(self, key: ReplayKey) -> None:
        self.key = key
        self._ending: Ending | None = None

    @property
    def ending(self) -> Ending | None:
        """How the run ends; ``None``: its answer's status decides."""
        return self._ending

    @ending.setter
    def ending(self, ending: Ending | None) -> None:
        if ending is not None and ending not in ENDINGS:
            raise ConfigError(
                f"the ending is {ending!r}; it can be {', '.join(map(repr, ENDINGS))}"
            )
        self._ending = ending

    def __repr__(self) -> str:
        return f"<IdempotentRequest {self.key!r} ending={self._ending!r}>"


@attrs.frozen
class HTTPRequest:
    """What a record keeps of its request.

    Attributes:
        method: such as ``POST``.
        path: percent-decoded, from the root of the host.
        query: as it was sent. Under profile ``acp`` it is not kept, and empty here.
        body_sha256: of the body, which itself is not kept. Under profile ``acp``: of its JSON, in
            one form.
    """

    method: str
    path: bytes = attrs.field(repr=False)
    query: bytes = attrs.field(repr=False)
    body_sha256: bytes = attrs.field(repr=False)


def request_of(record: ReplayRecord) -> HTTPRequest | None:
    """Return the request that a record belongs to.

    ``None``: the record keeps a keyed digest of it (``params_key``), or none any more (a
    tombstone), or something else than an HTTP request.
    """
    match record.load_params():
        case {
            "method": str(method),
            "path": bytes(path),
            "query": bytes(query),
            "body": bytes(digest),
        }:
            return HTTPRequest(method, path, query, digest)
        case {"method": str(method), "body": bytes(digest)}:  # profile acp: the key has the path
            path = unquote_to_bytes(record.key.operation or "")
            return HTTPRequest(method, path, b"", digest)
    return None


def downstream_key(key: ReplayKey, step: str = "") -> str:
    """Return an idempotency key for a system that the application acts on: 32 hex digits.

    It is the same for every retry of the request, in every process, and shows neither the caller
    nor their key. So even a second run, after an operator released the key, acts once there.

    Args:
        key: ``scope["kvreplay.request"].key``, or ``record.key`` in a reconciler.
        step: which of several calls; each needs a key of its own.
    """
    parts: list[Any] = [key.scope, key.operation or "", key.id, step]
    digest = hashlib.sha256()
    for part in parts:
        text = part.encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()[:32]
