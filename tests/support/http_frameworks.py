"""The same small application on each framework, behind the layer: what it does is named by the path.

``/made`` has headers of all kinds; ``/streams`` and ``/file`` answer in parts; ``/later`` does
something after its answer; ``/waits`` waits until it is let go; ``/raises`` and ``/not-applied``
raise; ``/ends`` says itself how it ends, as its body wants; ``/body`` tells what it was sent.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kvreplay import AsyncReplay, NotAppliedError, Replay
from kvreplay.asgi import IdempotencyMiddleware as ASGIMiddleware
from kvreplay.wsgi import IdempotencyMiddleware as WSGIMiddleware
from support.django_settings import forget_settings
from support.waiting import PATIENCE

__all__ = ["ASGI", "BUILDERS", "SEES_EXCEPTIONS", "WSGI", "Effects"]

HEADERS = [
    ("Link", '</a>; rel="a"'),
    ("Link", '</b>; rel="b"'),
    ("Location", "/made/1"),
    ("ETag", '"1"'),
    ("X-Other", "1"),
]
COOKIE = "seen=1; Path=/"
PARTS = [b"one,", b"two,", b"three"]


class Effects:
    """What the application has done, and what lets it go on."""

    def __init__(self, folder: Path) -> None:
        self.runs: Counter[str] = Counter()
        self.later: list[str] = []
        self.go = threading.Event()
        self.file = folder / "sent.txt"
        self.file.write_bytes(b"a file of some length\n" * 100)

    def run(self, path: str) -> int:
        self.runs[path] += 1
        return self.runs[path]

    async def let_go(self) -> None:
        """Wait until it may go on, without making the loop wait."""
        assert await asyncio.to_thread(self.go.wait, PATIENCE)


def caller_of_scope(scope: Any) -> str | None:
    """Return who asks: what stands behind ``Bearer token-``."""
    sent = dict(scope["headers"]).get(b"authorization", b"").decode()
    return sent.removeprefix("Bearer token-") or None


def caller_of_environ(environ: dict[str, Any]) -> str | None:
    """Return the same for WSGI."""
    return environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer token-") or None


def parts() -> Iterator[bytes]:
    yield from PARTS


async def parts_awaited() -> AsyncIterator[bytes]:
    for part in PARTS:
        yield part


def starlette_routes(effects: Effects) -> dict[str, Any]:
    """Return the endpoints that Starlette and FastAPI share, each a function of the request."""
    from starlette.background import BackgroundTask
    from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

    async def made(request: Any) -> Any:
        response = JSONResponse({"run": effects.run("/made")}, 201)
        for name, value in HEADERS:
            response.headers.append(name, value)
        response.headers.append("Set-Cookie", COOKIE)
        return response

    async def streams(request: Any) -> Any:
        effects.run("/streams")
        return StreamingResponse(parts_awaited(), media_type="text/plain")

    async def file(request: Any) -> Any:
        effects.run("/file")
        return FileResponse(effects.file)

    async def later(request: Any) -> Any:
        effects.run("/later")
        return Response("soon", background=BackgroundTask(effects.later.append, "done"))

    async def waits(request: Any) -> Any:
        effects.run("/waits")
        await effects.let_go()
        return Response("at last")

    async def raises(request: Any) -> Any:
        effects.run("/raises")
        raise ValueError("a bug")

    async def not_applied(request: Any) -> Any:
        effects.run("/not-applied")
        raise NotAppliedError("nothing happened")

    async def ends(request: Any) -> Any:
        effects.run("/ends")
        request.scope["kvreplay.request"].ending = await request.json()
        return Response("as you like")

    async def body(request: Any) -> Any:
        return Response(await request.body())

    return {
        "/made": made,
        "/streams": streams,
        "/file": file,
        "/later": later,
        "/waits": waits,
        "/raises": raises,
        "/not-applied": not_applied,
        "/ends": ends,
        "/body": body,
    }


def starlette(effects: Effects, replay: AsyncReplay, **settings: Any) -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    routes = starlette_routes(effects)
    return Starlette(
        routes=[Route(path, run, methods=["GET", "POST"]) for path, run in routes.items()],
        middleware=[Middleware(ASGIMiddleware, replay=replay, scope=caller_of_scope, **settings)],
    )


def fastapi_app(effects: Effects) -> Any:
    from fastapi import FastAPI, Request

    app = FastAPI()
    for path, run in starlette_routes(effects).items():
        run.__annotations__ = {"request": Request}
        app.api_route(path, methods=["GET", "POST"])(run)
    return app


def fastapi(effects: Effects, replay: AsyncReplay, **settings: Any) -> Any:
    app = fastapi_app(effects)
    app.add_middleware(ASGIMiddleware, replay=replay, scope=caller_of_scope, **settings)
    return app


def fastapi_wrapped(effects: Effects, replay: AsyncReplay, **settings: Any) -> Any:
    return ASGIMiddleware(fastapi_app(effects), replay, scope=caller_of_scope, **settings)


def litestar_handlers(effects: Effects) -> list[Any]:
    from litestar import MediaType, Request, Response, route
    from litestar.background_tasks import BackgroundTask
    from litestar.datastructures import Cookie
    from litestar.response import File, Stream

    def at(path: str) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            function.__annotations__ = {"request": Request, "return": Response}
            return route(path, http_method=["GET", "POST"], status_code=200)(function)

        return decorate

    @at("/made")
    async def made(request: Any) -> Any:
        links = ", ".join(value for name, value in HEADERS if name == "Link")
        return Response(
            {"run": effects.run("/made")},
            status_code=201,
            headers={**dict(HEADERS), "Link": links},  # Litestar has each header once
            cookies=[Cookie("seen", value="1")],
        )

    @at("/streams")
    async def streams(request: Any) -> Any:
        effects.run("/streams")
        return Stream(parts_awaited(), media_type=MediaType.TEXT)

    @at("/file")
    async def file(request: Any) -> Any:
        effects.run("/file")
        return File(effects.file)

    @at("/later")
    async def later(request: Any) -> Any:
        effects.run("/later")

        async def append() -> None:
            effects.later.append("done")

        return Response("soon", media_type=MediaType.TEXT, background=BackgroundTask(append))

    @at("/waits")
    async def waits(request: Any) -> Any:
        effects.run("/waits")
        await effects.let_go()
        return Response("at last", media_type=MediaType.TEXT)

    @at("/raises")
    async def raises(request: Any) -> Any:
        effects.run("/raises")
        raise ValueError("a bug")

    @at("/not-applied")
    async def not_applied(request: Any) -> Any:
        effects.run("/not-applied")
        raise NotAppliedError("nothing happened")

    @at("/ends")
    async def ends(request: Any) -> Any:
        effects.run("/ends")
        request.scope["kvreplay.request"].ending = await request.json()
        return Response("as you like", media_type=MediaType.TEXT)

    @at("/body")
    async def body(request: Any) -> Any:
        return Response(await request.body(), media_type="application/octet-stream")

    return [made, streams, file, later, waits, raises, not_applied, ends, body]


def litestar(effects: Effects, replay: AsyncReplay, **settings: Any) -> Any:
    from litestar import Litestar

    app = Litestar(litestar_handlers(effects), logging_config=None, openapi_config=None)
    return ASGIMiddleware(app, replay, scope=caller_of_scope, **settings)


def litestar_inside(effects: Effects, replay: AsyncReplay, **settings: Any) -> Any:
    from litestar import Litestar
    from litestar.middleware import DefineMiddleware

    layer = DefineMiddleware(ASGIMiddleware, replay=replay, scope=caller_of_scope, **settings)
    return Litestar(
        litestar_handlers(effects),
        middleware=[layer],
        logging_config=None,
        openapi_config=None,
    )


def flask(effects: Effects, replay: Replay, **settings: Any) -> Any:
    from flask import Flask, Response, request, send_file, stream_with_context

    app = Flask(__name__)

    def at(path: str) -> Callable[[Any], Any]:
        return app.route(path, methods=["GET", "POST"])

    @at("/made")
    def made() -> Any:
        response = Response(f'{{"run": {effects.run("/made")}}}', 201, mimetype="application/json")
        response.autocorrect_location_header = False
        for name, value in HEADERS:
            response.headers.add(name, value)
        response.headers.add("Set-Cookie", COOKIE)
        return response

    @at("/streams")
    def streams() -> Any:
        effects.run("/streams")
        return Response(stream_with_context(parts()), mimetype="text/plain")

    @at("/file")
    def file() -> Any:
        effects.run("/file")
        return send_file(effects.file)

    @at("/later")
    def later() -> Any:
        effects.run("/later")
        response = Response("soon")
        response.call_on_close(lambda: effects.later.append("done"))
        return response

    @at("/waits")
    def waits() -> Any:
        effects.run("/waits")
        assert effects.go.wait(PATIENCE)
        return "at last"

    @at("/raises")
    def raises() -> Any:
        effects.run("/raises")
        raise ValueError("a bug")

    @at("/not-applied")
    def not_applied() -> Any:
        effects.run("/not-applied")
        raise NotAppliedError("nothing happened")

    @at("/ends")
    def ends() -> Any:
        effects.run("/ends")
        request.environ["kvreplay.request"].ending = request.get_json()
        return "as you like"

    @at("/body")
    def body() -> Any:
        return Response(request.get_data(), mimetype="application/octet-stream")

    app.wsgi_app = WSGIMiddleware(  # type: ignore[method-assign]
        app.wsgi_app, replay, scope=caller_of_environ, **settings
    )
    return app


def django_views(effects: Effects, *, awaited: bool, asgi: bool) -> dict[str, Any]:
    import json

    from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse

    def told(request: Any) -> Any:
        return (request.scope if asgi else request.META)["kvreplay.request"]

    def made(request: Any) -> Any:
        response = JsonResponse({"run": effects.run("/made")}, status=201)
        links = ", ".join(value for name, value in HEADERS if name == "Link")
        for name, value in {**dict(HEADERS), "Link": links}.items():  # each header once
            response[name] = value
        response.set_cookie("seen", "1")
        return response

    def streams(request: Any) -> Any:
        effects.run("/streams")
        stream = parts_awaited() if asgi else parts()
        return StreamingHttpResponse(stream, content_type="text/plain")

    def file(request: Any) -> Any:
        effects.run("/file")
        return FileResponse(effects.file.open("rb"))

    class Later(HttpResponse):
        def close(self) -> None:
            super().close()
            effects.later.append("done")

    def later(request: Any) -> Any:
        effects.run("/later")
        return Later("soon")

    def waits(request: Any) -> Any:
        effects.run("/waits")
        assert effects.go.wait(PATIENCE)
        return HttpResponse("at last")

    async def waits_awaited(request: Any) -> Any:
        effects.run("/waits")
        await effects.let_go()
        return HttpResponse("at last")

    def raises(request: Any) -> Any:
        effects.run("/raises")
        raise ValueError("a bug")

    def not_applied(request: Any) -> Any:
        effects.run("/not-applied")
        raise NotAppliedError("nothing happened")

    def ends(request: Any) -> Any:
        effects.run("/ends")
        told(request).ending = json.loads(request.body)
        return HttpResponse("as you like")

    def body(request: Any) -> Any:
        return HttpResponse(request.body, content_type="application/octet-stream")

    def coroutine(view: Any) -> Any:
        async def run(request: Any) -> Any:
            return view(request)

        return run

    views = {
        "/made": made,
        "/streams": streams,
        "/file": file,
        "/later": later,
        "/waits": waits,
        "/raises": raises,
        "/not-applied": not_applied,
        "/ends": ends,
        "/body": body,
    }
    if awaited:
        views = {path: coroutine(view) for path, view in views.items()}
        views["/waits"] = waits_awaited
    return views


class Urls(SimpleNamespace):
    """What Django takes for a module with ``urlpatterns``."""

    __hash__ = object.__hash__


def django_on(*, awaited: bool, asgi: bool) -> Callable[..., Any]:
    def build(effects: Effects, replay: Any, **settings: Any) -> Any:
        from django.conf import settings as django_settings
        from django.core.asgi import get_asgi_application
        from django.core.wsgi import get_wsgi_application
        from django.urls import path

        forget_settings()
        views = django_views(effects, awaited=awaited, asgi=asgi)
        django_settings.configure(
            ROOT_URLCONF=Urls(urlpatterns=[path(at[1:], run) for at, run in views.items()]),
            ALLOWED_HOSTS=["localhost"],
            LOGGING_CONFIG=None,
        )
        if asgi:
            return ASGIMiddleware(get_asgi_application(), replay, scope=caller_of_scope, **settings)
        return WSGIMiddleware(get_wsgi_application(), replay, scope=caller_of_environ, **settings)

    return build


ASGI: dict[str, Callable[..., Any]] = {
    "starlette": starlette,
    "fastapi": fastapi,
    "fastapi, wrapped": fastapi_wrapped,
    "litestar": litestar,
    "litestar, inside": litestar_inside,
    "django, asgi": django_on(awaited=False, asgi=True),
    "django, asgi, async": django_on(awaited=True, asgi=True),
}
WSGI: dict[str, Callable[..., Any]] = {
    "flask": flask,
    "django, wsgi": django_on(awaited=False, asgi=False),
    "django, wsgi, async": django_on(awaited=True, asgi=False),
}
BUILDERS = ASGI | WSGI

SEES_EXCEPTIONS = {"starlette", "fastapi"}
"""Where the layer is given the application's exception, and not a page that was made of it."""
