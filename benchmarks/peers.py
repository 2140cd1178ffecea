"""The peers: each is set up to do the same, as durably as its own options allow.

An adapter is a context manager: it takes a folder and gives a :class:`Peer`. It imports the peer
only when it is called, so a peer that is not installed raises ``ModuleNotFoundError``.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import attrs

from benchmarks.workload import NAMESPACE, PARAMS, RESPONSE, SCOPE
from kvreplay import AsyncReplay, Replay, open_store

__all__ = ["OURS", "PEERS", "Peer"]


@attrs.frozen
class Peer:
    """``execute(id)`` answers the request with that id: it runs it once, or replays the answer."""

    survives: str
    """What a returned answer survives, and the settings for that."""
    execute: Callable[[str], Any]
    runs: list[str]
    """The ids whose handler ran."""
    awaited: bool = False
    close: Callable[[], Awaitable[object]] | None = None
    """Await it on the loop that executed."""


Adapter = Callable[[Path], AbstractContextManager[Peer]]


@contextmanager
def kvreplay_blocking(folder: Path) -> Iterator[Peer]:
    runs: list[str] = []
    with open_store(f"lmdb:{folder / 'store'}") as store:
        replay = Replay(store, NAMESPACE, ttl=3600)
        yield Peer(
            "a power cut: LMDB, durability=full",
            lambda id_: replay.execute((SCOPE, id_), PARAMS, _handler(runs, id_)).response,
            runs,
        )


@contextmanager
def kvreplay_awaited(folder: Path) -> Iterator[Peer]:
    runs: list[str] = []
    with open_store(f"lmdb:{folder / 'store'}") as store:
        replay = AsyncReplay(store, NAMESPACE, ttl=3600)

        async def execute(id_: str) -> Any:
            return (await replay.execute((SCOPE, id_), PARAMS, _handler(runs, id_))).response

        yield Peer("a power cut: LMDB, durability=full", execute, runs, awaited=True)


@contextmanager
def justonce(folder: Path) -> Iterator[Peer]:
    from justonce import Idempotent
    from justonce.stores import SqliteStore

    runs: list[str] = []
    engine = Idempotent(SqliteStore(folder / "justonce.db"))

    def execute(id_: str) -> Any:
        return engine.run(f"{SCOPE}:{id_}", _handler(runs, id_), payload=PARAMS).value

    yield Peer("a power cut: SQLite, WAL, synchronous=FULL", execute, runs)
    engine.store.close()


@contextmanager
def once_kernel(folder: Path) -> Iterator[Peer]:
    from once import Once
    from once.sqlite import SqliteStore

    runs: list[str] = []
    once = Once(SqliteStore(str(folder / "once.db")))
    yield Peer(
        "a killed process: SQLite, WAL, synchronous=NORMAL, which is fixed",
        lambda id_: once.run(f"{SCOPE}:{id_}", PARAMS, _handler(runs, id_)),
        runs,
    )


@contextmanager
def diskcache(folder: Path) -> Iterator[Peer]:
    from diskcache import Cache

    runs: list[str] = []
    with Cache(str(folder), sqlite_synchronous=2) as cache:

        @cache.memoize(expire=3600)
        def request_invoice(scope: str, id_: str, **params: Any) -> Any:
            return _handler(runs, id_)()

        yield Peer(
            "a power cut, but no claim before the effect: SQLite, WAL, synchronous=FULL",
            lambda id_: request_invoice(SCOPE, id_, **PARAMS),
            runs,
        )


@contextmanager
def dbos(folder: Path) -> Iterator[Peer]:
    import sqlalchemy
    from dbos import DBOS, SetWorkflowID

    if sqlite3.sqlite_version_info < (3, 42):  # it has no 'subsec', which DBOS needs
        sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _give_subsec)
    runs: list[str] = []
    url = f"sqlite:///{folder / 'dbos.db'}"
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})

    @DBOS.workflow()
    def request_invoice(id_: str, params: dict[str, Any]) -> Any:
        return _handler(runs, id_)()

    def execute(id_: str) -> Any:
        with SetWorkflowID(f"{SCOPE}:{id_}"):
            return request_invoice(id_, PARAMS)

    DBOS.launch()
    try:
        yield Peer("a power cut: SQLite, rollback journal, synchronous=FULL", execute, runs)
    finally:
        DBOS.destroy()


def _give_subsec(connection: Any, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.create_function("unixepoch", 1, lambda _: time.time())


@contextmanager
def idemkit_in_memory(folder: Path) -> Iterator[Peer]:
    from idemkit import InMemoryBackend

    with _idemkit(InMemoryBackend(), "nothing: memory") as peer:
        yield peer


@contextmanager
def idemkit_on_redis(folder: Path) -> Iterator[Peer]:
    from idemkit import RedisBackend

    with _redis(folder) as url:
        backend = RedisBackend.from_url(url)
        with _idemkit(backend, "a power cut: Redis, appendfsync=always", backend.aclose) as peer:
            yield peer


@contextmanager
def _idemkit(
    backend: Any, survives: str, close: Callable[[], Awaitable[object]] | None = None
) -> Iterator[Peer]:
    from idemkit import MethodConfig, idempotent

    runs: list[str] = []
    config = MethodConfig(
        key_fields=["id_"],
        scope=lambda arguments: arguments["scope"],
        validation_fingerprint=lambda arguments: repr(arguments["params"]).encode(),
    )

    @idempotent(backend=backend, config=config)
    async def request_invoice(*, scope: str, id_: str, params: dict[str, Any]) -> Any:
        return _handler(runs, id_)()

    def execute(id_: str) -> Awaitable[Any]:
        return request_invoice(scope=SCOPE, id_=id_, params=PARAMS)

    yield Peer(survives, execute, runs, awaited=True, close=close)


@contextmanager
def powertools(folder: Path) -> Iterator[Peer]:
    from aws_lambda_powertools.utilities.idempotency import (
        IdempotencyConfig,
        idempotent_function,
    )
    from aws_lambda_powertools.utilities.idempotency.persistence.redis import (
        RedisCachePersistenceLayer,
    )

    runs: list[str] = []
    with _redis(folder) as url:

        @idempotent_function(
            data_keyword_argument="request",
            persistence_store=RedisCachePersistenceLayer(url=url),
            config=IdempotencyConfig(expires_after_seconds=3600),
        )
        def request_invoice(*, request: dict[str, Any]) -> Any:
            return _handler(runs, request["id"])()

        yield Peer(
            "a power cut: Redis, appendfsync=always",
            lambda id_: request_invoice(request={"scope": SCOPE, "id": id_, **PARAMS}),
            runs,
        )


@contextmanager
def nutshell(folder: Path) -> Iterator[Peer]:
    limit = getattr(sys, "tracebacklimit", None)
    from cashu.core.settings import settings
    from cashu.mint.cache import RedisCache
    from loguru import logger
    from pydantic import create_model

    if limit is None and hasattr(sys, "tracebacklimit"):
        del sys.tracebacklimit  # the import of cashu has set it
    logger.disable("cashu")
    runs: list[str] = []
    request_model = create_model("Request", scope=str, id=str, params=dict[str, Any])
    response_model = create_model("Response", payment_hash=str, bolt11=str)
    route = SimpleNamespace(url=SimpleNamespace(path="/v1/mint/bolt11"))
    with _redis(folder) as url:
        settings.mint_redis_cache_enabled = True
        settings.mint_redis_cache_url = url
        cache = RedisCache()

        @cache.cache()
        async def request_invoice(request: Any, payload: Any) -> Any:
            return response_model(**_handler(runs, payload.id)())

        async def execute(id_: str) -> Any:
            payload = request_model(scope=SCOPE, id=id_, params=PARAMS)
            answer = await request_invoice(route, payload)
            return answer if isinstance(answer, dict) else answer.model_dump()

        yield Peer(
            "a power cut, but no claim before the effect: Redis, appendfsync=always",
            execute,
            runs,
            awaited=True,
            close=cache.redis.aclose,
        )


OURS: Final[dict[bool, Adapter]] = {False: kvreplay_blocking, True: kvreplay_awaited}
"""kvreplay, by whether the peer is awaited."""

PEERS: Final[dict[str, Adapter]] = {
    "justonce": justonce,
    "once-kernel": once_kernel,
    "diskcache memoize": diskcache,
    "DBOS on SQLite": dbos,
    "idemkit in memory": idemkit_in_memory,
    "idemkit on Redis": idemkit_on_redis,
    "Powertools on Redis": powertools,
    "Nutshell's cache on Redis": nutshell,
}


class NoServer(Exception):
    """There is no Redis server on this machine."""


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """Start a server that flushes before it answers, and end it."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise NoServer("no redis-server on the PATH")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", f"{port}", "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    durable = ["--appendonly", "yes", "--appendfsync", "always"]
    with subprocess.Popen([binary, *options, *durable], stdout=subprocess.DEVNULL) as server:
        try:
            _wait_for(port, server)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise NoServer("redis-server did not start")


def _handler(runs: list[str], id_: str) -> Callable[[], dict[str, str]]:
    def respond() -> dict[str, str]:
        runs.append(id_)
        return RESPONSE

    return respond
