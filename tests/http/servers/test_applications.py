"""What web applications do besides answering, on real servers with two workers."""

from __future__ import annotations

import os
import socket
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import pytest

from support.http_servers import BrokenOffError, Response, Server, ask
from support.needs import missing
from support.payment_load import quoted
from support.programs import PROGRAMS
from support.waiting import PATIENCE, until

APPLICATIONS = {
    "asgi": ("asgi_service.py", "uvicorn"),
    "wsgi": ("wsgi_service.py", "gunicorn, one request at a time"),
}


@attrs.frozen
class Application:
    """An application of ``support``, and what it has noted."""

    server: Server
    folder: Path

    def post(self, path: str, key: str) -> Response:
        return ask(self.server.port, "POST", path, key=quoted(key))

    def state(self, key: str) -> Any:
        return ask(self.server.port, "GET", "/idempotency", key=quoted(key)).json["state"]

    def notes(self) -> Counter[str]:
        return Counter((self.folder / "notes").read_text(encoding="ascii").splitlines())


def of(*names: str) -> list[Any]:
    """The parameters for these applications; the tests of one share its server."""
    return [pytest.param(each, marks=pytest.mark.xdist_group(each)) for each in names]


@pytest.fixture(scope="module", params=of(*APPLICATIONS))
def application(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Application]:
    folder = tmp_path_factory.mktemp("application")
    module, command = APPLICATIONS[request.param]
    env = {"FOLDER": str(folder), "REPLAY_STORE": f"lmdb:{folder}/replay"}
    source = (PROGRAMS / module).read_text(encoding="utf-8")
    server = Server(command, source, folder, env)
    try:
        served = Application(server, folder)
        yield served
        server.ask_to_end()
        assert server.exit_code() == 0, server.log()
        assert served.notes()["ended in good order"] == 2, server.log()
    finally:
        server.end()


def test_what_is_to_be_done_after_the_answer_is_done_after_it_and_once(
    application: Application,
) -> None:
    first = application.post("/background", "later")
    assert (first.status, first.body, first.replayed) == (202, b"later", False)
    assert application.notes()["done later"] == 0  # though it is answered
    retry = application.post("/background", "later")
    assert (retry.status, retry.body, retry.replayed) == (202, b"later", True)
    (application.folder / "go").touch()
    until(lambda: application.notes()["done later"])
    assert application.post("/background", "later").replayed
    assert application.post("/background", "even later").status == 202
    until(lambda: application.notes()["done later"] == 2)
    assert application.notes()["answered"] == 2


def test_a_stream_is_collected_and_replayed(application: Application) -> None:
    path = "/stream?size=1000&parts=100"
    first, retry = (application.post(path, "stream") for _ in range(2))
    assert first.status == 201
    assert first.body == b"".join(bytes([65 + n % 26]) * 1000 for n in range(100))
    assert (retry.status, retry.body, retry.replayed) == (201, first.body, True)
    assert application.notes()["streamed 100000"] == 1


def test_a_stream_that_is_too_large_to_keep_is_passed_on_and_not_run_again(
    application: Application,
) -> None:
    path = "/stream?size=100000&parts=30"
    first = application.post(path, "large")
    assert (first.status, len(first.body)) == (201, 3_000_000)
    for _ in range(2):
        retry = application.post(path, "large")
        assert (retry.status, retry.problem, retry.json["effect"]) == (409, "not-kept", "answered")
        assert retry.json["original_status"] == 201
    assert application.notes()["streamed 3000000"] == 1


def test_an_answer_that_breaks_off_leaves_a_doubt(application: Application) -> None:
    try:
        assert application.post("/breaks", "broken").status == 500
    except BrokenOffError:
        pass  # a server may say it so too
    for _ in range(2):
        retry = application.post("/breaks", "broken")
        assert (retry.status, retry.problem) == (409, "in-doubt")
    assert application.notes()["broke off"] == 1


@pytest.mark.parametrize(
    ("ending", "retried", "runs"), [("freed", 200, 2), ("in-doubt", 409, 1), ("kept", 200, 1)]
)
def test_an_application_says_itself_how_its_run_ends(
    application: Application, ending: str, retried: int, runs: int
) -> None:
    before = application.notes()["ended"]
    first, retry = (application.post(f"/ending?is={ending}", ending) for _ in range(2))
    assert (first.status, first.body) == (200, b"as it was told")
    assert retry.status == retried
    assert application.notes()["ended"] - before == runs


def test_headers_are_replayed_but_no_cookie(application: Application) -> None:
    first, retry = (application.post("/headers", "headers") for _ in range(2))
    links = [("link", "</a>; rel=a"), ("link", "</b>; rel=b")]
    for each in (first, retry):
        lower = [(name.lower(), value) for name, value in each.headers]
        assert [pair for pair in lower if pair[0] == "link"] == links
        assert each.header("Location") == "/made/1"
    assert retry.replayed
    assert first.header("Set-Cookie")
    assert retry.header("Set-Cookie") is None


@pytest.mark.parametrize("application", of("asgi"), indirect=True)
def test_a_websocket_passes_through(application: Application) -> None:
    if not (find_spec("wsproto") or find_spec("websockets")):
        missing("needs wsproto or websockets, with which uvicorn serves them")
    with socket.create_connection(("127.0.0.1", application.server.port), PATIENCE) as client:
        client.sendall(
            b"GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nIdempotency-Key: no key at all\r\n"
            b"Sec-WebSocket-Key: " + b64encode(os.urandom(16)) + b"\r\n\r\n"
        )
        said = client.makefile("rb")
        assert said.readline().split()[1] == b"101"
        while said.readline() != b"\r\n":
            pass
        client.sendall(b"\x81\x85" + bytes(4) + b"hello")  # a whole text of 5 bytes, masked with 0
        assert said.read(7) == b"\x81\x05hello"


def test_each_worker_begins_once(application: Application) -> None:
    """With ASGI by its lifespan. That it ends in good order is seen when all tests are over."""
    until(lambda: application.notes()["began"] == 2)
