"""A shop behind a layer with some profile, as ASGI and as WSGI, on a store in memory."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from kvreplay import AsyncReplay, Replay, asgi, wsgi
from kvreplay.backends.memory import MemoryStore
from kvreplay.http import IdempotentRequest
from kvreplay.testing import FaultyStore
from support.replaying import Async, Caller, FakeClock, Sync

__all__ = ["DAY", "FACES", "Begun", "Given", "Reply", "Shop"]

FACES = ("asgi", "wsgi")
DAY = 24 * 60 * 60


@attrs.frozen
class Given:
    """What the shop is given. ``told``: ``None``: the layer has passed the request through."""

    path: str
    body: bytes
    told: IdempotentRequest | None


@attrs.frozen
class Reply:
    """An answer as a client sees it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known.lower() == name]

    def header(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) < 2, values
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def is_replay(self) -> bool:
        return self.header("idempotent-replayed") == "true"


Begun = Callable[[Given], tuple[int, Mapping[str, str], bytes]]


class Shop:
    """Counts its runs; answers as ``answers`` says, or 201 with the number of the run.

    A request is made with its ``caller`` in the header Authorization.
    """

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
        self._answers = answers or (lambda given: (201, {}, b"%d" % len(self.runs)))
        self.store = FaultyStore(MemoryStore())
        settings = {"ttl": DAY, "clock": self.clock, **(settings or {})}
        if face == "asgi":
            self.replay: Any = Async(self.store, "shop", **settings)
            middleware: Any = asgi.IdempotencyMiddleware
            app, scope, self._call = self._asgi, _caller_of_scope, _call_asgi
            assert isinstance(self.replay.replay, AsyncReplay)
        else:
            self.replay = Sync(self.store, "shop", **settings)
            middleware = wsgi.IdempotencyMiddleware
            app, scope, self._call = self._wsgi, _caller_of_environ, _call_wsgi
            assert isinstance(self.replay.replay, Replay)
        layer = {"scope": scope, "profile": profile, **layer}
        self._app = middleware(app, self.replay.replay, **layer)

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
        headers = {}
        if key is not None:
            headers["idempotency-key"] = key
        if caller is not None:
            headers["authorization"] = caller
        return self._call(self._app, method, path, query, headers, body)

    def get(self, path: str, **options: Any) -> Reply:
        return self.post(path, b"", method="GET", **options)

    def meanwhile(self, **options: Any) -> Reply:
        """Make a request while another one runs, from inside of it."""
        reply = Caller(self.post, **options).result()
        assert isinstance(reply, Reply)
        return reply

    async def _asgi(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        status, headers, content = self._answer(
            Given(scope["path"], body, scope.get("kvreplay.request"))
        )
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": content})

    def _wsgi(self, environ: Any, start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read()
        status, headers, content = self._answer(
            Given(environ["PATH_INFO"], body, environ.get("kvreplay.request"))
        )
        start_response(f"{status} Because", list(headers.items()))
        return [content]

    def _answer(self, given: Given) -> tuple[int, Mapping[str, str], bytes]:
        self.runs.append(given)
        return self._answers(given)


def _caller_of_scope(scope: Any) -> str | None:
    value = dict(scope["headers"]).get(b"authorization")
    return None if value is None else value.decode()


def _caller_of_environ(environ: Any) -> str | None:
    caller: str | None = environ.get("HTTP_AUTHORIZATION")
    return caller


def _call_asgi(
    app: Any, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes
) -> Reply:
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    start, *parts = sent
    pairs = tuple((n.decode("latin-1"), v.decode("latin-1")) for n, v in start["headers"])
    return Reply(start["status"], pairs, b"".join(part["body"] for part in parts))


def _call_wsgi(
    app: Any, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes
) -> Reply:
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": query,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()},
    }
    started: list[Any] = []
    written: list[bytes] = []

    def start_response(status: str, pairs: Any, exc_info: Any = None) -> Any:
        started[:] = [int(status[:3]), tuple(pairs)]
        return written.append

    returned = app(environ, start_response)
    parts = list(returned)
    if hasattr(returned, "close"):
        returned.close()
    return Reply(*started, b"".join(written + parts))
