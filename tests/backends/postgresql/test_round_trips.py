"""How often the server is asked: counted between the client and the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("psycopg")

from kvreplay import AsyncReplay, KeyNotFoundError, Replay, StoreUnavailableError, open_store
from kvreplay.backends.postgresql import kept
from support.cutting_proxy import CuttingProxy
from support.postgres_faults import held

pytestmark = pytest.mark.any_python

ADDRESS = ("p", "s", "k")
KEY, PARAMS = ("s", "k"), {"msat": 5}
PREPARED = 12  # calls, after which each statement is prepared


@pytest.fixture
def proxy(postgres: Any) -> Iterator[CuttingProxy]:
    with CuttingProxy(postgres.tcp_url) as proxy:
        yield proxy


def test_a_call_is_one_round_trip(postgres: Any, proxy: CuttingProxy) -> None:
    with open_store(proxy.url) as opened:
        store: Any = opened

        def trips(call: Callable[[], Any]) -> int:
            before = proxy.passed()
            call()
            return (proxy.passed() - before).round_trips

        def put(expected: bytes | None, value: bytes | None) -> Callable[[], Any]:
            return lambda: store.check_and_put(*ADDRESS, expected=expected, value=value)

        asked: dict[str, list[int]] = {}
        for _ in range(PREPARED):
            for name, call in (
                ("new", put(None, b"1")),
                ("new, and lost", put(None, b"2")),
                ("read", lambda: store.read(*ADDRESS)),
                ("swapped", put(b"1", b"3")),
                ("swapped, and lost", put(b"1", b"4")),
                ("dropped", put(b"3", None)),
                ("expected, and absent", put(b"3", b"5")),
            ):
                asked.setdefault(name, []).append(trips(call))
    last = {name: counts[-1] for name, counts in asked.items()}
    assert last.pop("expected, and absent") == 2
    assert set(last.values()) == {1}, last


@pytest.mark.parametrize("awaited", [False, True])
def test_a_replay_is_one_and_a_first_request_three(
    postgres: Any, proxy: CuttingProxy, awaited: bool
) -> None:
    with open_store(proxy.url) as store, asyncio.Runner() as runner:
        if awaited:
            replay: Any = AsyncReplay(store, "ns", ttl=60, renew=False)
        else:
            replay = Replay(store, "ns", ttl=60, renew=False)

        def ask(key: str) -> int:
            before = proxy.passed()
            asked = replay.execute(("s", key), PARAMS, lambda: "r")
            if awaited:
                runner.run(asked)  # one loop, whose connection stays
            return (proxy.passed() - before).round_trips

        counted = [(ask(f"k{n}"), ask(f"k{n}")) for n in range(PREPARED)]
    assert counted[-1] == (3, 1)


def test_errors_that_are_kept_keep_no_connection(
    postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their tracebacks have the frames of the calls."""
    with open_store(f"{postgres.url}&pool_size=2&lock_timeout=300ms") as opened:
        store: Any = opened

        async def main() -> list[Any]:
            writes = (store.awaited.write(*ADDRESS, b"v") for _ in range(2))
            errors = await asyncio.gather(*writes, return_exceptions=True)
            monkeypatch.setattr(kept, "_KEEP", 0.0)  # now each connection goes back to the pool
            for _ in range(4):
                with pytest.raises(KeyNotFoundError):
                    await store.awaited.read("p", "s", "other")
            return errors

        store.write(*ADDRESS, b"v")
        locked = f"SELECT 1 FROM {postgres.name}.kvreplay_entries FOR UPDATE"
        with held(postgres.server, locked):
            errors = asyncio.run(main())
    assert [type(error) for error in errors] == [StoreUnavailableError] * 2
