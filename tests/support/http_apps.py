"""A small application and a client for both HTTP layers, without a framework and without a server.

An application is one function: it is told what came, and returns what it says. The client speaks
ASGI or WSGI with the layer in front of it. To WSGI, ``wsgiref.validate`` stands on both sides.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from wsgiref.validate import validator

import attrs

from kvreplay import asgi, wsgi
from kvreplay.http import IdempotentRequest
from support.engines import Engine
from support.replaying import Async, Caller, FakeClock, Sync

__all__ = [
    "BODY",
    "FACES",
    "KEY",
    "PATH",
    "Exchange",
    "Given",
    "Reply",
    "Says",
    "Service",
    "Talk",
    "Web",
    "asgi_app",
    "asked_of_asgi",
    "asked_of_wsgi",
    "caller_of_environ",
    "caller_of_scope",
    "environ_of",
    "request_with",
    "scope_of",
    "wsgi_app",
]

KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
PATH = "/payments"
BODY = b'{"amount": 1000}'
JSON = (("content-type", "application/json"),)

FACES = ("asgi", "wsgi")


# What an application is told, and what it says.


@attrs.frozen
class Given:
    """What came. ``at``: the ASGI scope or the WSGI environ; ``told``: ``at["kvreplay.request"]``."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    at: Mapping[str, Any]

    @property
    def told(self) -> IdempotentRequest | None:
        return self.at.get("kvreplay.request")


@attrs.frozen
class Says:
    """An answer. Of its parts, bytes are sent, an exception is raised, a function is called.

    ``afterwards`` is what comes after the answer: of ASGI the rest of the application, of WSGI
    ``close()``.
    """

    status: int = 201
    headers: Sequence[tuple[str, str]] = JSON
    parts: Sequence[bytes | BaseException | Callable[[], object]] = (b'{"id": 7}',)
    afterwards: Callable[[], object] = lambda: None

    def each(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, BaseException):
                raise part
            if isinstance(part, bytes):
                yield part
            else:
                part()


Application = Callable[[Given], Says]


def asgi_app(application: Application) -> Any:
    """The application as ASGI: it reads the whole body first, and sends part by part."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError("the client is gone")
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = tuple((n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"])
        query = scope["query_string"].decode()
        says = application(
            Given(scope["method"], scope["path"], query, headers, body, scope),
        )
        encoded = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in says.headers]
        await send({"type": "http.response.start", "status": says.status, "headers": encoded})
        for part in says.each():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})
        says.afterwards()

    return app


def wsgi_app(application: Application) -> Any:
    """The application as WSGI: it reads what the length says, and returns an iterable."""

    def app(environ: Any, start_response: Any) -> Any:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        headers = tuple(
            (name.removeprefix("HTTP_").replace("_", "-").lower(), value)
            for name, value in environ.items()
            if name.startswith(("HTTP_", "CONTENT_"))
        )
        path = environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"]
        says = application(
            Given(environ["REQUEST_METHOD"], path, environ["QUERY_STRING"], headers, body, environ)
        )
        start_response(status_line(says.status), list(says.headers))
        return _Parts(says)

    return app


class _Parts:
    def __init__(self, says: Says) -> None:
        self._parts, self._says = says.each(), says

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        self._says.afterwards()


_PHRASES = {each.value: each.phrase for each in HTTPStatus}


def status_line(status: int) -> str:
    return f"{status} {_PHRASES.get(status, 'Unheard Of')}"


# A request, and what became of it.


@attrs.frozen
class Asked:
    """A request. ``body``: bytes, or the parts in which they come."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | Sequence[bytes]
    root: str = ""

    @property
    def parts(self) -> tuple[bytes, ...]:
        return (self.body,) if isinstance(self.body, bytes) else tuple(self.body)


@attrs.frozen
class Reply:
    """An answer, as it came to the client."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    is_complete: bool = True

    def all(self, name: str) -> list[str]:
        """The values of a header, in their order."""
        return [v.decode("latin-1") for n, v in self.headers if n.lower() == name.encode()]

    def header(self, name: str) -> str | None:
        """The value of a header that is there once at most."""
        values = self.all(name)
        assert len(values) <= 1, values
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def slug(self) -> str | None:
        """What kind of problem it is; ``None``: it is none."""
        if self.header("content-type") != "application/problem+json":
            return None
        return str(self.json["type"]).partition("#")[2]

    @property
    def is_replay(self) -> bool:
        return self.header("idempotent-replayed") == "true"


@attrs.frozen
class Exchange:
    """What came of a request: an answer, an error that reached the server, or both."""

    reply: Reply | None
    error: BaseException | None

    def result(self) -> Reply:
        if self.error is not None:
            raise self.error
        assert self.reply is not None
        assert self.reply.is_complete
        return self.reply


# A client of ASGI.


def scope_of(asked: Asked, **more: Any) -> dict[str, Any]:
    headers = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in asked.headers]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": asked.root + asked.path,
        "raw_path": (asked.root + asked.path).encode(),
        "root_path": asked.root,
        "query_string": asked.query.encode(),
        "headers": headers,
        "client": ("192.0.2.1", 50000),
        "server": ("192.0.2.2", 80),
        **more,
    }


class Talk:
    """One request, message by message: ``receive`` and ``send`` of a server, whose client may go.

    As servers do it, ``receive()`` gives the body and then waits until the answer is complete or
    the client is gone. What is sent to a client that is gone is lost.
    """

    def __init__(self, asked: Asked, **more: Any) -> None:
        self.scope = scope_of(asked, **more)
        self.sent: list[dict[str, Any]] = []
        self.received: list[str] = []
        self._parts = list(asked.parts) or [b""]
        self._over = asyncio.Event()
        self.is_gone = False

    def disconnect(self) -> None:
        """The client goes."""
        self.is_gone = True
        self._over.set()

    async def receive(self) -> dict[str, Any]:
        if self._parts and not self.is_gone:
            part = self._parts.pop(0)
            self.received.append("http.request")
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self._over.wait()
        self.received.append("http.disconnect")
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await asyncio.sleep(0)  # as a server that waits for its socket
        if self.is_gone:
            return
        self.sent.append(dict(message))
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._over.set()

    @property
    def reply(self) -> Reply | None:
        """What the client has got so far; ``None``: nothing."""
        if not self.sent:
            return None
        start, *bodies = self.sent
        assert start["type"] == "http.response.start"
        assert all(each["type"] == "http.response.body" for each in bodies)
        ends = [each for each in bodies if not each.get("more_body", False)]
        assert ends in ([], bodies[-1:])
        headers = tuple((bytes(name), bytes(value)) for name, value in start["headers"])
        body = b"".join(each.get("body", b"") for each in bodies)
        return Reply(start["status"], headers, body, bool(ends))


def asked_of_asgi(app: Any, asked: Asked, **more: Any) -> Exchange:
    """Ask an ASGI application, on an event loop of its own; no task of it may be left."""

    async def ask() -> Exchange:
        talk, error = Talk(asked, **more), None
        try:
            await app(talk.scope, talk.receive, talk.send)
        except Exception as raised:
            error = raised
        for _ in range(3):
            await asyncio.sleep(0)  # callbacks of what has ended
        others = asyncio.all_tasks() - {asyncio.current_task()}
        # A store on a server has tasks, and on Python 3.11 these have others, without a name.
        if not any(task.get_name().startswith("pool-") for task in others):
            assert not others, others
        return Exchange(talk.reply, error)

    return asyncio.run(ask())


# A client of WSGI.


def environ_of(asked: Asked, **more: Any) -> dict[str, Any]:
    body = b"".join(asked.parts)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": asked.method,
        "SCRIPT_NAME": asked.root,
        "PATH_INFO": asked.path.encode().decode("latin-1"),
        "QUERY_STRING": asked.query,
        "SERVER_NAME": "192.0.2.2",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if body or asked.method != "GET":
        environ["CONTENT_LENGTH"] = str(len(body))
    for name, value in asked.headers:
        name = name.upper().replace("-", "_")
        if name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            environ[name] = value
        else:
            own = f"HTTP_{name}"
            environ[own] = f"{environ[own]}, {value}" if own in environ else value
    return environ | more


def asked_of_wsgi(app: Any, environ: dict[str, Any], take: int | None = None) -> Exchange:
    """Ask a WSGI application as PEP 3333 says; ``take``: the client goes after so many parts."""
    started: list[Any] = []
    body: list[bytes] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        assert exc_info is not None or not started
        if exc_info is not None and body:
            raise exc_info[1].with_traceback(exc_info[2])
        started[:] = [status, headers]
        return body.append

    error: BaseException | None = None
    result: Any = None
    is_complete = False
    try:
        result = app(environ, start_response)
        for number, part in enumerate(result):
            if number == take:
                break
            assert started, "a part came before start_response"
            body.append(part)
        else:
            is_complete = True
    except Exception as raised:
        error = raised
    finally:
        if hasattr(result, "close"):
            try:
                result.close()
            except Exception as raised:
                error = error or raised
    if not started or (error is not None and not body):
        return Exchange(None, error)
    status, headers = started
    pairs = tuple((n.encode("latin-1"), v.encode("latin-1")) for n, v in headers)
    return Exchange(Reply(int(status[:3]), pairs, b"".join(body), is_complete), error)


# A service: a layer, the application behind it, and the replay in between.


def caller_of_scope(scope: Mapping[str, Any]) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return str(value.decode())
    return None


def caller_of_environ(environ: Mapping[str, Any]) -> str | None:
    return environ.get("HTTP_AUTHORIZATION")


def request_with(
    method: str,
    path: str,
    query: str,
    body: bytes | Sequence[bytes],
    *,
    field: str | None,
    caller: str | None,
    headers: Sequence[tuple[str, str]] = (),
    root: str = "",
) -> Asked:
    """A request with a key's header and a caller, as far as there are any."""
    own = (("idempotency-key", field), ("authorization", caller))
    sent = (*headers, *((name, value) for name, value in own if value is not None))
    return Asked(method, path, query, sent, body, root)


@attrs.define
class Service:
    """A layer with its application. ``runs``: what the application was given, each time."""

    face: str
    app: Any
    replay: Any  # support.replaying's face: blocking calls, whatever the layer is
    runs: list[Given]
    is_quoted: bool

    def ask(
        self,
        method: str = "POST",
        path: str = PATH,
        body: bytes | Sequence[bytes] = BODY,
        *,
        key: str | None = KEY,
        field: str | None = None,
        caller: str | None = "alice",
        query: str = "",
        headers: Sequence[tuple[str, str]] = JSON,
        root: str = "",
        **more: Any,
    ) -> Exchange:
        """Make a request.

        Args:
            key: sent as the profile wants it; ``None``: without one.
            field: the header's value as it is, in place of the key.
            more: further members of the scope or environ.
        """
        if field is None and key is not None:
            field = f'"{key}"' if self.is_quoted else key
        asked = request_with(
            method, path, query, body, field=field, caller=caller, headers=headers, root=root
        )
        if self.face == "asgi":
            return asked_of_asgi(self.app, asked, **more)
        return asked_of_wsgi(validator(self.app), environ_of(asked, **more))

    def post(self, *args: Any, **options: Any) -> Reply:
        """``POST``, for an answer; what reaches the server as an error is raised."""
        return self.ask("POST", *args, **options).result()

    def get(self, path: str, **options: Any) -> Reply:
        return self.ask("GET", path, b"", **{"key": None, **options}).result()

    def begin(self, **options: Any) -> Caller:
        """Make a request on a thread of its own; ``result()`` is its exchange."""
        return Caller(self.ask, **options)


@attrs.define
class Web:
    """Makes services of one face on one store."""

    face: str
    engine: Engine
    clock: FakeClock = attrs.field(factory=FakeClock)
    store: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.store = self.engine.open()

    def replay(self, store: Any = None, **settings: Any) -> Any:
        """A replay for this face, with blocking calls; ``.replay`` is the real one."""
        kind = Async if self.face == "asgi" else Sync
        settings = {"ttl": 3600, "clock": self.clock, **settings}
        return kind(self.store if store is None else store, "http", **settings)

    def serve(
        self,
        says: Application | Says = Says(),
        *,
        replay: Any = None,
        store: Any = None,
        settings: Mapping[str, Any] | None = None,
        **layer: Any,
    ) -> Service:
        """A service.

        Args:
            replay: as :meth:`replay` makes it; or it is made with ``store`` and ``settings``.
            layer: the layer's settings; by default the header Authorization names the caller.
        """
        runs: list[Given] = []

        def application(given: Given) -> Says:
            runs.append(given)
            return says if isinstance(says, Says) else says(given)

        if replay is None:
            replay = self.replay(store, **(settings or {}))
        is_quoted = layer.get("profile", "ietf") == "ietf"
        if self.face == "asgi":
            layer = {"scope": caller_of_scope, **layer}
            app: Any = asgi.IdempotencyMiddleware(asgi_app(application), replay.replay, **layer)
        else:
            layer = {"scope": caller_of_environ, **layer}
            inner = validator(wsgi_app(application))
            app = wsgi.IdempotencyMiddleware(inner, replay.replay, **layer)
        return Service(self.face, app, replay, runs, is_quoted)
