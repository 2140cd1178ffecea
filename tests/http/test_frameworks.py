"""The layer in front of real frameworks: what an application does with its answers, on each."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from kvreplay import AsyncReplay, Replay, ReplayKey, open_store
from support.extras import needs_http
from support.http_clients import ALICE, BOB, ASGIClient, Client, WSGIClient
from support.http_frameworks import ASGI, BUILDERS, PARTS, SEES_EXCEPTIONS, Effects
from support.waiting import PATIENCE, until

pytestmark = [
    needs_http,
    pytest.mark.usefixtures("no_logging_left"),
    # Django says it of each of its own FileResponse under ASGI.
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators"),
]


@attrs.frozen
class Served:
    """An application, what it has done, and a client of it."""

    name: str
    app: Any
    effects: Effects
    client: Client
    replay: Any

    def post(self, path: str, sent: object = None, **more: Any) -> Any:
        return self.client.post(path, sent, **more)


def serve(name: str, folder: Path, **settings: Any) -> Iterator[Served]:
    effects = Effects(folder)
    with open_store("memory:") as store:
        kind = AsyncReplay if name in ASGI else Replay
        replay: Any = kind(store, "http", ttl="24h")
        app = BUILDERS[name](effects, replay, **settings)
        lifespan = not name.startswith("django")
        client: Client = ASGIClient(app, lifespan) if name in ASGI else WSGIClient(app)
        with client:
            yield Served(name, app, effects, client, replay)
        effects.go.set()


@pytest.fixture(params=BUILDERS)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    yield from serve(request.param, tmp_path)


@pytest.fixture(params=ASGI)
def asgi(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    yield from serve(request.param, tmp_path)


# Answers.


def test_a_retry_gets_the_same_answer_and_no_cookie(served: Served) -> None:
    first, retry = served.post("/made"), served.post("/made")
    assert first.status_code == retry.status_code == 201
    assert first.content == retry.content
    assert served.effects.runs["/made"] == 1
    assert "idempotent-replayed" not in first.headers
    assert retry.headers["idempotent-replayed"] == "true"
    for name in ("link", "location", "etag", "content-type"):
        assert first.headers.get_list(name) == retry.headers.get_list(name) != []
    assert first.headers["x-other"] == "1"
    assert first.headers["set-cookie"].strip().startswith("seen=1")
    assert "x-other" not in retry.headers
    assert "set-cookie" not in retry.headers


@pytest.mark.parametrize("name", ["starlette", "fastapi", "fastapi, wrapped", "flask"])
def test_repeated_headers_are_replayed(name: str, tmp_path: Path) -> None:
    """Of the frameworks whose answers can have a header twice."""
    for served in serve(name, tmp_path):
        served.post("/made")
        assert len(served.post("/made").headers.get_list("link")) == 2


def test_a_header_can_be_stored_by_its_name(tmp_path: Path) -> None:
    for served in serve("starlette", tmp_path, stored_headers=("X-Other",)):
        for _ in range(2):
            assert served.post("/made").headers["x-other"] == "1"


def test_a_streaming_answer_is_replayed(served: Served) -> None:
    for _ in range(2):
        answer = served.post("/streams")
        assert (answer.status_code, answer.content) == (200, b"".join(PARTS))
    assert served.effects.runs["/streams"] == 1


def test_a_file_is_replayed(served: Served) -> None:
    for _ in range(2):
        answer = served.post("/file")
        assert (answer.status_code, answer.content) == (200, served.effects.file.read_bytes())
        assert answer.headers["content-length"] == str(len(answer.content))
    assert served.effects.runs["/file"] == 1


def test_no_extension_of_the_server_leads_past_the_layer(asgi: Served) -> None:
    """With the extension ``pathsend`` a framework gives the server a path, and no bytes."""

    seen: list[str] = []

    async def offering(scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            seen.append(message["type"])
            if message["type"] == "http.response.pathsend":
                body = Path(message["path"]).read_bytes()
                message = {"type": "http.response.body", "body": body, "more_body": False}
            await send(message)

        extensions = ("pathsend", "zerocopysend", "trailers", "push", "early_hint")
        offered = {f"http.response.{each}": {} for each in extensions}
        await asgi.app({**scope, "extensions": offered}, receive, sent)

    with ASGIClient(offering, lifespan=False) as client:
        for _ in range(2):
            assert client.post("/file", None).content == asgi.effects.file.read_bytes()
        assert {*seen} == {"http.response.start", "http.response.body"}
        client.request("GET", "/file")  # this one passes through
        framework = asgi.name.partition(",")[0]
        assert ("http.response.pathsend" in seen) is (framework in ("starlette", "fastapi"))
    assert asgi.effects.runs["/file"] == 2


def test_background_tasks_run_once_after_the_answer(served: Served) -> None:
    for _ in range(2):
        assert served.post("/later").text == "soon"
        until(lambda: served.effects.later == ["done"])
    assert served.effects.runs["/later"] == 1


def test_the_application_reads_the_body_that_was_sent(served: Served) -> None:
    sent = bytes(range(256)) * 2000

    def in_parts() -> Iterator[bytes]:
        yield sent[:1000]
        yield sent[1000:]

    async def in_parts_awaited() -> AsyncIterator[bytes]:
        for part in in_parts():
            yield part

    headers = {
        **ALICE,
        "Idempotency-Key": '"k"',
        "Content-Type": "application/octet-stream",
        "Content-Length": str(len(sent)),
    }
    content: Any = in_parts_awaited() if isinstance(served.client, ASGIClient) else in_parts()
    first = served.client.request("POST", "/body", content=content, headers=headers)
    assert first.content == sent
    retry = served.client.request("POST", "/body", content=sent, headers=headers)
    assert retry.content == sent
    assert retry.headers["idempotent-replayed"] == "true"


# Other requests.


@pytest.mark.parametrize("path", ["/made", "/streams", "/body?query=1"])
def test_another_request_with_the_key_is_refused(served: Served, path: str) -> None:
    served.post("/body", {"a": 1})
    other = served.post(path, {"a": 1} if path != "/made" else None)
    assert (other.status_code, other.json()["type"]) == (422, "/idempotency#key-reused")
    assert not served.effects.runs
    assert "idempotent-replayed" in served.post("/body", {"a": 1}).headers  # the positive twin


def test_the_same_key_of_another_caller_is_another_key(served: Served) -> None:
    answers = [served.post("/made", who=who) for who in (ALICE, BOB, BOB)]
    assert [each.json()["run"] for each in answers] == [1, 2, 2]


def test_who_shows_no_token_gets_nothing(served: Served) -> None:
    assert served.post("/made", who={}).status_code == 401
    assert served.post("/made", key=None).status_code == 400
    assert not served.effects.runs


def test_other_methods_pass_through(served: Served) -> None:
    for _ in range(2):
        answer = served.client.request("GET", "/streams", headers={"Idempotency-Key": '"k-1"'})
        assert answer.content == b"".join(PARTS)
    assert served.effects.runs["/streams"] == 2


@pytest.mark.parametrize("name", BUILDERS)
def test_without_a_key_where_none_is_required_it_runs_each_time(name: str, tmp_path: Path) -> None:
    for served in serve(name, tmp_path, required=False):
        runs = [served.post("/made", key=key).json()["run"] for key in (None, None, '"k"', '"k"')]
        assert runs == [1, 2, 3, 3]


def test_the_policy_and_the_state_are_below_the_application(served: Served) -> None:
    page, unknown = served.client.request("GET", "/idempotency"), served.client.state()
    if served.name == "litestar, inside":  # it knows no such path, as docs/http/litestar.md says
        assert page.status_code == unknown.status_code == 404
        assert unknown.headers["content-type"] == "application/json"
        return
    assert page.status_code == 200
    assert 'id="in-doubt"' in page.text
    assert unknown.json()["type"] == "/idempotency#unknown-key"
    served.post("/made")
    assert served.client.state().json().items() >= {"state": "answered", "status": 201}.items()


# Endings.


def in_doubt(served: Served, path: str, sent: object = None) -> bool:
    """Say whether a retry is told that the key is in doubt."""
    retry = served.post(path, sent)
    assert retry.status_code in (200, 409, 500)
    return retry.status_code == 409 and retry.json()["type"] == "/idempotency#in-doubt"


def test_an_exception_leaves_the_key_in_doubt(served: Served) -> None:
    assert served.post("/raises").status_code == 500
    assert in_doubt(served, "/raises")
    assert served.effects.runs["/raises"] == 1


def test_the_exception_that_says_nothing_happened_frees_the_key_where_it_is_seen(
    served: Served,
) -> None:
    assert served.post("/not-applied").status_code == 500
    assert in_doubt(served, "/not-applied") is (served.name not in SEES_EXCEPTIONS)
    assert served.effects.runs["/not-applied"] == (2 if served.name in SEES_EXCEPTIONS else 1)


@pytest.mark.parametrize(("ending", "runs"), [("kept", 1), ("freed", 2), ("in doubt", 1)])
def test_the_application_says_how_it_ends(served: Served, ending: str, runs: int) -> None:
    first = served.post("/ends", ending)
    assert (first.status_code, first.text) == (200, "as you like")
    assert in_doubt(served, "/ends", ending) is (ending == "in doubt")
    assert served.effects.runs["/ends"] == runs


# While it runs.


def test_a_duplicate_of_a_running_request_is_refused_at_once(served: Served) -> None:
    if isinstance(served.client, ASGIClient):
        refused = served.client.run(asyncio.wait_for, _duplicate_on_a_loop(served), PATIENCE)
    else:
        refused = _duplicate_on_a_thread(served)
    assert (refused.status_code, refused.json()["type"]) == (409, "/idempotency#running")
    assert refused.headers["retry-after"] == "1"
    assert served.post("/waits").text == "at last"
    assert served.effects.runs["/waits"] == 1


async def _duplicate_on_a_loop(served: Served) -> Any:
    assert isinstance(served.client, ASGIClient)
    options = {"headers": {**ALICE, "Idempotency-Key": '"k-1"'}, "json": None}
    first = asyncio.create_task(served.client._request("POST", "/waits", options))
    while not served.effects.runs:
        await asyncio.sleep(0)
    refused = await served.client._request("POST", "/waits", options)
    served.effects.go.set()
    assert (await first).text == "at last"
    return refused


def _duplicate_on_a_thread(served: Served) -> Any:
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(served.post("/waits")))
    first.start()
    until(lambda: served.effects.runs)
    refused = served.post("/waits")
    served.effects.go.set()
    first.join(PATIENCE)
    assert answers[0].text == "at last"
    return refused


@pytest.mark.parametrize("how", ["is told", "cancels the call", "refuses what is sent"])
def test_a_client_that_disconnects_stops_nothing(asgi: Served, how: str) -> None:
    """However the server tells of it; Django cancels a view that it tells of it."""
    assert isinstance(asgi.client, ASGIClient)
    asgi.client.run(asyncio.wait_for, _disconnect(asgi, how), PATIENCE)
    retry = asgi.post("/waits", 1)
    assert (retry.status_code, retry.text) == (200, "at last")
    assert retry.headers["idempotent-replayed"] == "true"
    assert asgi.effects.runs["/waits"] == 1


async def _disconnect(asgi: Served, how: str) -> None:
    gone = asyncio.Event()
    to_read = iter([{"type": "http.request", "body": b"1", "more_body": False}])

    async def receive() -> Any:
        for message in to_read:
            return message
        if how == "is told":
            return {"type": "http.disconnect"}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if how == "refuses what is sent":
            raise OSError("the client has gone")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/waits",
        "raw_path": b"/waits",
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"authorization", b"Bearer token-alice"),
            (b"idempotency-key", b'"k-1"'),
            (b"content-type", b"application/json"),
            (b"content-length", b"1"),
        ],
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
    }
    call = asyncio.create_task(asgi.app(scope, receive, send))
    while not asgi.effects.runs:
        await asyncio.sleep(0)
    if how == "cancels the call":
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    asgi.effects.go.set()
    await asyncio.gather(call, return_exceptions=True)
    record = None
    while record is None or (record.claim is not None and record.claim.ended_at is None):
        await asyncio.sleep(0)
        record = await asgi.replay.record(ReplayKey("alice", "k-1"))
