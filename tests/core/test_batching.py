"""A store that breaks the contract of ``check_and_put_each``: nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kvreplay import AsyncReplay, OutcomeUnknownError, StoreFullError
from kvreplay._runtime.batching import Batcher
from kvreplay._runtime.threads import Threads
from kvreplay.backends.memory import MemoryStore
from support.replaying import Handler, OneByOne
from support.waiting import PATIENCE


def raises(error: BaseException) -> Any:
    raise error


BROKEN: dict[str, Callable[[list[Any]], Any]] = {
    "one too few": lambda found: found[:-1],
    "one too many": lambda found: [*found, None],
    "none at all": lambda found: [],
    "nothing": lambda found: None,
    "a generator": lambda found: (each for each in found),
    "text": lambda found: "x" * len(found),
    "numbers": lambda found: [1] * len(found),
    "a foreign exception": lambda found: raises(OSError(5, "of a foreign store")),
    "StopIteration": lambda found: raises(StopIteration()),
}


class Breaking(OneByOne):
    """A batching store that gives back something else than it should, while it is broken."""

    def __init__(self) -> None:
        self._inner = MemoryStore()
        self.breaks: Callable[[list[Any]], Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def check_and_put(self, *args: Any, **options: Any) -> Any:
        return self._inner.check_and_put(*args, **options)

    def check_and_put_each(self, changes: Sequence[Any]) -> Any:
        found = super().check_and_put_each(changes)
        return found if self.breaks is None else self.breaks(found)


@pytest.mark.parametrize("how", BROKEN)
def test_every_waiter_is_told_and_the_loop_goes_on(how: str) -> None:
    async def main() -> None:
        store = Breaking()
        replay = AsyncReplay(store, "ns", ttl=60)
        store.breaks = BROKEN[how]
        handler = Handler("never")
        ends = await asyncio.gather(
            *(replay.execute(("s", str(number)), 1, handler) for number in range(5)),
            return_exceptions=True,
        )
        for each in ends:
            assert isinstance(each, OutcomeUnknownError), each
            assert "Breaking broke the store contract: its check_and_put_each" in str(each)
            assert "nobody knows whether this change happened" in str(each)
        assert handler.runs == 0
        store.breaks = None
        assert (await replay.execute(("s", "later"), 1, Handler("r"))).response == "r"

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_what_a_store_says_itself_is_told_as_it_is() -> None:
    async def main() -> None:
        store = Breaking()
        replay = AsyncReplay(store, "ns", ttl=60)
        store.breaks = lambda found: raises(StoreFullError("no room"))
        with pytest.raises(StoreFullError, match="no room"):
            await replay.execute(("s", "k"), 1, Handler("never"))
        store.breaks = None
        assert (await replay.execute(("s", "later"), 1, Handler("r"))).response == "r"

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


class Interrupt(SystemExit):
    """Out of a signal handler: asyncio lets it through, and it does not end pytest."""


@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupt_as_a_call_is_given_to_its_thread(
    begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the thread has begun it, its questions get its answers; else it is never made."""
    own, busy, go, asked = Threads("own", 1), threading.Event(), threading.Event(), list[Any]()
    loop = asyncio.new_event_loop()

    def ask_each(questions: Sequence[Any]) -> Sequence[Any]:
        busy.set()
        assert go.wait(PATIENCE)
        asked.extend(questions)
        return questions

    give = own.give

    def give_and_raise(*args: Any) -> None:
        give(*args)
        if begun:
            assert busy.wait(PATIENCE)
        raise Interrupt

    batcher = Batcher(ask_each, own)
    if not begun:
        own.submit(go.wait, PATIENCE)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(own, "give", give_and_raise)
            waiting = loop.create_task(batcher.ask("question"))
            with pytest.raises(Interrupt):
                loop.run_until_complete(waiting)
        go.set()
        if begun:
            assert loop.run_until_complete(waiting) == "question"
        else:
            with pytest.raises(Interrupt):
                loop.run_until_complete(waiting)
        assert loop.run_until_complete(batcher.ask("next")) == "next"
        assert asked == ["question"] * begun + ["next"]
    finally:
        loop.close()
