"""Answers and requests as records keep them; what the application is told; whose a key is."""

from __future__ import annotations

import hashlib
import json
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvreplay import ConfigError, InvalidParamsError, InvalidResponseError, ReplayKey
from kvreplay._http.answers import keeping, stored
from kvreplay.http import (
    Answer,
    HTTPRequest,
    IdempotentRequest,
    answer,
    answer_of,
    downstream_key,
    request_of,
)
from support.http_apps import BODY, JSON, KEY, PATH, Given, Says, Web

OWN = ReplayKey("alice", KEY)

# Headers.

KEPT = [
    *("cache-control", "content-disposition", "content-encoding", "content-language"),
    *("content-length", "content-location", "content-range", "content-security-policy"),
    *("content-type", "deprecation", "etag", "expires", "last-modified", "link", "location"),
    *("sunset", "vary", "x-content-type-options"),
]
NEVER = [
    *("set-cookie", "set-cookie2", "date", "server", "age", "www-authenticate"),
    *("ratelimit", "ratelimit-limit", "ratelimit-policy", "x-ratelimit-remaining"),
    *("x-rate-limit-reset", "connection", "keep-alive", "proxy-connection", "te", "trailer"),
    *("transfer-encoding", "upgrade", "proxy-authenticate"),
]
BY_OPTION = ["x-request-id", "retry-after", "access-control-allow-origin", "allow", "x-own"]


@pytest.mark.parametrize("name", KEPT)
def test_a_header_that_is_kept(name: str) -> None:
    for spelled in (name, name.title(), name.upper()):
        pair = (spelled.encode(), b"v")
        assert stored(Answer(201, (pair,), b""), keeping(()))["headers"] == [[*pair]]


@pytest.mark.parametrize("name", NEVER)
def test_a_header_that_is_never_kept(name: str) -> None:
    for spelled in (name, name.title(), name.upper()):
        assert stored(Answer(201, ((spelled.encode(), b"v"),), b""), keeping(()))["headers"] == []
        with pytest.raises(ConfigError):
            keeping([spelled])
        with pytest.raises(InvalidResponseError):
            answer(201, headers={spelled: "v"})


@pytest.mark.parametrize("name", BY_OPTION)
def test_a_header_that_is_kept_by_option(name: str) -> None:
    given = Answer(201, ((name.encode(), b"v"), (b"set-cookie", b"s")), b"")
    assert stored(given, keeping(()))["headers"] == []
    assert stored(given, keeping([name.upper()]))["headers"] == [[name.encode(), b"v"]]


names = st.sampled_from([*KEPT, *NEVER, *BY_OPTION])


@settings(deadline=None)
@given(st.lists(st.tuples(names, st.binary(max_size=5)), max_size=12))
def test_what_is_kept_is_in_order_and_repeated(pairs: list[tuple[str, bytes]]) -> None:
    encoded = tuple((name.encode(), value) for name, value in pairs)
    kept = stored(Answer(200, encoded, b"b"), keeping(()))
    assert kept["headers"] == [[name.encode(), value] for name, value in pairs if name in KEPT]


# answer()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((204,), (204, [], b"")),
        ((200, b"\xff"), (200, [], b"\xff")),
        ((201, '{"a": "ä"}'), (201, [], b'{"a": "\xc3\xa4"}')),
        ((201, "", {"Content-Type": "a/b"}), (201, [[b"Content-Type", b"a/b"]], b"")),
        ((201, "", [("a", b"b"), (b"a", "\xe4")]), (201, [[b"a", b"b"], [b"a", b"\xe4"]], b"")),
        ((599, "", ()), (599, [], b"")),
        ((HTTPStatus.CREATED,), (201, [], b"")),
        ((201, "", {"a": "b\tc "}), (201, [[b"a", b"b\tc "]], b"")),
    ],
)
def test_an_answer_is_what_the_layer_stores(given: Any, wanted: Any) -> None:
    status, headers, body = wanted
    assert answer(*given) == {"status": status, "headers": headers, "body": body}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((199,), "the status is 199; give one of 200 to 599"),
        ((600,), "the status is 600"),
        (("201",), "the status is '201'"),
        ((True,), "the status is True"),
        ((201.0,), "the status is 201.0"),
        ((201, {"id": 7}), "the body is a dict; give bytes or str, such as json.dumps returns"),
        ((201, None), "the body is a NoneType"),
        ((201, "", {"a": 1}), "a header is no pair of str or bytes, has a line break"),
        ((201, "", {"a": "b\r\nx: y"}), "has a line break"),
        ((201, "", {"a": "b\0"}), "has a line break"),
        ((201, "", {"a\n": "b"}), "has a line break"),
        ((201, "", [("a",)]), "a header is no pair"),
        ((201, "", [("a", "b", "c")]), "a header is no pair"),
        ((201, "", [7]), "a header is no pair"),
        ((201, "", 7), "the headers are a int; give a mapping or pairs"),
        ((201, "", {"": "b"}), "a header is no pair"),
        ((201, "", {"a b": "c"}), "a header is no pair"),
        ((201, "", {"a:": "c"}), "a header is no pair"),
        ((201, "", {"\xe4": "c"}), "a header is no pair"),
        ((201, "", ["ab"]), "a header is no pair"),
        ((201, "", {"a": "\u20ac"}), "or is not Latin-1"),
        ((201, "ab", {"Content-Length": "3"}), "content-length is not the length of the body"),
    ],
)
def test_what_is_no_answer_is_refused(given: Any, text: str) -> None:
    with pytest.raises(InvalidResponseError) as error:
        answer(*given)
    assert text in str(error.value)
    assert str(error.value).endswith("nothing was changed")


def test_an_answer_may_say_its_length() -> None:
    assert answer(201, "\xe4b", {"Content-Length": "3"})["headers"] == [[b"Content-Length", b"3"]]


# What records show.


def test_a_record_shows_its_answer_and_its_request(web: Web) -> None:
    service = web.serve(Says(201, (*JSON, ("set-cookie", "s")), (b"{}",)))
    service.post(query="a=%20&b")
    record = service.replay.record(OWN)
    assert answer_of(record) == Answer(201, ((b"content-type", b"application/json"),), b"{}")
    request = request_of(record)
    assert request is not None
    assert (request.method, request.path, request.query) == ("POST", PATH.encode(), b"a=%20&b")
    assert request.body_sha256 == hashlib.sha256(BODY).digest()


def test_a_record_in_doubt_shows_its_request(web: Web) -> None:
    service = web.serve(Says(500))
    service.post()
    record = service.replay.record(OWN)
    assert answer_of(record) is None
    assert request_of(record) is not None


def test_a_record_that_shows_neither(web: Web) -> None:
    service = web.serve(settings={"params_key": b"k" * 16, "tombstone_ttl": 60, "ttl": 60})
    service.post()
    record = service.replay.record(OWN)
    assert request_of(record) is None
    assert answer_of(record) is not None
    web.clock.pass_seconds(60)
    assert service.post().slug == "expired"
    assert answer_of(service.replay.record(OWN)) is None
    assert request_of(service.replay.record(OWN)) is None


def test_a_record_of_something_else_shows_neither(web: Web) -> None:
    replay = web.replay()
    replay.execute(("alice", "k"), {"amount": 1}, lambda: "paid")
    record = replay.record(("alice", "k"))
    assert (answer_of(record), request_of(record)) == (None, None)


def test_an_answer_too_large_to_keep_has_no_body(web: Web) -> None:
    service = web.serve(Says(201, JSON, (b"x" * 200,)), max_answer_bytes=100)
    service.post()
    shown = answer_of(service.replay.record(OWN))
    assert shown is not None
    assert (shown.status, shown.body) == (201, None)


def test_neither_shows_its_payload_in_a_repr() -> None:
    assert repr(Answer(201, ((b"a", b"secret"),), b"secret")) == "Answer(status=201)"
    assert repr(HTTPRequest("POST", b"/secret", b"secret", b"")) == "HTTPRequest(method='POST')"


def test_an_answer_settles_a_key_for_the_client(web: Web) -> None:
    """The round trip: what an operator gives is what the client gets."""
    web.serve(Says(500)).post()
    service = web.serve()
    settled = answer(402, json.dumps({"error": "declined"}), {"content-type": "application/json"})
    assert service.replay.resolve(OWN, response=settled)
    reply = service.post()
    assert (reply.status, reply.json, reply.is_replay) == (402, {"error": "declined"}, True)
    assert answer_of(service.replay.record(OWN)) == Answer(
        402, ((b"content-type", b"application/json"),), b'{"error": "declined"}'
    )


# What the application is told.


def test_the_ending_is_one_of_three(plain: Web) -> None:
    told = IdempotentRequest(OWN)
    assert told.ending is None
    for ending in ("kept", "freed", "in doubt", None):
        told.ending = ending
        assert told.ending == ending
    for wrong in ("free", "in_doubt", "", 1, True):
        with pytest.raises(ConfigError, match="it can be 'kept', 'freed', 'in doubt'"):
            told.ending = wrong  # type: ignore[assignment]
        assert told.ending is None
    with pytest.raises(AttributeError):
        told.endings = "kept"  # type: ignore[attr-defined]


def test_a_wrong_ending_never_frees_the_key(web: Web) -> None:
    def application(given: Given) -> Says:
        assert given.told is not None
        given.told.ending = "free"  # type: ignore[assignment]
        return Says()

    service = web.serve(application)
    assert isinstance(service.ask().error, ConfigError)
    assert service.post().slug == "in-doubt"


def test_the_ending_may_be_told_until_the_answer_ends(web: Web) -> None:
    def application(given: Given) -> Says:
        def change() -> None:
            assert given.told is not None
            given.told.ending = "freed"

        return Says(201, JSON, (b"{", change, b"}"))

    service = web.serve(application)
    service.post()
    service.post()
    assert len(service.runs) == 2


def test_the_ending_after_the_answer_changes_nothing(web: Web) -> None:
    def application(given: Given) -> Says:
        def change() -> None:
            assert given.told is not None
            given.told.ending = "freed"

        return Says(afterwards=change)

    service = web.serve(application)
    service.post()
    assert service.post().is_replay


# Keys for other systems.


def test_a_downstream_key_is_a_promise() -> None:
    """A retry after an upgrade must send the same one, so these values never change."""
    key = ReplayKey("alice", "8e03978e-40d5-43e8-bc93-6894a57f9324")
    assert downstream_key(key) == "7e90860b7aa791fe2b2641e941cf3251"
    assert downstream_key(key, "refund") == "ae6f98f971944d1888986afd240d6cc3"
    assert (
        downstream_key(ReplayKey("älice", "k", "/payments")) == "b2497dd652441696ae2cc16cd5b81a3d"
    )


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.text(max_size=4)] * 4), min_size=2, max_size=6, unique=True))
def test_a_downstream_key_is_its_own(parts: list[tuple[str, str, str, str]]) -> None:
    """However the parts are cut: ("a", "bc") is not ("ab", "c")."""
    made: dict[str, Any] = {}
    for scope, own, operation, step in parts:
        try:
            key = ReplayKey(scope, own, operation or None)
            found = downstream_key(key, step)
        except (InvalidParamsError, UnicodeEncodeError):
            continue
        assert len(found) == 32
        assert int(found, 16) >= 0
        assert made.setdefault(found, (key, step)) == (key, step)


def test_a_downstream_key_is_the_same_in_the_application_and_from_the_record(web: Web) -> None:
    seen: list[str] = []

    def application(given: Given) -> Says:
        assert given.told is not None
        seen.append(downstream_key(given.told.key))
        return Says(500)

    service = web.serve(application)
    service.post()
    assert seen == [downstream_key(service.replay.record(OWN).key)]
    service.replay.release(OWN)
    service.post()
    assert len(set(seen)) == 1
    assert "alice" not in seen[0]


# Whose a key is.


def test_two_tenants_with_one_key_never_share(web: Web) -> None:
    service = web.serve(lambda given: Says(parts=(dict(given.headers)["authorization"].encode(),)))
    tenants = ["alice", "bob", "Alice", "ali", "alice:bob", "alice/bob"]
    for _ in range(2):
        for tenant in tenants:
            assert service.post(caller=tenant).body == tenant.encode()
    assert len(service.runs) == len(tenants)


def test_two_tenants_of_any_names_never_share(web: Web) -> None:
    current = [""]
    service = web.serve(lambda given: Says(), scope=lambda at: current[0])
    names = [
        "a",
        "A",
        "\xe9",
        "e\u0301",
        "a/b",
        "a:b",
        "a\0b",
        " ",
        "a" * 500,
        "a" * 501,
        "\n",
        "..",
    ]
    for expected in (False, True):
        for name in names:
            current[0] = name
            assert service.post().is_replay is expected
    assert len(service.runs) == len(names)


@pytest.mark.parametrize("nobody", [None, ""])
def test_nobody_shares_with_nobody(web: Web, nobody: Any) -> None:
    service = web.serve(scope=lambda at: nobody)
    for _ in range(2):
        assert service.post().status == 401
    assert service.runs == []


@pytest.mark.parametrize("wrong", [7, 0, True, False, b"alice", b"", ["alice"], {}], ids=repr)
def test_a_caller_of_a_wrong_type_is_nobody(web: Web, wrong: Any) -> None:
    """Such as an id that an ORM gives as a number: the error says what to give."""
    service = web.serve(scope=lambda at: wrong)
    exchange = service.ask()
    assert isinstance(exchange.error, ConfigError)
    assert f"scope= returned a {type(wrong).__name__}; it must return" in str(exchange.error)
    assert exchange.reply is None
    assert service.runs == []
    assert not list(web.store.list_all_keys())


def test_a_caller_that_is_no_text_is_nobody(web: Web) -> None:
    service = web.serve(scope=lambda at: "\ud800")
    assert isinstance(service.ask().error, InvalidParamsError)
    assert service.runs == []


def test_a_caller_whose_function_raises_is_nobody(web: Web) -> None:
    def caller(at: Any) -> str:
        raise PermissionError("the token has expired")

    service = web.serve(scope=caller)
    assert isinstance(service.ask().error, PermissionError)
    assert service.runs == []
    assert web.serve().post().status == 201


def test_a_subclass_of_str_is_a_caller(web: Web) -> None:
    class UserId(str):
        pass

    service = web.serve(scope=lambda at: UserId("alice"))
    assert not service.post().is_replay
    assert web.serve().post().is_replay


def test_stored_answers_are_what_answer_makes(web: Web) -> None:
    service = web.serve(Says(201, JSON, (b"{}",)))
    service.post()
    kept = service.replay.record(OWN).load_response()
    assert kept == answer(201, b"{}", dict(JSON))
