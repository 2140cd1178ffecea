"""A shop behind a layer with some profile, as ASGI and as WSGI, on a store in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvreplay import asgi, wsgi
from kvreplay.backends.memory import MemoryStore
from kvreplay.testing import FaultyStore
from support.http_apps import (
    FACES,
    Given,
    Reply,
    Says,
    asgi_app,
    asked_of_asgi,
    asked_of_wsgi,
    caller_of_environ,
    caller_of_scope,
    environ_of,
    request_with,
    wsgi_app,
)
from support.replaying import Async, Caller, FakeClock, Sync

__all__ = ["DAY", "FACES", "Begun", "Given", "Reply", "Shop"]

DAY = 24 * 60 * 60

Begun = Callable[[Given], tuple[int, Mapping[str, str], bytes]]


class Shop:
    """Counts its runs; answers as ``answers`` says, or 201 with the number of the run."""

    def __init__(
        self,
        face: str,
        profile: Any,
        answers: Begun | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        **layer: Any,
    ) -> None:
        self.clock = FakeClock()
        self.runs: list[Given] = []
        self._face = face
        self._answers = answers or (lambda given: (201, {}, b"%d" % len(self.runs)))
        self.store = FaultyStore(MemoryStore())
        settings = {"ttl": DAY, "clock": self.clock, **(settings or {})}
        kind = Async if face == "asgi" else Sync
        self.replay: Any = kind(self.store, "shop", **settings)
        if face == "asgi":
            layer = {"scope": caller_of_scope, "profile": profile, **layer}
            app = asgi_app(self._answer)
            self._app: Any = asgi.IdempotencyMiddleware(app, self.replay.replay, **layer)
        else:
            layer = {"scope": caller_of_environ, "profile": profile, **layer}
            app = wsgi_app(self._answer)
            self._app = wsgi.IdempotencyMiddleware(app, self.replay.replay, **layer)

    def post(
        self,
        path: str = "/payments",
        body: bytes = b'{"amount": 5}',
        *,
        key: str | None = "key-1",
        caller: str | None = "alice",
        query: str = "",
        method: str = "POST",
    ) -> Reply:
        """Make a request; ``key``: the header's whole value."""
        asked = request_with(method, path, query, body, field=key, caller=caller)
        if self._face == "asgi":
            return asked_of_asgi(self._app, asked).result()
        return asked_of_wsgi(self._app, environ_of(asked)).result()

    def get(self, path: str, **options: Any) -> Reply:
        return self.post(path, b"", method="GET", **options)

    def meanwhile(self, **options: Any) -> Reply:
        """Make a request while another one runs, from inside of it."""
        reply = Caller(self.post, **options).result()
        assert isinstance(reply, Reply)
        return reply

    def _answer(self, given: Given) -> Says:
        self.runs.append(given)
        status, headers, body = self._answers(given)
        return Says(status, tuple(headers.items()), (body,))
