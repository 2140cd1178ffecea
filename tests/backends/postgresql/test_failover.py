"""A primary dies and its standby is promoted, both real: what goes on, what may be forgotten, and what is refused."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvreplay import (
    OutcomeUnknownError,
    Replay,
    StoreUnavailableError,
    open_store,
)
from support.postgres import VERSIONS, Server, Standby, url_of_any
from support.replaying import Handler, never
from support.swaps import last_values, read_swaps, swapping, wrongs
from support.waiting import until

pytestmark = pytest.mark.any_python

SETTINGS = {"max_connections": 60}
KEY = ("lsp", "payment")
PARAMS = {"amount": 1}
WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@contextmanager
def servers(version: int, *, synchronous: bool) -> Iterator[tuple[Server, Standby]]:
    with (
        Server(version, settings=SETTINGS) as primary,
        Standby(primary, synchronous=synchronous) as standby,
    ):
        yield primary, standby


def timeline(server: Server) -> str:
    ((name,),) = server.execute("SELECT pg_walfile_name(pg_current_wal_lsn())")
    return str(name)[:8]


@pytest.mark.parametrize("version", VERSIONS)
def test_no_acknowledged_change_is_lost_with_a_synchronous_standby(
    version: int, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """Stores that are open go on with the promoted standby."""
    with servers(version, synchronous=True) as (primary, standby), ExitStack() as stack:
        url = f"{url_of_any(primary, standby)}&schema=replay&pool_size=5"
        store = stack.enter_context(open_store(url))
        replay = Replay(store, "ns", ttl="1h")
        for n in range(20):
            replay.execute(("lsp", f"key-{n}"), PARAMS, lambda n=n: n)  # type: ignore[misc]
        crew = [
            stack.enter_context(swapping(url, tmp_path, face, face=face, faults=True))
            for face in ("sync", "async")
        ]
        for each in crew:
            each.tell()
        logs = [tmp_path / f"{face}-{n}" for face in ("sync", "async") for n in range(4)]
        assert timeline(primary) == "00000001"
        until(lambda: all(log.stat().st_size > 2000 for log in logs))
        with behind(primary):  # so that some are surely in the middle of a change
            until(lambda: primary.execute(WAITING))
        standby.promote()
        assert timeline(standby) == "00000002"
        for n in range(20):
            again = replay.execute(("lsp", f"key-{n}"), PARAMS, never)
            assert again.replayed and again.response == n
        replay.execute(KEY, PARAMS, lambda: "on the new primary")
        seen = [found_in(log) for log in logs]
        until(lambda: all(found_in(log) > n + 5 for log, n in zip(logs, seen, strict=True)))
        for each in crew:
            each.tell()
            assert each.says() == []
        swaps = read_swaps(tmp_path)
        ends = Counter("made" if swap.is_made else swap.end for swap in swaps)
        tell(f"{len(swaps)} calls over a failover, {dict(ends)}")
        assert wrongs(swaps, last_values(store)) == []
        assert ends["unknown"] > 0, "nobody has noticed"


def found_in(log: Path) -> int:
    return log.read_text(encoding="utf-8").count('["found"')


@contextmanager
def behind(primary: Server) -> Iterator[None]:
    """Let the primary send nothing to its standby any more: it is killed like that."""
    ((sender,),) = primary.execute("SELECT pid FROM pg_stat_replication")
    os.kill(sender, signal.SIGSTOP)
    yield
    primary.kill()


def test_an_asynchronous_standby_may_have_forgotten_an_answer() -> None:
    """And nobody can notice: its handler runs again."""
    with servers(18, synchronous=False) as (primary, standby):
        url = f"{url_of_any(primary, standby)}&schema=replay"
        with open_store(url) as store:
            replay, handler = Replay(store, "ns", ttl="1h"), Handler("paid")
            replay.execute(("lsp", "before"), PARAMS, handler)
            until(lambda: follows(primary))
            with behind(primary):
                assert not replay.execute(KEY, PARAMS, handler).replayed
                assert replay.execute(KEY, PARAMS, never).replayed  # it was acknowledged
            standby.promote()
            assert replay.execute(("lsp", "before"), PARAMS, never).replayed
            assert not replay.execute(KEY, PARAMS, handler).replayed
            assert handler.runs == 3


def follows(primary: Server) -> bool:
    """Whether the standby has all that was written."""
    return primary.execute("SELECT replay_lsn = pg_current_wal_lsn() FROM pg_stat_replication") == [
        (True,)
    ]


def test_a_synchronous_one_has_forgotten_nothing_that_was_answered() -> None:
    """What could not be confirmed is said to be unknown, and its handler has not run."""
    with servers(18, synchronous=True) as (primary, standby):
        url = f"{url_of_any(primary, standby)}&schema=replay&reply_timeout=1s&lock_timeout=1s"
        with open_store(url) as store:
            replay, handler = Replay(store, "ns", ttl="1h"), Handler("paid")
            replay.execute(("lsp", "before"), PARAMS, handler)
            with behind(primary), pytest.raises(OutcomeUnknownError):
                replay.execute(KEY, PARAMS, never)
            standby.promote()
            assert replay.execute(("lsp", "before"), PARAMS, never).replayed
            assert not replay.execute(KEY, PARAMS, handler).replayed
            assert handler.runs == 2


def test_a_wait_for_the_standby_that_is_broken_off_is_unknown() -> None:
    """PostgreSQL itself says that it has committed, with a warning."""
    with servers(18, synchronous=True) as (primary, _standby):
        with open_store(f"{primary.url}&schema=replay") as store, ExitStack() as stack:
            store.write("p", "s", "before", b"1")
            stack.enter_context(behind(primary))
            stack.enter_context(cancelled_while_it_waits(primary))
            with pytest.raises(OutcomeUnknownError, match="synchronous standby was broken off"):
                store.write("p", "s", "k", b"1")
            assert store.read("p", "s", "k") == b"1"  # here


@contextmanager
def cancelled_while_it_waits(primary: Server) -> Iterator[None]:
    def cancel() -> None:
        until(
            lambda: primary.execute(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            )
        )

    thread = threading.Thread(target=cancel)
    thread.start()
    yield
    thread.join()


# An old primary that comes back.


@pytest.mark.parametrize("face", ["sync", "async"])
def test_an_old_primary_that_comes_back_is_refused(face: str) -> None:
    """Whoever has seen the new one does not speak to the old one, which stands first in the URL."""
    with servers(18, synchronous=False) as (primary, standby):
        url = f"{url_of_any(primary, standby)}&schema=replay&lock_timeout=2s"
        with open_store(url) as store, asyncio.Runner() as runner:
            write = writer(store, face, runner)
            write(b"1")
            until(lambda: follows(primary))
            primary.kill()
            standby.promote()
            write(b"2")
            primary.start()
            end_connections(standby)
            with pytest.raises(StoreUnavailableError, match="an old primary, on timeline 1"):
                write(b"3")
            primary.stop()
            write(b"4")
            assert store.read("p", "s", "k") == b"4"
            primary.start()
            with open_store(f"{primary.url}&schema=replay") as old:  # who has not seen it
                assert old.read("p", "s", "k") == b"1"
            if face == "async":
                runner.run(store.awaited.close())


@pytest.mark.parametrize("face", ["sync", "async"])
def test_a_connection_to_an_old_primary_is_not_used_again(face: str) -> None:
    """It stood still while another one was promoted, and goes on with its connections."""
    with servers(18, synchronous=False) as (primary, standby):
        url = f"{url_of_any(primary, standby)}&schema=replay&connect_timeout=2"
        url += "&lock_timeout=500ms&reply_timeout=500ms"
        with open_store(url) as store, asyncio.Runner() as runner:
            write = writer(store, face, runner)
            write(b"1")
            have_two_connections(store, face, runner)
            until(lambda: follows(primary))
            with primary.frozen():
                standby.promote()
                with pytest.raises(OutcomeUnknownError):
                    write(b"2")
                # The pool looks for another one by itself.
                runner.run(asyncio.to_thread(until, lambda: store._timeline.latest == 2))
            write(b"3")
            assert values(standby) == [(b"3",)]
            assert values(primary) != [(b"3",)]
            if face == "async":
                runner.run(store.awaited.close())


def have_two_connections(store: Any, face: str, runner: asyncio.Runner) -> None:
    if face == "sync":
        with store.transaction() as txn:
            txn.read("p", "s", "k")
            store.read("p", "s", "k")
        return

    async def read_twice() -> None:
        async with store.awaited.transaction() as txn:
            await txn.read("p", "s", "k")
            await store.awaited.read("p", "s", "k")

    runner.run(read_twice())


def values(server: Server) -> list[tuple[Any, ...]]:
    return server.execute("SELECT value FROM replay.kvreplay_entries")


def writer(store: Any, face: str, runner: asyncio.Runner) -> Callable[[bytes], None]:
    """How that face of the store writes an entry."""

    def write(value: bytes) -> None:
        if face == "sync":
            store.write("p", "s", "k", value)
        else:
            runner.run(store.awaited.write("p", "s", "k", value))

    return write


def end_connections(server: Server) -> None:
    server.execute(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
        " WHERE application_name = 'kvreplay'"
    )


def test_a_standby_is_no_store() -> None:
    """What it holds may be old."""
    with servers(18, synchronous=False) as (primary, standby):
        open_store(f"{primary.url}&schema=replay").close()
        until(lambda: follows(primary))
        with pytest.raises(StoreUnavailableError, match="is a standby"):
            open_store(f"{standby.url}&schema=replay")
        standby.promote()
        open_store(f"{standby.url}&schema=replay").close()
