"""draft-ietf-httpapi-idempotency-key-header-07: each MUST and each SHOULD that a resource can keep.

=======  ======================================================================  ===================
section  requirement                                                             test
=======  ======================================================================  ===================
2.1      the value MUST be a String of Structured Fields                         ``test_2_1_*``
2.2      a key MUST NOT be reused with another payload                           ``test_2_2_*``
2.2      uniqueness MUST be defined by the resource owner                        ``test_2_2_*``
2.3      an expiry policy SHOULD be defined, and published                       ``test_2_3_*``
2.5.2    a specification MUST be published, with the expiry                      ``test_2_5_2_*``
2.5.2    a server SHOULD identify the key from the header                        ``test_2_5_2_*``
2.5.2    a server SHOULD make a fingerprint if required                          ``test_2_5_2_*``
2.5.2    a server SHOULD enforce idempotency                                     ``test_2_6_*``
2.6      a first request SHOULD be processed normally                            ``test_2_6_*``
2.6      a retry SHOULD get the result of the completed one, success or error    ``test_2_6_*``
2.6      a concurrent request SHOULD get a conflict                              ``test_2_6_*``
2.7      a missing key SHOULD be a 400 with a link to the documentation          ``test_2_7_*``
2.7      a reused key SHOULD be a 422 with a link                                ``test_2_7_*``
2.7      a concurrent request SHOULD be a 409 with a description                 ``test_2_7_*``
2.7      a request that is not corrected MUST fail with one of these errors      ``test_2_7_*``
5        the best practices: a fixed, published format, validated before         ``test_5_*``
         anything runs; a composite key
=======  ======================================================================  ===================

What it asks of clients (a unique key for each request, by a good algorithm) is told to them by the
published page and by each problem.
"""

from __future__ import annotations

import re
import threading
from html.parser import HTMLParser
from typing import Any

import pytest

from kvreplay._http.problems import PROBLEMS
from support.http_apps import BODY, Given, Reply, Says, Service, Web
from support.waiting import PATIENCE

POLICY = "/idempotency"


class Page(HTMLParser):
    """A page: its text, and the anchors in it. It must be well nested."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        assert reply.status == 200
        assert reply.header("content-type") == "text/html; charset=utf-8"
        assert int(reply.header("content-length") or 0) == len(reply.body)
        self.text, self.anchors, self._open = "", set[str](), list[str]()
        self.feed(reply.body.decode())
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "meta":
            self._open.append(tag)
        self.anchors |= {value for name, value in attrs if name == "id"}

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(service: Service, **options: Any) -> Page:
    return Page(service.get(POLICY, caller=None, **options))


def described(reply: Reply, status: int) -> None:
    """A problem of RFC 9457, with links to the documentation in its body and in its header."""
    assert reply.status == status
    assert reply.header("content-type") == "application/problem+json"
    assert reply.header("content-language") == "en"
    problem = reply.json
    assert problem["type"].startswith(f"{POLICY}#")
    assert {type(problem[each]) for each in ("title", "detail")} == {str}
    assert problem["status"] == status
    assert reply.header("link") == f'<{POLICY}>; rel="describedby"; type="text/html"'


# 2.1 Syntax.


@pytest.mark.parametrize("field", ["42", "1.5", "token", "?1", ":YQ==:", "@1", '("a")', '"a", "b"'])
def test_2_1_a_value_that_is_no_string_is_refused(plain: Web, field: str) -> None:
    service = plain.serve()
    assert service.post(field=field).status == 400
    assert service.runs == []


@pytest.mark.parametrize(
    "field",
    ['"8e03978e-40d5-43e8-bc93-6894a57f9324"', '"clkyoesmbgybucifusbbtdsbohtyuuwz"'],
    ids=["uuid", "random"],
)
def test_2_1_the_examples_of_section_6_are_keys(plain: Web, field: str) -> None:
    service = plain.serve()
    assert service.post(field=field).status == 201
    assert service.post(field=field).is_replay


# 2.2 Uniqueness.


def test_2_2_a_key_is_not_reused_with_another_payload(web: Web) -> None:
    service = web.serve()
    assert service.post().status == 201
    assert service.post(body=b"another").status == 422
    assert service.post().is_replay
    assert len(service.runs) == 1


def test_2_2_what_a_key_is_unique_for_is_published(plain: Web) -> None:
    text = page(plain.serve()).text
    assert "identified by the authenticated caller and the key" in text
    assert "UUID" in text


# 2.3 Validity and expiry.


@pytest.mark.parametrize(
    ("ttl", "told"),
    [
        ("24h", "1 day"),
        ("7d", "7 days"),
        ("90min", "90 minutes"),
        ("1h", "1 hour"),
        ("1min", "1 minute"),
        ("90s", "90 seconds"),
        (1.5, "1.5 seconds"),
    ],
)
def test_2_3_the_expiry_policy_is_published(plain: Web, ttl: Any, told: str) -> None:
    assert f"kept for {told} after" in page(plain.serve(settings={"ttl": ttl})).text


def test_2_3_and_is_kept(web: Web) -> None:
    service = web.serve(settings={"ttl": 60, "tombstone_ttl": 60})
    service.post()
    web.clock.pass_seconds(59)
    assert service.post().is_replay
    web.clock.pass_seconds(1)
    assert service.post().slug == "expired"


# 2.5.2 Responsibilities of a resource.


def test_2_5_2_a_specification_is_published_to_everybody(plain: Web) -> None:
    published = page(plain.serve())
    for part in (
        "PATCH, POST requests need an Idempotency-Key header",
        "in quotes, 1 to 255 characters",
        "method, path, query and a digest of the body",
        "Expiry",
        "Each retry gets this answer: 200-299, 300-306, 309-399, 400, 402, 404-407, 409-424, 426-428,",
        "a retry runs anew: 307-308, 401, 403, 408, 425, 429, 503.",
        "nothing runs again: 500-502, 504-599.",
    ):
        assert part in published.text


def test_2_5_2_each_problem_links_to_its_place_there(plain: Web) -> None:
    service = plain.serve()
    anchors = page(service).anchors
    assert anchors == set(PROBLEMS)
    for reply in (service.post(key=None), service.post(field="a"), service.post(caller=None)):
        assert reply.json["type"].partition("#")[2] in anchors


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"required": False}, "PATCH, POST requests may have an"),
        ({"required": lambda at: True}, "PATCH, POST requests may need an"),
        ({"methods": ["post", "DELETE"]}, "DELETE, POST requests need an"),
        (
            {"statuses": {404: "freed", "5xx": "kept"}},
            "anew: 307-308, 401, 403-404, 408, 425, 429.",
        ),
        ({"statuses": {"4xx": "in doubt", 503: "kept"}}, "again: 400-499, 500-502, 504-599."),
        ({"statuses": dict.fromkeys(("2xx", "3xx", "4xx", "5xx"), "kept")}, "anew: none."),
    ],
    ids=["optional", "by function", "methods", "freed and kept", "in doubt and kept", "all kept"],
)
def test_2_5_2_what_is_published_is_what_is_set(plain: Web, settings: Any, told: str) -> None:
    assert told in page(plain.serve(**settings)).text.replace("\n", " ")


def test_2_5_2_the_key_is_identified_from_the_header(plain: Web) -> None:
    service = plain.serve()
    for name in ("Idempotency-Key", "idempotency-key", "IDEMPOTENCY-KEY"):
        service.post(key=None, headers=[(name, '"k"')])
    assert [given.told and given.told.key.id for given in service.runs] == ["k"]
    other = [("x-idempotency-key", '"k"')]
    assert service.post(key=None, headers=other).status == 400


def test_2_5_2_the_fingerprint_is_of_the_whole_request_and_not_its_body(web: Web) -> None:
    service = web.serve()
    service.post(body=b"a secret")
    for other in ({"body": b"b"}, {"query": "a"}, {"path": "/b"}):
        assert service.post(**{"body": b"a secret", **other}).status == 422
    ((_, scope, own),) = web.store.list_all_keys()
    assert b"a secret" not in web.store.read("http", scope, own)


# 2.6 Enforcement.


def test_2_6_a_first_request_is_processed_normally(web: Web) -> None:
    service = web.serve(Says(202, (("content-type", "text/plain"), ("x-own", "1")), (b"ok",)))
    reply = service.post()
    assert (reply.status, reply.header("x-own"), reply.body) == (202, "1", b"ok")
    assert service.runs[0].body == BODY


@pytest.mark.parametrize("status", [201, 303, 400, 422])
def test_2_6_a_retry_gets_the_result_success_or_error(web: Web, status: int) -> None:
    service = web.serve(Says(status))
    first, again = service.post(), service.post()
    assert (again.status, again.body) == (first.status, first.body)
    assert len(service.runs) == 1


def concurrent(web: Web) -> Reply:
    entered, go = threading.Event(), threading.Event()

    def application(given: Given) -> Says:
        entered.set()
        assert go.wait(PATIENCE)
        return Says()

    service = web.serve(application)
    first = service.begin()
    assert entered.wait(PATIENCE)
    second = service.post()
    go.set()
    assert first.result().result().status == 201
    assert len(service.runs) == 1
    return second


def test_2_6_a_concurrent_request_gets_a_conflict(web: Web) -> None:
    assert concurrent(web).status == 409


# 2.7 Errors.


def test_2_7_a_missing_key_is_a_400_with_a_link(plain: Web) -> None:
    reply = plain.serve().post(key=None)
    described(reply, 400)
    assert reply.json["title"] == "Idempotency-Key is missing"


def test_2_7_a_reused_key_is_a_422_with_a_link(plain: Web) -> None:
    service = plain.serve()
    service.post()
    reply = service.post(body=b"another")
    described(reply, 422)
    assert reply.json["title"] == "Idempotency-Key is already used"


def test_2_7_a_concurrent_request_is_a_409_with_a_description(plain: Web) -> None:
    reply = concurrent(plain)
    described(reply, 409)
    assert reply.json["title"] == "A request with this Idempotency-Key is running"


def test_2_7_what_is_not_corrected_fails_again(plain: Web) -> None:
    service = plain.serve()
    service.post()
    for wrong, status in (({"key": None}, 400), ({"body": b"b"}, 422), ({"field": "a"}, 400)):
        for _ in range(3):
            assert service.post(**wrong).status == status
    assert len(service.runs) == 1


def test_2_7_a_409_needs_no_correction(web: Web) -> None:
    concurrent(web)
    service = web.serve()
    assert service.post().is_replay
    assert service.runs == []


@pytest.mark.parametrize("url", [None, "https://developer.example.com/idempotency"])
def test_2_7_the_link_may_point_elsewhere(plain: Web, url: str | None) -> None:
    reply = plain.serve(policy_url=url).post(key=None)
    assert reply.json["type"] == f"{url or POLICY}#missing-key"
    assert reply.header("link") == f'<{url or POLICY}>; rel="describedby"; type="text/html"'


# 5 Security.


def test_5_the_format_of_a_key_is_validated_before_anything_runs(plain: Web) -> None:
    asked: list[Any] = []

    def caller(at: Any) -> str:
        asked.append(at)
        return "alice"

    service = plain.serve(scope=caller)
    for field in ('"a', '"\\x"', f'"{"k" * 256}"', "'; drop table keys; --"):
        assert service.post(field=field).status == 400
    assert (service.runs, asked, list(plain.store.list_all_keys())) == ([], [], [])
    assert service.post().status == 201
    assert len(asked) == 1


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "a/b", ".", "..", "a\\\\b", "%2e%2e", "a b", "~", "{}", "k" * 255]
)
def test_5_a_key_that_would_be_something_in_a_store_is_only_a_key(web: Web, key: str) -> None:
    service = web.serve()
    assert service.post(key=key).status == 201
    assert service.post(key=key).is_replay
    assert not service.post(key="another").is_replay
    assert len(list(web.store.list_all_keys())) == 2


def test_5_a_key_is_composite_with_its_caller(web: Web) -> None:
    service = web.serve(lambda given: Says(parts=(dict(given.headers)["authorization"].encode(),)))
    for _ in range(2):
        for caller in ("alice", "bob"):
            assert service.post(caller=caller).body == caller.encode()
    assert len(service.runs) == 2


def test_5_no_problem_shows_a_key_or_a_caller(plain: Web) -> None:
    service, key = plain.serve(), "secret-key"
    service.post(key=key)
    problems = [
        service.post(key=key, body=b"b"),
        service.post(key=key, caller=None),
        service.post(field=f'"{key}'),
        service.get(POLICY, key=key, caller="mallory"),
    ]
    for reply in problems:
        shown = reply.body + b"".join(name + value for name, value in reply.headers)
        assert reply.status >= 400
        assert not re.search(rb"secret-key|alice|mallory|amount", shown)
