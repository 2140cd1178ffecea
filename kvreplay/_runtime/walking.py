"""The records of a namespace, one by one.

What is decided here is written once, for blocking calls and for awaited ones. As the flows of
``_protocol/flow.py`` do, it yields each question to the store, and is sent the answer. ``look()``
answers with blocking calls, and ``awaiting.py`` with awaits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, TypeVar, cast

import attrs

from kvreplay._protocol.flow import is_in_doubt
from kvreplay._protocol.keys import ReplayKey, name, scope_name
from kvreplay._protocol.record import ReplayRecord, State, decode
from kvreplay._protocol.steps import Flow
from kvreplay._runtime.blocking import drive
from kvreplay._runtime.run import Run
from kvreplay._runtime.settings import Settings
from kvreplay.errors import (
    CorruptRecordError,
    InvalidParamsError,
    KeyNotFoundError,
    KVReplayError,
    RecordError,
)
from kvreplay.store import ExpiringKVStore

__all__ = [
    "Drive",
    "Entries",
    "Found",
    "Look",
    "NextAddress",
    "Question",
    "ReadAt",
    "Records",
    "SweepIndex",
    "in_doubt",
    "look",
    "record",
]

T = TypeVar("T")

Address = tuple[str, str, str]

Found = tuple[bytes, ReplayRecord | RecordError]
"""A stored record's bytes, and the record or the error that says what is wrong with it."""


# What is asked.


@attrs.frozen(repr=False)
class NextAddress:
    """Go on with a walk of the store: sent the next address; ``None``: there is no more."""

    walk: Iterator[Address] | AsyncIterator[Address]


@attrs.frozen(repr=False)
class ReadAt:
    """Read an entry: sent its bytes; ``None``: there is none."""

    address: Address


@attrs.frozen(repr=False)
class SweepIndex:
    """Sweep by the store's own index of expiry: sent its ``SweepResult``."""

    now: int
    limit: int


@attrs.frozen(repr=False)
class Drive:
    """Drive a flow on one key: sent what it returns."""

    flow: Flow[Any]
    key: ReplayKey


Question = NextAddress | ReadAt | SweepIndex | Drive
Look = Generator[Question, Any, T]


def look(questions: Look[T], settings: Settings) -> T:
    """Answer the questions with blocking calls, and return what comes of them."""
    resume: Callable[[Any], Question] = questions.send
    answer: Any = None
    while True:
        try:
            question = resume(answer)
        except StopIteration as end:
            return cast(T, end.value)
        except BaseException:
            answer = None  # it may be the error, whose traceback holds this frame
            raise
        try:
            answer, resume = _answer(question, settings), questions.send
        except Exception as error:  # the store's: what has been found before is not lost
            answer, resume = error, questions.throw


def _answer(question: Question, settings: Settings) -> Any:
    if isinstance(question, NextAddress):
        return next(cast(Iterator[Address], question.walk), None)
    if isinstance(question, ReadAt):
        try:
            return settings.store.read(*question.address)
        except KeyNotFoundError:
            return None
    if isinstance(question, SweepIndex):
        store = cast(ExpiringKVStore, settings.store)
        return store.sweep(settings.name, question.now, question.limit)
    return drive(question.flow, Run(settings, question.key))


# The walks.


class Entries:
    """The entries of the namespace, sound or not. They are listed from the first question on.

    ``passed``: how many it has gone past that are still there, as far as it is told.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._began = settings.observer.began()
        self._walk: Iterator[Address] | AsyncIterator[Address] | None = None
        self.passed = 0

    def next(self) -> Look[Found | None]:
        """Return the next one; ``None``: there is no more."""
        while (address := (yield from self._next_address())) is not None:
            data: bytes | None = yield ReadAt(address)
            if data is not None:
                self.passed += 1
                return data, self._decoded(data, address)
            # It was removed since it was listed.
        return None

    def skip(self, count: int) -> Look[None]:
        """Go past so many, and do not look at them."""
        while self.passed < count and (yield from self._next_address()) is not None:
            self.passed += 1

    def _next_address(self) -> Look[Address | None]:
        if self._walk is None:
            self._walk = self._settings.asked.list_all_keys()
        assert self._walk is not None
        while (address := (yield NextAddress(self._walk))) is not None:
            if address[0] == self._settings.name:
                return cast(Address, address)
        return None

    def _decoded(self, data: bytes, address: Address) -> ReplayRecord | RecordError:
        try:
            record = decode(data)
            own = record.key
            if address[1:] != (name(own.scope), name(own.id, own.operation)):
                raise CorruptRecordError("a stored record belongs to another key")
        except RecordError as error:
            error.addresses = (address,)
            self._settings.observer.emit("corrupt_record", None, self._began)
            return error
        return record


class Records:
    """All records that are asked for and can be read; then an error for the others."""

    def __init__(self, settings: Settings, state: State | None, in_doubt: bool | None) -> None:
        if state is not None and not isinstance(state, State):
            raise InvalidParamsError(f"state= is a {type(state).__name__}; give a State")
        if in_doubt is not None and not isinstance(in_doubt, bool):
            raise InvalidParamsError(
                f"in_doubt= is a {type(in_doubt).__name__}; give True or False"
            )
        self._settings = settings
        self._state = state
        self._in_doubt = in_doubt
        self._entries = Entries(settings)
        self._damaged: list[RecordError] = []

    def next(self) -> Look[ReplayRecord | None]:
        """Return the next record; ``None``: there is no more.

        Raises:
            RecordError: there is no more, and some could not be read.
        """
        while (entry := (yield from self._entries.next())) is not None:
            found = entry[1]
            if isinstance(found, RecordError):
                self._damaged.append(found)
            elif (yield from self._is_asked_for(found)):
                return found
        if self._damaged:
            raise self._unread() from self._damaged[0]
        return None

    def page(self, size: int) -> Look[list[ReplayRecord | KVReplayError]]:
        """Return the next records, and what has stopped the walk, if something has."""
        page: list[ReplayRecord | KVReplayError] = []
        try:
            yield from self._fill(page, size)
        except KVReplayError as error:
            page.append(error)
        return page

    def _fill(self, page: list[ReplayRecord | KVReplayError], size: int) -> Look[None]:
        while len(page) < size and (found := (yield from self.next())) is not None:
            page.append(found)

    def _is_asked_for(self, found: ReplayRecord) -> Look[bool]:
        if self._state is not None and found.state is not self._state:
            return False
        if self._in_doubt is None:
            return True
        return (yield _doubt_of(self._settings, found)) is self._in_doubt

    def _unread(self) -> RecordError:
        damaged = self._damaged
        error = type(damaged[0])(
            f"{len(damaged)} of the namespace's records cannot be read; all others were yielded,"
            " and the error's addresses say where they are"
        )
        error.addresses = tuple(where for each in damaged for where in each.addresses)
        return error


def record(settings: Settings, key: ReplayKey) -> Look[ReplayRecord | None]:
    """Return one key's record, or ``None``."""
    address = settings.name, scope_name(key.scope), name(key.id, key.operation)
    data = yield ReadAt(address)
    try:
        return None if data is None else decode(data, key)
    except RecordError as error:
        error.addresses = (address,)
        raise


def in_doubt(settings: Settings, found: ReplayRecord) -> Look[bool]:
    """Say whether the key is in doubt of which this is the record."""
    if not isinstance(found, ReplayRecord):
        raise InvalidParamsError(
            f"the record is a {type(found).__name__}; give what record() or records() shows"
        )
    return bool((yield _doubt_of(settings, found)))


def _doubt_of(settings: Settings, found: ReplayRecord) -> Drive:
    return Drive(is_in_doubt(found, settings.now()), found.key)
