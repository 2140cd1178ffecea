"""What requests leave in memory, and how much of a large body is held at one moment."""

from __future__ import annotations

import asyncio
import gc
import io
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay import AsyncReplay, Replay, asgi, open_store, wsgi

MIB = 1024 * 1024
CHUNK = 64 * 1024

Ask = Callable[[str, bytes], None]
"""Sends a request with this key and body, and reads the whole answer."""


async def asgi_application(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "http.request"
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b"paid"})


def asgi_ask(app: Any, runner: asyncio.Runner, chunk: int) -> Ask:
    async def ask(key: str, body: bytes) -> None:
        parts = [(at, at + chunk) for at in range(0, len(body), chunk)]
        parts.reverse()
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            start, end = parts.pop()
            return {"type": "http.request", "body": body[start:end], "more_body": bool(parts)}

        async def send(message: Any) -> None:
            sent.append(message.get("body"))

        headers = [(b"idempotency-key", f'"{key}"'.encode())]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        await app(scope, receive, send)
        assert sent == [None, b"paid"]

    return lambda key, body: runner.run(ask(key, body))


def wsgi_application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("201 Created", [])
    return [b"paid"]


def wsgi_ask(app: Any) -> Ask:
    def ask(key: str, body: bytes) -> None:
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/",
            "HTTP_IDEMPOTENCY_KEY": f'"{key}"',
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        answer = app(environ, lambda status, headers: None)
        assert list(answer) == [b"paid"]
        getattr(answer, "close", lambda: None)()

    return ask


# How often the layer may hold a body besides the server, which holds it once.
COPIES = {"asgi": 0, "asgi in chunks": 2, "wsgi": 0}


@pytest.fixture(params=COPIES)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def ask(kind: str, tmp_path: Path) -> Iterator[Ask]:
    with open_store(f"lmdb:{tmp_path / 'store'}") as store, asyncio.Runner() as runner:
        if kind == "wsgi":
            replay = Replay(store, "payments", ttl="1h")
            app = wsgi.IdempotencyMiddleware(
                wsgi_application, replay, scope=lambda environ: "caller"
            )
            yield wsgi_ask(app)
        else:
            later = AsyncReplay(store, "payments", ttl="1h")
            layer = asgi.IdempotencyMiddleware(
                asgi_application, later, scope=lambda scope: "caller"
            )
            yield asgi_ask(layer, runner, CHUNK if "chunks" in kind else MIB)


@pytest.fixture
def traced(ask: Ask) -> Iterator[Callable[[], int]]:
    """How many bytes are held by what was made since; the first calls are made before."""
    for number in range(100):
        ask(f"warm-up-{number}", b"{}")
    tracemalloc.start()

    def held() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    try:
        yield held
    finally:
        tracemalloc.stop()


def test_requests_leave_nothing(ask: Ask, traced: Callable[[], int]) -> None:
    before = traced()
    for number in range(500):
        for _ in range(3):
            ask(f"key-{number}", b"{}")
    assert traced() - before < 40_000


@pytest.mark.parametrize("replayed", [False, True], ids=["first", "replayed"])
def test_how_often_a_large_body_is_held(
    kind: str, ask: Ask, traced: Callable[[], int], replayed: bool
) -> None:
    body = bytes(MIB)
    if replayed:
        ask("key", body)
    before = traced()
    tracemalloc.reset_peak()
    ask("key", body)
    assert tracemalloc.get_traced_memory()[1] - before < (COPIES[kind] + 0.5) * MIB
    assert traced() - before < 40_000
