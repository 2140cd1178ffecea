"""Profile ``ietf``, by draft-ietf-httpapi-idempotency-key-header-07 and RFC 9457.

The other profiles are subclasses: each says where its rules differ.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Final

from kvreplay import ReplayKey
from kvreplay._http.answers import Answer, Headers
from kvreplay._http.header import MalformedKeyError, quoted_key, raw_key
from kvreplay._http.problems import Refusal, Slug
from kvreplay._http.requests import Ending, Incoming

__all__ = ["DAY", "Profile", "echoed", "told"]

DAY: Final = 24 * 60 * 60 * 1000

_sha256 = hashlib.sha256

# After 307 and 308 the client sends the same request to another address.
_NOTHING_HAPPENED: Final = frozenset({307, 308, 401, 403, 408, 425, 429, 503})


class Profile:
    """The rules by which a layer reads keys, compares requests, keeps answers and tells problems.

    Attributes:
        methods: those that are covered.
        required: a request without a key is refused.
        identified_by, compared, key_form: how the published policy tells of the rules below.
        least_ttl: milliseconds; for so long, at least, clients may count on an answer's being kept.
        keeps_5xx: an answer with a status of 5xx can be kept.
    """

    name: str = "ietf"
    methods: frozenset[str] = frozenset({"POST", "PATCH"})
    required: bool = True
    identified_by: str = "the authenticated caller and the key"
    compared: str = "method, path, query and a digest of the body"
    key_form: str = "a String of Structured Fields (RFC 9651): in quotes, 1 to 255 characters"
    least_ttl: int = 0
    keeps_5xx: bool = True

    def key_in(self, field: str, *, bare: bool) -> str:
        """Return the key in a header's value; raise MalformedKeyError if there is none."""
        return quoted_key(field, or_bare=bare)

    def replay_key(self, caller: str, key: str, incoming: Incoming) -> ReplayKey:
        """Return what names the request in the store."""
        return ReplayKey(caller, key)

    def asked_key(self, caller: str, key: str, incoming: Incoming) -> ReplayKey | Refusal:
        """Return what names the request whose state is asked for, or why that is not clear."""
        return self.replay_key(caller, key, incoming)

    def params(self, incoming: Incoming, body: bytes) -> dict[str, Any]:
        """Return what must be equal in a retry."""
        return {
            "body": _sha256(body).digest(),
            "method": incoming.method,
            "path": incoming.path,
            "query": incoming.query,
        }

    def ending(self, status: int) -> Ending:
        """Return how a run ends whose answer has this status."""
        if status in _NOTHING_HAPPENED:
            return "freed"
        return "kept" if status < 500 else "in doubt"

    def status(self, slug: Slug) -> int:
        """Return the status of a problem; by default the problem's own."""
        return Refusal(slug).problem.status

    def refusal(self, refusal: Refusal, link: str, field: str | None) -> Answer:
        """Return the answer that tells of a problem.

        Args:
            link: where the policy is published; with ``#slug`` the type of the problem.
            field: the key's header, as it was sent.
        """
        problem, status = refusal.problem, self.status(refusal.slug)
        body = {
            "type": f"{link}#{refusal.slug}",
            "title": problem.title,
            "status": status,
            "detail": refusal.detail,
            "effect": problem.effect,
            **refusal.members,
        }
        headers = (
            (b"content-type", b"application/problem+json"),
            (b"content-language", b"en"),
            (b"link", f'<{link}>; rel="describedby"; type="text/html"'.encode("ascii", "replace")),
        )
        return told(status, headers, body, refusal)

    def headers(self, field: str) -> Headers:
        """Return further headers of each answer to a request that has a key."""
        return ()


def echoed(field: str | None) -> Headers:
    """Return the key's header for an answer, if it holds a key that is no more than that."""
    try:
        return ((b"idempotency-key", raw_key(field or "").encode()),)
    except MalformedKeyError:
        return ()


def told(status: int, headers: Headers, body: dict[str, Any], refusal: Refusal) -> Answer:
    """Return an answer of the layer's own, in JSON."""
    encoded = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    more: Headers = (
        (b"content-length", str(len(encoded)).encode()),
        (b"cache-control", b"no-store"),
        *refusal.headers,
    )
    if refusal.retry_after is not None:
        more += ((b"retry-after", str(max(1, math.ceil(refusal.retry_after))).encode()),)
    return Answer(status, headers + more, encoded)
