"""Profile ``acp``: what the Agentic Commerce Protocol (2026-04-17) asks of a server, for both layers.

The numbers are those of the checkout's specification.

=======================================================  ===========================================
3.1, 6.1 the key is opaque, up to 255; required on POST  ``test_the_key_*``, ``test_a_post_without_*``
6.1  scope: authenticated identity and endpoint path     ``test_another_path_*``, ``…_caller_*``
6.2  only the body is compared, by what its JSON says    ``test_the_same_body_*``, ``test_another_*``
6.3  the original answer with the original status        ``test_a_replay_*``
6.3  no side effect a second time                        ``test_5xx_is_in_doubt_*``
6.4  400, 422, 409 and Retry-After                       ``test_*_conflict``, ``test_in_flight_*``
6.5  5xx is never kept                                   ``test_5xx_*``
6.6  24 hours, then a new request                        ``test_ttl_*``, ``test_an_expired_*``
3.1  flat errors; the key on each answer to a POST       ``test_error_*``, ``test_the_key_comes_back_*``
=======================================================  ===========================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, get_args

import pytest

from kvreplay import (
    NOT_APPLIED,
    ConfigError,
    NotAppliedError,
    ReplayKey,
    StoreUnavailableError,
)
from kvreplay._http.acp import ACP
from kvreplay._http.canonical import canonical
from kvreplay._http.problems import PROBLEMS, Refusal, Slug
from kvreplay._http.profile import Profile
from kvreplay._http.requests import Incoming
from kvreplay.clock import Duration
from kvreplay.http import request_of
from support.http_profiles import DAY, FACES, Given, Reply, Shop

CHECKOUT = "/checkout_sessions"
TYPES = ("invalid_request", "processing_error", "service_unavailable")


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def shop(face: str, *args: Any, **options: Any) -> Shop:
    return Shop(face, "acp", *args, **options)


def statuses(*given: int) -> Any:
    """An application that answers these statuses, the last one for ever."""
    left = list(given)

    def answers(_: Given) -> tuple[int, Mapping[str, str], bytes]:
        status = left.pop(0) if left[1:] else left[0]
        return status, {}, b"%d" % status

    return answers


def failing(_: Given) -> tuple[int, Mapping[str, str], bytes]:
    raise TimeoutError("the bank")


def code_of(reply: Reply) -> str:
    """The code of a flat error, which has these three members and no other (3.1)."""
    assert reply.header("content-type") == "application/json"
    assert set(reply.json) == {"type", "code", "message"}
    assert reply.json["type"] in TYPES
    return str(reply.json["code"])


# The key (3.1, 6.1).


@pytest.mark.parametrize("key", ["k", '"quoted"', "with space, and comma;", "x" * 255])
def test_the_key_is_the_whole_header(face: str, key: str) -> None:
    service = shop(face)
    service.post(key=key)
    assert service.post(key=key).is_replay
    (given,) = service.runs
    assert given.told is not None
    assert given.told.key == ReplayKey("alice", key, "/payments")


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "caf\xe9"])
def test_the_key_that_is_malformed_is_refused(face: str, key: str) -> None:
    service = shop(face)
    reply = service.post(key=key)
    assert reply.status == 400
    assert code_of(reply) == "idempotency_malformed_key"
    assert reply.json["type"] == "invalid_request"
    assert reply.header("idempotency-key") is None, "what is no key is not sent back"
    assert not service.runs


def test_a_post_without_a_key_is_refused(face: str) -> None:
    service = shop(face)
    reply = service.post(key=None)
    assert reply.status == 400
    assert code_of(reply) == "idempotency_key_required"
    assert reply.json["type"] == "invalid_request"
    assert "Nothing ran and nothing was charged" in reply.json["message"]
    assert not service.runs


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
def test_a_request_that_is_no_post_needs_no_key(face: str, method: str) -> None:
    service = shop(face)
    for key in (None, "key-1", "key-1"):
        reply = service.post(method=method, key=key)
        assert reply.status == 201
        assert not reply.is_replay
    assert len(service.runs) == 3


def test_another_path_has_keys_of_its_own(face: str) -> None:
    service = shop(face)
    assert service.post(CHECKOUT).body == b"1"
    assert service.post(f"{CHECKOUT}/7").body == b"2"
    assert service.post(CHECKOUT).body == b"1"
    assert service.post(f"{CHECKOUT}/7").body == b"2"


def test_another_caller_has_keys_of_their_own(face: str) -> None:
    service = shop(face)
    assert service.post(caller="alice").body == b"1"
    assert service.post(caller="bob").body == b"2"
    assert service.post(caller="alice").body == b"1"


def test_without_a_caller_a_request_is_refused(face: str) -> None:
    service = shop(face)
    reply = service.post(caller=None)
    assert reply.status == 401
    assert code_of(reply) == "idempotency_unauthenticated"
    assert not service.runs


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        (b"/checkout_sessions/cs_1:~", "/checkout_sessions/cs_1:~"),
        (b"", "/"),
        (b"/", "/"),
        ("/caf\xe9 ".encode(), "/caf%C3%A9%20"),
        (b"/caf\xe9", "/caf%E9"),
        (b"/caf%E9", "/caf%25E9"),
        (b"/a?b#c", "/a%3Fb%23c"),
    ],
)
def test_no_two_paths_share_a_key(path: bytes, operation: str) -> None:
    incoming = Incoming("POST", path, b"", b"", "k")
    assert ACP().replay_key("alice", "k", incoming) == ReplayKey("alice", "k", operation)


# What is compared (6.2).


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a": 1, "b": [1.50]}', b'{"b":[1.5],"a":1.0}'),
        (b"", b""),
        (b"no JSON", b"no JSON"),
        (b'{"a": 1, "a": 2}', b'{"a": 1, "a": 2}'),
    ],
)
def test_the_same_body_gets_the_answer(face: str, one: bytes, other: bytes) -> None:
    service = shop(face)
    assert service.post(body=one).status == 201
    assert service.post(body=other).is_replay
    assert [given.body for given in service.runs] == [one], "the application is given what came"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"email": null}', b"{}"),
        (b'{"items": [1, 2]}', b'{"items": [2, 1]}'),
        (b'{"amount": 5}', b'{"amount": "5"}'),
        (b'{"amount": 5}', b'{"amount": 5, "discounts": []}'),  # 6.7, an extension's field
        (b"", b"{}"),
        (b"no JSON", b"no  JSON"),
        (b'{"amount": 5, "amount": 6}', b'{"amount": 6}'),
        (b'{"amount": 5, "amount": 6}', b'{"amount": 5,  "amount": 6}'),
    ],
)
def test_another_body_is_a_conflict(face: str, one: bytes, other: bytes) -> None:
    service = shop(face)
    service.post(body=one)
    reply = service.post(body=other)
    assert reply.status == 422
    assert code_of(reply) == "idempotency_conflict"
    assert reply.json["type"] == "invalid_request"
    assert "ran nothing and charged nothing" in reply.json["message"]
    assert reply.header("retry-after") is None
    assert len(service.runs) == 1
    assert service.post(body=one).is_replay


def test_the_query_is_not_compared(face: str) -> None:
    service = shop(face)
    service.post(query="a=1")
    assert service.post(query="a=2").is_replay


def test_another_method_is_compared_if_it_is_covered(face: str) -> None:
    service = shop(face, methods=("POST", "PATCH"))
    service.post()
    assert service.post(method="PATCH").status == 422
    assert service.post().is_replay


def test_a_record_tells_its_request(face: str) -> None:
    service = shop(face)
    body = b'{ "amount": 5.0 }'
    service.post("/caf\xe9 1", body, query="a=1")
    (record,) = service.replay.records()
    request = request_of(record)
    assert request is not None
    assert (request.method, request.path, request.query) == ("POST", "/caf\xe9 1".encode(), b"")
    form = canonical(body)
    assert form is not None
    assert request.body_sha256 == sha256(form).digest()


# Replays (6.3).


@pytest.mark.parametrize("status", [200, 201, 204, 400, 402, 404, 409, 422])
def test_a_replay_is_the_original_answer(face: str, status: int) -> None:
    service = shop(face, statuses(status, 201))
    first, again = service.post(CHECKOUT), service.post(CHECKOUT)
    assert not first.is_replay
    assert again.is_replay
    assert (again.status, again.body) == (status, first.body)
    assert len(service.runs) == 1


@pytest.mark.parametrize("status", [401, 403, 408, 425, 429])
def test_an_answer_that_says_that_nothing_was_done_is_not_kept(face: str, status: int) -> None:
    service = shop(face, statuses(status, 201))
    assert service.post().status == status
    assert service.post().status == 201


def test_in_flight_is_a_conflict_with_a_time(face: str) -> None:
    meanwhile: list[Reply] = []

    def answers(given: Given) -> tuple[int, Mapping[str, str], bytes]:
        if given.path == CHECKOUT:
            meanwhile.append(service.meanwhile(path=CHECKOUT))
            meanwhile.append(service.meanwhile(path="/carts"))
        return 201, {}, b"made"

    service = shop(face, answers, retry_after=7)
    assert service.post(CHECKOUT).body == b"made"
    reply, elsewhere = meanwhile
    assert reply.status == 409
    assert code_of(reply) == "idempotency_in_flight"
    assert reply.json["type"] == "invalid_request"
    assert reply.header("retry-after") == "7"
    assert reply.header("idempotency-key") == "key-1"
    assert elsewhere.status == 201
    assert len(service.runs) == 2


# 5xx (6.5), and no side effect twice (6.3).


@pytest.mark.parametrize("status", [500, 502, 504, 599])
def test_5xx_is_in_doubt_and_not_kept(face: str, status: int) -> None:
    service = shop(face, statuses(status, 201))
    assert service.post().status == status
    reply = service.post()
    assert reply.status == 409
    assert code_of(reply) == "idempotency_in_doubt"
    assert reply.json["type"] == "processing_error"
    assert "nothing is charged twice" in reply.json["message"]
    assert reply.header("retry-after") is None
    assert len(service.runs) == 1


def test_5xx_is_followed_by_a_fresh_request_if_nothing_happened(face: str) -> None:
    service = shop(face, statuses(500, 201), settings={"on_in_doubt": lambda _: NOT_APPLIED})
    assert service.post().status == 500
    fresh = service.post()
    assert (fresh.status, fresh.is_replay) == (201, False)
    assert len(service.runs) == 2


def test_503_is_followed_by_a_fresh_request(face: str) -> None:
    service = shop(face, statuses(503, 201))
    assert service.post().status == 503
    fresh = service.post()
    assert (fresh.status, fresh.is_replay) == (201, False)


def test_5xx_is_followed_by_a_fresh_request_if_the_application_says_so(face: str) -> None:
    def answers(given: Given) -> tuple[int, Mapping[str, str], bytes]:
        assert given.told is not None
        given.told.ending = "freed"
        return 500, {}, b"broken before anything happened"

    service = shop(face, answers)
    assert [service.post().status for _ in range(2)] == [500, 500]
    assert len(service.runs) == 2


def test_5xx_is_not_kept_even_if_the_application_says_so(face: str) -> None:
    def answers(given: Given) -> tuple[int, Mapping[str, str], bytes]:
        assert given.told is not None
        given.told.ending = "kept"
        return 500 if given.path == "/a" else 404, {}, b"an answer"

    service = shop(face, answers)
    assert service.post("/a").status == 500
    assert code_of(service.post("/a")) == "idempotency_in_doubt"
    assert service.post("/b").status == 404
    assert service.post("/b").is_replay


@pytest.mark.parametrize("status", ["5xx", 500, 503, 599])
def test_5xx_cannot_be_set_to_be_kept(face: str, status: int | str) -> None:
    with pytest.raises(ConfigError, match="keeps answers of 5xx, which profile 'acp' never does"):
        shop(face, statuses={status: "kept"})
    shop(face, statuses={status: "freed", 499: "kept", "4xx": "kept"})
    Shop(face, "ietf", statuses={status: "kept"})


def test_an_exception_leaves_the_key_in_doubt(face: str) -> None:
    service = shop(face, failing)
    with pytest.raises(TimeoutError):
        service.post()
    assert code_of(service.post()) == "idempotency_in_doubt"
    assert len(service.runs) == 1


def test_an_exception_that_says_that_nothing_happened_frees_the_key(face: str) -> None:
    def answers(given: Given) -> tuple[int, Mapping[str, str], bytes]:
        if len(service.runs) == 1:
            raise NotAppliedError("no connection")
        return 201, {}, b"made"

    service = shop(face, answers)
    with pytest.raises(NotAppliedError):
        service.post()
    assert service.post().body == b"made"


# How long (6.6).


@pytest.mark.parametrize("ttl", [DAY - 1, "23h", 60])
def test_ttl_below_a_day_is_refused(face: str, ttl: Duration) -> None:
    with pytest.raises(ConfigError, match="ttl is .* 'acp' .* 86400 s"):
        shop(face, settings={"ttl": ttl})
    Shop(face, "ietf", settings={"ttl": ttl})


def test_ttl_of_a_day_is_enough(face: str) -> None:
    service = shop(face, settings={"ttl": "24h"})
    service.post()
    service.clock.pass_seconds(DAY - 1)
    assert service.post().is_replay


def test_an_expired_key_begins_a_new_request_with_rerun(face: str) -> None:
    service = shop(face, settings={"on_expired": "rerun"})
    service.post()
    service.clock.pass_seconds(DAY)
    again = service.post(body=b'{"amount": 6}')
    assert (again.status, again.is_replay) == (201, False)
    assert len(service.runs) == 2


def test_an_expired_key_is_refused_by_default(face: str) -> None:
    service = shop(face, settings={"tombstone_ttl": DAY})
    service.post()
    service.clock.pass_seconds(DAY)
    reply = service.post()
    assert reply.status == 422
    assert code_of(reply) == "idempotency_expired"
    assert len(service.runs) == 1


# Errors, and what each answer has (3.1).


def test_the_key_comes_back_with_each_answer(face: str) -> None:
    def answers(given: Given) -> tuple[int, Mapping[str, str], bytes]:
        return 201, {"Idempotency-Key": "of the application"}, b"made"

    service = shop(face, answers, max_body_bytes=30)
    assert service.post().header("idempotency-key") == "key-1"
    assert service.post().header("idempotency-key") == "key-1"
    refused = [service.post(body=b""), service.post(body=b"x" * 31), service.post(caller=None)]
    assert [reply.status for reply in refused] == [422, 413, 401]
    assert [reply.header("idempotency-key") for reply in refused] == ["key-1"] * 3


def test_the_key_comes_back_with_an_answer_that_is_too_large(face: str) -> None:
    service = shop(face, max_answer_bytes=0)
    first = service.post()
    assert (first.status, first.body, first.header("idempotency-key")) == (201, b"1", "key-1")
    reply = service.post()
    assert reply.status == 409
    assert code_of(reply) == "idempotency_not_kept"
    assert "original_status: 201." in reply.json["message"]
    assert reply.header("idempotency-key") == "key-1"


def test_error_while_the_store_is_away(face: str) -> None:
    service = shop(face)
    service.store.fail(StoreUnavailableError("away"), on="check_and_put")
    reply = service.post()
    assert reply.status == 503
    assert code_of(reply) == "idempotency_unavailable"
    assert reply.json["type"] == "service_unavailable"
    assert reply.header("retry-after") == "1"
    assert not service.runs
    assert service.post().status == 201


INVALID = {"missing-key", "malformed-key", "unauthenticated", "incomplete-body", "body-too-large"}
INVALID |= {"running", "unknown-key", "missing-path", "key-reused", "expired"}
UNAVAILABLE = {"unavailable", "not-stored"}


@pytest.mark.parametrize("slug", get_args(Slug))
def test_error_of_each_problem(slug: Slug) -> None:
    problem = PROBLEMS[slug]
    answer = ACP().refusal(Refusal(slug, 2.5, members={"more": 1}), "/policy", "key-1")
    assert answer.status == problem.status
    assert answer.body is not None
    error = json.loads(answer.body)
    assert set(error) == {"type", "code", "message"}
    if slug in INVALID:
        assert error["type"] == "invalid_request"
    else:
        assert error["type"] == TYPES[1 + (slug in UNAVAILABLE)]
    assert error["message"] == f"{problem.title}. {problem.detail} more: 1."
    headers = dict(answer.headers)
    assert headers[b"retry-after"] == b"3"
    assert headers[b"idempotency-key"] == b"key-1"
    assert headers[b"link"].startswith(b"</policy>;")


def test_error_codes_are_one_each() -> None:
    codes = set()
    for slug in get_args(Slug):
        body = ACP().refusal(Refusal(slug), "/policy", None).body
        assert body is not None
        codes.add(json.loads(body)["code"])
    assert len(codes) == len(PROBLEMS)


# The state of a key.


def test_a_state_is_that_of_a_path(face: str) -> None:
    service = shop(face)
    service.post("/caf\xe9 1")
    reply = service.get("/idempotency", query="path=/caf%C3%A9%201")
    assert reply.json["state"] == "answered"
    assert reply.json["status"] == 201
    assert reply.header("idempotency-key") == "key-1"
    unknown = service.get("/idempotency", query="path=/carts")
    assert unknown.status == 404
    assert code_of(unknown) == "idempotency_unknown_key"
    of_bob = service.get("/idempotency", query="path=/caf%C3%A9%201", caller="bob")
    assert of_bob.status == 404


@pytest.mark.parametrize("query", ["", "path=", "path", "way=/payments", "path=/a&path=/payments"])
def test_a_state_of_no_path_is_not_told(face: str, query: str) -> None:
    """To say that nothing is known would be wrong: nothing was looked up."""
    service = shop(face)
    service.post()
    reply = service.get("/idempotency", query=query)
    assert reply.status == 400
    assert code_of(reply) == "idempotency_missing_path"
    assert "Nothing was looked up" in reply.json["message"]


def test_the_policy_tells_the_rules(face: str) -> None:
    page = shop(face).get("/idempotency", key=None).body.decode()
    assert "POST requests need an Idempotency-Key" in page
    assert "the authenticated caller, the path and the key" in page
    assert "the body, by what its JSON says" in page
    assert "kept for 1 day" in page


def test_the_other_profiles_rules_are_not_this_ones() -> None:
    """The positive twin of the rules above: they are the profile's, and not the layer's."""
    ietf = Profile()
    one, other = (Incoming("POST", path, b"", b"", '"k"') for path in (b"/a", b"/b"))
    assert ietf.replay_key("alice", "k", one) == ietf.replay_key("alice", "k", other)
    assert ietf.params(one, b"1") != ietf.params(one, b"1.0")
    assert ietf.params(one, b"1") != ietf.params(other, b"1")
    assert ietf.headers('"k"') == ()
