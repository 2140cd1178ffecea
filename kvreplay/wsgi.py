"""``Idempotency-Key`` for WSGI applications: Flask, Django, and any other.

``docs/http.md`` has the table of answers, and a page for each framework.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

from kvreplay import NotStored, Outcome, Replay
from kvreplay._http.answers import ANSWERS, Answer, Headers, marked
from kvreplay._http.layer import Asking, Layer, Request, is_copy
from kvreplay._http.problems import Refusal
from kvreplay._http.requests import Incoming
from kvreplay._http.settings import Configured
from kvreplay.errors import KVReplayError, NotAppliedError

__all__ = ["IdempotencyMiddleware"]

_is_status = re.compile(r"[1-9][0-9]{2}(?: .*)?").fullmatch

Environ = dict[str, Any]
Write = Callable[[bytes], object]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]


class IdempotencyMiddleware(Configured[WSGIApp, Replay, Environ, str | None]):
    """Run each request that has an ``Idempotency-Key`` once, and give every retry its answer.

    Requests that are not covered pass through untouched. What the application does after its answer
    (``close()`` of what it returned) comes after the answer is stored and sent.
    """

    _kind = Replay

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request, or pass it through."""
        incoming = _incoming(environ)
        asking = self._layer.asking(incoming, environ)
        if asking is None:
            return self._app(environ, start_response)
        if isinstance(asking, Asking):
            return self._serve(asking, incoming, environ, start_response)
        return _told(asking, start_response)

    def _serve(
        self, asking: Asking, incoming: Incoming, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        layer = self._layer
        key = layer.identify(asking, layer.caller_of(environ), incoming)
        if isinstance(key, Answer):
            return _told(key, start_response)
        if asking.of_state:
            return _told(self._state(key, incoming), start_response)
        body = _body(environ, layer.max_body_bytes)
        if isinstance(body, Refusal):
            return _told(layer.refuse(body, incoming), start_response)
        request = layer.request(key, incoming, body)
        run = _Run(self._app, layer, request, environ, start_response, body)
        try:
            answer = self._execute(run, incoming)
            return run.delivered(answer)
        except BaseException:  # whatever it is, the server gets nothing to close
            run.close()
            raise

    def _execute(self, run: _Run, incoming: Incoming) -> Answer:
        """Return the answer to send; raise what the application has raised instead of one."""
        try:
            outcome = self._outcome(run)
        except KVReplayError as error:
            answer = self._layer.refused(error, run, incoming)
        else:
            answer = self._layer.answered(outcome, run, incoming)
        if answer is None:
            raise run.take_error()
        return answer

    def _outcome(self, run: _Run) -> Outcome[Any]:
        request = run.request
        while True:
            try:
                return self._replay.execute(
                    request.key,
                    request.params,
                    run,
                    wait_timeout=self._layer.wait_timeout,
                    returns=ANSWERS,
                )
            except NotAppliedError as error:
                if run.has_failed or not is_copy(error):
                    raise  # else it is of the run that this request waited for, which freed the key

    def _state(self, key: Any, incoming: Incoming) -> Answer:
        try:
            record = self._replay.record(key)
            in_doubt = record is not None and self._replay.is_in_doubt(record)
        except KVReplayError as error:
            return self._layer.failed(error, incoming)
        return self._layer.state(record, in_doubt, incoming)


class _Run:
    """One run of the application: the handler that the replay calls, and what comes of it."""

    def __init__(
        self,
        app: WSGIApp,
        layer: Layer[Environ],
        request: Request,
        environ: Environ,
        start_response: StartResponse,
        body: bytes,
    ) -> None:
        self._app = app
        self._layer = layer
        self.request = request
        self._start_on = start_response
        self._environ = {
            **environ,
            "kvreplay.request": request.told,
            "wsgi.input": io.BytesIO(body),
            "CONTENT_LENGTH": str(len(body)),
        }
        self._environ.pop("HTTP_TRANSFER_ENCODING", None)
        self._status: str | None = None
        self._headers: Headers = ()
        self._collected = bytearray()
        self._passes_on = False  # the answer is larger than what can be kept
        self._write: Write | None = None  # the server's; some have none, and get all at the end
        self._held: list[bytes] = []  # sent when it is stored that the answer was given
        self._returned: Any = None
        self._first: Answer | None = None
        self.answer: Answer | None = None  # what can be kept of a complete one
        self.error: Exception | None = None  # what the application raised instead

    def __call__(self) -> dict[str, Any] | NotStored[Any]:
        """Run the application up to its answer's end, for the replay."""
        try:
            self._returned = self._app(self._environ, self._start)
            for part in self._returned:
                self._collect(part)
            if self._status is None:
                raise RuntimeError("the application has not called start_response")
            if not self._passes_on:
                self._pass_on_if_large()  # by its headers alone
            status = int(self._status[:3])
        except Exception as error:  # the application's own code, or a server's that it writes to
            self.error = error
            raise self._layer.unanswered(self.request, error) from error
        whole = None if self._passes_on else bytes(self._collected)
        self._collected.clear()  # so that a large answer is not held twice
        self.answer = Answer(status, self._headers, whole)
        return self._layer.result(self.answer, self.request)

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Write:
        try:
            if exc_info is None and self._status is not None:
                raise RuntimeError("the application has begun two answers")
            if exc_info is not None and self._passes_on:
                raise exc_info[1].with_traceback(exc_info[2])  # a part is on its way already
            if exc_info is not None:
                self._collected.clear()  # of the answer that this one replaces
        finally:
            exc_info = None
        if not isinstance(status, str) or _is_status(status) is None:
            raise RuntimeError("the application has begun an answer whose status is none")
        self._status = status
        self._headers = tuple(
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in headers
        )
        return self._collect

    def _collect(self, part: bytes) -> None:
        if not self._passes_on:
            self._collected += part
            self._pass_on_if_large()
            return
        if self._write is not None:
            self._write(self._held.pop())
        self._held.append(part)

    def _pass_on_if_large(self) -> None:
        size = sum(len(name) + len(value) for name, value in self._headers)
        if size + len(self._collected) > self.request.most and self._status is not None:
            headers = marked(self._headers, self.request.marks)
            self._passes_on = True
            self._write = self._start_on(self._status, _as_text(headers))
            self._held.append(bytes(self._collected))
            self._collected.clear()

    @property
    def has_failed(self) -> bool:
        """Whether the application has raised something instead of a complete answer."""
        return self.error is not None

    def take_error(self) -> Exception:
        """Return what the application raised, and forget it: its traceback holds this object."""
        error, self.error = self.error, None
        assert error is not None  # it is taken once
        return error

    def first_answer(self) -> Answer:
        """Return the application's answer as it gave it, with the marks of the profile."""
        answer = self.answer
        assert answer is not None  # the run has ended with it
        headers = marked(answer.headers, self.request.marks)
        self._first = Answer(answer.status, headers, answer.body)
        return self._first

    def delivered(self, answer: Answer) -> Iterable[bytes]:
        """Return what the server sends: the answer, or the rest of one that is passed on.

        Raises:
            RuntimeError: a part was passed on already, and the end must not follow: the server
                breaks the connection, so the client sees that the answer is not complete.
        """
        if not self._passes_on:
            status = self._status if answer is self._first else None
            return _Body(_told(answer, self._start_on, status), self.close)
        if answer.body is None:
            return _Body(self._held, self.close)
        raise RuntimeError("that the answer was given could not be stored, so it is broken off")

    def close(self) -> None:
        """Call ``close()`` of what the application returned: PEP 3333 promises it."""
        returned, self._returned = self._returned, None
        if hasattr(returned, "close"):
            returned.close()


class _Body:
    """An answer's body, and what to call after it was sent."""

    def __init__(self, parts: list[bytes], close: Callable[[], None]) -> None:
        self._parts = parts
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _told(answer: Answer, start_response: StartResponse, status: str | None = None) -> list[bytes]:
    start_response(status or _status_line(answer.status), _as_text(answer.headers))
    return [answer.body or b""]


def _status_line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"


def _as_text(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _body(environ: Environ, most: int) -> bytes | Refusal:
    """Return the request's body, or why it is refused."""
    announced = environ.get("CONTENT_LENGTH") or None
    source = environ["wsgi.input"]
    if announced is not None:
        if not announced.isascii() or not announced.isdigit():
            return Refusal("incomplete-body")
        length = int(announced)
        if length > most:
            return Refusal("body-too-large")
        whole: bytes = source.read(length)
        if len(whole) == length:  # as most servers read: it is not held twice
            return whole
        parts = bytearray(whole)
        while len(parts) < length:
            part = source.read(length - len(parts))
            if not part:
                return Refusal("incomplete-body")
            parts += part
        return bytes(parts)
    if not environ.get("wsgi.input_terminated"):  # reading could wait for ever
        if environ.get("HTTP_TRANSFER_ENCODING"):
            why = "It comes without a length, and this server does not show where it ends."
            return Refusal("incomplete-body", why=why)
        return b""
    body = bytearray()
    while part := source.read(most + 1 - len(body)):
        body += part
        if len(body) > most:
            return Refusal("body-too-large")
    return bytes(body)


def _incoming(environ: Environ) -> Incoming:
    root = environ.get("SCRIPT_NAME", "").encode("latin-1")
    return Incoming(
        environ["REQUEST_METHOD"],
        root + environ.get("PATH_INFO", "").encode("latin-1"),
        root,
        environ.get("QUERY_STRING", "").encode("latin-1"),
        environ.get("HTTP_IDEMPOTENCY_KEY"),
    )
