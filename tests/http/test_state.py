"""What a client is told of its key, and where the policy is: ``GET`` at the policy's path."""

from __future__ import annotations

from typing import Any

import pytest

from kvreplay import State
from support.http_apps import JSON, KEY, Reply, Says, Service, Web
from support.http_asking import (
    OWN,
    Gate,
    faulty,
    leave_in_doubt,
    put_claim,
    refused,
    running,
    tampered,
)
from support.replaying import START


def state(service: Service, **options: Any) -> Reply:
    return service.get("/idempotency", **{"key": KEY, "headers": (), **options})


def test_state_of_a_key_that_is_answered(web: Web) -> None:
    service = web.serve()
    service.post()
    reply = state(service)
    assert (reply.status, reply.header("content-type")) == (200, "application/json")
    assert reply.json == {
        "state": "answered",
        "status": 201,
        "created_at": "2023-11-14T22:13:20.000Z",
        "expires_at": "2023-11-14T23:13:20.000Z",
    }
    assert reply.header("cache-control") == "no-store"
    assert len(service.runs) == 1


def test_state_of_a_key_that_runs(web: Web) -> None:
    gate = Gate()
    service = web.serve(gate)
    first = running(service, gate)
    created = {"created_at": "2023-11-14T22:13:20.000Z"}
    assert state(service).json == {"state": "running", **created}
    gate.let_go()
    first.result()
    assert state(service).json["state"] == "answered"


def test_state_of_a_key_that_runs_elsewhere(web: Web) -> None:
    service = web.serve()
    put_claim(web, service, START + 30_000)
    assert state(service).json["state"] == "running"
    web.clock.pass_seconds(31)
    assert state(service).json["state"] == "in doubt"
    assert service.runs == []


def test_state_of_a_key_in_doubt(web: Web) -> None:
    leave_in_doubt(web)
    created = {"created_at": "2023-11-14T22:13:20.000Z"}
    assert state(web.serve()).json == {"state": "in doubt", **created}


@pytest.mark.parametrize("pruned", [False, True], ids=["answer", "tombstone"])
def test_state_of_a_key_that_has_expired(web: Web, pruned: bool) -> None:
    service = web.serve(settings={"ttl": 60, "tombstone_ttl": 60})
    service.post()
    web.clock.pass_seconds(60)
    if pruned:
        service.post()
        assert service.replay.record(OWN).state is State.TOMBSTONE
    found = state(service).json
    assert found["state"] == "expired"
    assert "status" not in found


def test_state_of_a_key_that_nobody_knows(web: Web) -> None:
    service = web.serve()
    refused(state(service), 404, "unknown-key", "unknown")


def test_state_is_shown_to_its_caller_only(web: Web) -> None:
    service = web.serve()
    service.post(caller="alice")
    refused(state(service, caller="bob"), 404, "unknown-key", "unknown")
    refused(state(service, caller=None), 401, "unauthenticated", "none")
    assert state(service, caller="alice").status == 200


def test_state_of_a_malformed_key(web: Web) -> None:
    refused(state(web.serve(), field="bare"), 400, "malformed-key", "none")


def test_state_of_a_damaged_record(web: Web) -> None:
    refused(state(tampered(web, lambda data: data[:-1] + b"?")), 500, "damaged", "unknown")


def test_state_when_the_store_cannot_be_read(web: Web) -> None:
    store = faulty(web)
    service = web.serve(store=store)
    service.post()
    store.fail(on="read", times=1)
    refused(state(service), 503, "unavailable", "none")


def test_state_of_an_answer_that_is_not_kept(web: Web) -> None:
    service = web.serve(Says(202, JSON, (b"x" * 1200,)), max_answer_bytes=1000)
    service.post()
    found = state(service).json
    assert (found["state"], found["status"]) == ("answered", 202)


def test_state_of_an_answer_that_is_no_http_answer(web: Web) -> None:
    leave_in_doubt(web)
    service = web.serve()
    assert service.replay.resolve(OWN, response="paid")
    found = state(service).json
    assert found["state"] == "answered"
    assert "status" not in found


def test_state_elsewhere_than_at_its_path_is_the_applications(plain: Web) -> None:
    service = plain.serve(Says(200))
    service.get("/idempotency/", key=KEY)
    service.get("/payments", key=KEY)
    assert [given.path for given in service.runs] == ["/idempotency/", "/payments"]


def test_policy_and_state_can_be_nowhere(plain: Web) -> None:
    service = plain.serve(Says(200), policy_path=None, policy_url="https://pay.example/keys")
    assert service.get("/idempotency").status == 200
    assert len(service.runs) == 1
    reply = refused(service.post(key=None), 400, "missing-key", "none")
    assert reply.json["type"] == "https://pay.example/keys#missing-key"


def test_policy_below_where_the_application_is_mounted(plain: Web) -> None:
    service = plain.serve()
    assert (
        service.get("/idempotency", root="/v1").header("content-type") == "text/html; charset=utf-8"
    )
    reply = refused(service.post(root="/v1", key=None), 400, "missing-key", "none")
    assert reply.json["type"] == "/v1/idempotency#missing-key"
    assert service.runs == []


def test_the_path_where_it_is_mounted_is_compared(plain: Web) -> None:
    service = plain.serve()
    assert service.post("/pay", root="/v1").status == 201
    assert service.post("/v1/pay").is_replay
    refused(service.post("/pay"), 422, "key-reused", "none")
