"""What the tests of the table and of a key's state do with a service, and ask of its replies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from kvreplay import ReplayKey, ReplayRecord, State
from kvreplay._protocol.record import Claim, encode
from kvreplay._runtime.singleflight import flights
from kvreplay.testing import FaultyStore
from support.http_apps import KEY, Given, Reply, Says, Service, Web
from support.replaying import START, Caller
from support.waiting import PATIENCE, until

OWN = ReplayKey("alice", KEY)


def refused(reply: Reply, status: int, slug: str, effect: str) -> Reply:
    """It is this problem, in the form of RFC 9457, and says what did not happen."""
    assert (reply.status, reply.slug) == (status, slug)
    assert reply.json["status"] == status
    assert reply.json["effect"] == effect
    assert reply.json["title"]
    assert reply.json["detail"].endswith(".")
    assert not reply.is_replay
    assert int(reply.header("content-length") or 0) == len(reply.body)
    assert reply.header("cache-control") == "no-store"
    return reply


class Gate:
    """An application that says when it runs, and waits until it is let go."""

    def __init__(self, says: Says | Exception | None = None) -> None:
        self.entered, self._go = threading.Event(), threading.Event()
        self._says = Says() if says is None else says

    def __call__(self, given: Given) -> Says:
        self.entered.set()
        assert self._go.wait(PATIENCE)
        if isinstance(self._says, Exception):
            raise self._says
        return self._says

    def let_go(self) -> None:
        self._go.set()


def running(service: Service, gate: Gate, **options: Any) -> Caller:
    """Begin a request whose application waits at the gate."""
    caller = service.begin(**options)
    assert gate.entered.wait(PATIENCE)
    return caller


def waiting(service: Service) -> Caller:
    """Begin a request that waits for the one that is running."""
    caller = service.begin()
    until(lambda: [flight.wakers for flight in flights.table.values()] not in ([], [{}]))
    return caller


def fails(error: Exception) -> Callable[[Given], Says]:
    def application(given: Given) -> Says:
        raise error

    return application


def leave_in_doubt(web: Web, **options: Any) -> None:
    """A run of the key that ended without an answer."""
    exchange = web.serve(fails(ValueError("lost"))).ask(**options)
    assert isinstance(exchange.error, ValueError)
    assert exchange.reply is None


def put_claim(web: Web, service: Service, until: int) -> None:
    """A claim of this very request, by an owner on another machine."""
    service.post()
    done = service.replay.record(OWN)
    claim = Claim(b"t" * 16, until, "elsewhere:1:1:1:1:1:1")
    data = encode(ReplayRecord(State.IN_PROGRESS, OWN, done.params, None, START, None, claim))
    ((_, scope, own),) = web.store.list_all_keys()
    web.store.write("http", scope, own, data)
    service.runs.clear()


def tampered(web: Web, change: Callable[[bytes], bytes]) -> Service:
    service = web.serve()
    service.post()
    ((_, scope, own),) = web.store.list_all_keys()
    web.store.write("http", scope, own, change(web.store.read("http", scope, own)))
    service.runs.clear()
    return service


def faulty(web: Web) -> FaultyStore:
    return FaultyStore(web.store)
