"""The table of answers of profile ``ietf``: each row a test, for both layers, on several stores.

========================================  =====================================================
situation                                 tests
========================================  =====================================================
not covered, no key where none is needed  ``test_not_covered_*``, ``test_no_key_*``
no key, a malformed one                   ``test_missing_key_*``, ``test_malformed_key_*``
no caller                                 ``test_no_caller_*``
first request, by status                  ``test_first_request_*``, ``test_status_*``
an exception                              ``test_exception_*``
answered                                  ``test_answered_*``
same key, another request                 ``test_another_request_*``
running, here or in another process       ``test_running_*``
in doubt                                  ``test_in_doubt_*``
expired                                   ``test_expired_*``
body over the limit                       ``test_body_*``
store full, unavailable, closed           ``test_store_*``
claim lost                                ``test_superseded_*``
a record that cannot be used              ``test_record_*``
========================================  =====================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import attrs
import pytest

from kvreplay import (
    NOT_APPLIED,
    Applied,
    IndeterminateError,
    InvalidResponseError,
    KeyNotFoundError,
    NotAppliedError,
    OutcomeUnknownError,
    ReplayKey,
    ReplayRecord,
    StoreFullError,
    StoreUnavailableError,
    Unknown,
)
from kvreplay._http.profile import Profile
from kvreplay.http import answer
from support.engines import these
from support.http_apps import (
    BODY,
    JSON,
    KEY,
    PATH,
    Exchange,
    Given,
    Reply,
    Says,
    Web,
)
from support.http_asking import (
    OWN,
    Gate,
    fails,
    faulty,
    leave_in_doubt,
    put_claim,
    refused,
    running,
    tampered,
    waiting,
)
from support.nursery import ForkedProgram
from support.programs import PROGRAMS, Program
from support.replaying import START

between_processes = pytest.mark.parametrize(
    "web", these("filesystem", "lmdb", "postgresql"), indirect=True
)

IN_FULL = (*JSON, ("content-length", "9"), ("location", "/payments/7"))


# Not covered; no key.


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_not_covered_method_passes_through(plain: Web, method: str) -> None:
    service = plain.serve(Says(200, (*JSON, ("set-cookie", "a=b"))))
    for _ in range(2):
        reply = service.ask(method).result()
        assert (reply.status, reply.header("set-cookie")) == (200, "a=b")
        assert not reply.is_replay
    assert [given.told for given in service.runs] == [None, None]
    assert not list(plain.store.list_all_keys())


def test_covered_method_does_not(plain: Web) -> None:
    service = plain.serve()
    for method in ("POST", "PATCH"):
        for _ in range(2):
            assert service.ask(method, key=method).result().status == 201
    assert [given.method for given in service.runs] == ["POST", "PATCH"]
    assert [given.told is not None for given in service.runs] == [True, True]


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
@pytest.mark.parametrize("method", ["post", "patch", "Patch"])
def test_covered_method_in_any_case(plain: Web, method: str) -> None:
    """Frameworks take it for the method in capitals; so it needs a key, and runs once."""
    service = plain.serve()
    refused(service.ask(method, key=None).result(), 400, "missing-key", "none")
    assert [service.ask(method).result().is_replay for _ in range(2)] == [False, True]
    refused(service.ask(method.swapcase()).result(), 422, "key-reused", "none")
    assert len(service.runs) == 1


def test_not_covered_path_passes_through_and_another_does_not(plain: Web) -> None:
    def covers(at: Any) -> bool:
        return bool((at.get("path") or at.get("PATH_INFO")) == PATH)

    service = plain.serve(covers=covers)
    for path in (PATH, PATH, "/search", "/search"):
        assert service.post(path).status == 201
    assert [given.path for given in service.runs] == [PATH, "/search", "/search"]
    assert [given.told is None for given in service.runs] == [False, True, True]


@pytest.mark.parametrize("required", [False, lambda at: False], ids=["never", "by function"])
def test_no_key_where_none_is_required_passes_through(plain: Web, required: Any) -> None:
    service = plain.serve(required=required)
    for _ in range(2):
        assert not service.post(key=None, caller=None).is_replay
    assert [given.told for given in service.runs] == [None, None]
    assert [service.post().is_replay for _ in range(2)] == [False, True]


@pytest.mark.parametrize("required", [None, True, lambda at: True], ids=["default", "always", "by"])
def test_missing_key_where_one_is_required(plain: Web, required: Any) -> None:
    service = plain.serve(required=required)
    reply = refused(service.post(key=None), 400, "missing-key", "none")
    assert service.runs == []
    assert reply.json["type"] == "/idempotency#missing-key"
    assert service.post().status == 201


@pytest.mark.parametrize(
    "field",
    ["", " ", '""', f'"{"k" * 256}"', "bare", "42", ":aGVsbG8=:", '"a", "b"', '"a', '"ä"', "'a'"],
    ids=lambda field: field[:8] or "empty",
)
def test_malformed_key(plain: Web, field: str) -> None:
    service = plain.serve()
    reply = refused(service.post(field=field), 400, "malformed-key", "none")
    assert reply.json["detail"].startswith("The Idempotency-Key header is wrong: it ")
    assert service.runs == []
    assert not list(plain.store.list_all_keys())


def test_well_formed_key_of_the_longest(plain: Web) -> None:
    service = plain.serve()
    assert service.post(key="k" * 255).status == 201
    (given,) = service.runs
    assert given.told is not None
    assert given.told.key == ReplayKey("alice", "k" * 255)


@pytest.mark.parametrize("caller", [None, ""])
def test_no_caller(plain: Web, caller: str | None) -> None:
    service = plain.serve()
    reply = refused(service.post(caller=caller), 401, "unauthenticated", "none")
    assert reply.header("www-authenticate") == "Bearer"
    assert service.runs == []
    assert not list(plain.store.list_all_keys())


def test_no_caller_challenge(plain: Web) -> None:
    reply = plain.serve(challenge='Basic realm="pay"').post(caller=None)
    assert reply.header("www-authenticate") == 'Basic realm="pay"'


# The first request.


def test_first_request_gets_the_applications_answer(web: Web) -> None:
    headers = (*IN_FULL, ("set-cookie", "a=b"), ("set-cookie", "c=d"), ("x-own", "1"))
    service = web.serve(Says(201, headers, (b'{"id"', b": 7}")))
    reply = service.post(body=[BODY[:5], BODY[5:]])
    assert (reply.status, reply.body) == (201, b'{"id": 7}')
    assert [(n.decode(), v.decode()) for n, v in reply.headers] == list(headers)
    (given,) = service.runs
    assert (given.method, given.path, given.body) == ("POST", PATH, BODY)
    assert given.told is not None
    assert given.told.key == OWN


def by_status() -> dict[int, str]:
    """How a run ends by its answer's status."""
    freed = dict.fromkeys((307, 308, 401, 403, 408, 425, 429, 503), "freed")
    kept = dict.fromkeys((200, 201, 202, 204, 301, 303, 400, 402, 404, 409, 410, 422, 451), "kept")
    return kept | freed | dict.fromkeys((500, 501, 502, 504, 507, 599), "in doubt")


def says(status: int) -> Says:
    return Says(status, () if status == 204 else JSON, () if status == 204 else (b"{}",))


@pytest.mark.parametrize(("status", "ending"), by_status().items())
def test_status_decides_how_a_run_ends(plain: Web, status: int, ending: str) -> None:
    service = plain.serve(says(status))
    first = service.post()
    assert (first.status, first.slug, first.is_replay) == (status, None, False)
    again = service.post()
    if ending == "in doubt":
        refused(again, 409, "in-doubt", "unknown")
    else:
        assert (again.status, again.body, again.is_replay) == (status, first.body, ending == "kept")
    assert len(service.runs) == (2 if ending == "freed" else 1)


@pytest.mark.parametrize(
    ("statuses", "status", "runs"),
    [
        ({404: "freed"}, 404, 2),
        ({404: "freed"}, 410, 1),
        ({"4xx": "freed"}, 410, 2),
        ({"4xx": "freed", 410: "kept"}, 410, 1),
        ({500: "freed"}, 500, 2),
        ({"5xx": "kept"}, 502, 1),
        ({503: "in doubt"}, 503, 1),
        ({429: "kept"}, 429, 1),
    ],
)
def test_status_of_the_applications_own_table(
    plain: Web, statuses: Any, status: int, runs: int
) -> None:
    service = plain.serve(says(status), statuses=statuses)
    assert service.post().status == status
    again = service.post()
    assert len(service.runs) == runs
    doubt = "in doubt" in statuses.values()
    assert again.status == (409 if doubt else status)


@pytest.mark.parametrize(
    ("ending", "status", "again", "runs"),
    [
        ("freed", 201, 201, 2),
        ("in doubt", 201, 409, 1),
        ("kept", 503, 503, 1),
        ("kept", 500, 500, 1),
        (None, 201, 201, 1),
    ],
)
def test_status_yields_to_what_the_application_says(
    web: Web, ending: Any, status: int, again: int, runs: int
) -> None:
    def application(given: Given) -> Says:
        assert given.told is not None
        assert given.told.ending is None
        given.told.ending = ending
        return says(status)

    service = web.serve(application)
    assert service.post().status == status
    assert service.post().status == again
    assert len(service.runs) == runs


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        TimeoutError(),
        ConnectionRefusedError(),
        StoreFullError("its own"),
        IndeterminateError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exception_leaves_the_key_in_doubt(web: Web, error: Exception) -> None:
    service = web.serve(fails(error))
    exchange = service.ask()
    assert exchange.error is error  # the server's, or the framework's around the layer
    assert exchange.reply is None
    refused(service.post(), 409, "in-doubt", "unknown")
    assert len(service.runs) == 1


def test_exception_of_doubt_even_if_the_replay_would_store_it(web: Web) -> None:
    service = web.serve(fails(ValueError("no")), settings={"store_errors": (ValueError,)})
    assert isinstance(service.ask().error, ValueError)
    refused(service.post(), 409, "in-doubt", "unknown")


class Faulty(Profile):
    """A profile whose own code fails when the application has run."""

    def ending(self, status: int) -> Any:
        raise ZeroDivisionError


def test_exception_of_the_layer_itself_leaves_the_key_in_doubt(web: Web) -> None:
    service = web.serve(settings={"store_errors": (ZeroDivisionError,)})
    service.app._layer = attrs.evolve(service.app._layer, profile=Faulty())
    reply = refused(service.post(), 503, "not-stored", "unknown")
    assert reply.json["application_status"] == 201
    refused(service.post(), 409, "in-doubt", "unknown")
    assert len(service.runs) == 1


def test_exception_that_says_that_nothing_happened_frees_the_key(web: Web) -> None:
    answers: list[Any] = [NotAppliedError("the bank refused the connection"), Says()]

    def application(given: Given) -> Says:
        now = answers.pop(0)
        if isinstance(now, Exception):
            raise now
        return now  # type: ignore[no-any-return]

    service = web.serve(application)
    assert isinstance(service.ask().error, NotAppliedError)
    assert service.replay.record(OWN) is None
    assert service.post().status == 201
    assert service.post().is_replay


def test_exception_after_the_application_said_that_nothing_happened(web: Web) -> None:
    def application(given: Given) -> Says:
        assert given.told is not None
        given.told.ending = "freed"
        raise ValueError("before anything")

    service = web.serve(application)
    for _ in range(2):
        assert isinstance(service.ask().error, ValueError)
    assert len(service.runs) == 2


@pytest.mark.parametrize("ending", ["kept", "in doubt"])
def test_exception_after_the_application_said_something_else(web: Web, ending: Any) -> None:
    def application(given: Given) -> Says:
        assert given.told is not None
        given.told.ending = ending
        raise ValueError("after the effect")

    service = web.serve(application)
    assert isinstance(service.ask().error, ValueError)
    refused(service.post(), 409, "in-doubt", "unknown")
    assert len(service.runs) == 1


# Answered.


def test_answered_replays_byte_for_byte(web: Web) -> None:
    headers = (
        *(("Content-Type", "application/json"), ("link", "</a>; rel=a"), ("Link", "</b>; rel=b")),
        *(("vary", "accept"), ("LOCATION", "/payments/7"), ("content-length", "256")),
    )
    body = bytes(range(256))
    service = web.serve(Says(201, headers, (body[:100], b"", body[100:])))
    first, again, third = service.post(), service.post(), service.post()
    assert (first.status, first.body) == (again.status, again.body) == (201, body)
    assert again.headers == (*first.headers, (b"idempotent-replayed", b"true"))
    assert again == third
    assert not first.is_replay
    assert len(service.runs) == 1


def test_answered_replays_after_a_restart(web: Web) -> None:
    first = web.serve().post()
    if web.engine.durable:
        web.store.close()
        web.store = web.engine.open()
    service = web.serve()
    again = service.post()
    assert (again.status, again.body, again.is_replay) == (first.status, first.body, True)
    assert service.runs == []


@pytest.mark.parametrize(
    "where",
    [{}, {"path": "/\xe4/\u20ac", "query": "a=%C3%A4&b", "root": "/v1"}],
    ids=["ASCII", "any"],
)
def test_answered_by_one_layer_and_replayed_by_the_other(web: Web, where: Any) -> None:
    first = web.serve().post(**where)
    other = Web("wsgi" if web.face == "asgi" else "asgi", web.engine)
    again = other.serve().post(**where)
    assert (again.status, again.body, again.is_replay) == (first.status, first.body, True)


def test_answered_never_replays_what_belongs_to_a_moment(web: Web) -> None:
    kept = (*JSON, ("etag", '"1"'), ("x-request", "7"))
    never = (
        *(("set-cookie", "session=secret"), ("date", "Fri, 27 Nov 2026 20:00:00 GMT")),
        *(("server", "x"), ("age", "1"), ("x-other", "1")),
        *(("ratelimit", "limit=1"), ("ratelimit-remaining", "1"), ("x-ratelimit-limit", "1")),
    )
    service = web.serve(Says(201, (*never, *kept)), stored_headers=("X-Request",))
    first, again = service.post(), service.post()
    assert len(first.headers) == len(never) + len(kept)
    assert [(n.decode(), v.decode()) for n, v in again.headers[:-1]] == list(kept)
    record = service.replay.record(OWN)
    assert b"secret" not in record.response


@pytest.mark.parametrize(("name", "shown"), [("X-Replayed", "x-replayed"), (None, None)])
def test_answered_with_another_marker(plain: Web, name: str | None, shown: str | None) -> None:
    service = plain.serve(replay_header=name)
    first, again = service.post(), service.post()
    assert not again.is_replay
    marker = () if shown is None else ((shown.encode(), b"true"),)
    assert again.headers == first.headers + marker


def test_answered_by_an_operator(web: Web) -> None:
    leave_in_doubt(web)
    service = web.serve()
    settled = answer(201, '{"id": "ä"}', {"content-type": "application/json", "location": "/7"})
    assert service.replay.resolve(OWN, response=settled)
    reply = service.post()
    assert (reply.status, reply.json, reply.header("location")) == (201, {"id": "ä"}, "/7")
    assert reply.is_replay
    assert service.runs == []


def test_freed_by_an_operator(web: Web) -> None:
    leave_in_doubt(web)
    service = web.serve()
    assert service.replay.release(OWN)
    assert not service.post().is_replay
    assert len(service.runs) == 1


def test_answered_too_large_is_not_kept(web: Web) -> None:
    service = web.serve(Says(202, JSON, (b"x" * 600, b"y" * 600)), max_answer_bytes=1000)
    first = service.post()
    assert (first.status, len(first.body)) == (202, 1200)
    again = refused(service.post(), 409, "not-kept", "answered")
    assert again.json["original_status"] == 202
    assert len(service.runs) == 1


def test_answered_within_the_limit_is_kept(web: Web) -> None:
    size = 1000 - sum(len(name) + len(value) for name, value in JSON)
    service = web.serve(Says(202, JSON, (b"x" * (size - 600), b"y" * 600)), max_answer_bytes=1000)
    first, again = service.post(), service.post()
    assert (again.status, again.body, again.is_replay) == (202, first.body, True)


def test_answered_too_large_by_a_byte(web: Web) -> None:
    size = 1001 - sum(len(name) + len(value) for name, value in JSON)
    service = web.serve(Says(202, JSON, (b"x" * (size - 600), b"y" * 600)), max_answer_bytes=1000)
    assert len(service.post().body) == size
    refused(service.post(), 409, "not-kept", "answered")


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_answered_as_large_as_a_record_can_be(web: Web, long: bool) -> None:
    """Whatever the limit of records leaves is kept, and one byte more is not: it is never too large
    to be stored when it is known."""
    caller = "\U0001f600" * 300 if long else "a"
    where: dict[str, Any] = {"path": "/" + "p" * 3000, "query": "q" * 3000, "key": "k" * 255}
    where = where if long else {"path": "/", "query": "", "key": "k"}
    size = 40_000 - 16 * 1024 - sum(len(name) + len(value) for name, value in JSON)
    size -= len(where["path"]) + len(where["query"]) + 4 * len(caller)
    for more in (0, 1):
        service = web.serve(
            Says(201, JSON, (b"x" * (size + more),)),
            scope=lambda at: caller,
            settings={"max_record_bytes": 40_000},
        )
        key = where | {"key": f"{where['key'][:254]}{more}"}
        assert len(service.post(**key).body) == size + more
        again = service.post(**key)
        assert (again.is_replay, again.slug) == ((True, None) if not more else (False, "not-kept"))


def test_answered_as_large_as_a_record_can_be_under_acp(plain: Web) -> None:
    """There the path is in the key, percent-encoded."""
    path = "/" + "\u00e9" * 4000  # 8001 bytes, of which all but the first are three characters
    size = 80_000 - 16 * 1024 - sum(len(name) + len(value) for name, value in JSON)
    size -= 8001 + (1 + 3 * 8000) + 4 * len("alice")
    replay = plain.replay(ttl="24h", max_record_bytes=80_000)
    for more in (0, 1):
        says = Says(201, JSON, (b"x" * (size + more),))
        service = plain.serve(says, replay=replay, profile="acp")
        assert len(service.post(path, key=str(more)).body) == size + more
        again = service.post(path, key=str(more))
        assert (again.status, again.is_replay) == ((201, True) if not more else (409, False))
        assert not more or again.json["code"] == "idempotency_not_kept"


# Same key, another request.

OTHERS: dict[str, dict[str, Any]] = {
    "method": {"method": "PATCH"},
    "path": {"path": "/refunds"},
    "path's case": {"path": "/Payments"},
    "query": {"query": "dry=1"},
    "body": {"body": b'{"amount": 1001}'},
    "no body": {"body": b""},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_request_with_the_key(web: Web, other: dict[str, Any]) -> None:
    service = web.serve()
    first = service.post()
    reply = service.ask(**other).result()
    refused(reply, 422, "key-reused", "none")
    assert reply.header("retry-after") is None
    assert len(service.runs) == 1
    again = service.post()
    assert (again.body, again.is_replay) == (first.body, True)


@pytest.mark.parametrize(
    "same",
    [{"headers": ()}, {"body": [BODY[:3], BODY[3:]]}, {"field": f' "{KEY}";a=1 '}],
    ids=["other headers", "body in parts", "parameters of the key"],
)
def test_the_same_request_in_another_form(web: Web, same: dict[str, Any]) -> None:
    service = web.serve()
    service.post()
    assert service.post(**same).is_replay


def test_another_request_while_the_first_runs(web: Web) -> None:
    gate = Gate()
    service = web.serve(gate)
    first = running(service, gate)
    refused(service.post(query="a=1"), 422, "key-reused", "none")
    gate.let_go()
    assert first.result().result().status == 201
    assert len(service.runs) == 1


def test_another_request_than_the_one_in_doubt(web: Web) -> None:
    leave_in_doubt(web)
    service = web.serve()
    refused(service.post(query="a=1"), 422, "key-reused", "none")
    refused(service.post(), 409, "in-doubt", "unknown")


def test_another_request_of_another_caller_is_none(web: Web) -> None:
    service = web.serve()
    assert [service.post(caller=caller).is_replay for caller in "abab"] == [False] * 2 + [True] * 2
    assert len(service.runs) == 2


# Running.


def refused_as_running(reply: Reply, seconds: str = "1") -> Reply:
    refused(reply, 409, "running", "running")
    assert reply.header("retry-after") == seconds
    return reply


def test_running_here(web: Web) -> None:
    gate = Gate()
    service = web.serve(gate)
    first = running(service, gate)
    refused_as_running(service.post())
    gate.let_go()
    assert first.result().result().status == 201
    assert service.post().is_replay
    assert len(service.runs) == 1


def test_running_in_another_layer_of_this_process(web: Web) -> None:
    gate = Gate()
    first = running(web.serve(gate), gate)
    other = Web("wsgi" if web.face == "asgi" else "asgi", web.engine).serve()
    refused_as_running(other.post())
    gate.let_go()
    assert first.result().result().status == 201
    assert other.post().is_replay
    assert other.runs == []


def test_running_elsewhere_gets_the_same_answer_as_running_here(web: Web) -> None:
    gate = Gate()
    service = web.serve(gate)
    first = running(service, gate)
    here = service.post()
    gate.let_go()
    first.result()
    service = web.serve()
    service.replay.forget(OWN)
    put_claim(web, service, START + 30_000)
    elsewhere = service.post()
    assert elsewhere == here
    refused_as_running(elsewhere)
    assert service.runs == []


@pytest.fixture
def another_process(web: Web) -> Iterator[Program]:
    """A process in whose application the request runs."""
    told = {"face": web.face, "engine": web.engine.name, "url": web.engine.url}
    process = ForkedProgram(PROGRAMS / "http_process.py", told)
    assert process.says() == "running"
    yield process
    process.end()


@between_processes
def test_running_in_another_process(web: Web, another_process: Program) -> None:
    service = web.serve()
    refused_as_running(service.post())
    another_process.tell()
    assert another_process.says() == 201
    another_process.join()
    assert service.post().is_replay
    assert service.runs == []


@between_processes
def test_in_doubt_when_the_other_process_is_killed(web: Web, another_process: Program) -> None:
    another_process.kill()
    service = web.serve()
    if not web.engine.has_files:  # there the lease tells it, and not the owners file
        refused_as_running(service.post())
        web.clock.pass_seconds(31)
    refused(service.post(), 409, "in-doubt", "unknown")
    assert service.runs == []


def test_running_is_told_in_the_time_that_was_set(plain: Web) -> None:
    gate = Gate()
    service = plain.serve(gate, retry_after="2.5s")
    first = running(service, gate)
    refused_as_running(service.post(), "3")
    gate.let_go()
    first.result()


def test_running_is_waited_for(web: Web) -> None:
    gate = Gate()
    service = web.serve(gate, wait_timeout=None)
    first = running(service, gate)
    second = waiting(service)
    gate.let_go()
    assert first.result().result().status == 201
    waited = second.result().result()
    assert (waited.status, waited.json, waited.is_replay) == (201, {"id": 7}, True)
    assert len(service.runs) == 1


def test_running_for_too_long_is_not_waited_for(web: Web) -> None:
    gate = Gate()
    service = web.serve(gate, wait_timeout="5ms")
    first = running(service, gate)
    refused_as_running(service.post())
    gate.let_go()
    assert first.result().result().status == 201


@pytest.mark.parametrize("how", ["raises", "500"])
def test_in_doubt_after_waiting(web: Web, how: str) -> None:
    gate = Gate(ValueError("lost") if how == "raises" else Says(500))
    service = web.serve(gate, wait_timeout=None)
    first = running(service, gate)
    second = waiting(service)
    gate.let_go()
    mine: Exchange = first.result()
    if how == "raises":
        assert isinstance(mine.error, ValueError)
    else:
        assert mine.result().status == 500
    refused(second.result().result(), 409, "in-doubt", "unknown")
    assert len(service.runs) == 1


def test_freed_after_waiting_with_an_answer(web: Web) -> None:
    gate = Gate(Says(503))
    service = web.serve(gate, wait_timeout=None)
    first = running(service, gate)
    second = waiting(service)
    gate.let_go()
    assert first.result().result().status == 503
    shared = second.result().result()
    assert (shared.status, shared.is_replay) == (503, False)
    assert service.replay.record(OWN) is None


def test_freed_after_waiting_without_an_answer(web: Web) -> None:
    """Nothing happened, so the one that has waited runs."""
    gate, gates = Gate(NotAppliedError()), [Says()]
    gates.append(gate)  # type: ignore[arg-type]

    def application(given: Given) -> Says:
        now: Any = gates.pop()
        return now if isinstance(now, Says) else now(given)

    service = web.serve(application, wait_timeout=None)
    first = running(service, gate)
    second = waiting(service)
    gate.let_go()
    assert isinstance(first.result().error, NotAppliedError)
    waited = second.result().result()
    assert (waited.status, waited.is_replay) == (201, False)
    assert service.post().is_replay
    assert len(service.runs) == 2


@pytest.mark.parametrize("reads", range(5))
def test_running_and_over_when_it_is_looked_at_again(web: Web, reads: int) -> None:
    store = faulty(web)
    service = web.serve(store=store)
    put_claim(web, service, START + 30_000)
    store.fail(KeyNotFoundError("gone"), on="read", after=reads)
    refused_as_running(service.post())
    assert service.runs == []


# In doubt.


def test_in_doubt_without_a_reconciler(web: Web) -> None:
    leave_in_doubt(web)
    service = web.serve()
    for _ in range(2):
        reply = refused(service.post(), 409, "in-doubt", "unknown")
        assert reply.header("retry-after") is None
    assert service.runs == []
    assert service.post(key="another").status == 201


def test_in_doubt_and_applied(web: Web) -> None:
    leave_in_doubt(web)
    asked: list[ReplayRecord] = []

    def reconcile(record: ReplayRecord) -> Any:
        asked.append(record)
        return Applied(answer(201, b'{"id": 8}', {"content-type": "application/json"}))

    service = web.serve(settings={"on_in_doubt": reconcile})
    reply = service.post()
    assert (reply.status, reply.json, reply.is_replay) == (201, {"id": 8}, True)
    assert service.post() == reply
    assert service.runs == []
    assert [each.key for each in asked] == [OWN]


def test_in_doubt_and_not_applied(web: Web) -> None:
    leave_in_doubt(web)
    service = web.serve(settings={"on_in_doubt": lambda record: NOT_APPLIED})
    reply = service.post()
    assert (reply.status, reply.is_replay) == (201, False)
    assert service.post().is_replay
    assert len(service.runs) == 1


@pytest.mark.parametrize(("after", "told"), [(30, "30"), (0.2, "1"), (None, None)])
def test_in_doubt_and_unknown(web: Web, after: float | None, told: str | None) -> None:
    leave_in_doubt(web)
    service = web.serve(settings={"on_in_doubt": lambda record: Unknown(retry_after=after)})
    reply = refused(service.post(), 409, "in-doubt", "unknown")
    assert reply.header("retry-after") == told
    assert service.runs == []


@pytest.mark.parametrize("verdict", [ValueError("the bank is down"), "who knows"], ids=str)
def test_in_doubt_and_a_reconciler_that_fails(web: Web, verdict: Any) -> None:
    """Its error reaches the server; nothing ran, and the key is in doubt as before."""
    leave_in_doubt(web)

    def reconcile(record: ReplayRecord) -> Any:
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    service = web.serve(settings={"on_in_doubt": reconcile})
    exchange = service.ask()
    assert exchange.error is not None
    assert exchange.reply is None
    assert service.runs == []
    refused(web.serve().post(), 409, "in-doubt", "unknown")


@pytest.mark.parametrize("response", ["paid", None, {"status": 201}])
def test_in_doubt_and_applied_without_an_http_answer(web: Web, response: Any) -> None:
    """The reconciler's fault reaches the server; nothing is stored that a retry could not be given."""
    leave_in_doubt(web)
    service = web.serve(settings={"on_in_doubt": lambda record: Applied(response)})
    exchange = service.ask()
    assert isinstance(exchange.error, InvalidResponseError)
    assert "kvreplay.http.answer()" in str(exchange.error)
    assert service.runs == []
    refused(web.serve().post(), 409, "in-doubt", "unknown")


# Expired.


@pytest.mark.parametrize("pruned", [False, True], ids=["answer", "tombstone"])
def test_expired_and_stale(web: Web, pruned: bool) -> None:
    service = web.serve(settings={"ttl": 60, "tombstone_ttl": 60})
    service.post()
    web.clock.pass_seconds(59.999)
    assert service.post().is_replay
    web.clock.pass_seconds(0.001)
    if pruned:
        refused(service.post(), 422, "expired", "answered")
    reply = refused(service.post(), 422, "expired", "answered")
    assert reply.header("retry-after") is None
    refused(service.post(), 422, "expired", "answered")
    assert len(service.runs) == 1


def test_expired_is_told_more_than_once_without_a_tombstone_ttl(web: Web) -> None:
    service = web.serve(settings={"ttl": 60})
    service.post()
    web.clock.pass_seconds(119.999)
    for _ in range(2):
        refused(service.post(), 422, "expired", "answered")
    service.replay.sweep()
    refused(service.post(), 422, "expired", "answered")
    assert len(service.runs) == 1
    web.clock.pass_seconds(0.001)
    assert not service.post().is_replay
    assert len(service.runs) == 2


@pytest.mark.parametrize("pruned", [False, True], ids=["answer", "tombstone"])
def test_expired_and_run_anew(web: Web, pruned: bool) -> None:
    service = web.serve(settings={"ttl": 60, "tombstone_ttl": 60, "on_expired": "rerun"})
    service.post()
    web.clock.pass_seconds(60)
    if pruned:
        refused(web.serve(settings={"tombstone_ttl": 60}).post(), 422, "expired", "answered")
    assert not service.post().is_replay
    assert service.post().is_replay
    assert len(service.runs) == 2


# The body.


@pytest.mark.parametrize("parts", [[b"x" * 101], [b"x" * 60, b"x" * 41], [b"x"] * 101], ids=len)
def test_body_over_the_limit(plain: Web, parts: list[bytes]) -> None:
    service = plain.serve(max_body_bytes=100)
    refused(service.post(body=parts), 413, "body-too-large", "none")
    assert service.runs == []
    assert not list(plain.store.list_all_keys())


def test_body_of_the_limit(plain: Web) -> None:
    service = plain.serve(max_body_bytes=100)
    assert service.post(body=b"x" * 100).status == 201
    assert service.post(body=[b"x" * 50] * 2).is_replay
    assert len(service.runs) == 1


def test_body_over_the_limit_without_a_key_is_not_the_layers(plain: Web) -> None:
    service = plain.serve(max_body_bytes=100, required=False)
    assert service.post(key=None, body=b"x" * 101).status == 201


# The store.


ERRORS = [StoreFullError("no room"), StoreUnavailableError("locked"), OutcomeUnknownError("lost")]
errors = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


@errors
def test_store_fails_before_anything_ran(web: Web, error: Exception) -> None:
    store = faulty(web)
    service = web.serve(store=store, retry_after=5)
    store.fail(error, on="check_and_put", times=9)
    reply = refused(service.post(), 503, "unavailable", "none")
    assert reply.header("retry-after") == "5"
    assert service.runs == []


def test_store_cannot_be_read(web: Web) -> None:
    store = faulty(web)
    service = web.serve(store=store)
    service.post()
    store.fail(on="read", times=1)
    reply = refused(service.post(), 503, "unavailable", "none")
    assert reply.header("retry-after") == "1"
    assert service.post().is_replay


@errors
def test_store_fails_after_the_effect(web: Web, error: Exception) -> None:
    store = faulty(web)
    service = web.serve(store=store)
    store.fail(error, on="check_and_put", after=1)
    reply = refused(service.post(), 503, "not-stored", "unknown")
    assert reply.header("retry-after") == "1"
    assert reply.json["application_status"] == 201
    refused(service.post(), 409, "in-doubt", "unknown")
    assert len(service.runs) == 1


def test_store_fails_after_the_effect_and_takes_nothing_more(web: Web) -> None:
    store = faulty(web)
    service = web.serve(store=store)
    store.fail(on="check_and_put", after=1, times=2)
    refused(service.post(), 503, "not-stored", "unknown")
    refused(service.post(), 409, "in-doubt", "unknown")
    assert len(service.runs) == 1


def test_store_that_took_the_answer_without_saying_so(web: Web) -> None:
    store = faulty(web)
    service = web.serve(store=store)
    store.lose_outcome(applied=True, on="check_and_put", after=1)
    first = service.post()
    again = service.post()
    assert again.is_replay
    assert (again.status, again.json) == (201, {"id": 7})
    assert first.status in (201, 503)
    assert len(service.runs) == 1


def test_store_that_does_not_free_the_key(web: Web) -> None:
    """The application said that nothing happened; nobody may rely on what was not stored."""
    store = faulty(web)
    service = web.serve(Says(503), store=store)
    store.fail(on="check_and_put", after=1)
    refused(service.post(), 503, "not-stored", "unknown")
    refused(service.post(), 409, "in-doubt", "unknown")
    assert len(service.runs) == 1


def test_replay_is_closed(web: Web) -> None:
    service = web.serve()
    service.post()
    service.replay.close()
    reply = refused(service.post(key="new"), 503, "unavailable", "none")
    assert reply.header("retry-after") == "1"
    assert service.post().is_replay
    assert len(service.runs) == 1


# The claim is lost.


def test_superseded_by_another_owner(web: Web) -> None:
    def application(given: Given) -> Says:
        ((_, scope, own),) = web.store.list_all_keys()
        web.store.write("http", scope, own, b"another's")
        return Says()

    service = web.serve(application)
    reply = refused(service.post(), 409, "superseded", "unknown")
    assert reply.header("retry-after") == "1"


# A record that cannot be used.


def newer(data: bytes) -> bytes:
    """The record as a later version would write it."""
    body = data[:1] + b"\x02" + data[2:-5]
    return body + b"\xce" + crc32(body).to_bytes(4, "big")


def test_record_is_damaged(web: Web) -> None:
    service = tampered(web, lambda data: data[:-1] + b"?")
    refused(service.post(), 500, "damaged", "unknown")
    assert service.runs == []


def test_record_of_a_newer_version(web: Web) -> None:
    service = tampered(web, newer)
    reply = refused(service.post(), 503, "unavailable", "none")
    assert reply.header("retry-after") == "1"
    assert service.runs == []


@pytest.mark.parametrize(
    "response",
    [
        *(None, "paid", 7, {"status": 201}, {"status": "201", "headers": [], "body": b""}),
        *({"status": 201, "headers": [["a", "b"]], "body": b""},),
        *({"status": 201, "headers": [[b"a"]], "body": b""},),
        *({"status": 201, "headers": [7], "body": b""},),
        *({"status": 201, "headers": [], "body": "text"},),
    ],
    ids=str,
)
def test_record_is_no_http_answer(plain: Web, response: Any) -> None:
    leave_in_doubt(plain)
    service = plain.serve()
    assert service.replay.resolve(OWN, response=response)
    refused(service.post(), 500, "damaged", "unknown")
    assert service.runs == []


def test_record_is_a_stored_failure(web: Web) -> None:
    """As another program leaves it in the same namespace."""
    service = web.serve()
    params = {"body": hashlib.sha256(BODY).digest(), "method": "POST"}
    params |= {"path": PATH.encode(), "query": b""}
    with pytest.raises(IndexError):
        web.replay(store_errors=(IndexError,)).execute(OWN, params, lambda: [][0])
    refused(service.post(), 500, "damaged", "unknown")
    assert service.runs == []
