"""What the pages of the frameworks warn of, and the order of what stands around the layer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvreplay import AsyncReplay, NotAppliedError, Replay, open_store
from kvreplay.asgi import IdempotencyMiddleware as ASGIMiddleware
from kvreplay.wsgi import IdempotencyMiddleware as WSGIMiddleware
from support.django_settings import forget_settings
from support.extras import needs_http
from support.http_clients import ALICE, ASGIClient, WSGIClient
from support.http_frameworks import Urls, caller_of_environ, caller_of_scope

pytestmark = [needs_http, pytest.mark.usefixtures("no_logging_left")]

KEYED = {**ALICE, "Idempotency-Key": '"k-1"'}


@pytest.fixture
def layer() -> Iterator[dict[str, Any]]:
    """The arguments of a layer for ASGI."""
    with open_store("memory:") as store:
        yield {"replay": AsyncReplay(store, "http", ttl="24h"), "scope": caller_of_scope}


@pytest.fixture
def under_wsgi() -> Iterator[Callable[[Any], Any]]:
    """A function that puts the layer around a WSGI application."""
    with open_store("memory:") as store:
        replay = Replay(store, "http", ttl="24h")
        yield lambda app: WSGIMiddleware(app, replay, scope=caller_of_environ)


def is_in_doubt(answer: Any) -> bool:
    return answer.status_code == 409 and answer.json()["type"] == "/idempotency#in-doubt"


# FastAPI and Starlette.


@pytest.mark.parametrize(("scope", "seen"), [(None, False), ("function", True)])
def test_what_a_dependency_does_after_its_yield_comes_too_late(
    layer: dict[str, Any], scope: Any, seen: bool
) -> None:
    from fastapi import Depends, FastAPI

    def session() -> Iterator[None]:
        yield
        raise OSError("the commit failed")

    app = FastAPI()
    app.add_middleware(ASGIMiddleware, **layer)

    async def pay(_: None = Depends(session, scope=scope)) -> str:
        return "paid"

    app.post("/")(pay)
    with ASGIClient(app) as client:
        first, retry = client.post("/", None), client.post("/", None)
    assert first.status_code == (500 if seen else 200)
    assert is_in_doubt(retry) is seen


def test_a_handler_of_exceptions_decides_by_its_status(layer: dict[str, Any]) -> None:
    from fastapi import FastAPI
    from fastapi.responses import Response

    app, runs = FastAPI(), []
    app.add_middleware(ASGIMiddleware, **layer)

    async def answered(request: Any, error: Exception) -> Any:
        return Response(status_code=int(str(error)))

    app.add_exception_handler(TimeoutError, answered)

    async def pay(status: int) -> None:
        runs.append(status)
        raise TimeoutError(str(status))

    app.post("/")(pay)
    with ASGIClient(app) as client:
        for status in (503, 504):
            path, key = f"/?status={status}", f'"{status}"'
            assert [client.post(path, None, key).status_code for _ in range(2)] == [
                status,
                503 if status == 503 else 409,
            ]
    assert runs == [503, 503, 504]


def test_what_is_added_last_is_outermost(layer: dict[str, Any]) -> None:
    from fastapi import FastAPI
    from fastapi.middleware.cors import CORSMiddleware
    from fastapi.middleware.gzip import GZipMiddleware

    app = FastAPI()
    app.add_middleware(ASGIMiddleware, **layer)
    app.add_middleware(GZipMiddleware, minimum_size=10)
    app.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"])

    async def pay() -> str:
        return "paid " * 100

    app.post("/")(pay)
    asked = {**KEYED, "Origin": "https://shop.example"}
    with ASGIClient(app) as client:
        for encoding in ("gzip", "identity"):  # the stored answer is not compressed
            headers = {**asked, "Accept-Encoding": encoding}
            answer = client.request("POST", "/", headers=headers)
            assert answer.json() == "paid " * 100
            assert answer.headers.get("content-encoding", "identity") == encoding
        refused = client.request("POST", "/?other", headers=asked)
        assert refused.status_code == 422
        assert refused.headers["access-control-allow-origin"] == "https://shop.example"


def test_compression_inside_is_stored(layer: dict[str, Any]) -> None:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def pay(request: Any) -> Any:
        return PlainTextResponse("paid " * 100)

    app = Starlette(
        routes=[Route("/", pay, methods=["POST"])],
        middleware=[
            Middleware(ASGIMiddleware, **layer),
            Middleware(GZipMiddleware, minimum_size=10),
        ],
    )
    with ASGIClient(app) as client:
        for encoding in ("gzip", "identity"):
            headers = {**KEYED, "Accept-Encoding": encoding}
            answer = client.request("POST", "/", headers=headers)
            assert answer.headers["content-encoding"] == "gzip"


def test_a_middleware_of_functions_may_stand_on_both_sides(layer: dict[str, Any]) -> None:
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    later: list[str] = []

    async def pay(request: Any) -> Any:
        return PlainTextResponse("paid", background=BackgroundTask(later.append, "done"))

    async def passing(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    around = Middleware(BaseHTTPMiddleware, dispatch=passing)
    app = Starlette(
        routes=[Route("/", pay, methods=["POST"])],
        middleware=[around, Middleware(ASGIMiddleware, **layer), around],
    )
    with ASGIClient(app) as client:
        for _ in range(2):
            assert client.post("/", None).text == "paid"
    assert later == ["done"]


def test_a_background_task_that_fails_changes_nothing(layer: dict[str, Any]) -> None:
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    def fail() -> None:
        raise OSError("too late")

    async def pay(request: Any) -> Any:
        return PlainTextResponse("paid", background=BackgroundTask(fail))

    app = Starlette(
        routes=[Route("/", pay, methods=["POST"])],
        middleware=[Middleware(ASGIMiddleware, **layer)],
    )
    with ASGIClient(app) as client:
        assert client.post("/", None).text == "paid"
        assert client.post("/", None).headers["idempotent-replayed"] == "true"


def test_authentication_outside_has_said_who_asks(layer: dict[str, Any]) -> None:
    from starlette.applications import Starlette
    from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
    from starlette.middleware import Middleware
    from starlette.middleware.authentication import AuthenticationMiddleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    class Tokens(AuthenticationBackend):
        async def authenticate(self, conn: Any) -> Any:
            sent = conn.headers.get("authorization", "")
            if sent == "Bearer token-alice":
                return AuthCredentials(), SimpleUser("alice")
            return None

    def caller(scope: Any) -> str | None:
        return (scope["user"].is_authenticated and scope["user"].username) or None

    async def pay(request: Any) -> Any:
        return PlainTextResponse(request.scope["kvreplay.request"].key.scope)

    app = Starlette(
        routes=[Route("/", pay, methods=["POST"])],
        middleware=[
            Middleware(AuthenticationMiddleware, backend=Tokens()),
            Middleware(ASGIMiddleware, **{**layer, "scope": caller}),
        ],
    )
    with ASGIClient(app) as client:
        assert client.post("/", None).text == "alice"
        assert client.post("/", None, who={}).status_code == 401


def test_a_mounted_application_is_told_and_its_whole_path_is_compared(
    layer: dict[str, Any],
) -> None:
    from fastapi import FastAPI
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def pay(request: Any) -> Any:
        return JSONResponse(request.scope["kvreplay.request"].key.id)

    inner = Starlette(routes=[Route("/pay", pay, methods=["POST"])])
    outer = FastAPI()
    outer.add_middleware(ASGIMiddleware, **layer)
    for prefix in ("/v1", "/v2"):
        outer.mount(prefix, inner)
    with ASGIClient(outer) as client:
        assert client.post("/v1/pay", None).json() == "k-1"
        assert client.post("/v2/pay", None).status_code == 422


@pytest.mark.parametrize("freed", [False, True])
def test_a_redirect_to_the_path_without_a_slash_frees_the_key(
    layer: dict[str, Any], freed: bool
) -> None:
    from fastapi import FastAPI

    app = FastAPI()
    statuses = None if freed else {307: "kept"}
    app.add_middleware(ASGIMiddleware, **layer, statuses=statuses)

    @app.post("/payments", status_code=201)
    async def pay() -> None:
        pass

    with ASGIClient(app) as client:
        assert client.post("/payments/", None).status_code == 307
        assert client.post("/payments", None).status_code == (201 if freed else 422)


def test_a_layer_of_a_mounted_application_has_its_policy_there(layer: dict[str, Any]) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    async def pay(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    app = Starlette(routes=[Mount("/api", ASGIMiddleware(pay, **layer))])
    with ASGIClient(app) as client:
        assert client.request("GET", "/api/idempotency").status_code == 200
        assert client.post("/api/pay", None).status_code == 204
        refused = client.post("/api/other", None)
        assert refused.json()["type"] == "/api/idempotency#key-reused"


def test_a_websocket_passes_through(layer: dict[str, Any]) -> None:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import WebSocketRoute

    async def echo(socket: Any) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    app = Starlette(
        routes=[WebSocketRoute("/ws", echo)],
        middleware=[Middleware(ASGIMiddleware, **layer)],
    )
    heard = iter([{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"}])
    said: list[Any] = []

    async def receive() -> Any:
        return next(heard)

    async def send(message: Any) -> None:
        said.append(message)

    scope = {
        "type": "websocket",
        "path": "/ws",
        "query_string": b"",
        "headers": [(b"idempotency-key", b"no key")],
        "subprotocols": [],
    }
    asyncio.run(app(scope, receive, send))
    assert [each["type"] for each in said] == [
        "websocket.accept",
        "websocket.send",
        "websocket.close",
    ]
    assert said[1]["text"] == "hello"


# Flask.


def test_flask_has_no_exception_for_402(under_wsgi: Callable[[Any], Any]) -> None:
    from flask import Flask, abort, request

    app = Flask(__name__)
    app.wsgi_app = under_wsgi(app.wsgi_app)  # type: ignore[method-assign]

    @app.post("/<int:status>")
    def pay(status: int) -> Any:
        abort(status)

    @app.post("/key")
    def look() -> Any:
        return {"to": request.get_json()["to"]}

    with WSGIClient(app) as client:
        for path, sent, status in (("/402", {}, 500), ("/400", {}, 400), ("/key", {}, 500)):
            key = f'"{path}"'
            assert client.post(path, sent, key).status_code == status
            assert is_in_doubt(client.post(path, sent, key)) is (status == 500)


def test_flask_lets_exceptions_out_if_it_is_told_to(under_wsgi: Callable[[Any], Any]) -> None:
    from flask import Flask

    app = Flask(__name__)
    app.config["PROPAGATE_EXCEPTIONS"] = True
    app.wsgi_app = under_wsgi(app.wsgi_app)  # type: ignore[method-assign]

    @app.post("/")
    def pay() -> Any:
        raise NotAppliedError("nothing happened")

    with WSGIClient(app) as client:
        for _ in range(2):
            assert client.post("/", None).status_code == 500, "the key was freed"


def test_the_cookie_of_a_session_is_not_replayed(under_wsgi: Callable[[Any], Any]) -> None:
    from flask import Flask, session

    app = Flask(__name__)
    app.secret_key = "a secret of this test"
    app.wsgi_app = under_wsgi(app.wsgi_app)  # type: ignore[method-assign]

    @app.post("/")
    def pay() -> Any:
        session["paid"] = True
        return "paid"

    with WSGIClient(app) as client:
        first, retry = (client.request("POST", "/", headers=KEYED) for _ in range(2))
    assert "set-cookie" in first.headers
    assert "set-cookie" not in retry.headers
    assert retry.headers["idempotent-replayed"] == "true"


def test_the_test_client_of_flask_meets_the_layer(under_wsgi: Callable[[Any], Any]) -> None:
    from flask import Flask
    from werkzeug.middleware.proxy_fix import ProxyFix

    app = Flask(__name__)
    layer = under_wsgi(app.wsgi_app)
    app.wsgi_app = ProxyFix(layer, x_prefix=1)  # type: ignore[method-assign]

    @app.post("/pay")
    def pay() -> Any:
        return "paid"

    client = app.test_client()
    assert client.post("/pay").status_code == 400
    prefixed = {**KEYED, "X-Forwarded-Prefix": "/api"}
    assert client.post("/pay", headers=prefixed).status_code == 200
    refused = client.post("/other", headers=prefixed)
    assert refused.get_json(force=True)["type"] == "/api/idempotency#key-reused"


@pytest.mark.parametrize(("more", "kept"), [({}, True), ({"statuses": {"5xx": "in doubt"}}, False)])
def test_under_stripe_the_page_of_an_exception_is_kept_unless_it_is_told(
    more: dict[str, Any], kept: bool
) -> None:
    from flask import Flask

    app = Flask(__name__)

    @app.post("/")
    def pay() -> Any:
        raise ValueError("a bug")

    with open_store("memory:") as store:
        replay = Replay(store, "http", ttl="24h")
        layer = WSGIMiddleware(
            app.wsgi_app, replay, scope=caller_of_environ, profile="stripe", **more
        )
        with WSGIClient(layer) as client:
            first, retry = client.post("/", None), client.post("/", None)
    assert first.status_code == 500
    assert retry.status_code == (500 if kept else 409)
    assert ("idempotent-replayed" in retry.headers) is kept


# Django.


def configured(**settings: Any) -> Any:
    """Return a WSGI application of Django's with one view."""
    from django.conf import settings as django_settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.urls import path

    def pay(request: Any) -> Any:
        if request.GET:
            raise ValueError("a bug")
        return HttpResponse("paid " * 100)

    forget_settings()
    django_settings.configure(
        ROOT_URLCONF=Urls(urlpatterns=[path("", pay)]),
        ALLOWED_HOSTS=["localhost"],
        LOGGING_CONFIG=None,
        **settings,
    )
    return get_wsgi_application()


def test_django_refuses_who_has_no_csrf_cookie_and_frees_the_key(
    under_wsgi: Callable[[Any], Any],
) -> None:
    app = under_wsgi(configured(MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"]))
    with WSGIClient(app) as client:
        for _ in range(2):
            answer = client.post("/", None)
            assert answer.status_code == 403
            assert "idempotent-replayed" not in answer.headers


def test_django_compresses_inside(under_wsgi: Callable[[Any], Any]) -> None:
    app = under_wsgi(configured(MIDDLEWARE=["django.middleware.gzip.GZipMiddleware"]))
    with WSGIClient(app) as client:
        for encoding in ("gzip", "identity"):
            headers = {**KEYED, "Accept-Encoding": encoding}
            answer = client.request("POST", "/", headers=headers)
            assert answer.headers["content-encoding"] == "gzip"


def test_the_page_of_debug_is_not_stored(under_wsgi: Callable[[Any], Any]) -> None:
    app = under_wsgi(configured(DEBUG=True, SECRET_KEY="a secret of this test"))
    with WSGIClient(app) as client:
        assert "ValueError" in client.post("/?bug=1", None).text
        assert is_in_doubt(client.post("/?bug=1", None))


def test_the_test_client_of_django_does_not_meet_the_layer(
    under_wsgi: Callable[[Any], Any],
) -> None:
    from django.test import Client

    app = under_wsgi(configured())
    assert Client(headers={"host": "localhost"}).post("/").status_code == 200
    with WSGIClient(app) as client:
        assert client.post("/", None, key=None).status_code == 400
