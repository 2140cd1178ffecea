"""What does the ``Idempotency-Key`` layer add to a request?

An application is driven directly, bare and with the layer around it, in turn. A replay does not run
the application at all: so what the layer adds is its own time less that of the bare application.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks import web
from benchmarks.conftest import Sizes
from benchmarks.measure import Bound, calling, in_turn
from benchmarks.workload import NAMESPACE, never, request_id, url_of
from kvreplay import AsyncReplay, Outcome, Replay, ReplayKey, asgi, open_store
from kvreplay._http.answers import ANSWERS
from kvreplay._http.layer import Asking
from kvreplay.asgi import IdempotencyMiddleware
from kvreplay.wsgi import IdempotencyMiddleware as WSGIIdempotencyMiddleware

ENGINES = ["lmdb", "sqlite", "filesystem", "memory"]
KEY = (web.CALLER, web.KEY)
FIRSTS = 100
"""First requests in a round, at most."""

Note = Callable[..., None]
T = TypeVar("T")


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def awaiting(
    runner: asyncio.Runner, function: Callable[[], Awaitable[object]], calls: int
) -> Callable[[], float]:
    """Return a round of so many calls, awaited; its figure is the seconds for one call."""

    async def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            await function()
        return (time.perf_counter() - start) / calls

    return lambda: runner.run(run())


def figures_of(own: float, bare: float, hit: float, bound: Bound) -> dict[str, Any]:
    return {
        "µs": own * 1e6,
        "bare application µs": bare * 1e6,
        "added µs": (own - bare) * 1e6,
        "bare hit µs": hit * 1e6,
        "added, x a bare hit": (own - bare) / hit,
        "bound by": str(bound),
    }


# A replay.


@pytest.mark.parametrize("engine", ENGINES)
def test_asgi_replay(
    benchmark: Any, note: Note, sizes: Sizes, engine: str, folder: Path, runner: asyncio.Runner
) -> None:
    scope, bound = web.asgi_scope(), Bound()
    with open_store(url_of(engine, folder)) as store:
        replay = AsyncReplay(store, NAMESPACE, ttl=3600)
        app = IdempotencyMiddleware(web.application, replay, scope=web.caller_of_scope)
        assert_replays(runner.run(web.asked(app, scope)), runner.run(web.asked(app, scope)))
        params = params_of(store)
        own, bare, hit = in_turn(
            benchmark,
            bound.of(awaiting(runner, lambda: web.asked(app, scope), sizes.calls)),
            awaiting(runner, lambda: web.asked(web.application, scope), sizes.calls),
            awaiting(runner, lambda: replay.execute(KEY, params, never), sizes.calls),
            rounds=sizes.rounds,
        )
    note(f"http replay/ASGI, {engine}", figures_of(own, bare, hit, bound))


@pytest.mark.parametrize("engine", ENGINES)
def test_wsgi_replay(benchmark: Any, note: Note, sizes: Sizes, engine: str, folder: Path) -> None:
    environ, bound = web.wsgi_environ(), Bound()
    with open_store(url_of(engine, folder)) as store:
        replay = Replay(store, NAMESPACE, ttl=3600)
        app = WSGIIdempotencyMiddleware(web.wsgi_application, replay, scope=web.caller_of_environ)
        assert_replays(web.started(app, environ), web.started(app, environ))
        params = params_of(store)
        own, bare, hit = in_turn(
            benchmark,
            bound.of(calling(lambda: web.started(app, environ), sizes.calls)),
            calling(lambda: web.started(web.wsgi_application, environ), sizes.calls),
            calling(lambda: replay.execute(KEY, params, never), sizes.calls),
            rounds=sizes.rounds,
        )
    note(f"http replay/WSGI, {engine}", figures_of(own, bare, hit, bound))


def assert_replays(first: web.Answer, second: web.Answer) -> None:
    (status, headers, body), (again, more, same) = first, second
    assert (status, body) == (again, same) == (201, web.ANSWER)
    assert len(headers) == len(web.HEADERS)
    assert list(more[:-1]) == list(headers)


def params_of(store: Any) -> Any:
    """Return what the layer compares, so that a bare hit compares the same."""
    record = Replay(store, NAMESPACE, ttl=3600).record(KEY)
    assert record is not None
    return record.load_params()


# A first request, and one that passes through.


@pytest.mark.parametrize("engine", ["lmdb", "memory"])
def test_asgi_first(
    benchmark: Any, note: Note, sizes: Sizes, engine: str, memory: Path, runner: asyncio.Runner
) -> None:
    """Beside the bare application, and the replay's own work for the same record."""
    numbers, calls = count(), min(FIRSTS, sizes.calls)
    bound = Bound()
    with open_store(url_of(engine, memory)) as store:
        replay = AsyncReplay(store, NAMESPACE, ttl=3600)
        app = IdempotencyMiddleware(web.application, replay, scope=web.caller_of_scope)
        runner.run(web.asked(app, web.asgi_scope()))
        params = params_of(store)
        response = runner.run(replay.execute(KEY, params, never)).response

        def first() -> Awaitable[web.Answer]:
            return web.asked(app, web.asgi_scope(request_id(next(numbers))))

        def bare() -> Awaitable[web.Answer]:
            return web.asked(web.application, web.asgi_scope(request_id(next(numbers))))

        def execute() -> Awaitable[object]:
            return replay.execute((web.CALLER, request_id(next(numbers))), params, lambda: response)

        own, without, alone = in_turn(
            benchmark,
            bound.of(awaiting(runner, first, calls)),
            awaiting(runner, bare, calls),
            awaiting(runner, execute, calls),
            rounds=sizes.rounds,
        )
    note(f"http first/ASGI, {engine}", first_figures_of(own, without, alone, bound))


@pytest.mark.parametrize("engine", ["lmdb", "memory"])
def test_wsgi_first(benchmark: Any, note: Note, sizes: Sizes, engine: str, memory: Path) -> None:
    numbers, calls = count(), min(FIRSTS, sizes.calls)
    bound = Bound()
    with open_store(url_of(engine, memory)) as store:
        replay = Replay(store, NAMESPACE, ttl=3600)
        app = WSGIIdempotencyMiddleware(web.wsgi_application, replay, scope=web.caller_of_environ)
        web.started(app, web.wsgi_environ())
        params = params_of(store)
        response = replay.execute(KEY, params, never).response

        def first() -> web.Answer:
            return web.started(app, web.wsgi_environ(request_id(next(numbers))))

        def bare() -> web.Answer:
            environ = web.wsgi_environ(request_id(next(numbers)))
            return web.started(web.wsgi_application, environ)

        def execute() -> object:
            return replay.execute((web.CALLER, request_id(next(numbers))), params, lambda: response)

        own, without, alone = in_turn(
            benchmark,
            bound.of(calling(first, calls)),
            calling(bare, calls),
            calling(execute, calls),
            rounds=sizes.rounds,
        )
    note(f"http first/WSGI, {engine}", first_figures_of(own, without, alone, bound))


def first_figures_of(own: float, bare: float, execute: float, bound: Bound) -> dict[str, Any]:
    return {
        "µs": own * 1e6,
        "bare application µs": bare * 1e6,
        "bare execute µs": execute * 1e6,
        "over both µs": (own - bare - execute) * 1e6,
        "bound by": str(bound),
    }


def test_passed_through(benchmark: Any, note: Note, sizes: Sizes, runner: asyncio.Runner) -> None:
    """A GET, which the layer does not cover."""
    scope, environ = web.asgi_scope(method="GET"), web.wsgi_environ(method="GET")
    with open_store("memory:") as store:
        app = IdempotencyMiddleware(
            web.application,
            AsyncReplay(store, NAMESPACE, ttl=3600),
            scope=web.caller_of_scope,
        )
        wsgi_app = WSGIIdempotencyMiddleware(
            web.wsgi_application,
            Replay(store, NAMESPACE, ttl=3600),
            scope=web.caller_of_environ,
        )
        figures = in_turn(
            benchmark,
            awaiting(runner, lambda: web.asked(app, scope), sizes.calls),
            awaiting(runner, lambda: web.asked(web.application, scope), sizes.calls),
            calling(lambda: web.started(wsgi_app, environ), sizes.calls),
            calling(lambda: web.started(web.wsgi_application, environ), sizes.calls),
            rounds=sizes.rounds,
        )
    for kind, own, bare in (("ASGI", *figures[:2]), ("WSGI", *figures[2:])):
        note(
            f"http passed through/{kind}",
            {"µs": own * 1e6, "bare application µs": bare * 1e6, "added µs": (own - bare) * 1e6},
        )


# Beside a framework.


def test_starlette(
    benchmark: Any, note: Note, sizes: Sizes, memory: Path, runner: asyncio.Runner
) -> None:
    """Beside an empty middleware, as Starlette's own class makes it."""

    async def pay(request: Request) -> Response:
        assert await request.body() == web.BODY
        return Response(web.ANSWER, 201, dict(web.HEADERS))

    async def pass_on(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    def made(*middleware: Middleware) -> Starlette:
        routes = [Route(web.PATH, pay, methods=["POST"])]
        return Starlette(routes=routes, middleware=middleware)

    scope, numbers = web.asgi_scope(), count()
    calls, firsts = max(1, sizes.calls // 5), min(FIRSTS, sizes.calls)
    with open_store(url_of("lmdb", memory)) as store:
        replay = AsyncReplay(store, NAMESPACE, ttl=3600)
        app = made(Middleware(IdempotencyMiddleware, replay=replay, scope=web.caller_of_scope))
        bare, empty = made(), made(Middleware(BaseHTTPMiddleware, dispatch=pass_on))
        assert_replays(runner.run(web.asked(app, scope)), runner.run(web.asked(app, scope)))
        replayed, first, without, with_empty = in_turn(
            benchmark,
            awaiting(runner, lambda: web.asked(app, scope), calls),
            awaiting(
                runner,
                lambda: web.asked(app, web.asgi_scope(request_id(next(numbers)))),
                firsts,
            ),
            awaiting(runner, lambda: web.asked(bare, scope), calls),
            awaiting(runner, lambda: web.asked(empty, scope), calls),
            rounds=sizes.rounds,
        )
    for what, seconds in (
        ("without a middleware", without),
        ("an empty BaseHTTPMiddleware", with_empty),
        ("a replay", replayed),
        ("a first request", first),
    ):
        note(
            f"http starlette/{what}",
            {
                "µs": seconds * 1e6,
                "added µs": (seconds - without) * 1e6,
                "x without": seconds / without,
            },
        )


# Where the time goes.


def test_where_the_time_goes(benchmark: Any, note: Note, sizes: Sizes, folder: Path) -> None:
    """The parts of a replay over ASGI, each alone; the rest is the calls between them."""
    scope = web.asgi_scope()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": web.BODY, "more_body": False}

    async def send(message: object) -> None:
        pass

    with open_store(url_of("lmdb", folder)) as store:
        replay = AsyncReplay(store, NAMESPACE, ttl=3600)
        app = IdempotencyMiddleware(web.application, replay, scope=web.caller_of_scope)
        asyncio.run(web.asked(app, scope))
        layer = app._layer
        incoming = asgi._incoming(scope)
        asking = layer.asking(incoming, scope)
        assert isinstance(asking, Asking)
        key = layer.identify(asking, web.CALLER, incoming)
        assert isinstance(key, ReplayKey)
        request = layer.request(key, incoming, web.BODY)
        outcome = at_once(replay.execute(key, request.params, never))
        response, answer = outcome.response, ANSWERS.decode(outcome.response)
        outcome = Outcome(answer, True, outcome.created_at, outcome.expires_at)
        parts: dict[str, Callable[[], object]] = {
            "a whole replay": lambda: at_once(app(scope, receive, send)),
            "look at the request": lambda: asgi._incoming(scope),
            "decide whether it is covered, and parse its key": (
                lambda: layer.asking(incoming, scope)
            ),
            "ask who calls, and make the replay key": (
                lambda: layer.identify(asking, web.caller_of_scope(scope), incoming)
            ),
            "read the body": lambda: at_once(asgi._body(receive, layer.max_body_bytes)),
            "digest it, and make the params": lambda: layer.request(key, incoming, web.BODY),
            "a bare hit of `AsyncReplay`": (
                lambda: at_once(replay.execute(key, request.params, never))
            ),
            "check the stored answer": lambda: ANSWERS.decode(response),
            "mark it": lambda: layer.replayed(outcome, incoming),
            "send it": lambda: at_once(asgi._tell(answer, send)),
        }
        whole, *medians = in_turn(
            benchmark, *(calling(part, sizes.calls) for part in parts.values()), rounds=sizes.rounds
        )
    for part, seconds in zip(parts, (whole, *medians), strict=True):
        note(f"http parts/{part}", {"µs": seconds * 1e6, "x a whole replay": seconds / whole})


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing, without the loop's own time."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        returned: T = end.value
        return returned
    raise AssertionError("it waits for something")
