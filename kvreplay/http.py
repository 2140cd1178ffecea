"""The values of the HTTP layer, for applications, reconcilers and operators; see ``docs/http.md``.

The layer itself is :class:`kvreplay.asgi.IdempotencyMiddleware` or
:class:`kvreplay.wsgi.IdempotencyMiddleware`.
"""

from kvreplay import ReplayRecord
from kvreplay._http.answers import Answer, answer, answer_in
from kvreplay._http.requests import (
    Ending,
    HTTPRequest,
    IdempotentRequest,
    downstream_key,
    request_of,
)

__all__ = [
    "Answer",
    "Ending",
    "HTTPRequest",
    "IdempotentRequest",
    "answer",
    "answer_of",
    "downstream_key",
    "request_of",
]


def answer_of(record: ReplayRecord) -> Answer | None:
    """Return the HTTP answer that a record keeps; ``None``: it has none, or something else."""
    return answer_in(record.load_response())
