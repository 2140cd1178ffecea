"""Profile ``stripe``: the rules of Stripe's API v1 (docs.stripe.com: Idempotent requests; errors).

What differs from ``ietf``:

* The key is the header's whole value, is optional, and comes back with each answer.
* Whatever an endpoint that has begun answers is kept, a 500 too. Nothing is kept where it has not
  begun: no permission, a rate limit, params that fail validation. A layer sees only the status, so
  400 is kept, as Stripe keeps that of an endpoint; 422, which Stripe never gives and frameworks
  give to params that fail validation, is not.
* An exception leaves no answer that could be kept, so the key is in doubt.
* A problem is ``{"error": {…}}``. ``Stripe-Should-Retry`` tells Stripe's clients whether to come
  again by themselves: without it they repeat whatever has status 409 or 5xx.
"""

from __future__ import annotations

from typing import Any, Final

from kvreplay._http.answers import Answer, Headers
from kvreplay._http.header import raw_key
from kvreplay._http.problems import Refusal, Slug
from kvreplay._http.profile import DAY, Profile, echoed, told
from kvreplay._http.requests import Ending

__all__ = ["Stripe"]

_NOT_BEGUN: Final = frozenset({307, 308, 401, 403, 408, 422, 425, 429})

_TYPES: Final[dict[Slug, str]] = {
    "key-reused": "idempotency_error",
    "expired": "idempotency_error",
    "in-doubt": "api_error",
    "unavailable": "api_error",
    "not-stored": "api_error",
    "superseded": "api_error",
    "not-kept": "api_error",
    "damaged": "api_error",
}
"""The types of problems that are no ``invalid_request_error``."""


class Stripe(Profile):
    """The rules of Stripe's API v1."""

    name = "stripe"
    methods = frozenset({"POST"})
    required = False
    key_form = "the header's whole value, 1 to 255 printable ASCII characters"
    least_ttl = DAY

    def key_in(self, field: str, *, bare: bool) -> str:
        """Return the header's value."""
        return raw_key(field)

    def ending(self, status: int) -> Ending:
        """Return "kept", unless the status says that the endpoint has not begun."""
        return "freed" if status in _NOT_BEGUN else "kept"

    def status(self, slug: Slug) -> int:
        """Return 400 for a key that was used for something else, or long ago."""
        return 400 if _TYPES.get(slug) == "idempotency_error" else super().status(slug)

    def refusal(self, refusal: Refusal, link: str, field: str | None) -> Answer:
        """Return Stripe's error object, with what else there is to say."""
        slug = refusal.slug
        error: dict[str, Any] = {
            "type": _TYPES.get(slug, "invalid_request_error"),
            "code": _code(slug),
            "message": refusal.message,
            "doc_url": f"{link}#{slug}",
            "effect": refusal.problem.effect,
            **refusal.members,
        }
        comes_again = refusal.retry_after is not None
        headers = (
            (b"content-type", b"application/json"),
            (b"stripe-should-retry", b"true" if comes_again else b"false"),
            *echoed(field),
        )
        return told(self.status(slug), headers, {"error": error}, refusal)

    def headers(self, field: str) -> Headers:
        """Return the key."""
        return echoed(field)


def _code(slug: Slug) -> str:
    return f"idempotency_{'key-in-use' if slug == 'running' else slug}".replace("-", "_")
