"""Clients that call an ASGI or WSGI application in this process, in the same words for both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self
from wsgiref.validate import validator

import httpx

from support.waiting import PATIENCE

__all__ = ["ALICE", "BOB", "ASGIClient", "Client", "WSGIClient"]

ALICE = {"Authorization": "Bearer token-alice"}
BOB = {"Authorization": "Bearer token-bob"}


class Client:
    """What both can do. An exception that the application lets out is a 500, as servers make it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what it has begun."""
        raise NotImplementedError

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the answer; ``options`` are those of httpx."""
        raise NotImplementedError

    def post(
        self, path: str, json: object, key: str | None = '"k-1"', who: dict[str, str] = ALICE
    ) -> httpx.Response:
        """Send JSON, with a key."""
        keyed = {} if key is None else {"Idempotency-Key": key}
        return self.request("POST", path, json=json, headers={**who, **keyed})

    def state(self, key: str = '"k-1"', who: dict[str, str] = ALICE) -> httpx.Response:
        """Ask for the state of a key."""
        return self.request("GET", "/idempotency", headers={**who, "Idempotency-Key": key})


class ASGIClient(Client):
    """One event loop for an application, whose lifespan it runs."""

    def __init__(self, app: Any, lifespan: bool = True) -> None:
        self._runner = asyncio.Runner()
        self._app = app
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False),
            base_url="http://localhost",
        )
        self._lifespan = _Lifespan(app) if lifespan else None
        if self._lifespan is not None:
            self.run(self._lifespan.begin)

    def run(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        """Run a coroutine function on the application's loop."""
        return self._runner.run(function(*arguments))

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the answer; ``options`` are those of httpx."""
        answer: httpx.Response = self.run(self._request, method, path, options)
        return answer

    async def _request(self, method: str, path: str, options: dict[str, Any]) -> httpx.Response:
        return await self._client.request(method, path, **options)

    def close(self) -> None:
        """Let the lifespan end, then the loop."""
        try:
            if self._lifespan is not None:
                self.run(self._lifespan.end)
            self.run(self._client.aclose)
            self.run(_end_of_all)
        finally:
            self._runner.close()


async def _end_of_all() -> None:
    """Wait until the application has nothing to do any more; Django would leave a file open."""
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        _, pending = await asyncio.wait(others, timeout=PATIENCE)
        assert not pending


class _Lifespan:
    def __init__(self, app: Any) -> None:
        self._app = app

    async def begin(self) -> None:
        self._to: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._from: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._task = asyncio.create_task(self._app(scope, self._to.get, self._from.put))
        await self._pass("startup")

    async def end(self) -> None:
        await self._pass("shutdown")
        await self._task

    async def _pass(self, step: str) -> None:
        await self._to.put({"type": f"lifespan.{step}"})
        assert await self._from.get() == {"type": f"lifespan.{step}.complete"}


class WSGIClient(Client):
    """Looks at every call with the validator of PEP 3333 too."""

    def __init__(self, app: Any) -> None:
        self._client = httpx.Client(
            transport=httpx.WSGITransport(validator(_served(app))),
            base_url="http://localhost",
        )

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the answer; ``options`` are those of httpx."""
        return self._client.request(method, path, **options)

    def close(self) -> None:
        """Close it."""
        self._client.close()


def _served(app: Any) -> Any:
    """Answer 500 where the application lets an exception out, as servers do."""

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        try:
            return app(environ, start_response)
        except Exception:
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b""]

    return serve
