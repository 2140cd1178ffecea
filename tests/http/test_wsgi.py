"""What is WSGI's own: ``write``, ``exc_info``, ``close``, lengths of bodies, streaming."""

from __future__ import annotations

import gc
import io
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest

from kvreplay import Replay
from kvreplay.backends.memory import MemoryStore
from kvreplay.testing import FaultyStore
from kvreplay.wsgi import IdempotencyMiddleware
from support.engines import Engine
from support.http_apps import (
    BODY,
    JSON,
    KEY,
    PATH,
    Asked,
    Exchange,
    Reply,
    asked_of_wsgi,
    caller_of_environ,
    environ_of,
)

OK = "201 Created"
TEXT = [("Content-Type", "text/plain")]


@pytest.fixture(params=["memory", "lmdb", "filesystem"])
def store(request: pytest.FixtureRequest, new_engine: Callable[[str], Engine]) -> Any:
    return new_engine(request.param).open()


def layer_on(store: Any, app: Any, **settings: Any) -> IdempotencyMiddleware:
    settings = {"scope": caller_of_environ, **settings}
    return IdempotencyMiddleware(app, Replay(store, "http", ttl=3600), **settings)


def environ(
    key: str = KEY, body: bytes = BODY, method: str = "POST", **more: Any
) -> dict[str, Any]:
    headers = (*JSON, ("authorization", "alice"), ("idempotency-key", f'"{key}"'))
    return environ_of(Asked(method, PATH, "", headers, body), **more)


def ask(layer: Any, take: int | None = None, **options: Any) -> Exchange:
    return asked_of_wsgi(validator(layer), environ(**options), take)


def reply(layer: Any, **options: Any) -> Reply:
    return ask(layer, **options).result()


class Closing:
    """What an application returns: parts, and ``close()``, which is counted."""

    def __init__(self, *parts: Any, log: list[Any] | None = None) -> None:
        self.closed, self._parts = 0, parts
        self.log = [] if log is None else log

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
            self.log.append("part")
            yield part

    def close(self) -> None:
        self.log.append("close")
        self.closed += 1


def returning(result: Any, status: str = OK, headers: Any = TEXT) -> Any:
    calls: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        calls.append(environ)
        start_response(status, list(headers))
        return result() if callable(result) else result

    app.calls = calls  # type: ignore[attr-defined]
    return app


# What applications return.


def test_a_list_a_tuple_and_nothing(store: Any) -> None:
    for key, (parts, whole) in {
        "list": ([b"a", b"", b"b"], b"ab"),
        "tuple": ((b"a",), b"a"),
        "nothing": ([], b""),
    }.items():
        layer = layer_on(store, validator(returning(lambda parts=parts: parts)))
        first, again = reply(layer, key=key), reply(layer, key=key)
        assert (first.body, again.body, again.is_replay) == (whole, whole, True)
        assert again.headers[:-1] == first.headers


def test_a_generator_that_begins_its_answer_late(store: Any) -> None:
    calls: list[Any] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        calls.append(environ["wsgi.input"].read(len(BODY)))
        start_response(OK, TEXT)
        yield b"a"
        yield b"b"

    layer = layer_on(store, validator(app))
    assert [reply(layer).body for _ in range(2)] == [b"ab", b"ab"]
    assert calls == [BODY]


def test_what_is_written(store: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        write = start_response(OK, TEXT)
        write(b"a")
        write(b"b")
        return [b"c"]

    layer = layer_on(store, validator(app))
    first, again = reply(layer), reply(layer)
    assert first.body == again.body == b"abc"
    assert again.is_replay


def test_what_is_written_over_the_limit(store: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        write = start_response(OK, TEXT)
        for _ in range(4):
            write(b"x" * 40)
        return [b"end"]

    layer = layer_on(store, validator(app), max_answer_bytes=100)
    assert reply(layer).body == b"x" * 160 + b"end"
    assert reply(layer).slug == "not-kept"


def test_the_reason_is_the_applications_own(store: Any) -> None:
    seen: list[str] = []
    layer = layer_on(store, returning([b"a"], status="299 Well Done"))

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        seen.append(status)

    for _ in range(2):
        layer(environ(), start_response)
    assert seen == ["299 Well Done", "299 Unknown"]


def test_the_status_and_headers_of_a_call_with_exc_info_count(store: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/html"), ("X-Wrong", "1")])
        try:
            raise ValueError("in the middle")
        except ValueError:
            start_response("422 Unprocessable Content", TEXT, sys.exc_info())
        return [b"no"]

    layer = layer_on(store, validator(app))
    first, again = reply(layer), reply(layer)
    assert (first.status, first.body, len(first.headers)) == (422, b"no", 1)
    assert (again.status, again.body, again.is_replay) == (422, b"no", True)


def test_what_was_collected_before_exc_info_is_dropped(store: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", TEXT)
        write(b"half of an ans")
        try:
            raise ValueError("in the middle")
        except ValueError:
            start_response("422 Unprocessable Content", TEXT, sys.exc_info())
        return [b"no"]

    layer = layer_on(store, validator(app))
    for _ in range(2):
        assert (reply(layer).status, reply(layer).body) == (422, b"no")


def test_exc_info_after_a_part_is_on_its_way_raises(store: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", TEXT)
        write(b"x" * 60)
        write(b"x" * 60)
        write(b"x" * 60)
        try:
            raise ValueError("in the middle")
        except ValueError:
            start_response("500 Internal Server Error", TEXT, sys.exc_info())
        return [b"never"]

    layer = layer_on(store, validator(app), max_answer_bytes=100)
    exchange = ask(layer)
    assert isinstance(exchange.error, ValueError)
    assert reply(layer).slug == "in-doubt"


WRONG: dict[str, Any] = {
    "no start_response": lambda environ, start_response: [b"a"],
    "a status that is none": returning([b"a"], status="Created"),
    "a status of two digits": returning([b"a"], status="20 OK"),
    "an empty status": returning([b"a"], status=""),
    "a status as a number": returning([b"a"], status=201),  # type: ignore[arg-type]
    "text": returning(["a"]),
    "None": returning(None),
    "two answers": lambda environ, start_response: [
        start_response(status, TEXT) and b"a" for status in (OK, "503 Service Unavailable")
    ],
    "headers that are not Latin-1": returning([b"a"], headers=[("X-Name", "€")]),
    "a header without a value": returning([b"a"], headers=[("X-Name",)]),
}


@pytest.mark.parametrize("app", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_refused_and_never_frees_the_key(store: Any, app: Any) -> None:
    layer = layer_on(store, app)
    exchange = asked_of_wsgi(layer, environ())
    assert exchange.error is not None
    assert exchange.reply is None
    assert reply(layer).slug == "in-doubt"


# close().


def test_close_is_called_once_after_the_answer_is_stored_and_sent(store: Any) -> None:
    log: list[Any] = []

    class Notifying(Closing):
        def close(self) -> None:
            log.append(reply(layer).is_replay)
            super().close()

    result = Notifying(b"a", b"b", log=log)
    layer = layer_on(store, validator(returning(result)))

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        log.append("start")

    answer = layer(environ(), start_response)
    log.extend(answer)
    answer.close()  # type: ignore[attr-defined]
    assert log == ["part", "part", "start", b"ab", True, "close"]
    assert result.closed == 1


@pytest.mark.parametrize("take", [0, None], ids=["client gone", "all"])
def test_close_is_called_once_even_if_the_client_goes(store: Any, take: int | None) -> None:
    result = Closing(b"a")
    layer = layer_on(store, validator(returning(result)))
    ask(layer, take)
    assert result.closed == 1
    assert reply(layer).is_replay
    assert result.closed == 1


def test_close_is_called_once_if_the_application_raises_in_the_middle(store: Any) -> None:
    result = Closing(b"a", ValueError("no"))
    layer = layer_on(store, validator(returning(result)))
    assert isinstance(ask(layer).error, ValueError)
    assert result.closed == 1
    assert reply(layer).slug == "in-doubt"


def test_close_is_called_once_if_the_answer_cannot_be_stored(store: Any) -> None:
    faulty = FaultyStore(store)
    result = Closing(b"a")
    layer = layer_on(faulty, validator(returning(result)))
    faulty.fail(on="check_and_put", after=1)
    assert reply(layer).slug == "not-stored"
    assert result.closed == 1


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_close_is_called_once_of_a_stream(store: Any, stored: bool) -> None:
    faulty = FaultyStore(store)
    result = Closing(b"x" * 60, b"y" * 60, b"z")
    layer = layer_on(faulty, validator(returning(result)), max_answer_bytes=100)
    if not stored:
        faulty.fail(on="check_and_put", after=1)
    ask(layer)
    assert result.closed == 1
    assert reply(layer).slug == ("not-kept" if stored else "in-doubt")


def test_close_that_raises_keeps_the_answer(store: Any) -> None:
    class Raising(Closing):
        def close(self) -> None:
            raise ValueError("the mail server is down")

    layer = layer_on(store, returning(lambda: Raising(b"a")))
    exchange = asked_of_wsgi(layer, environ())
    assert isinstance(exchange.error, ValueError)
    assert exchange.reply is not None
    assert (exchange.reply.status, exchange.reply.body) == (201, b"a")
    assert reply(layer).is_replay


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_end_of_the_process_leaves_the_key_in_doubt(store: Any, ends: Any) -> None:
    """As a server's worker that runs out of time is told."""
    result = Closing(b"a", b"b")
    closed = result.close

    class Ending(Closing):
        def __iter__(self) -> Iterator[bytes]:
            raise ends

        def close(self) -> None:
            closed()

    layer = layer_on(store, returning(Ending))
    with pytest.raises(ends):
        layer(environ(), lambda *given: None)
    assert result.closed == 1
    assert reply(layer).slug == "in-doubt"


# Answers that are larger than what is kept.


def test_a_stream_over_the_limit_is_passed_on_as_it_comes(store: Any) -> None:
    written: list[bytes] = []
    seen: list[int] = []

    def parts() -> Iterator[bytes]:
        for number in range(5):
            yield b"%d" % number * 40
            seen.append(len(written))

    layer = layer_on(store, returning(parts), max_answer_bytes=100)

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        assert (status, headers) == (OK, TEXT)
        return written.append

    rest = list(layer(environ(), start_response))
    assert seen == [0, 0, 1, 2, 3]  # one part stays behind, until it is stored that it was the last
    whole = b"".join(b"%d" % number * 40 for number in range(5))
    assert b"".join(written + rest) == whole
    again = reply(layer)
    assert (again.slug, again.json["original_status"]) == ("not-kept", 201)


@pytest.mark.parametrize("parts", [(b"x" * 60,) * 4, (b"x" * 240,), (b"x" * 200, b"y" * 40)])
def test_a_large_answer_on_a_server_without_write(store: Any, parts: Any) -> None:
    """As those of Starlette and uvicorn, whose ``start_response`` returns None."""
    layer, started = layer_on(store, returning(list(parts)), max_answer_bytes=100), []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> None:
        started.append(status)

    assert b"".join(layer(environ(), start_response)) == b"".join(parts)
    assert started == [OK]
    again = reply(layer)
    assert (again.slug, again.json["original_status"]) == ("not-kept", 201)


def test_a_stream_that_raises_in_the_middle_leaves_the_key_in_doubt(store: Any) -> None:
    result = Closing(b"x" * 60, b"y" * 60, b"z" * 60, ValueError("halfway"))
    layer = layer_on(store, validator(returning(result)), max_answer_bytes=100)
    exchange = ask(layer)
    assert isinstance(exchange.error, ValueError)
    assert exchange.reply is not None
    assert not exchange.reply.is_complete
    assert reply(layer).slug == "in-doubt"


def test_the_end_of_a_stream_is_not_sent_if_it_cannot_be_stored(store: Any) -> None:
    faulty = FaultyStore(store)
    result = Closing(b"x" * 60, b"y" * 60, b"z" * 60)
    layer = layer_on(faulty, validator(returning(result)), max_answer_bytes=100)
    faulty.fail(on="check_and_put", after=1)
    exchange = ask(layer)
    assert isinstance(exchange.error, RuntimeError)
    assert "could not be stored" in str(exchange.error)
    assert exchange.reply is not None
    assert exchange.reply.body == b"x" * 60 + b"y" * 60
    assert not exchange.reply.is_complete
    assert reply(layer).slug == "in-doubt"


def test_a_client_that_goes_in_the_middle_of_a_stream_leaves_doubt(store: Any) -> None:
    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        def write(part: bytes) -> None:
            raise BrokenPipeError("the client is gone")

        return write

    result = Closing(b"x" * 60, b"y" * 60, b"z" * 60)
    layer = layer_on(store, returning(result), max_answer_bytes=100)
    with pytest.raises(BrokenPipeError):
        layer(environ(), start_response)
    assert result.closed == 1
    assert reply(layer).slug == "in-doubt"


def test_headers_over_the_limit_without_a_body(store: Any) -> None:
    headers = [*TEXT, ("Link", f"</{'x' * 200}>")]
    layer = layer_on(store, validator(returning([], headers=headers)), max_answer_bytes=100)
    assert len(reply(layer).headers) == 2
    assert reply(layer).slug == "not-kept"


# The request's body.


def test_the_application_gets_the_whole_body(store: Any) -> None:
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        seen.append((environ["CONTENT_LENGTH"], environ["wsgi.input"].read()))
        start_response(OK, TEXT)
        return [b"a"]

    mine = environ()
    before = dict(mine)
    layer = layer_on(store, app)
    asked_of_wsgi(layer, mine).result()
    assert seen == [(str(len(BODY)), BODY)]
    assert mine == before  # the server's own is untouched


@pytest.mark.parametrize("length", ["-1", "x", "1.5", "\u0661", " ", "+5"])
def test_a_content_length_that_is_none(store: Any, length: str) -> None:
    layer = layer_on(store, app := returning([b"a"]))
    refused = asked_of_wsgi(layer, environ(CONTENT_LENGTH=length)).result()
    assert (refused.status, refused.slug) == (400, "incomplete-body")
    assert refused.json["effect"] == "none"
    assert app.calls == []


def test_a_body_that_ends_early(store: Any) -> None:
    layer = layer_on(store, app := returning([b"a"]))
    more: dict[str, Any] = {"CONTENT_LENGTH": str(len(BODY) + 1)}
    refused = asked_of_wsgi(layer, environ(**more)).result()
    assert (refused.status, refused.slug) == (400, "incomplete-body")
    assert app.calls == []
    assert not list(store.list_all_keys())
    assert reply(layer).status == 201


def test_no_more_than_the_length_is_read(store: Any) -> None:
    source: Any = io.BytesIO(BODY + b"the next request")
    layer = layer_on(store, returning([b"a"]))
    asked_of_wsgi(layer, environ(**{"wsgi.input": source})).result()
    assert source.read() == b"the next request"


def test_a_large_length_is_refused_before_anything_is_read(store: Any) -> None:
    source = io.BytesIO(b"x" * 200)
    layer = layer_on(store, returning([b"a"]), max_body_bytes=100)
    more: dict[str, Any] = {"wsgi.input": source, "CONTENT_LENGTH": "200"}
    assert asked_of_wsgi(layer, environ(**more)).result().slug == "body-too-large"
    assert source.tell() == 0


class Trickling(io.BytesIO):
    """A source that gives less than it is asked for, as a socket does."""

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert size >= 0, "reading to the end could wait for ever"
        return super().read(min(size, 3))


def without_length(source: Any, **more: Any) -> dict[str, Any]:
    given = environ(**{"wsgi.input": source, **more})
    del given["CONTENT_LENGTH"]
    return given


@pytest.mark.parametrize("source", [io.BytesIO, Trickling])
def test_a_body_in_chunks_that_the_server_ends(store: Any, source: Any) -> None:
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        assert "HTTP_TRANSFER_ENCODING" not in environ
        seen.append((environ["CONTENT_LENGTH"], environ["wsgi.input"].read()))
        start_response(OK, TEXT)
        return [b"a"]

    layer = layer_on(store, app, max_body_bytes=100)
    more = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    assert asked_of_wsgi(layer, without_length(source(BODY), **more)).result().status == 201
    assert asked_of_wsgi(layer, without_length(source(BODY), **more)).result().is_replay
    other = asked_of_wsgi(layer, without_length(source(BODY + b" "), **more)).result()
    assert other.slug == "key-reused"
    assert reply(layer).is_replay  # the same with a length
    large = asked_of_wsgi(layer, without_length(source(b"x" * 101), **more)).result()
    assert (large.status, large.slug) == (413, "body-too-large")
    assert seen == [(str(len(BODY)), BODY)]


def test_a_body_with_a_length_that_trickles(store: Any) -> None:
    layer = layer_on(store, returning([b"a"]))
    source: Any = Trickling(BODY)
    asked_of_wsgi(layer, environ(**{"wsgi.input": source})).result()
    assert reply(layer).is_replay


def test_a_body_in_chunks_whose_end_the_server_does_not_show(store: Any) -> None:
    """It could not be compared, nor given to the application."""
    layer = layer_on(store, app := returning([b"a"]))
    more = {"HTTP_TRANSFER_ENCODING": "chunked"}
    refused = asked_of_wsgi(layer, without_length(io.BytesIO(BODY), **more)).result()
    assert (refused.status, refused.slug) == (400, "incomplete-body")
    assert app.calls == []


@pytest.mark.parametrize("length", [None, ""])
def test_a_request_without_a_body(store: Any, length: str | None) -> None:
    source = io.BytesIO(b"the next request")
    given = without_length(source)
    if length is not None:
        given["CONTENT_LENGTH"] = length
    layer = layer_on(store, app := returning([b"a"]))
    assert asked_of_wsgi(layer, given).result().status == 201
    assert app.calls[0]["wsgi.input"].read() == b""
    assert source.tell() == 0


# Passed through.


def test_a_request_that_is_not_covered_passes_through_untouched(store: Any) -> None:
    seen: list[Any] = []
    result = object()

    def app(*given: Any) -> Any:
        seen.append(given)
        return result

    mine, start_response = environ(method="PUT"), object()
    assert layer_on(store, app)(mine, start_response) is result  # type: ignore[arg-type]
    assert [id(each) for each in seen[0]] == [id(mine), id(start_response)]


def test_a_server_that_leaves_out_what_it_may(store: Any) -> None:
    """PEP 3333: these may be absent if they are empty."""
    given = environ(PATH_INFO="")
    for name in ("SCRIPT_NAME", "PATH_INFO", "QUERY_STRING"):
        del given[name]
    assert asked_of_wsgi(layer_on(store, returning([b"a"])), given).result().status == 201


# What is left in memory.


class Payload:
    """What an application holds when it fails."""


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("error", [ValueError, TimeoutError, StopIteration, KeyboardInterrupt])
@pytest.mark.usefixtures("no_collection")
def test_an_application_that_raises_is_freed_at_once(error: type[BaseException]) -> None:
    payloads: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        payload = Payload()
        payloads.append(weakref.ref(payload))
        raise error("no")

    layer = layer_on(MemoryStore(), app)
    for number in range(3):
        try:
            layer(environ(key=str(number)), lambda *given: None)
        except error:
            assert payloads[-1]() is not None, "the traceback holds it"
    assert [each() for each in payloads] == [None] * 3


@pytest.mark.usefixtures("no_collection")
def test_answers_leave_no_garbage() -> None:
    layer = layer_on(MemoryStore(), returning([b"a"]))
    for number in range(40):
        if number == 20:
            gc.collect()
        for _ in range(2):
            asked_of_wsgi(layer, environ(key=str(number)))
    assert gc.collect() == 0


def test_repr_shows_no_payload(store: Any) -> None:
    layer = layer_on(store, app := returning([b"a"]))
    reply(layer)
    told = app.calls[0]["kvreplay.request"]
    assert repr(layer).startswith("<IdempotencyMiddleware ietf with <Replay ")
    assert repr(told) == f"<IdempotentRequest {told.key!r} ending=None>"
    for shown in (repr(layer), repr(told)):
        assert "alice" not in shown
        assert KEY not in shown
