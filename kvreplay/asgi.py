"""``Idempotency-Key`` for ASGI applications: Starlette, FastAPI, Litestar, Django, and any other.

``docs/http.md`` has the table of answers, and a page for each framework.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from kvreplay import AsyncReplay, NotStored, Outcome
from kvreplay._http.answers import ANSWERS, Answer, Headers, marked
from kvreplay._http.layer import Asking, Layer, Request, is_copy
from kvreplay._http.problems import Refusal
from kvreplay._http.requests import Incoming
from kvreplay._http.settings import Configured
from kvreplay.errors import InFlightError, KVReplayError, NotAppliedError

__all__ = ["IdempotencyMiddleware"]

# Mappings. Frameworks have types of their own for them, no two of which go together.
Scope = Any
Message = Any
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_HEADER = b"idempotency-key"

_WAYS_TO_ANSWER = "http.response."
"""Extensions whose names begin so are other ways to answer, which the layer could not keep."""


class IdempotencyMiddleware(
    Configured[ASGIApp, AsyncReplay, Scope, str | Awaitable[str | None] | None]
):
    """Run each request that has an ``Idempotency-Key`` once, and give every retry its answer.

    WebSocket, lifespan, and requests that are not covered pass through untouched. A client that
    disconnects, or a server that cancels the call, does not stop the application: its answer is
    stored all the same.
    """

    _kind = AsyncReplay

    def _set_up(self) -> None:
        self._running: set[asyncio.Task[None]] = set()  # the loop keeps only weak references

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        incoming = _incoming(scope)
        asking = self._layer.asking(incoming, scope)
        if asking is None:
            await self._app(scope, receive, send)
        elif isinstance(asking, Answer):
            await _tell(asking, send)
        else:
            await self._serve(asking, incoming, scope, receive, send)

    async def _serve(
        self, asking: Asking, incoming: Incoming, scope: Scope, receive: Receive, send: Send
    ) -> None:
        layer = self._layer
        caller = layer.caller_of(scope)
        if inspect.isawaitable(caller):
            caller = await caller
        key = layer.identify(asking, caller, incoming)
        if isinstance(key, Answer):
            await _tell(key, send)
            return
        if asking.of_state:
            await _tell(await self._state(key, incoming), send)
            return
        body = await _body(receive, layer.max_body_bytes)
        if body is None:
            await _tell(layer.refuse(Refusal("body-too-large"), incoming), send)
            return
        if isinstance(body, _Gone):
            return
        request = layer.request(key, incoming, body)
        run = _Run(self._app, layer, request, scope, receive, send, body, self._running)
        try:
            answer = await self._execute(run, incoming)
            if answer is not None:
                await run.deliver(answer)
            await run.end()
        except BaseException:  # cancelled, or the client is gone
            run.leave()
            raise

    async def _execute(self, run: _Run, incoming: Incoming) -> Answer | None:
        """Return the answer to send; ``None``: the application has ended without one."""
        try:
            outcome = await self._outcome(run)
        except InFlightError as error:
            # On a store whose reads are not local, others may only be reading the same answer.
            return await self._look(run, error, incoming)
        except KVReplayError as error:
            return self._layer.refused(error, run, incoming)
        return self._layer.answered(outcome, run, incoming)

    async def _outcome(self, run: _Run) -> Outcome[Any]:
        request = run.request
        while True:
            try:
                return await self._replay.execute(
                    request.key,
                    request.params,
                    run,
                    wait_timeout=self._layer.wait_timeout,
                    returns=ANSWERS,
                )
            except NotAppliedError as error:
                if run.has_failed or not is_copy(error):
                    raise  # else it is of the run that this request waited for, which freed the key

    async def _look(self, run: _Run, refused: InFlightError, incoming: Incoming) -> Answer:
        try:
            outcome = await self._replay.lookup(
                run.request.key, run.request.params, returns=ANSWERS
            )
        except KVReplayError as error:
            return self._layer.failed(error, incoming)
        if outcome is None:
            return self._layer.failed(refused, incoming)
        return self._layer.replayed(outcome, incoming)

    async def _state(self, key: Any, incoming: Incoming) -> Answer:
        try:
            record = await self._replay.record(key)
            in_doubt = record is not None and await self._replay.is_in_doubt(record)
        except KVReplayError as error:
            return self._layer.failed(error, incoming)
        return self._layer.state(record, in_doubt, incoming)


class _Run:
    """One run of the application: the handler that the replay calls, and what comes of it.

    The application has a task of its own. At its answer's end it waits until the answer is stored
    and sent; so background tasks come after that, and do not delay it.
    """

    def __init__(
        self,
        app: ASGIApp,
        layer: Layer[Scope],
        request: Request,
        scope: Scope,
        receive: Receive,
        send: Send,
        body: bytes,
        running: set[asyncio.Task[None]],
    ) -> None:
        self._app = app
        self._layer = layer
        self.request = request
        self._scope = scope
        self._body: bytes | None = body
        self._receive_on = receive
        self._send_on = send
        self._running = running  # keeps the application's task, even if nobody waits for it
        self._task: asyncio.Task[None] | None = None
        self._start: Message | None = None
        self._collected = bytearray()
        self._passes_on = False  # the answer is larger than what can be kept
        self._last: Message | None = None
        self._is_left = False  # nobody sends its answer any more
        self._is_stored = False  # or it failed, or its answer is not to be stored
        self.answer: Answer | None = None  # what can be kept of a complete one

    @property
    def has_failed(self) -> bool:
        """Whether the application was called, and has ended without a complete answer."""
        return self._task is not None and self.answer is None

    async def __call__(self) -> dict[str, Any] | NotStored[Any]:
        """Run the application up to its answer's end, for the replay."""
        self._complete = asyncio.get_running_loop().create_future()
        self._open = asyncio.Event()  # the answer was sent, or is passed on: disconnects count
        self._delivered = asyncio.Event()
        leader = asyncio.current_task()
        assert leader is not None  # the replay runs a handler in a task
        leader.add_done_callback(self._stored)
        self._task = task = asyncio.create_task(self._call())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.wait((task, self._complete), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()  # the loop ends
            raise
        if self.answer is not None:
            return self._layer.result(self.answer, self.request)
        error = None if task.cancelled() else task.exception()
        try:
            raise self._layer.unanswered(self.request, error)
        finally:
            del error, task  # their tracebacks would hold this frame, and this one them

    async def _call(self) -> None:
        extensions = self._scope.get("extensions") or {}
        scope = {
            **self._scope,
            "kvreplay.request": self.request.told,
            "extensions": {
                name: what
                for name, what in extensions.items()
                if not name.startswith(_WAYS_TO_ANSWER)
            },
        }
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._open.wait()
        if self._delivered.is_set():
            return {"type": "http.disconnect"}
        return await self._receive_on()

    async def _send(self, message: Message) -> None:
        if self.answer is not None:
            raise RuntimeError("the application has sent something after the end of its answer")
        if message["type"] == "http.response.start":
            if self._start is not None:
                raise RuntimeError("the application has begun two answers")
            if not isinstance(message["status"], int):
                raise RuntimeError("the application has begun an answer whose status is no int")
            headers = _pairs(message.get("headers", ()))
            self._start = {**message, "status": int(message["status"]), "headers": headers}
            return
        if message["type"] != "http.response.body" or self._start is None:
            raise RuntimeError(f"the application has sent {message['type']} in a wrong place")
        self._collected += message.get("body", b"")
        more = message.get("more_body", False)
        headers = self._start["headers"]
        if not self._passes_on and _size(headers) + len(self._collected) > self.request.most:
            self._passes_on = True
            await self._send_on(
                {**self._start, "headers": list(marked(headers, self.request.marks))}
            )
            self._open.set()
        if self._passes_on:
            part, self._collected = bytes(self._collected), bytearray()
            onward = {"type": "http.response.body", "body": part, "more_body": more}
            if more:
                await self._send_on(onward)
            else:
                self._last = onward  # sent when it is stored that the answer was given
        if not more:
            whole = None if self._passes_on else bytes(self._collected)
            self._collected.clear()  # so that a large answer is not held twice
            self.answer = Answer(self._start["status"], headers, whole)
            self._complete.set_result(None)
            await self._delivered.wait()

    def first_answer(self) -> Answer:
        """Return the application's answer as it gave it, with the marks of the profile."""
        answer = self.answer
        assert answer is not None  # the run has ended with it
        return Answer(answer.status, marked(answer.headers, self.request.marks), answer.body)

    async def deliver(self, answer: Answer) -> None:
        """Send the answer, or the rest of one that is passed on.

        Raises:
            RuntimeError: a part was passed on already, and the end must not follow: the server
                breaks the connection, so the client sees that the answer is not complete.
        """
        if self._last is not None and answer.body is None:
            await self._send_on(self._last)
        elif self._passes_on:
            raise RuntimeError("that the answer was given could not be stored, so it is broken off")
        else:
            await _tell(answer, self._send_on)

    async def end(self) -> None:
        """Let the application go on after its answer, and raise what it raises then."""
        task = self._task
        if task is None:
            return
        self._go_on()
        try:
            await asyncio.shield(task)
        finally:
            self._task = task = None  # it holds an error whose traceback holds this frame

    def leave(self) -> None:
        """Let the application go on as soon as its answer is stored, though nobody sends it."""
        self._is_left = True
        if self._is_stored:
            self._go_on()

    def _stored(self, leader: asyncio.Task[Any]) -> None:
        self._is_stored = True
        if self._is_left:
            self._go_on()

    def _go_on(self) -> None:
        self._delivered.set()
        self._open.set()


class _Gone:
    """The client disconnected before its whole body had come."""


async def _body(receive: Receive, most: int) -> bytes | _Gone | None:
    """Return the request's body; ``None``: it is larger than ``most`` bytes."""
    parts = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return _Gone()
        part, more = message.get("body", b""), message.get("more_body", False)
        if len(parts) + len(part) > most:
            return None
        if not parts and not more:
            return bytes(part)  # the whole body at once: it is not held twice
        parts += part
        if not more:
            return bytes(parts)


async def _tell(answer: Answer, send: Send) -> None:
    await send(
        {"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)}
    )
    await send({"type": "http.response.body", "body": answer.body or b"", "more_body": False})


def _incoming(scope: Scope) -> Incoming:
    field = None
    for name, value in scope["headers"]:
        if name == _HEADER:
            field = value if field is None else field + b", " + value
    return Incoming(
        scope["method"],
        scope["path"].encode("utf-8", "surrogateescape"),
        scope.get("root_path", "").encode("utf-8", "surrogateescape"),
        scope.get("query_string", b""),
        None if field is None else field.decode("latin-1"),
    )


def _pairs(headers: Iterable[Iterable[bytes]]) -> Headers:
    return tuple((bytes(name), bytes(value)) for name, value in headers)


def _size(headers: Headers) -> int:
    return sum(len(name) + len(value) for name, value in headers)
