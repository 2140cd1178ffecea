"""Event loops that end while the pool is at work."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

pytest.importorskip("psycopg")

from kvreplay import open_store
from kvreplay.backends.postgresql.aio_session import AsyncSession
from support.waiting import PATIENCE

pytestmark = pytest.mark.any_python


def test_a_loop_ends_while_a_connection_is_made(
    postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg's pool takes a cancellation there for a failure to connect, and goes on."""
    configure = AsyncSession._configure
    begun: list[asyncio.Event] = []

    async def slow(session: AsyncSession, link: Any) -> None:
        begun[0].set()
        await asyncio.get_running_loop().create_future()

    with open_store(postgres.url) as store:

        async def read() -> Any:
            begun[:] = [asyncio.Event()]
            asked = asyncio.create_task(store.awaited.list("p", "s"))  # type: ignore[attr-defined]
            await begun[0].wait()
            return asked

        monkeypatch.setattr(AsyncSession, "_configure", slow)
        loop = threading.Thread(target=lambda: asyncio.run(read()), daemon=True)
        loop.start()
        loop.join(PATIENCE)
        assert not loop.is_alive(), "the loop waits for a task that does not end"

        monkeypatch.setattr(AsyncSession, "_configure", configure)
        assert asyncio.run(store.awaited.list("p", "s")) == []  # type: ignore[attr-defined]
