"""What is ASGI's own: disconnects, cancellation, background tasks, streaming, other protocols."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any

import pytest

from kvreplay import AsyncReplay, StoreFullError
from kvreplay.asgi import IdempotencyMiddleware
from kvreplay.backends.memory import MemoryStore
from kvreplay.testing import FaultyStore
from support.engines import Engine
from support.http_apps import BODY, JSON, KEY, PATH, Asked, Reply, Talk, caller_of_scope
from support.waiting import PATIENCE

HEADERS = (*JSON, ("authorization", "alice"), ("idempotency-key", f'"{KEY}"'))
START = {
    "type": "http.response.start",
    "status": 201,
    "headers": [(b"content-type", b"text/plain")],
}
END = {"type": "http.response.body", "body": b"paid"}


def body(part: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": part, "more_body": more}


def on_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The test is a coroutine; when it ends, no task but its own is left."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def whole() -> None:
            await asyncio.wait_for(test(*args, **kwargs), PATIENCE)
            await turns(5)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

        asyncio.run(whole())

    return run


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.fixture(params=["memory", "lmdb", "filesystem"])
def store(request: pytest.FixtureRequest, new_engine: Callable[[str], Engine]) -> Any:
    return new_engine(request.param).open()


def layer_on(store: Any, app: Any, **settings: Any) -> IdempotencyMiddleware:
    settings = {"scope": caller_of_scope, **settings}
    return IdempotencyMiddleware(app, AsyncReplay(store, "http", ttl=3600), **settings)


def talk_of(key: str = KEY, parts: Any = BODY, method: str = "POST", **more: Any) -> Talk:
    headers = (*JSON, ("authorization", "alice"), ("idempotency-key", f'"{key}"'))
    return Talk(Asked(method, PATH, "", headers, parts), **more)


async def ask(layer: Any, **options: Any) -> Reply:
    talk = talk_of(**options)
    await layer(talk.scope, talk.receive, talk.send)
    assert talk.reply is not None
    assert talk.reply.is_complete
    return talk.reply


class Payments:
    """An application that counts its payments, and waits where it is told to.

    ``before`` its answer and ``after`` it are coroutine functions.
    """

    def __init__(self, before: Any = None, after: Any = None, messages: Any = (START, END)) -> None:
        self.paid, self.ended = 0, 0
        self._before, self._after, self._messages = before, after, messages

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            while (await receive()).get("more_body", False):
                pass
            self.paid += 1
            if self._before is not None:
                await self._before(receive)
            for message in self._messages:
                await send(message)
            if self._after is not None:
                await self._after(receive)
        finally:
            self.ended += 1


# Threads.


def our_threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("kvreplay-")}


@pytest.mark.parametrize(
    ("store", "needs"),
    [("filesystem", True), pytest.param("postgresql", False, marks=pytest.mark.any_python)],
    indirect=["store"],
)
@on_a_loop
async def test_a_store_with_awaited_calls_needs_no_thread(store: Any, needs: bool) -> None:
    app, before = Payments(), our_threads()
    layer = layer_on(store, app)
    first, again = await ask(layer), await ask(layer)
    assert (first.status, again.status, again.is_replay, app.paid) == (201, 201, True, 1)
    assert bool(our_threads() - before) == needs
    if hasattr(store, "awaited"):
        await store.awaited.close()


# The client goes.


@on_a_loop
async def test_a_disconnect_while_the_body_comes_runs_nothing(store: Any) -> None:
    app = Payments()
    layer = layer_on(store, app)
    talk = talk_of(parts=[BODY[:4], BODY[4:]])
    receive = talk.receive

    async def broken() -> Any:
        message = await receive()
        talk.disconnect()
        return message

    await layer(talk.scope, broken, talk.send)
    assert talk.received == ["http.request", "http.disconnect"]
    assert (app.paid, talk.sent, list(store.list_all_keys())) == (0, [], [])
    assert (await ask(layer)).status == 201
    assert app.paid == 1


@on_a_loop
async def test_a_disconnect_while_the_application_runs_changes_nothing(store: Any) -> None:
    entered, go = asyncio.Event(), asyncio.Event()

    async def pay(receive: Any) -> None:
        entered.set()
        await go.wait()

    app = Payments(pay)
    layer = layer_on(store, app)
    talk = talk_of()
    call = asyncio.ensure_future(layer(talk.scope, talk.receive, talk.send))
    await entered.wait()
    talk.disconnect()
    go.set()
    await call
    assert talk.sent == []  # nobody was there any more
    again = await ask(layer)
    assert (again.status, again.body, again.is_replay) == (201, b"paid", True)
    assert app.paid == 1


@on_a_loop
async def test_a_framework_that_cancels_on_a_disconnect_does_not_see_one(store: Any) -> None:
    """It learns of the disconnect once the answer is stored and sent."""
    log: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        gone = asyncio.ensure_future(receive())
        talk.disconnect()
        await turns(20)
        log.append(f"gone: {gone.done()}")
        await send(START)
        await send(END)
        log.append((await gone)["type"])

    layer = layer_on(store, app)
    talk = talk_of()
    await layer(talk.scope, talk.receive, talk.send)
    assert log == ["gone: False", "http.disconnect"]
    assert (await ask(layer)).is_replay


@on_a_loop
async def test_a_call_that_is_cancelled_does_not_stop_the_application(store: Any) -> None:
    entered, go, after = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def pay(receive: Any) -> None:
        entered.set()
        await go.wait()

    async def notify(receive: Any) -> None:
        after.set()

    app = Payments(pay, notify)
    layer = layer_on(store, app)
    talk = talk_of()
    call = asyncio.ensure_future(layer(talk.scope, talk.receive, talk.send))
    await entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await ask(layer)).slug == "running"
    go.set()
    await after.wait()
    await until_idle()
    assert (await ask(layer)).is_replay
    assert (app.paid, app.ended) == (1, 1)


@on_a_loop
async def test_a_framework_that_cancels_on_a_disconnect_does_not_see_a_cancelled_call(
    store: Any,
) -> None:
    entered, go, after = asyncio.Event(), asyncio.Event(), asyncio.Event()
    log: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        gone = asyncio.ensure_future(receive())
        entered.set()
        await go.wait()
        log.append(f"gone: {gone.done()}")
        await send(START)
        await send(END)
        log.append((await gone)["type"])
        after.set()

    layer = layer_on(store, app)
    talk = talk_of()
    call = asyncio.ensure_future(layer(talk.scope, talk.receive, talk.send))
    await entered.wait()
    call.cancel()
    await asyncio.wait([call])
    await turns(20)
    go.set()
    await after.wait()
    await until_idle()
    assert log == ["gone: False", "http.disconnect"]
    assert (await ask(layer)).is_replay


@on_a_loop
async def test_a_part_of_the_application_that_waits_for_a_disconnect_is_told_at_its_end(
    store: Any,
) -> None:
    watching: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        watching.append(asyncio.ensure_future(receive()))
        raise ValueError("no")

    talk = talk_of()
    with pytest.raises(ValueError, match="no"):
        await layer_on(store, app)(talk.scope, talk.receive, talk.send)
    assert (await watching[0])["type"] == "http.disconnect"


async def until_idle() -> None:
    """Wait until this task is the only one."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        others = {each for each in others if each.get_coro().__name__ in ("_call", "_run_of")}  # type: ignore[union-attr]
        if not others:
            return
        await asyncio.wait(others)


@pytest.mark.parametrize("moment", ["while it runs", "before it runs", "in a background task"])
@on_a_loop
async def test_an_application_that_nobody_waits_for_is_not_lost(store: Any, moment: str) -> None:
    """The loop has only weak references to tasks; this one waits for what it alone holds."""
    waits: list[weakref.ref[asyncio.Future[None]]] = []
    entered = asyncio.Event()

    async def wait(receive: Any) -> None:
        future = asyncio.get_running_loop().create_future()
        waits.append(weakref.ref(future))
        entered.set()
        await future

    app = Payments(wait) if moment == "while it runs" else Payments(after=wait)
    layer, talk = layer_on(store, app), talk_of()
    call = asyncio.ensure_future(layer(talk.scope, talk.receive, talk.send))
    if moment == "before it runs":
        await turns(1)
        assert app.paid == 0
    else:
        await entered.wait()
        await turns(5)
    call.cancel()
    await asyncio.wait([call])
    del call, talk
    await entered.wait()
    await turns(5)
    gc.collect()
    future = waits[0]()
    assert future is not None
    assert app.ended == 0
    future.set_result(None)
    await until_idle()
    assert (app.paid, app.ended) == (1, 1)


@on_a_loop
async def test_a_call_can_be_cancelled_at_any_moment(store: Any) -> None:
    """Whatever was done by then: the application runs to its end once, or not at all."""
    app = Payments(lambda receive: turns(3), lambda receive: turns(3))
    layer = layer_on(store, app)
    ends = set[Any]()
    for moment in range(40):
        app.paid = app.ended = 0
        talk = talk_of(key=str(moment))
        call = asyncio.ensure_future(layer(talk.scope, talk.receive, talk.send))
        await turns(moment)
        call.cancel()
        try:
            await call
        except asyncio.CancelledError:
            ends.add("cancelled")
        else:
            ends.add("answered")
        await asyncio.wait_for(until_idle(), 10)
        assert app.paid == app.ended
        ends.add(app.paid)
        reply = await ask(layer, key=str(moment))
        assert reply.status == 201, moment
        assert (app.paid, app.ended) == (1, 1), moment
    assert ends >= {"cancelled", 0, 1}


@on_a_loop
async def test_a_server_that_cannot_send_does_not_stop_the_application(store: Any) -> None:
    after = asyncio.Event()

    async def notify(receive: Any) -> None:
        after.set()

    app = Payments(after=notify)
    layer = layer_on(store, app)
    talk = talk_of()

    async def send(message: Any) -> None:
        raise OSError("the client is gone")

    with pytest.raises(OSError, match="the client is gone"):
        await layer(talk.scope, talk.receive, send)
    await after.wait()
    assert (await ask(layer)).is_replay
    assert app.paid == 1


# After the answer.


@on_a_loop
async def test_a_background_task_comes_after_the_answer_is_stored_and_sent(store: Any) -> None:
    log: list[Any] = []

    async def notify(receive: Any) -> None:
        log.append(talk.reply)
        log.append((await ask(layer)).is_replay)
        log.append((await receive())["type"])

    layer = layer_on(store, Payments(after=notify))
    talk = talk_of()
    await layer(talk.scope, talk.receive, talk.send)
    assert log == [talk.reply, True, "http.disconnect"]
    assert talk.reply is not None
    assert talk.reply.is_complete


@on_a_loop
async def test_a_slow_background_task_does_not_delay_the_answer(store: Any) -> None:
    go, late = asyncio.Event(), asyncio.Event()

    async def notify(receive: Any) -> None:
        late.set()
        await go.wait()

    app = Payments(after=notify)
    layer = layer_on(store, app)
    talk = talk_of()
    call = asyncio.ensure_future(layer(talk.scope, talk.receive, talk.send))
    await late.wait()
    assert talk.reply is not None
    assert talk.reply.is_complete
    assert (await ask(layer)).is_replay
    assert not call.done()  # the server waits for the application, as without the layer
    go.set()
    await call
    assert app.ended == 1


@on_a_loop
async def test_a_background_task_that_raises_keeps_the_answer(store: Any) -> None:
    async def notify(receive: Any) -> None:
        raise ValueError("the mail server is down")

    layer = layer_on(store, Payments(after=notify))
    talk = talk_of()
    with pytest.raises(ValueError, match="the mail server is down"):
        await layer(talk.scope, talk.receive, talk.send)
    assert talk.reply is not None
    assert (talk.reply.status, talk.reply.is_complete) == (201, True)
    assert (await ask(layer)).is_replay


@on_a_loop
async def test_nothing_is_sent_before_the_answer_is_stored(store: Any) -> None:
    sent_at: list[int] = []
    faulty = FaultyStore(store)

    def note() -> Exception:
        sent_at.append(len(talk.sent))
        return StoreFullError("no room")

    layer = layer_on(faulty, Payments())
    talk = talk_of()
    faulty.fail(note, on="check_and_put", after=1)
    await layer(talk.scope, talk.receive, talk.send)
    assert sent_at == [0]
    assert talk.reply is not None
    assert talk.reply.slug == "not-stored"


# An application that ends without a complete answer.

INCOMPLETE: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "only the start": [START],
    "a part": [START, body(b"a")],
}


@pytest.mark.parametrize("messages", INCOMPLETE.values(), ids=INCOMPLETE)
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@on_a_loop
async def test_an_incomplete_answer_leaves_the_key_in_doubt(
    store: Any, messages: Any, raises: bool
) -> None:
    async def after(receive: Any) -> None:
        if raises:
            raise ValueError("halfway")

    app = Payments(after=after, messages=messages)
    layer = layer_on(store, app)
    talk = talk_of()
    call = layer(talk.scope, talk.receive, talk.send)
    if raises:
        with pytest.raises(ValueError, match="halfway"):
            await call
    else:
        await call  # the server sees that there is no answer, as without the layer
    assert talk.sent == []
    assert (await ask(layer)).slug == "in-doubt"
    assert app.paid == 1


WRONG: dict[str, list[dict[str, Any]]] = {
    "a body before the start": [END],
    "two starts": [START, START],
    "two ends": [START, END, END],
    "a start after the end": [START, END, START],
    "another protocol": [{"type": "websocket.accept"}],
    "a status that is none": [{**START, "status": "201 Created"}, END],
    "no status": [{"type": "http.response.start"}, END],
    "headers of text": [{**START, "headers": [("a", "b")]}, END],
    "a body of text": [START, {**END, "body": "paid"}],
}


@pytest.mark.parametrize("messages", WRONG.values(), ids=WRONG)
@on_a_loop
async def test_a_wrong_message_is_refused_and_never_frees_the_key(
    store: Any, messages: Any
) -> None:
    app = Payments(messages=messages)
    layer = layer_on(store, app)
    talk = talk_of()
    with pytest.raises((RuntimeError, TypeError, KeyError)):
        await layer(talk.scope, talk.receive, talk.send)
    again = await ask(layer)
    assert app.paid == 1
    if messages[:2] == [START, END]:
        assert again.is_replay
    else:
        assert talk.sent == []
        assert again.slug == "in-doubt"


@on_a_loop
async def test_a_status_may_be_an_enum(store: Any) -> None:
    layer = layer_on(store, Payments(messages=[{**START, "status": HTTPStatus.CREATED}, END]))
    assert [(await ask(layer)).status for _ in range(2)] == [201, 201]


@on_a_loop
async def test_an_application_that_is_cancelled_leaves_the_key_in_doubt(store: Any) -> None:
    async def pay(receive: Any) -> None:
        raise asyncio.CancelledError

    app = Payments(pay)
    layer = layer_on(store, app)
    talk = talk_of()
    with pytest.raises(asyncio.CancelledError):
        await layer(talk.scope, talk.receive, talk.send)
    assert (await ask(layer)).slug == "in-doubt"
    assert (app.paid, talk.sent) == (1, [])


def test_a_loop_that_ends_leaves_the_key_in_doubt(store: Any) -> None:
    app = Payments(lambda receive: asyncio.Event().wait())
    layer = layer_on(store, app)

    async def until_it_runs() -> None:
        talk = talk_of()
        task = asyncio.ensure_future(layer(talk.scope, talk.receive, talk.send))
        while not app.paid:
            await asyncio.sleep(0)
        assert not task.done()

    asyncio.run(until_it_runs())
    assert app.ended == 1
    assert asyncio.run(ask(layer)).slug == "in-doubt"


# Answers that are larger than what is kept.


@on_a_loop
async def test_a_stream_over_the_limit_is_passed_on_as_it_comes(store: Any) -> None:
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        for number in range(5):
            await send(body(b"%d" % number * 40))
            seen.append(len(talk.sent))
        await send(body(b"last", more=False))

    layer = layer_on(store, app, max_answer_bytes=100)
    talk = talk_of()
    await layer(talk.scope, talk.receive, talk.send)
    assert seen == [0, 2, 3, 4, 5]  # the start, and what was collected until then, come together
    assert talk.reply is not None
    assert talk.reply.body == b"".join(b"%d" % number * 40 for number in range(5)) + b"last"
    assert talk.reply.is_complete
    again = await ask(layer)
    assert (again.slug, again.json["original_status"]) == ("not-kept", 201)


@on_a_loop
async def test_a_stream_under_the_limit_is_kept(store: Any) -> None:
    app = Payments(messages=[START, *[body(b"x" * 10)] * 5, END])
    layer = layer_on(store, app, max_answer_bytes=100)
    first, again = await ask(layer), await ask(layer)
    assert first.body == again.body == b"x" * 50 + b"paid"
    assert again.is_replay


@pytest.mark.parametrize("how", ["send raises", "receive tells"])
@on_a_loop
async def test_a_disconnect_in_the_middle_of_a_stream_leaves_the_key_in_doubt(
    store: Any, how: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        await send(body(b"x" * 200))
        talk.disconnect()
        if how == "receive tells":
            assert (await receive())["type"] == "http.disconnect"
            return  # as Starlette does
        await send(body(b"y"))

    async def send(message: Any) -> None:
        if talk.is_gone:
            raise OSError("the client is gone")
        await talk.send(message)

    layer = layer_on(store, app, max_answer_bytes=100)
    talk = talk_of()
    if how == "receive tells":
        await layer(talk.scope, talk.receive, send)
    else:
        with pytest.raises(OSError, match="the client is gone"):
            await layer(talk.scope, talk.receive, send)
    assert talk.reply is not None
    assert not talk.reply.is_complete
    assert (await ask(layer)).slug == "in-doubt"


@on_a_loop
async def test_the_end_of_a_stream_is_not_sent_if_it_cannot_be_stored(store: Any) -> None:
    faulty = FaultyStore(store)
    app = Payments(messages=[START, body(b"x" * 200), body(b"y" * 200), END])
    layer = layer_on(faulty, app, max_answer_bytes=100)
    talk = talk_of()
    faulty.fail(on="check_and_put", after=1)
    with pytest.raises(RuntimeError, match="could not be stored"):
        await layer(talk.scope, talk.receive, talk.send)
    assert talk.reply is not None
    assert talk.reply.body == b"x" * 200 + b"y" * 200
    assert not talk.reply.is_complete
    assert (await ask(layer)).slug == "in-doubt"
    assert app.ended == 1


@on_a_loop
async def test_a_stream_that_frees_its_key_is_passed_on_whole(store: Any) -> None:
    app = Payments(messages=[{**START, "status": 503}, body(b"x" * 200), END])
    layer = layer_on(store, app, max_answer_bytes=100)
    for _ in range(2):
        assert (await ask(layer)).body == b"x" * 200 + b"paid"
    assert app.paid == 2


@on_a_loop
async def test_a_stream_that_leaves_doubt_is_passed_on_whole(store: Any) -> None:
    app = Payments(messages=[{**START, "status": 500}, body(b"x" * 200), END])
    layer = layer_on(store, app, max_answer_bytes=100)
    assert (await ask(layer)).body == b"x" * 200 + b"paid"
    assert (await ask(layer)).slug == "in-doubt"


# Several at once on one loop.


@on_a_loop
async def test_of_many_at_once_one_runs(store: Any) -> None:
    go = asyncio.Event()
    app = Payments(lambda receive: go.wait())
    layer = layer_on(store, app)
    calls = [asyncio.ensure_future(ask(layer)) for _ in range(20)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    while sum(call.done() for call in calls) < 19:
        await asyncio.sleep(0)
    go.set()
    replies = [await call for call in calls]
    assert sorted(reply.status for reply in replies) == [201] + [409] * 19
    assert app.paid == 1


@on_a_loop
async def test_many_retries_at_once_are_all_answered(store: Any) -> None:
    layer = layer_on(store, Payments())
    await ask(layer)
    replies = await asyncio.gather(*(ask(layer) for _ in range(20)))
    assert all(reply.is_replay for reply in replies)


@on_a_loop
async def test_many_retries_at_once_with_another_request(store: Any) -> None:
    layer = layer_on(store, Payments())
    await ask(layer)
    others = [ask(layer, parts=b"another" if number % 2 else BODY) for number in range(20)]
    replies = await asyncio.gather(*others)
    assert [reply.slug for reply in replies] == [None, "key-reused"] * 10


# Scopes.


@on_a_loop
async def test_the_callers_function_may_be_a_coroutine(store: Any) -> None:
    async def caller(scope: Any) -> str | None:
        await asyncio.sleep(0)
        return caller_of_scope(scope)

    app = Payments()
    layer = layer_on(store, app, scope=caller)
    assert (await ask(layer)).status == 201
    assert (await ask(layer)).is_replay
    talk = Talk(Asked("POST", PATH, "", (("idempotency-key", '"k"'),), BODY))
    await layer(talk.scope, talk.receive, talk.send)
    assert talk.reply is not None
    assert talk.reply.status == 401


@on_a_loop
async def test_extensions_that_could_not_be_kept_are_not_offered(store: Any) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        seen.append(scope)
        await send(START)
        await send(END)

    offered: dict[str, Any] = {
        "http.response.early_hint": {},
        "http.response.pathsend": {},
        "http.response.push": {},
        "http.response.trailers": {},
        "http.response.zerocopysend": {},
        "http.response.debug": {"a": 1},
        "tls": {"b": 2},
    }
    state = {"own": 1}
    talk = talk_of(extensions=dict(offered), state=state)
    before = dict(talk.scope)
    await layer_on(store, app)(talk.scope, talk.receive, talk.send)
    (scope,) = seen
    assert scope["extensions"] == {"tls": {"b": 2}}
    assert scope["state"] is state
    assert talk.scope == before  # the server's own is untouched
    assert talk.scope["extensions"] == offered
    assert scope["kvreplay.request"].key.id == KEY


@pytest.mark.parametrize("more", [{}, {"extensions": None}], ids=["absent", "None"])
@on_a_loop
async def test_a_server_without_extensions(store: Any, more: Any) -> None:
    assert (await ask(layer_on(store, Payments()), **more)).status == 201


@pytest.mark.parametrize(
    "scope",
    [
        {"type": "websocket", "path": PATH, "headers": [(b"idempotency-key", b'"k"')]},
        {"type": "lifespan", "asgi": {"version": "3.0"}},
        {"type": "webtransport"},
    ],
    ids=lambda scope: scope["type"],
)
@on_a_loop
async def test_other_protocols_pass_through_untouched(store: Any, scope: Any) -> None:
    seen: list[Any] = []

    async def app(*given: Any) -> None:
        seen.append(given)

    receive, send = object(), object()
    before = dict(scope)
    await layer_on(store, app)(scope, receive, send)  # type: ignore[arg-type]
    assert [id(each) for each in seen[0]] == [id(scope), id(receive), id(send)]
    assert scope == before


@on_a_loop
async def test_a_request_that_is_not_covered_passes_through_untouched(store: Any) -> None:
    seen: list[Any] = []

    async def app(*given: Any) -> None:
        seen.append(given)

    talk = talk_of(method="PUT")
    receive, send = object(), object()
    await layer_on(store, app)(talk.scope, receive, send)  # type: ignore[arg-type]
    assert [id(each) for each in seen[0]] == [id(talk.scope), id(receive), id(send)]


@on_a_loop
async def test_paths_that_are_not_ascii(store: Any) -> None:
    layer = layer_on(store, Payments())

    async def status(path: str) -> int:
        talk = talk_of()
        talk.scope["path"] = path
        await layer(talk.scope, talk.receive, talk.send)
        assert talk.reply is not None
        return talk.reply.status

    assert [await status(path) for path in ("/ä", "/ä", "/\udce4", "/a")] == [201, 201, 422, 422]


@on_a_loop
async def test_a_server_that_leaves_out_what_it_may(store: Any) -> None:
    """ASGI: ``root_path``, ``query_string`` and ``more_body`` are optional."""
    talk = talk_of()
    for name in ("root_path", "query_string"):
        del talk.scope[name]

    async def receive() -> Any:
        return {"type": "http.request"}

    await layer_on(store, Payments())(talk.scope, receive, talk.send)
    assert talk.reply is not None
    assert talk.reply.status == 201


# What is left in memory.


class Payload:
    """What an application holds when it fails."""


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("error", [ValueError, TimeoutError, StopAsyncIteration])
@pytest.mark.usefixtures("no_collection")
def test_an_application_that_raises_is_freed_at_once(error: type[Exception]) -> None:
    payloads: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        payload = Payload()
        payloads.append(weakref.ref(payload))
        raise error("no")

    layer = layer_on(MemoryStore(), app)

    async def calls() -> None:
        for number in range(3):
            talk = talk_of(key=str(number))
            try:
                await layer(talk.scope, talk.receive, talk.send)
            except error:
                assert payloads[-1]() is not None, "the traceback holds it"
            await turns(5)

    asyncio.run(calls())
    assert [each() for each in payloads] == [None] * 3


@pytest.mark.usefixtures("no_collection")
def test_answers_leave_no_garbage() -> None:
    layer = layer_on(MemoryStore(), Payments())

    async def calls() -> None:
        for number in range(20):
            for _ in range(2):
                await ask(layer, key=str(number))
        await turns(5)
        gc.collect()
        for number in range(20, 40):
            for _ in range(2):
                await ask(layer, key=str(number))
        await turns(5)
        assert gc.collect() == 0
        assert layer._running == set()

    asyncio.run(calls())


def test_repr_shows_no_payload(store: Any) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        seen.append(scope["kvreplay.request"])
        await send(START)
        await send(END)

    layer = layer_on(store, app)
    asyncio.run(ask(layer))
    assert repr(layer).startswith("<IdempotencyMiddleware ietf with <AsyncReplay ")
    assert repr(seen[0]) == f"<IdempotentRequest {seen[0].key!r} ending=None>"
    for shown in (repr(layer), repr(seen[0])):
        assert "alice" not in shown
        assert KEY not in shown
