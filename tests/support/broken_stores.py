"""Stores with one fault each that a sloppy author makes, and the tests of the kit that name it.

Here the faults in LDK's four calls, in walks, closing, processes and forks. Each is a subclass of
an engine that is right, which is its twin. A fault that needs others in the middle of a call waits
for them there, so that it shows every time.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.memory import MemoryStore
from kvreplay.errors import InvalidNameError, KeyNotFoundError, StoreError
from kvreplay.testing import threads

S = TypeVar("S", bound=type)

BROKEN: list[type] = []


def caught_by(*tests: str) -> Callable[[S], S]:
    """Name the tests of the kit that fail for a broken store, and pass for its twin."""

    def register(store: S) -> S:
        store.caught_by = tests
        BROKEN.append(store)
        return store

    return register


_left: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def begin() -> None:
    """Take the threads that are there now for what earlier tests have left: stores that hang do so."""
    _left.update(threading.enumerate())


def others_are_at_it() -> bool:
    """Whether more threads than one act on the store, while the main one waits for them."""
    return len({*threading.enumerate()} - {*_left, threading.main_thread()}) > 1


# What is read.


@caught_by("test_absence")
class AbsentIsAPlainKeyError(MemoryStore):
    def read(self, *address: Any, **by_name: Any) -> bytes:
        try:
            return super().read(*address, **by_name)
        except KeyNotFoundError:
            raise KeyError from None


@caught_by("test_absence", "test_round_trip")
class AbsentIsNone(MemoryStore):
    def read(self, *address: Any, **by_name: Any) -> Any:
        try:
            return super().read(*address, **by_name)
        except KeyNotFoundError:
            return None


@caught_by("test_types")
class ReadsAreMutable(MemoryStore):
    def read(self, *address: Any, **by_name: Any) -> Any:
        return bytearray(super().read(*address, **by_name))


@caught_by("test_value_sizes")
class TruncatesValues(MemoryStore):
    def write(self, *address: Any, **by_name: Any) -> None:
        *names, value = address
        super().write(*names, value[: 2**16])


@caught_by("test_readers_see_whole_values_and_whole_lists")
class WritesInTwoParts(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.was_read = threading.Event()

    def read(self, *address: Any, **by_name: Any) -> bytes:
        found = super().read(*address, **by_name)
        self.was_read.set()
        return found

    def write(self, *address: Any, **by_name: Any) -> None:
        *names, value = address
        super().write(*names, value[: len(value) // 2])
        self.was_read.clear()
        if others_are_at_it():
            self.was_read.wait(threads.PATIENCE)
        super().write(*names, value)


# What is listed.


@caught_by("test_readers_see_whole_values_and_whole_lists")
class ListsTemporaryFiles(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.was_listed = threading.Event()

    def list(self, *namespace: Any, **by_name: Any) -> list[str]:
        found = super().list(*namespace, **by_name)
        self.was_listed.set()
        return found

    def write(self, primary: str, secondary: str, key: str, value: bytes) -> None:
        temporary = (primary, secondary, f"{key}.tmp")
        self._put(temporary, (value, None, 1))
        self.was_listed.clear()
        if others_are_at_it():
            self.was_listed.wait(threads.PATIENCE)
        self._delete(temporary)
        super().write(primary, secondary, key, value)


@caught_by("test_a_migration_copies_all")
class WalksNoEmptyNamespace(MemoryStore):
    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        return (address for address in super().list_all_keys() if address[1])


@caught_by("test_a_walk_and_the_lists_agree")
class WalksTheFirstPageOnly(FilesystemStore):
    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        return (address for address, _ in zip(super().list_all_keys(), range(100), strict=False))


@caught_by("test_a_walk_that_is_left_blocks_nobody")
class WalksWithTheLockHeld(MemoryStore):
    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        with self._writer:
            yield from super().list_all_keys()


# What is removed.


@caught_by("test_round_trip")
class RemovesNothing(MemoryStore):
    def remove(self, *address: Any, **by_name: Any) -> None:
        self.read(*address[:3])


@caught_by("test_absence")
class RemovesOnlyWhatIsThere(MemoryStore):
    def remove(self, *address: Any, **by_name: Any) -> None:
        self.read(*address[:3])
        super().remove(*address, **by_name)


@caught_by("test_what_is_removed_stays_away")
class ForgetsItsRemovals(FilesystemStore):
    """It only hides what was removed, which is back when the store is opened again."""

    def __init__(self, path: Any) -> None:
        super().__init__(path)
        self.hidden: set[tuple[Any, ...]] = set()

    def read(self, *address: Any, **by_name: Any) -> bytes:
        found = super().read(*address, **by_name)
        if address in self.hidden:
            raise KeyNotFoundError("no entry under that name")
        return found

    def list(self, primary: str, secondary: str) -> list[str]:
        found = super().list(primary, secondary)
        return [key for key in found if (primary, secondary, key) not in self.hidden]

    def remove(self, *address: Any, **by_name: Any) -> None:
        self.hidden.add(address[:3])


@caught_by("test_a_later_write_wins_over_a_removal")
class RemovesLazilyAfterTheNextWrite(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.later: set[tuple[str, str, str]] = set()

    def remove(self, primary: str, secondary: str, key: str, lazy: bool = False) -> None:
        self.later.add((primary, secondary, key))
        if not lazy:
            self._remove_now()

    def write(self, *address: Any, **by_name: Any) -> None:
        super().write(*address, **by_name)
        self._remove_now()

    def _remove_now(self) -> None:
        while self.later:
            super().remove(*self.later.pop())


# Names and values.


@caught_by("test_illegal_names_touch_nothing")
class WritesAnyName(MemoryStore):
    def write(self, primary: str, secondary: str, key: str, value: bytes) -> None:
        self._put((primary, secondary, key), (value, None, 1))


@caught_by("test_illegal_names_touch_nothing")
class ListsAnyNamespace(MemoryStore):
    def list(self, primary: str, secondary: str) -> list[str]:
        return [
            address[2] for address in self.list_all_keys() if address[:2] == (primary, secondary)
        ]


@caught_by("test_illegal_names_touch_nothing")
class ShowsTheNameInItsMessage(MemoryStore):
    def read(self, *address: Any, **by_name: Any) -> bytes:
        try:
            return super().read(*address, **by_name)
        except InvalidNameError:
            raise InvalidNameError(f"illegal: {address}") from None


@caught_by("test_legal_names")
class TakesShortNamesOnly(MemoryStore):
    def write(self, *address: Any, **by_name: Any) -> None:
        if max(map(len, address[:3])) > 100:
            raise InvalidNameError("a name is too long")
        super().write(*address, **by_name)


@caught_by("test_arguments_by_name")
class NamesItsArgumentsItself(MemoryStore):
    def read(self, p: str, s: str, k: str) -> bytes:
        return super().read(p, s, k)


@caught_by("test_addresses_are_distinct")
class FoldsCase(MemoryStore):
    """As a file system of another maker does."""

    def write(self, primary: str, secondary: str, key: str, value: bytes) -> None:
        super().write(primary.lower(), secondary, key, value)

    def read(self, primary: str, secondary: str, key: str) -> bytes:
        return super().read(primary.lower(), secondary, key)


@caught_by("test_addresses_are_distinct")
class JoinsItsNamespaces(MemoryStore):
    def write(self, primary: str, secondary: str, key: str, value: bytes) -> None:
        super().write(primary + secondary, "", key, value)

    def read(self, primary: str, secondary: str, key: str) -> bytes:
        return super().read(primary + secondary, "", key)

    def list(self, primary: str, secondary: str) -> list[str]:
        return super().list(primary + secondary, "")


@caught_by("test_values_that_are_not_bytes_touch_nothing")
class WritesText(MemoryStore):
    def write(self, *address: Any, **by_name: Any) -> None:
        *names, value = address
        super().write(*names, value.encode() if isinstance(value, str) else value)


# Durability.


@caught_by("test_what_is_written_outlives_the_store_object")
class KeepsItsEntriesInItself(FilesystemStore):
    """It opens a folder of its own each time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.with_name(f"{path.name}-{id(self)}"))


@caught_by("test_what_returned_survives_a_kill")
class WritesWhenItIsClosed(FilesystemStore):
    def __init__(self, path: Any) -> None:
        super().__init__(path)
        self.buffer: dict[tuple[Any, ...], bytes] = {}

    def write(self, *address: Any, **by_name: Any) -> None:
        *names, value = address
        self.buffer[tuple(names)] = value

    def close(self) -> None:
        for address, value in self.buffer.items():
            super().write(*address, value)
        self.buffer.clear()
        super().close()


# Closing.


@caught_by("test_closed")
class ClosesOnce(MemoryStore):
    def close(self) -> None:
        self._check_open()
        super().close()


@caught_by("test_closed")
class AnswersAfterItsClose(MemoryStore):
    def close(self) -> None:
        pass


@caught_by("test_closed")
class IsEmptyAfterItsClose(MemoryStore):
    """Which looks like the absence of what it had."""

    def _check_open(self) -> None:
        pass


@caught_by("test_context_manager_lets_exceptions_through")
class SwallowsExceptions(MemoryStore):
    def __exit__(self, *exception: object) -> Any:
        super().__exit__(*exception)  # type: ignore[arg-type]
        return True


# Several objects, processes, and forks.


@caught_by("test_the_identity_is_that_of_the_entries")
class IsItsOwnIdentity(FilesystemStore):
    identity = property(id)  # type: ignore[assignment]


@caught_by("test_processes_see_what_the_others_did")
class CachesWhatItRead(FilesystemStore):
    def __init__(self, path: Any) -> None:
        super().__init__(path)
        self.cache: dict[tuple[Any, ...], bytes] = {}

    def write(self, *address: Any, **by_name: Any) -> None:
        super().write(*address, **by_name)
        self.cache[address[:3]] = address[3]

    def read(self, *address: Any, **by_name: Any) -> bytes:
        if address not in self.cache:
            self.cache[address] = super().read(*address, **by_name)
        return self.cache[address]


@caught_by("test_processes_that_count")
class IsAtomicInItsProcessOnly(FilesystemStore):
    """The first two processes that come between the reading and the writing meet there."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.first, self.second = path.with_name("first"), path.with_name("second")
        self.lock = threading.Lock()

    def check_and_put(self, *address: Any, expected: Any, value: Any, **more: Any) -> bytes | None:
        with self.lock:
            found = self.read(*address)
            self._let_another_process_come_between()
            if found == expected:
                self.write(*address, value)
            return found

    def _let_another_process_come_between(self) -> None:
        try:
            os.mkfifo(self.first)
        except FileExistsError:
            try:
                self.second.touch(exist_ok=False)
            except FileExistsError:
                return
            os.close(os.open(self.first, os.O_WRONLY))
        else:
            os.close(os.open(self.first, os.O_RDONLY))  # this waits for the other's opening


@caught_by("test_a_forked_child_goes_on")
class RefusesItsChildren(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.pid = os.getpid()

    def _check_open(self) -> None:
        super()._check_open()
        if os.getpid() != self.pid:
            raise StoreError("opened by another process")
