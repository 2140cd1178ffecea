"""Profile ``acp``: the Agentic Commerce Protocol of 2026-04-17.

Its rules are in section 6 of the checkout's specification, and in section 5 of delegate payment's.
What differs from ``ietf``:

* The key is the header's whole value, and comes back with each answer (3.1).
* A key belongs to a caller and a path: on another path it is another one (6.1).
* Compared is the body alone, by what its JSON says (6.2). One that has no such meaning, or more
  than one, is compared byte for byte.
* An answer of 5xx is never kept (6.5). A retry is a fresh request only where it is known that
  nothing happened; otherwise the key is in doubt. The specification wants it fresh after each 5xx,
  but also that no side effect happens twice (6.3), and that counts for more.
* A problem is ``{"type", "code", "message"}`` and nothing else (3.1, 6.4).
"""

from __future__ import annotations

import hashlib
from typing import Any, Final
from urllib.parse import parse_qs, quote

from kvreplay import ReplayKey
from kvreplay._http.answers import Answer, Headers
from kvreplay._http.canonical import canonical
from kvreplay._http.header import raw_key
from kvreplay._http.problems import Refusal, Slug
from kvreplay._http.profile import DAY, Profile, echoed, told
from kvreplay._http.requests import Incoming

__all__ = ["ACP"]

_CODES: Final[dict[Slug, str]] = {
    "missing-key": "idempotency_key_required",
    "key-reused": "idempotency_conflict",
    "running": "idempotency_in_flight",
}
"""The specification's codes; it leaves others to the implementation."""

_TYPES: Final[dict[Slug, str]] = {
    "unavailable": "service_unavailable",
    "not-stored": "service_unavailable",
    "in-doubt": "processing_error",
    "superseded": "processing_error",
    "not-kept": "processing_error",
    "damaged": "processing_error",
}
"""The types of problems that are no ``invalid_request``."""

_PLAIN: Final = "/:@!$&'()*+,;=~"  # in a path they stand for themselves (RFC 3986, 3.3)


class ACP(Profile):
    """The rules of the Agentic Commerce Protocol."""

    name = "acp"
    methods = frozenset({"POST"})
    identified_by = "the authenticated caller, the path and the key"
    compared = "the body, by what its JSON says"
    key_form = "the header's whole value, 1 to 255 printable ASCII characters"
    least_ttl = DAY  # 6.6
    keeps_5xx = False

    def key_in(self, field: str, *, bare: bool) -> str:
        """Return the header's value."""
        return raw_key(field)

    def replay_key(self, caller: str, key: str, incoming: Incoming) -> ReplayKey:
        """Return the key of a caller and a path."""
        return ReplayKey(caller, key, _endpoint(incoming.path))

    def asked_key(self, caller: str, key: str, incoming: Incoming) -> ReplayKey | Refusal:
        """Return the key of a caller and the path that the query names: ``?path=/orders``."""
        query = incoming.query.decode("latin-1")
        match parse_qs(query, encoding="latin-1"):
            case {"path": [path]}:
                return ReplayKey(caller, key, _endpoint(path.encode("latin-1")))
        return Refusal("missing-path")

    def params(self, incoming: Incoming, body: bytes) -> dict[str, Any]:
        """Return a digest of the body; and the method, which is POST unless others are covered."""
        form = canonical(body)
        digest = hashlib.sha256(body if form is None else form).digest()
        return {"body": digest, "method": incoming.method}

    def refusal(self, refusal: Refusal, link: str, field: str | None) -> Answer:
        """Return the flat error; what else there is to say is in its message."""
        slug = refusal.slug
        also = "".join(f" {name}: {value}." for name, value in refusal.members.items())
        body = {
            "type": _TYPES.get(slug, "invalid_request"),
            "code": _CODES.get(slug) or f"idempotency_{slug}".replace("-", "_"),
            "message": refusal.message + also,
        }
        headers = (
            (b"content-type", b"application/json"),
            (b"link", f'<{link}>; rel="describedby"; type="text/html"'.encode("ascii", "replace")),
            *echoed(field),
        )
        return told(self.status(slug), headers, body, refusal)

    def headers(self, field: str) -> Headers:
        """Return the key."""
        return echoed(field)


def _endpoint(path: bytes) -> str:
    """Return a path as text, percent-encoded as in a URL, so that no two share one."""
    return quote(path or b"/", safe=_PLAIN)
