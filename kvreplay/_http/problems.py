"""What the layer says when it does not pass on the application's answer: once, for all profiles.

Each text says what happened, what did not happen to the caller's money, and what to do.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import attrs

__all__ = ["PROBLEMS", "Problem", "Refusal", "Slug"]

Slug = Literal[
    "missing-key",
    "malformed-key",
    "unauthenticated",
    "incomplete-body",
    "body-too-large",
    "key-reused",
    "running",
    "in-doubt",
    "expired",
    "unavailable",
    "not-stored",
    "superseded",
    "not-kept",
    "damaged",
    "unknown-key",
    "missing-path",
]
"""The last part of a problem's type."""

Effect = Literal["none", "running", "unknown", "answered"]


@attrs.frozen
class Problem:
    """A situation. ``effect``: what has come of this key's request, as far as the layer knows."""

    status: int
    title: str
    effect: Effect
    detail: str


@attrs.frozen
class Refusal:
    """A problem that one request meets.

    Attributes:
        retry_after: seconds; ``None``: the client is not asked to come again by itself.
        why: what is wrong in this case, put before the detail.
        members: further members of the body.
        headers: further headers of the answer.
    """

    slug: Slug
    retry_after: float | None = None
    why: str = ""
    members: dict[str, Any] = attrs.field(factory=dict)
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def problem(self) -> Problem:
        """What it is a case of."""
        return PROBLEMS[self.slug]

    @property
    def detail(self) -> str:
        """The whole text."""
        return f"{self.why} {self.problem.detail}".lstrip()

    @property
    def message(self) -> str:
        """The title and the whole text, where a form has one place for both."""
        return f"{self.problem.title}. {self.detail}"


PROBLEMS: Final[dict[Slug, Problem]] = {
    "missing-key": Problem(
        400,
        "Idempotency-Key is missing",
        "none",
        "This operation needs an Idempotency-Key header. Nothing ran and nothing was charged. Send"
        " the request with a new random key, such as a UUID, and use the same key for each retry.",
    ),
    "malformed-key": Problem(
        400,
        "Idempotency-Key is malformed",
        "none",
        "Nothing ran and nothing was charged. Send the request with a well-formed key of 1 to 255"
        " characters.",
    ),
    "unauthenticated": Problem(
        401,
        "The caller is not authenticated",
        "none",
        "A key belongs to a caller, and this request does not show who that is. Nothing ran and"
        " nothing was charged. Send it again with valid credentials and the same key.",
    ),
    "incomplete-body": Problem(
        400,
        "The request's body ended early",
        "none",
        "Fewer bytes came than were announced. Nothing ran and nothing was charged. Send the whole"
        " request again with the same key.",
    ),
    "body-too-large": Problem(
        413,
        "The request's body is too large",
        "none",
        "Nothing ran and nothing was charged. Send a smaller request.",
    ),
    "key-reused": Problem(
        422,
        "Idempotency-Key is already used",
        "none",
        "This key belongs to another request: its method, path, query or body differ from this one."
        " This request ran nothing and charged nothing, and the other one is untouched. If this is"
        " a retry, repeat the first request exactly, and take no new key: it may have taken effect."
        " Only another operation takes a new key.",
    ),
    "running": Problem(
        409,
        "A request with this Idempotency-Key is running",
        "running",
        "The first request with this key has not ended. This one ran nothing, so nothing is charged"
        " twice. Send it again with the same key after the time in Retry-After.",
    ),
    "in-doubt": Problem(
        409,
        "It is in doubt whether this request took effect",
        "unknown",
        "A request with this key began, and nobody knows how it ended: it may or may not have taken"
        " effect. Nothing runs again before that is known, so nothing is charged twice. Do not send"
        " it with another key. Ask for the state of this key later, or ask support.",
    ),
    "expired": Problem(
        422,
        "The answer to this Idempotency-Key has expired",
        "answered",
        "This key was answered, and its answer is no longer kept. Nothing ran now and nothing was"
        " charged now. If you do not know the answer, look up what became of the first request"
        " before you send a new one with a new key.",
    ),
    "unavailable": Problem(
        503,
        "Idempotency cannot be ensured just now",
        "none",
        "The store of the keys does not answer, is full, or is being shut down. This request ran"
        " nothing and charged nothing. Send it again with the same key after the time in"
        " Retry-After.",
    ),
    "not-stored": Problem(
        503,
        "The request ran, but its answer could not be stored",
        "unknown",
        "The application ran and gave an answer with the status in application_status, and that"
        " answer may not be stored. Nothing runs a second time for this key. Send the request again"
        " with the same key, never with another one: it gets the answer, or is told that the key is"
        " in doubt.",
    ),
    "superseded": Problem(
        409,
        "Another request with this Idempotency-Key has taken over",
        "unknown",
        "This request ran for longer than its lease, and another one with the same key took over:"
        " that one's answer counts. Send it again with the same key after the time in Retry-After.",
    ),
    "not-kept": Problem(
        409,
        "This request was carried out; its answer was too large to keep",
        "answered",
        "The first request with this key was answered with the status in original_status, and that"
        " answer was too large to be kept. Nothing ran now and nothing was charged now. Do not send"
        " it with another key: look up what it made.",
    ),
    "damaged": Problem(
        500,
        "What is stored for this Idempotency-Key cannot be used",
        "unknown",
        "The record of this key is damaged, or is no HTTP answer. Nothing ran now and nothing was"
        " charged now. Do not send the request with another key: ask support what became of it.",
    ),
    "unknown-key": Problem(
        404,
        "Nothing is known of this Idempotency-Key",
        "unknown",
        "No request of yours with this key is running, in doubt or answered: it never came, changed"
        " nothing, or its answer is too old and was removed. A request with this key would"
        " run: if the first one may be as old as that, look up what became of it before.",
    ),
    "missing-path": Problem(
        400,
        "The question does not say which path it is about",
        "none",
        "Under profile acp a key belongs to a path. Nothing was looked up, so this says nothing"
        " about any request. Ask again with the path of that request: ?path=/checkout_sessions.",
    ),
}
