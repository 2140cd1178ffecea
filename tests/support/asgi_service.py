"""An ASGI application with what a web application may do besides answering: for ``tests/http/servers``.

It notes what it does in the file ``notes`` of its folder. What it does after an answer, it does when the file ``go``
is there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from kvreplay import AsyncReplay, open_store
from kvreplay.asgi import IdempotencyMiddleware

FOLDER = Path(os.environ["FOLDER"])
store = open_store(os.environ["REPLAY_STORE"])
replay = AsyncReplay(store, "requests", ttl="1h")


def note(what: str) -> None:
    with open(FOLDER / "notes", "a", encoding="ascii") as file:
        file.write(f"{what}\n")


async def when_told(what: str) -> None:
    while not (FOLDER / "go").exists():
        await asyncio.sleep(0.01)
    note(what)


async def background(request: Request) -> Response:
    note("answered")
    return PlainTextResponse("later", 202, background=BackgroundTask(when_told, "done later"))


async def stream(request: Request) -> Response:
    size, parts = int(request.query_params["size"]), int(request.query_params["parts"])
    note(f"streamed {size * parts}")

    async def every() -> AsyncIterator[bytes]:
        for n in range(parts):
            yield bytes([65 + n % 26]) * size

    return StreamingResponse(every(), 201, media_type="text/plain")


async def breaks(request: Request) -> Response:
    note("broke off")

    async def every() -> AsyncIterator[bytes]:
        yield b"the beginning"
        raise ZeroDivisionError

    return StreamingResponse(every())


async def ending(request: Request) -> Response:
    note("ended")
    request.scope["kvreplay.request"].ending = request.query_params["is"].replace("-", " ")
    return PlainTextResponse("as it was told", 200)


async def headers(request: Request) -> Response:
    response = PlainTextResponse("made", 201)
    response.headers.append("Link", "</a>; rel=a")
    response.headers.append("Link", "</b>; rel=b")
    response.headers["Location"] = "/made/1"
    response.set_cookie("session", "secret")
    return response


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    note("began")
    yield
    await replay.close("20s")
    store.close()
    note("ended in good order")


HANDLERS = (background, stream, breaks, ending, headers)
app = IdempotencyMiddleware(
    Starlette(
        routes=[
            *(Route(f"/{each.__name__}", each, methods=["POST"]) for each in HANDLERS),
            WebSocketRoute("/echo", echo),
        ],
        lifespan=lifespan,
    ),
    replay,
    scope=lambda scope: "everybody",
)
