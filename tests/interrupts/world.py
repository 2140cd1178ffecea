"""What surrounds an interrupted call: its store, another process beside it, and what must still be true."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

import kvreplay
from interrupts.depths import run_steps
from interrupts.own import OwnPostgreSQL, OwnSQLite
from kvreplay import AsyncReplay, Replay
from kvreplay._runtime import liveness
from kvreplay._runtime.singleflight import flights
from kvreplay.backends.filesystem import FilesystemStore, layout, locks, opening
from kvreplay.backends.lmdb import LMDBStore, shared
from kvreplay.backends.memory import MemoryStore
from kvreplay.backends.sqlite import SQLiteStore
from support.disks import in_memory
from support.waiting import until

__all__ = [
    "ON_SERVERS",
    "Neighbour",
    "World",
    "enter_as_it_is",
    "have_few_lock_files",
    "open_store",
]

PATIENCE: Final = 8.0  # seconds; the walk kills what takes longer


def have_few_lock_files() -> None:
    """Let the file stores of this process, and of those that it forks, have few lock files.

    They are made one like the other, so a few tell as much as all.
    """
    for module in (locks, layout, opening):
        assert vars(module)["STRIPES"] > 3
        vars(module)["STRIPES"] = 3


SERVER: Final = "INTERRUPTS_SERVER"
"""The environment has the URL of a server under this name: of PostgreSQL, or of etcd with a prefix."""

ON_SERVERS: Final = ("postgresql", "etcd")


def open_store(engine: str, path: Path, map_size: int = 1 << 20) -> Any:
    if engine == "postgresql":
        # With two connections, one that is lost is missed.
        options = f"schema={schema_of(path)}&pool_size=2&lock_timeout=5"
        return kvreplay.open_store(f"{os.environ[SERVER]}&{options}")
    if engine == "etcd":
        return kvreplay.open_store(f"{os.environ[SERVER]}/{schema_of(path)}?pool_size=1&timeout=5")
    if engine == "memory":
        return MemoryStore()
    if engine == "filesystem":
        return FilesystemStore(path)
    if engine == "sqlite":
        return SQLiteStore(path)
    return LMDBStore(path, map_size=map_size)


def schema_of(path: Path) -> str:
    """The schema, or the end of the prefix, of a server's store that has this path in a test."""
    return f"{path.parent.name}_{path.name}".lower().replace("-", "_")


class World:
    """One engine's store in a folder of its own, with some entries, and another process beside it."""

    def __init__(self, engine: str, neighbour: Neighbour) -> None:
        self.engine = engine
        self.folder = Path(tempfile.mkdtemp(prefix="interrupts-", dir=in_memory()))
        self.path = self.folder / "store"
        self.map_size = 1 << 20  # bytes, of LMDB
        self.runs = 0  # of the handler
        self.ends_with: Any = "answer"  # what it returns, or raises
        self.in_doubt_for_nothing = False
        self.enter: Callable[[Callable[[], Any]], Any] = enter_as_it_is
        self._neighbour = neighbour
        self.store = self.open()
        self._replays: list[Any] = []
        self._async_replays: list[Any] = []
        self._connections: list[Any] = []
        self.kept: dict[str, bytes] = {}
        self.keep()
        self.store.list("p", "kept")  # whoever reads for the first time may open something
        self.before = self.descriptors()

    def open(self) -> Any:
        return open_store(self.engine, self.path, self.map_size)

    def keep(self) -> None:
        """Store what must still be there at the end."""
        for n in range(3):
            self.store.write("p", "kept", f"kept{n}", bytes([n]) * 20)
            self.kept[f"kept{n}"] = bytes([n]) * 20

    def leave(self) -> None:
        """Close the store, and go to a place where there is none."""
        self.close()
        old, self.path = self.path, self.folder / "fresh"
        self.before = [link.replace(str(old), str(self.path)) for link in self.before]
        self.kept = {}

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run it on an event loop."""
        return asyncio.run(run_steps(coroutine, self.enter))

    def use_elsewhere(self) -> None:
        """Open and use the store in another process."""
        if self.engine != "memory":
            self._neighbour.use(self.path)

    def connect(self) -> OwnSQLite | OwnPostgreSQL:
        """Open a connection of the caller's own to the store's database; it stays open."""
        if self.engine == "postgresql":
            own: Any = OwnPostgreSQL(os.environ[SERVER], schema_of(self.path))
        else:
            own = OwnSQLite(self.path)
        self._connections.append(own)
        self.before = self.descriptors()
        return own

    def replay(self, **settings: Any) -> Replay:
        self._replays.append(Replay(self.store, "pay", ttl=600, wait_timeout=0.3, **settings))
        replay: Replay = self._replays[-1]
        return replay

    def async_replay(self, **settings: Any) -> AsyncReplay:
        replay = AsyncReplay(self.store, "pay", ttl=600, wait_timeout=0.3, **settings)
        self._async_replays.append(replay)
        return replay

    @property
    def handler(self) -> partial[Any]:
        """A callable that is C's, as that of a decorated function: after it there is a point."""
        return partial(self._handle)

    async def async_handler(self) -> Any:
        return self._handle()

    def _handle(self) -> Any:
        is_failure = isinstance(self.ends_with, Exception)
        self.runs += 1  # there is no point from here on
        if is_failure:
            raise self.ends_with
        return self.ends_with

    def check(self) -> None:
        """Assert that the interrupt left nothing behind, and that everybody can go on."""
        use(self.store, "this-thread")
        _on_a_thread(lambda: use(self.store, "another-thread"))
        self.use_elsewhere()
        for key, value in self.kept.items():
            assert self.store.read("p", "kept", key) == value, "an acknowledged entry is gone"
        assert not flights.table, "a flight is still in the table"
        process = liveness._process
        with contextlib.suppress(AssertionError):  # what follows tells what is still open
            # Event loops let a thread close files, and nobody waits for that.
            until(
                lambda: not (process and process.files) and self.descriptors() == self.before,
                PATIENCE,
            )
        if process is not None:
            assert not process.running, "a token counts as running"
            assert not process.files, "an owners file is still open"
        for replay in self._replays:
            if replay._renewing is not None:
                assert getattr(replay._renewing, "is_idle", True), "a claim is still renewed"
        for replay in self._replays + self._async_replays:
            running = replay._settings.running
            assert not running._runs, "a handler counts as running, and close() waits for it"
            assert not running._bells, "somebody counts as closing"
        if self.engine in ("lmdb", "sqlite"):
            removals = self.store._opened().removals
            assert not removals.flying, "a transaction counts as under way"
            assert not removals._coming, "a lazy removal counts as under way"
        if self.engine == "lmdb":
            environment = self.store._opened()
            assert environment.is_idle, "somebody counts as inside or waiting"
        if self.engine == "sqlite":
            assert self.store._opened().is_idle, "somebody counts as inside or waiting"
        assert self.temporaries() == [], "a temporary file"
        now = self.descriptors()
        assert now == self.before, f"descriptors: {sorted(set(now) ^ set(self.before))}"
        if self.engine == "postgresql":
            self.use_both_connections()
        self.close()

    def use_both_connections(self) -> None:
        with self.store.transaction() as txn:
            txn.write("p", "used", "both", b"1")
            _on_a_thread(lambda: self.store.read("p", "kept", "kept1"))

    def descriptors(self) -> list[str]:
        """What is open, besides the connections to a server, and what waits for one: they come and go."""
        passing = ("socket:", "anon_inode:[eventpoll]") if self.engine in ON_SERVERS else ()
        return [each for each in _descriptors() if not each.startswith(passing or "/proc/")]

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self.store.close()
        if self.engine == "lmdb":
            assert not shared._open, "files are still open"
        assert str(self.folder) not in "".join(_descriptors())

    def end(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.engine in ON_SERVERS:
            gc.collect()
            # A task of the pool that an interrupt has ended keeps its frames until a collection.
            until(lambda: gc.collect() < 0 or "socket" not in "".join(_descriptors()), PATIENCE)
        if self.engine == "postgresql":
            drop_schemas(self.path, self.folder / "store")

    def temporaries(self) -> list[str]:
        return [path.name for path in self.folder.rglob("*.tmp")]


def drop_schemas(*paths: Path) -> None:
    from support.postgres import execute

    for path in paths:
        execute(os.environ[SERVER], f"DROP SCHEMA IF EXISTS {schema_of(path)} CASCADE")


def enter_as_it_is(call: Callable[[], Any]) -> Any:
    """Make the call, with all the room that there is on the stack."""
    return call()


def use(store: Any, who: str) -> None:
    """Do one of each with the store."""
    store.write("p", "used", who, b"1")
    assert store.check_and_put("p", "used", who, expected=b"1", value=b"2") == b"1"
    assert store.read("p", "used", who) == b"2"
    assert who in store.list("p", "used")
    if hasattr(store, "transaction"):
        with store.transaction() as txn:
            txn.remove("p", "used", who)
    else:
        store.remove("p", "used", who)
    assert who not in store.list("p", "used")


def _on_a_thread(call: Any) -> None:
    errors: list[str] = []

    def run() -> None:
        try:
            call()
        except BaseException:
            errors.append(traceback.format_exc())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "another thread hangs"
    assert not errors, errors[0]


def _descriptors() -> list[str]:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(link for link in links if not link.startswith("/proc/"))


class Neighbour:
    """A process that was forked before there was any store, and uses the one that it is told of."""

    def __init__(self, engine: str) -> None:
        asked, self._ask = os.pipe()
        self._told, tell = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._ask)
                os.close(self._told)
                while path := os.read(asked, 4096):
                    os.write(tell, _used(engine, Path(os.fsdecode(path))))
            finally:
                os._exit(0)
        os.close(asked)
        os.close(tell)

    def use(self, path: Path) -> None:
        os.write(self._ask, os.fsencode(path))
        told = os.read(self._told, 65536)
        assert told == _DONE, told.decode()

    def end(self) -> None:
        """End it, even if it hangs."""
        os.close(self._ask)
        os.close(self._told)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


_DONE: Final = b"done"


def _used(engine: str, path: Path) -> bytes:
    try:
        with open_store(engine, path) as store:
            use(store, "another-process")
    except BaseException:
        return traceback.format_exc().encode()
    return _DONE
