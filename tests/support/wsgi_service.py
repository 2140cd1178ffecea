"""The same as ``asgi_service.py`` for WSGI, with what WSGI has of it."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator
from pathlib import Path

from flask import Flask, Response, request

from kvreplay import Replay, open_store
from kvreplay.wsgi import IdempotencyMiddleware

FOLDER = Path(os.environ["FOLDER"])
store = open_store(os.environ["REPLAY_STORE"])
replay = Replay(store, "requests", ttl="1h")
app = Flask(__name__)
app.wsgi_app = IdempotencyMiddleware(  # type: ignore[method-assign]
    app.wsgi_app, replay, scope=lambda environ: "everybody"
)


def note(what: str) -> None:
    with open(FOLDER / "notes", "a", encoding="ascii") as file:
        file.write(f"{what}\n")


def when_told() -> None:
    while not (FOLDER / "go").exists():
        time.sleep(0.01)
    note("done later")


@app.post("/background")
def background() -> Response:
    note("answered")
    response = Response("later", 202, mimetype="text/plain")
    response.call_on_close(when_told)
    return response


@app.post("/stream")
def stream() -> Response:
    size, parts = int(request.args["size"]), int(request.args["parts"])
    note(f"streamed {size * parts}")
    every = (bytes([65 + n % 26]) * size for n in range(parts))
    return Response(every, 201, mimetype="text/plain")


@app.post("/breaks")
def breaks() -> Response:
    note("broke off")

    def every() -> Iterator[bytes]:
        yield b"the beginning"
        raise ZeroDivisionError

    return Response(every())


@app.post("/ending")
def ending() -> Response:
    note("ended")
    request.environ["kvreplay.request"].ending = request.args["is"].replace("-", " ")
    return Response("as it was told", 200)


@app.post("/headers")
def headers() -> Response:
    response = Response("made", 201, mimetype="text/plain")
    response.headers.add("Link", "</a>; rel=a")
    response.headers.add("Link", "</b>; rel=b")
    response.headers["Location"] = "/made/1"
    response.set_cookie("session", "secret")
    return response


@atexit.register
def end() -> None:
    store.close()
    note("ended in good order")


note("began")
