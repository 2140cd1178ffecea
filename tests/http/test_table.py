"""The table of answers of profile ``ietf``: each row a test, for both layers, on several stores."""

from __future__ import annotations

from support.http_apps import BODY, Web


def test_a_first_request_gets_the_applications_answer(web: Web) -> None:
    service = web.serve()
    reply = service.post()
    assert (reply.status, reply.json, reply.is_replay) == (201, {"id": 7}, False)
    (given,) = service.runs
    assert given.body == BODY


def test_a_retry_gets_the_same_answer(web: Web) -> None:
    service = web.serve()
    first, again = service.post(), service.post()
    assert (again.status, again.body) == (first.status, first.body)
    assert again.is_replay
    assert len(service.runs) == 1
