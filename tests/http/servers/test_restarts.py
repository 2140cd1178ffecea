"""The services of the docs are ended and started again, in good order and by force, while a request runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from support.bank import Bank
from support.documented import SERVICES, documented_service
from support.http_servers import Asking, BrokenOffError, Response, Server, ask
from support.payment_audit import Payment
from support.payment_load import request_of
from support.waiting import until


@attrs.frozen
class Service:
    """A service that can be started again and again, and its bank."""

    framework: str
    command: str
    folder: Path
    bank: Bank

    @contextmanager
    def started(self) -> Iterator[Server]:
        told = {"BANK_URL": self.bank.url, "REPLAY_STORE": f"lmdb:{self.folder}/replay"}
        server = Server(self.command, documented_service(self.framework), self.folder, told)
        try:
            yield server
        finally:
            server.end()

    def paying(self, server: Server, to: str) -> Asking:
        """Ask for a payment, and return when it is made."""
        asking = Asking(server.port, **request_of(Payment("alice", to, to, 5)))
        self.bank.paid(to)
        return asking

    def pay(self, server: Server, to: str) -> Response:
        return self.paying(server, to).response()


@pytest.fixture(params=["fastapi", "flask --preload"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    with Bank(tmp_path) as bank:
        yield Service(*SERVICES[request.param], tmp_path, bank)


def test_a_service_that_is_ended_while_a_request_runs(service: Service) -> None:
    """By SIGTERM the request is answered before; by SIGKILL to all processes it is in doubt."""
    with service.started() as server:
        request = service.paying(server, "holds:carol")
        server.ask_to_end()
        until(lambda: re.search("Shutting down|Handling signal: term", server.log()))
        service.bank.release("holds:carol")
        first = request.response()
        assert (first.status, first.replayed) == (201, False)
        assert server.exit_code() == 0, server.log()
        assert not server.workers()
    with service.started() as server:
        retry = service.pay(server, "holds:carol")
        assert (retry.status, retry.body, retry.replayed) == (201, first.body, True)
        broken = service.paying(server, "holds:dave")
        server.end()
        with pytest.raises(BrokenOffError):
            broken.response()
    with service.started() as server:
        retry = service.pay(server, "holds:dave")
        assert (retry.status, retry.problem) == (409, "in-doubt")
        assert ask(server.port, "POST", "/payments").status == 400  # and it serves
    assert len(service.bank.transfers()) == 2
