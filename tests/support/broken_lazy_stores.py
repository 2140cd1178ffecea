"""More stores with one fault each: in lazy removal.

Their twins remember a lazy removal, hide the entry, and remove it before the next change.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.memory import MemoryStore
from kvreplay.errors import KeyNotFoundError
from kvreplay.store import Page
from kvreplay.testing import threads
from support.broken_stores import caught_by, others_are_at_it


class _Later:
    def __init__(self, *path: Any) -> None:
        super().__init__(*path)
        self.hidden: dict[tuple[str, ...], bytes] = {}

    def remove(self, *address: Any, lazy: bool = False) -> None:
        if lazy:
            with suppress(KeyNotFoundError):
                self.hidden[address] = self.read(*address)
        else:
            self.settle()
            super().remove(*address)  # type: ignore[misc]

    def settle(self) -> None:
        for address in list(self.hidden):
            super().remove(*address)  # type: ignore[misc]
            self.hidden.pop(address, None)

    def read(self, *address: Any) -> bytes:
        if address in self.hidden:
            raise KeyNotFoundError("no entry under that name")
        found: bytes = super().read(*address)  # type: ignore[misc]
        return found

    def read_entry(self, *address: Any) -> Any:
        self.read(*address)
        return super().read_entry(*address)  # type: ignore[misc]

    def list(self, *namespace: Any) -> list[str]:
        keys = super().list(*namespace)  # type: ignore[misc]
        return [key for key in keys if (*namespace, key) not in self.hidden]

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        walk = super().list_all_keys()  # type: ignore[misc]
        return (address for address in walk if address not in self.hidden)

    def list_paginated(self, *namespace: Any, **more: Any) -> Page:
        self.settle()
        page: Page = super().list_paginated(*namespace, **more)  # type: ignore[misc]
        return page

    def write(self, *address: Any) -> None:
        self.settle()
        super().write(*address)  # type: ignore[misc]

    def check_and_put(self, *address: Any, **change: Any) -> Any:
        self.settle()
        return super().check_and_put(*address, **change)  # type: ignore[misc]

    def sweep(self, *due: Any) -> Any:
        self.settle()
        return super().sweep(*due)  # type: ignore[misc]

    def close(self) -> None:
        if not self._closed:  # type: ignore[attr-defined]
            self.settle()
        super().close()  # type: ignore[misc]


class RemovesLater(_Later, MemoryStore):
    def transaction(self) -> Any:
        self.settle()
        return super().transaction()


class RemovesFilesLater(_Later, FilesystemStore):
    pass


# What is seen.


@caught_by("test_what_is_removed_lazily_is_gone_at_once")
class RemovesNothingLazily(MemoryStore):
    def remove(self, *address: Any, lazy: bool = False) -> None:
        if not lazy:
            super().remove(*address)


@caught_by("test_what_is_removed_lazily_is_gone_at_once")
class ListsWhatIsHidden(RemovesLater):
    def list(self, *namespace: Any) -> list[str]:
        return MemoryStore.list(self, *namespace)


@caught_by("test_what_is_removed_lazily_is_gone_at_once")
class HidesItFromItsThread(RemovesLater):
    def __init__(self) -> None:
        super().__init__()
        self.by = threading.get_ident()

    def read(self, *address: Any) -> bytes:
        own = self.by == threading.get_ident()
        return super().read(*address) if own else MemoryStore.read(self, *address)


@caught_by("test_other_objects_see_it_gone_too")
class HidesItInItself(FilesystemStore):
    def __init__(self, path: Any) -> None:
        super().__init__(path)
        self.hidden: set[tuple[Any, ...]] = set()

    def remove(self, *address: Any, lazy: bool = False) -> None:
        self.hidden.add(address)

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        return (each for each in super().list_all_keys() if each not in self.hidden)


@caught_by("test_no_walk_shows_what_is_removed_lazily")
class WalksWhatIsHidden(RemovesLater):
    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        return (each for each in [*super().list_all_keys(), *self.hidden])  # type: ignore[misc]


@caught_by("test_no_page_shows_what_is_removed_lazily")
class HidesAfterTheLimit(RemovesLater):
    def list_paginated(self, *namespace: Any, **more: Any) -> Page:
        page = MemoryStore.list_paginated(self, *namespace, **more)
        keys = [key for key in page.keys if (*namespace[:2], key) not in self.hidden]
        return Page(keys, page.next_page_token)


@caught_by("test_what_is_removed_lazily_is_not_told")
class TellsWhatIsHidden(RemovesLater):
    def read_entry(self, *address: Any) -> Any:
        return MemoryStore.read_entry(self, *address)


@caught_by("test_a_check_finds_nothing_where_was_removed_lazily")
class ChecksWhatIsHidden(RemovesLater):
    def check_and_put(self, *address: Any, **change: Any) -> Any:
        return MemoryStore.check_and_put(self, *address, **change)


@caught_by("test_what_is_removed_lazily_is_not_swept")
class SweepsWhatIsHidden(RemovesLater):
    def sweep(self, *due: Any) -> Any:
        return MemoryStore.sweep(self, *due)


@caught_by("test_a_transaction_finds_it_gone")
class TransactsOnWhatIsHidden(RemovesLater):
    def transaction(self) -> Any:
        return MemoryStore.transaction(self)


# What comes after.


@caught_by("test_a_write_over_a_lazy_removal_stays")
class HidesTheSameBytes(RemovesFilesLater):
    """It takes what was written for what it has removed."""

    def write(self, *address: Any) -> None:
        *names, value = address
        if self.hidden.get(tuple(names)) != value:
            super().write(*address)


@caught_by("test_what_is_written_then_is_new")
class KeepsItsPlace(RemovesLater):
    def write(self, *address: Any) -> None:
        self.hidden.pop(address[:3], None)
        super().write(*address)


@caught_by("test_threads_that_remove_lazily")
class ForgetsThemAtTheNextWrite(MemoryStore):
    """What it has hidden is there again."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: set[tuple[Any, ...]] = set()

    def remove(self, *address: Any, lazy: bool = False) -> None:
        self.hidden.add(address)

    def read(self, *address: Any) -> bytes:
        if address in self.hidden:
            raise KeyNotFoundError("no entry under that name")
        return super().read(*address)

    def list(self, *namespace: Any) -> list[str]:
        return [key for key in super().list(*namespace) if (*namespace, key) not in self.hidden]

    def write(self, *address: Any) -> None:
        self.hidden.clear()
        super().write(*address)


@caught_by("test_an_undone_transaction_brings_nothing_back")
class ForgetsThemInATransaction(RemovesLater):
    @contextmanager
    def transaction(self) -> Iterator[Any]:
        hidden = list(self.hidden)
        self.hidden.clear()
        with MemoryStore.transaction(self) as txn:
            for address in hidden:
                txn.remove(*address)  # type: ignore[call-arg]
            yield txn


@caught_by("test_a_lazy_removal_inside_a_transaction_is_part_of_it")
class RemovesLazilyBesideTheTransaction(RemovesLater):
    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with super().transaction() as txn:
            txn.remove = lambda *address, lazy=False: self.remove(*address, lazy=True)
            yield txn


@caught_by("test_a_check_that_comes_at_once_with_a_lazy_removal")
class RemovesOnlyWhatItSaw(MemoryStore):
    """A check that comes between the look and the removal wins over both."""

    def __init__(self) -> None:
        super().__init__()
        self.checked = threading.Event()

    def check_and_put(self, *address: Any, **change: Any) -> Any:
        found = super().check_and_put(*address, **change)
        self.checked.set()
        return found

    def remove(self, *address: Any, lazy: bool = False) -> None:
        with suppress(KeyNotFoundError):
            seen = self.read(*address)
            if others_are_at_it():
                self.checked.wait(threads.PATIENCE)
            super().check_and_put(*address, expected=seen, value=None)


@caught_by("test_what_is_removed_lazily_stays_away")
class ForgetsThemAtItsClose(RemovesFilesLater):
    def close(self) -> None:
        self.hidden.clear()
        super().close()


# Several processes.


@caught_by("test_what_another_process_puts_stays")
class RemovesWhateverStandsThere(FilesystemStore):
    """It sees what another process has put, and removes that too."""

    def __init__(self, path: Any) -> None:
        super().__init__(path)
        self.later: dict[tuple[Any, ...], bytes] = {}

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        return (each for each in super().list_all_keys() if each[2] != "goes")

    def remove(self, *address: Any, lazy: bool = False) -> None:
        self.later[address] = b""

    def write(self, *address: Any) -> None:
        if address[2] == "committed":
            for each in self.later:
                super().remove(*each)
        super().write(*address)


@caught_by("test_what_another_process_puts_stays")
class KeepsThemToItself(FilesystemStore):
    """Other processes go on to see the entry."""

    def __init__(self, path: Any) -> None:
        super().__init__(path)
        self.hidden: set[tuple[Any, ...]] = set()

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        return (each for each in super().list_all_keys() if each not in self.hidden)

    def remove(self, *address: Any, lazy: bool = False) -> None:
        if not lazy or address[2] != "goes":
            super().remove(*address, lazy=lazy)
        else:
            self.hidden.add(address)
