"""The services of the docs, as they stand there, answer every row of the table: real servers, two workers each.

``docs/http.md`` has the table. Each service has its own server and bank, which all tests of it share.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import attrs
import pytest

from kvreplay import Replay, ReplayKey, open_store
from kvreplay.http import answer, downstream_key
from support.bank import Bank
from support.documented import SERVICES, documented_service
from support.http_servers import BrokenOffError, Response, Server, ask, request_to, response_of
from support.payment_audit import Payment
from support.payment_load import REFUSED, TOKENS, quoted, refusal, request_of
from support.waiting import PATIENCE, HeldTransaction, until

# Its master kills a worker that stands still for longer, and waits as long for one that was killed while it was
# asked whether it lives.
MORE = {"uvicorn": ("--timeout-worker-healthcheck=15",)}
DAY_BEFORE_YESTERDAY = int((time.time() - 2 * 86400) * 1000)  # milliseconds


@attrs.frozen
class Service:
    """A service with its bank. Each payment has a key of its own, which is the name of who is paid."""

    server: Server
    bank: Bank
    store: Any

    def request(self, to: str, **changes: Any) -> dict[str, Any]:
        return request_of(Payment("alice", to, to, 5), **changes)

    def pay(self, to: str, **changes: Any) -> Response:
        return ask(self.server.port, **self.request(to, **changes))

    def paying(self, to: str) -> HTTPConnection:
        """Ask for a payment, and return the connection once it is paid."""
        connection = request_to(self.server.port, **self.request(to))
        self.bank.paid(to)
        return connection

    def state(self, to: str) -> Response:
        asked = self.request(to, method="GET", path="/idempotency", body=None)
        return ask(self.server.port, **asked)

    def replay(self, **settings: Any) -> Replay:
        """The replay of the service, in this process."""
        return Replay(self.store, "payments", ttl="24h", **settings)


def of_services(*names: str) -> list[Any]:
    """The parameters for these services: the tests of one run in one process, and share its server."""
    return [pytest.param(each, marks=pytest.mark.xdist_group(each)) for each in names]


@pytest.fixture(scope="module", params=of_services(*SERVICES))
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    framework, command = SERVICES[request.param]
    folder = tmp_path_factory.mktemp("service")
    url = f"lmdb:{folder}/replay?lock_timeout=1s"
    with open_store(url) as store, Bank(folder) as bank:
        told = {"BANK_URL": bank.url, "REPLAY_STORE": url}
        more = MORE.get(command, ())
        server = Server(command, documented_service(framework), folder, told, *more)
        try:
            yield Service(server, bank, store)
        finally:
            server.end()


def is_problem(response: Response, status: int, slug: str, effect: str) -> bool:
    """Say whether a response is that problem, and promises that nothing else happened."""
    found = (response.status, response.problem, response.json.get("effect"))
    assert found == (status, slug, effect)
    assert response.json["status"] == status
    return not response.replayed


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_runs_nothing(service: Service, name: str) -> None:
    assert refusal(service.server.port, name) is None
    assert not service.bank.transfers("nobody")


def test_the_first_answer_and_its_replays(service: Service) -> None:
    first = service.pay("carol")
    (transfer,) = service.bank.transfers("carol")
    assert (first.status, first.json, first.replayed) == (201, {"transfer": transfer.id}, False)
    assert transfer.key == downstream_key(ReplayKey("alice", "carol"))
    for _ in range(4):
        retry = service.pay("carol")
        assert (retry.status, retry.body, retry.replayed) == (201, first.body, True)
        assert retry.header("Content-Type") == first.header("Content-Type")
    assert len(service.bank.transfers("carol")) == 1
    state = service.state("carol").json
    assert (state["state"], state["status"]) == ("answered", 201)


@pytest.mark.parametrize(
    "changes",
    [{"body": {"amount": 6, "to": "dave"}}, {"path": "/payments?twice=1"}, {"method": "PATCH"}],
    ids=["body", "query", "method"],
)
def test_another_request_under_the_same_key(service: Service, changes: dict[str, Any]) -> None:
    first = service.pay("dave")
    assert first.status == 201
    assert is_problem(service.pay("dave", **changes), 422, "key-reused", "none")
    assert service.pay("dave").body == first.body
    assert len(service.bank.transfers("dave")) == 1


def test_a_key_is_its_callers_own(service: Service) -> None:
    alices, bobs = (service.pay("erin", token=TOKENS[each]) for each in ("alice", "bob"))
    assert not alices.replayed
    assert not bobs.replayed
    assert len({each.key for each in service.bank.transfers("erin")}) == 2
    assert {alices.json["transfer"], bobs.json["transfer"]} == {
        each.id for each in service.bank.transfers("erin")
    }


def test_a_final_refusal_is_kept(service: Service) -> None:
    first, retry = service.pay("declines:carol"), service.pay("declines:carol")
    assert (first.status, first.replayed) == (402, False)
    assert (retry.status, retry.body, retry.replayed) == (402, first.body, True)
    assert not service.bank.transfers("declines:carol")


def test_where_nothing_happened_a_retry_runs_anew(service: Service) -> None:
    away = service.pay("is-away:carol")
    assert (away.status, away.problem) == (503, None)
    assert service.state("is-away:carol").problem == "unknown-key"
    came_back = service.pay("is-away:carol")
    assert (came_back.status, came_back.replayed) == (201, False)
    assert len(service.bank.transfers("is-away:carol")) == 1


def test_a_connection_that_broke_leaves_a_doubt_that_an_operator_ends(service: Service) -> None:
    to = "drops:carol"
    assert service.pay(to).status == 500
    (transfer,) = service.bank.transfers(to)
    for _ in range(3):
        refused = service.pay(to)
        assert is_problem(refused, 409, "in-doubt", "unknown")
        assert refused.header("Retry-After") is None
    assert service.state(to).json["state"] == "in doubt"
    found = service.pay(to, body={"amount": 6, "to": to})
    assert is_problem(found, 422, "key-reused", "none")
    settled = answer(201, f'{{"transfer": "{transfer.id}"}}', {"content-type": "application/json"})
    assert service.replay().resolve(("alice", to), response=settled)
    replayed = service.pay(to)
    assert (replayed.status, replayed.json) == (201, {"transfer": transfer.id})
    assert replayed.replayed
    assert len(service.bank.transfers(to)) == 1


def test_a_running_request_gets_its_duplicates_the_same_409_from_either_worker(
    service: Service,
) -> None:
    """One worker stands still, so that the other one answers, and then the other way round."""
    to, server = "holds:running", service.server
    until(lambda: len(server.workers()) == 2)
    first = service.paying(to)
    runs = server.worker_of(first)
    (other,) = set(server.workers()) - {runs}
    told = []
    for still in (runs, other):
        with server.stopped(still):
            told.append(service.pay(to))
            assert service.state(to).json["state"] == "running"
    for each in told:
        assert is_problem(each, 409, "running", "running")
        assert each.header("Retry-After") == "1"
    assert told[0].body == told[1].body
    service.bank.release(to)
    assert response_of(first).status == 201
    assert service.pay(to).replayed
    assert len(service.bank.transfers(to)) == 1


def test_a_worker_that_is_killed_after_the_effect_leaves_a_doubt_at_once(service: Service) -> None:
    to, server = "holds:killed", service.server
    until(lambda: len(server.workers()) == 2)
    first = service.paying(to)
    runs = server.worker_of(first)
    (other,) = set(server.workers()) - {runs}
    server.kill(runs)
    with pytest.raises(BrokenOffError):
        response_of(first)
    server.until_replaced(runs)
    assert is_problem(service.pay(to), 409, "in-doubt", "unknown")
    with server.stopped(other):  # then the new one answers
        assert is_problem(service.pay(to), 409, "in-doubt", "unknown")
        assert service.state(to).json["state"] == "in doubt"
    assert len(service.bank.transfers(to)) == 1


def test_a_client_that_leaves_stops_nothing(service: Service) -> None:
    to = "holds:left"
    service.paying(to).close()
    assert service.state(to).json["state"] == "running"
    service.bank.release(to)
    until(lambda: service.state(to).json["state"] == "answered")
    retry = service.pay(to)
    assert (retry.status, retry.replayed) == (201, True)
    assert len(service.bank.transfers(to)) == 1


def test_a_body_that_ends_early_runs_nothing(service: Service) -> None:
    """The server may say so, or just close the connection."""
    head = (
        "POST /payments HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {TOKENS['alice']}\r\n"
        'Idempotency-Key: "heidi"\r\nContent-Length: 30\r\n\r\n'
    )
    with socket.create_connection(("127.0.0.1", service.server.port), PATIENCE) as client:
        client.sendall(head.encode() + b'{"amount": 5, "to"')
        client.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").readline().split()[1:2] in ([], [b"400"])
    assert service.state("heidi").problem == "unknown-key"
    assert service.pay("heidi").status == 201
    assert len(service.bank.transfers("heidi")) == 1


def test_a_body_in_chunks(service: Service) -> None:
    """Its length is not known before: it is limited, and compared, as any other."""
    parts = (b"x" * 65536 for _ in range(17))
    assert is_problem(service.pay("chunks", body=parts), 413, "body-too-large", "none")
    json = {"Content-Type": "application/json"}
    whole = b'{"amount": 5, "to": "chunks"}'
    first = service.pay("chunks", body=iter((whole[:9], whole[9:])), headers=json)
    retry = service.pay("chunks", body=whole, headers=json)
    assert (first.status, first.replayed) == (201, False)
    assert (retry.status, retry.body, retry.replayed) == (201, first.body, True)


def test_an_answer_that_has_expired(service: Service) -> None:
    assert service.pay("frank").status == 201
    record = service.replay().record(("alice", "frank"))
    assert record is not None
    past = service.replay(clock=DayBeforeYesterday())
    past.execute(("alice", "long-ago"), record.load_params(), lambda: answer(201, b"{}"))
    asked = service.request("frank", key=quoted("long-ago"))
    assert is_problem(ask(service.server.port, **asked), 422, "expired", "answered")
    assert len(service.bank.transfers("frank")) == 1


class DayBeforeYesterday:
    def now_ms(self) -> int:
        return DAY_BEFORE_YESTERDAY


def test_a_store_that_another_process_holds(service: Service) -> None:
    held = HeldTransaction(service.store)
    refused = service.pay("grace")
    assert is_problem(refused, 503, "unavailable", "none")
    assert refused.header("Retry-After") == "1"
    held.end()
    assert not service.bank.transfers("grace")
    assert service.pay("grace").status == 201
    assert len(service.bank.transfers("grace")) == 1


def test_an_answer_that_could_not_be_stored(service: Service) -> None:
    to = "holds:not-stored"
    first = service.paying(to)
    held = HeldTransaction(service.store)
    service.bank.release(to)
    told = response_of(first)
    held.end()
    assert is_problem(told, 503, "not-stored", "unknown")
    assert told.header("Retry-After") == "1"
    assert told.json["application_status"] == 201
    assert is_problem(service.pay(to), 409, "in-doubt", "unknown")
    assert len(service.bank.transfers(to)) == 1


def test_the_policy_is_published(service: Service) -> None:
    page = ask(service.server.port, "GET", "/idempotency")
    assert page.status == 200
    assert (page.header("Content-Type") or "").startswith("text/html")
    refused = service.pay("nobody", key=None).json["type"]
    assert f'id="{refused.rpartition("#")[2]}"' in page.body.decode()
    assert refused.rpartition("#")[0] == "/idempotency"


@pytest.mark.parametrize("service", of_services("fastapi", "flask"), indirect=True)
def test_a_bank_that_times_out_leaves_a_doubt(service: Service) -> None:
    """The service waits for as long as the docs have it."""
    to = "holds:for-ever"
    assert service.pay(to).status == 500
    assert is_problem(service.pay(to), 409, "in-doubt", "unknown")
    assert len(service.bank.transfers(to)) == 1
