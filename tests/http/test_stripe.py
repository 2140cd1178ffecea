"""Profile ``stripe``: each rule of Stripe's API v1, for both layers.

===================================================  ===============================================
rule                                                 tests
===================================================  ===============================================
the key is the raw header, up to 255, and optional   ``test_the_key_*``, ``test_without_a_key_*``
POST only                                            ``test_only_post_*``
a key belongs to a caller                            ``test_another_caller_*``
another endpoint, other params: 400                  ``test_another_request_*``
running: 409                                         ``test_running_*``
what an endpoint that began answers is kept          ``test_what_an_endpoint_answers_*``
nothing is kept where it has not begun               ``test_nothing_is_kept_*``
no answer, nothing to keep                           ``test_an_exception_*``
a key lives for 24 hours, then a new request         ``test_ttl_*``, ``test_an_expired_*``
errors, and ``Stripe-Should-Retry``                  ``test_error_*``, ``test_should_retry_*``
the key comes back                                   ``test_the_key_comes_back_*``
===================================================  ===============================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

import pytest

from kvreplay import ConfigError, NotAppliedError, StoreUnavailableError, Unknown
from kvreplay._http.problems import PROBLEMS, Refusal, Slug
from kvreplay._http.profile import Profile
from kvreplay._http.stripe import Stripe
from kvreplay.clock import Duration
from support.http_profiles import DAY, FACES, Given, Reply, Shop


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def shop(face: str, *args: Any, **options: Any) -> Shop:
    return Shop(face, "stripe", *args, **options)


def statuses(*given: int) -> Any:
    """An application that answers these statuses, the last one for ever."""
    left = list(given)

    def answers(_: Given) -> tuple[int, Mapping[str, str], bytes]:
        status = left.pop(0) if left[1:] else left[0]
        return status, {}, b"%d" % status

    return answers


def error_of(reply: Reply) -> Any:
    assert reply.header("content-type") == "application/json"
    assert list(reply.json) == ["error"]
    error = reply.json["error"]
    assert error["type"] in ("api_error", "idempotency_error", "invalid_request_error")
    assert error["doc_url"].startswith("/idempotency#")
    return error


# The key.


@pytest.mark.parametrize("key", ["k", '"quoted"', "with space, and comma;", "x" * 255])
def test_the_key_is_the_whole_header(face: str, key: str) -> None:
    service = shop(face)
    assert not service.post(key=key).is_replay
    again = service.post(key=key)
    assert again.is_replay
    assert again.body == b"1"
    (given,) = service.runs
    assert given.told is not None
    assert given.told.key.id == key


def test_the_key_with_quotes_is_another_one_than_without(face: str) -> None:
    service = shop(face)
    service.post(key="k")
    assert not service.post(key='"k"').is_replay
    assert len(service.runs) == 2


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "caf\xe9", "tab\there"])
def test_the_key_that_is_malformed_is_refused(face: str, key: str) -> None:
    service = shop(face)
    reply = service.post(key=key)
    assert reply.status == 400
    error = error_of(reply)
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "idempotency_malformed_key"
    assert error["effect"] == "none"
    assert "Nothing ran" in error["message"]
    assert reply.header("stripe-should-retry") == "false"
    assert reply.header("idempotency-key") is None, "what is no key is not sent back"
    assert not service.runs


def test_without_a_key_each_request_runs(face: str) -> None:
    service = shop(face)
    assert [service.post(key=None).body for _ in range(2)] == [b"1", b"2"]
    assert [given.told for given in service.runs] == [None, None]


def test_without_a_key_a_request_is_refused_if_the_application_wants_one(face: str) -> None:
    service = shop(face, required=True)
    reply = service.post(key=None)
    assert reply.status == 400
    assert error_of(reply)["code"] == "idempotency_missing_key"
    assert not service.runs


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE", "GET"])
def test_only_post_is_covered(face: str, method: str) -> None:
    service = shop(face)
    assert [service.post(method=method).body for _ in range(2)] == [b"1", b"2"]
    assert service.post(method=method).header("idempotency-key") is None
    assert not service.post().is_replay
    assert service.post().is_replay


def test_another_caller_has_keys_of_their_own(face: str) -> None:
    service = shop(face)
    assert service.post(caller="alice").body == b"1"
    assert service.post(caller="bob").body == b"2"
    assert service.post(caller="alice").body == b"1"


def test_without_a_caller_a_request_is_refused(face: str) -> None:
    service = shop(face)
    reply = service.post(caller=None)
    assert reply.status == 401
    assert error_of(reply)["type"] == "invalid_request_error"
    assert not service.runs


# The same key again.


@pytest.mark.parametrize(
    "other",
    [{"path": "/refunds"}, {"body": b'{"amount": 6}'}, {"query": "expand=all"}],
    ids=["endpoint", "params", "query"],
)
def test_another_request_with_the_same_key_is_an_error(face: str, other: dict[str, Any]) -> None:
    service = shop(face)
    service.post()
    reply = service.post(**other)
    assert reply.status == 400
    error = error_of(reply)
    assert error["type"] == "idempotency_error"
    assert error["code"] == "idempotency_key_reused"
    assert "ran nothing and charged nothing" in error["message"]
    assert reply.header("stripe-should-retry") == "false"
    assert len(service.runs) == 1
    assert service.post().is_replay


def test_running_is_a_conflict_and_nothing_of_it_is_kept(face: str) -> None:
    meanwhile: list[Reply] = []

    def answers(given: Given) -> tuple[int, Mapping[str, str], bytes]:
        meanwhile.append(service.meanwhile())
        return 201, {}, b"paid"

    service = shop(face, answers, retry_after=7)
    assert service.post().body == b"paid"
    (reply,) = meanwhile
    assert reply.status == 409
    error = error_of(reply)
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "idempotency_key_in_use"
    assert error["effect"] == "running"
    assert reply.header("stripe-should-retry") == "true"
    assert reply.header("retry-after") == "7"
    assert service.post().body == b"paid"
    assert len(service.runs) == 1


@pytest.mark.parametrize("status", [200, 201, 204, 302, 400, 402, 404, 409, 500, 502, 503, 504])
def test_what_an_endpoint_answers_is_kept(face: str, status: int) -> None:
    service = shop(face, statuses(status, 201))
    first, again = service.post(), service.post()
    assert (first.status, first.is_replay) == (status, False)
    assert (again.status, again.is_replay, again.body) == (status, True, first.body)
    assert len(service.runs) == 1


@pytest.mark.parametrize("status", [401, 403, 408, 422, 425, 429])
def test_nothing_is_kept_where_the_endpoint_has_not_begun(face: str, status: int) -> None:
    service = shop(face, statuses(status, 201))
    assert service.post().status == status
    assert service.replay.records() == []
    mended = service.post(body=b'{"amount": 6}')
    assert (mended.status, mended.is_replay) == (201, False)
    assert service.post(body=b'{"amount": 6}').is_replay


def test_nothing_is_kept_if_the_application_says_so(face: str) -> None:
    def answers(given: Given) -> tuple[int, Mapping[str, str], bytes]:
        assert given.told is not None
        given.told.ending = "freed"
        return 400, {}, b"amount is missing"

    service = shop(face, answers)
    assert service.post().status == 400
    assert not service.post().is_replay
    assert len(service.runs) == 2


def test_the_table_can_be_changed(face: str) -> None:
    service = shop(face, statuses(422, 201), statuses={422: "kept"})
    service.post()
    assert service.post().status == 422


def test_an_exception_leaves_no_answer_so_the_key_is_in_doubt(face: str) -> None:
    def answers(given: Given) -> tuple[int, Mapping[str, str], bytes]:
        raise TimeoutError("the bank")

    service = shop(face, answers)
    with pytest.raises(TimeoutError):
        service.post()
    reply = service.post()
    assert reply.status == 409
    error = error_of(reply)
    assert error["type"] == "api_error"
    assert error["code"] == "idempotency_in_doubt"
    assert error["effect"] == "unknown"
    assert reply.header("stripe-should-retry") == "false", "an SDK would repeat a 409"
    assert reply.header("retry-after") is None
    assert len(service.runs) == 1


def test_an_exception_that_says_that_nothing_happened_frees_the_key(face: str) -> None:
    def answers(given: Given) -> tuple[int, Mapping[str, str], bytes]:
        if len(service.runs) == 1:
            raise NotAppliedError("no connection")
        return 201, {}, b"paid"

    service = shop(face, answers)
    with pytest.raises(NotAppliedError):
        service.post()
    assert service.post().body == b"paid"


# How long.


@pytest.mark.parametrize("ttl", [DAY - 0.001, "23h", 60])
def test_ttl_below_a_day_is_refused(face: str, ttl: Duration) -> None:
    with pytest.raises(ConfigError, match="ttl is .* 'stripe' .* 86400 s"):
        shop(face, settings={"ttl": ttl})


def test_ttl_of_a_day_is_enough(face: str) -> None:
    service = shop(face, settings={"ttl": "24h"})
    service.post()
    service.clock.pass_seconds(DAY - 1)
    assert service.post().is_replay


def test_an_expired_key_begins_a_new_request_with_rerun(face: str) -> None:
    service = shop(face, settings={"on_expired": "rerun"})
    service.post()
    service.clock.pass_seconds(DAY)
    again = service.post(body=b"other params")
    assert (again.status, again.is_replay) == (201, False)
    assert len(service.runs) == 2


def test_an_expired_key_is_refused_by_default(face: str) -> None:
    service = shop(face, settings={"tombstone_ttl": DAY})
    service.post()
    service.clock.pass_seconds(DAY)
    reply = service.post()
    assert reply.status == 400
    error = error_of(reply)
    assert error["type"] == "idempotency_error"
    assert error["code"] == "idempotency_expired"
    assert len(service.runs) == 1


# Errors.


def test_should_retry_is_true_while_the_store_is_away(face: str) -> None:
    service = shop(face)
    service.store.fail(StoreUnavailableError("away"), on="check_and_put")
    reply = service.post()
    assert reply.status == 503
    assert error_of(reply)["code"] == "idempotency_unavailable"
    assert reply.header("stripe-should-retry") == "true"
    assert reply.header("retry-after") == "1"
    assert not service.runs
    assert service.post().status == 201


def test_should_retry_is_true_in_doubt_if_the_reconciler_gives_a_time(face: str) -> None:
    def answers(given: Given) -> tuple[int, Mapping[str, str], bytes]:
        raise TimeoutError

    service = shop(face, answers, settings={"on_in_doubt": lambda _: Unknown(retry_after=30)})
    with pytest.raises(TimeoutError):
        service.post()
    reply = service.post()
    assert reply.status == 409
    assert reply.header("stripe-should-retry") == "true"
    assert reply.header("retry-after") == "30"


def test_should_retry_is_the_applications_own_in_a_replay_if_it_is_stored(face: str) -> None:
    def answers(given: Given) -> tuple[int, Mapping[str, str], bytes]:
        return 500, {"stripe-should-retry": "false"}, b"broken"

    service = shop(face, answers, stored_headers=("Stripe-Should-Retry",))
    assert service.post().header("stripe-should-retry") == "false"
    again = service.post()
    assert again.is_replay
    assert again.header("stripe-should-retry") == "false"


def test_error_says_how_the_answer_was_that_is_too_large(face: str) -> None:
    service = shop(face, max_answer_bytes=0)
    first = service.post()
    assert (first.status, first.body) == (201, b"1")
    assert first.header("idempotency-key") == "key-1"
    reply = service.post()
    assert reply.status == 409
    error = error_of(reply)
    assert error["type"] == "api_error"
    assert error["original_status"] == 201
    assert error["effect"] == "answered"
    assert reply.header("stripe-should-retry") == "false"


def test_the_key_comes_back_with_each_answer(face: str) -> None:
    def answers(given: Given) -> tuple[int, Mapping[str, str], bytes]:
        return 201, {"Idempotency-Key": "of the application"}, b""

    service = shop(face, answers)
    assert service.post().header("idempotency-key") == "key-1"
    assert service.post().header("idempotency-key") == "key-1"
    assert service.post(body=b"").header("idempotency-key") == "key-1"
    assert service.get("/idempotency").header("idempotency-key") == "key-1"
    assert service.post(key=None).header("idempotency-key") == "of the application"


INVALID = {"missing-key", "malformed-key", "unauthenticated", "incomplete-body", "body-too-large"}
INVALID |= {"running", "unknown-key", "missing-path"}
MISUSED = {"key-reused", "expired"}


@pytest.mark.parametrize("slug", get_args(Slug))
@pytest.mark.parametrize("retry_after", [None, 2.5])
def test_error_of_each_problem(slug: Slug, retry_after: float | None) -> None:
    problem = PROBLEMS[slug]
    answer = Stripe().refusal(Refusal(slug, retry_after, members={"more": 1}), "/policy", "key-1")
    headers = dict(answer.headers)
    assert answer.body is not None
    error = json.loads(answer.body)["error"]
    if slug in MISUSED:
        assert (answer.status, error["type"]) == (400, "idempotency_error")
    elif slug in INVALID:
        assert (answer.status, error["type"]) == (problem.status, "invalid_request_error")
    else:
        assert (answer.status, error["type"]) == (problem.status, "api_error")
    assert Stripe().status(slug) == answer.status
    assert error["message"] == f"{problem.title}. {problem.detail}"
    assert error["effect"] == problem.effect
    assert error["doc_url"] == f"/policy#{slug}"
    assert error["more"] == 1
    comes_again = b"false" if retry_after is None else b"true"
    assert headers[b"stripe-should-retry"] == comes_again
    assert headers.get(b"retry-after") == (None if retry_after is None else b"3")
    assert headers[b"idempotency-key"] == b"key-1"


def test_error_codes_are_one_each() -> None:
    codes = set()
    for slug in get_args(Slug):
        body = Stripe().refusal(Refusal(slug), "/policy", None).body
        assert body is not None
        codes.add(json.loads(body)["error"]["code"])
    assert len(codes) == len(PROBLEMS)


def test_the_other_profiles_rules_are_not_this_ones() -> None:
    """The positive twin of the rules above: they are the profile's, and not the layer's."""
    ietf = Profile()
    assert ietf.ending(500) == "in doubt"
    assert ietf.ending(503) == "freed"
    assert ietf.ending(422) == "kept"
    assert ietf.status("key-reused") == 422


def test_the_policy_tells_the_rules(face: str) -> None:
    page = shop(face).get("/idempotency", key=None).body.decode()
    assert "POST requests may have an Idempotency-Key" in page
    assert "whole value" in page
    assert "401, 403, 408, 422, 425, 429" in page
    assert "(400)" in page
