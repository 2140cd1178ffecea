"""Stores with one fault each in what they say when their medium fails, or has foreign things in it.

And stores that do not take all that the rules allow. Each is a subclass of a store that is right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.memory import MemoryStore
from kvreplay.errors import KeyNotFoundError, StoreError, StoreUnavailableError
from kvreplay.store import Entry, Page, PageWithValues, SweepResult, is_name
from support.broken_stores import caught_by

ABSENCE = "test_a_failed_read_is_never_an_absence"
CHANGES = "test_a_change_during_a_fault_says_what_it_has_done"
FOREIGN = "test_no_foreign_name_is_shown"
SWEEP = "test_a_sweep_among_foreign_things"
NAMES = "test_the_longest_names_in_every_call[address4]"
MIB = 2**20


# A medium that fails.


@contextmanager
def failing(store: Any, path: Path) -> Iterator[None]:
    store.fails = True
    try:
        yield
    finally:
        store.fails = False


class CanFail(MemoryStore):
    """Every call says so while the medium fails."""

    FAULTS: ClassVar[Any] = {"its medium fails": failing}
    fails = False

    def _check_open(self) -> None:
        super()._check_open()
        if self.fails:
            raise StoreUnavailableError("the medium fails; nothing was changed")


@caught_by(ABSENCE)
class TakesAFailureForAbsence(CanFail):
    def read(self, *address: Any, **by_name: Any) -> bytes:
        try:
            return super().read(*address, **by_name)
        except StoreUnavailableError as error:
            raise KeyNotFoundError("no entry under that name") from error


@caught_by(ABSENCE)
class TellsNoEntryIfItFails(CanFail):
    def read_entry(self, *address: Any, **by_name: Any) -> Entry:
        if self.fails:
            raise KeyNotFoundError("no entry under that name")
        return super().read_entry(*address, **by_name)


@caught_by(ABSENCE)
class ListsNothingIfItFails(CanFail):
    def list(self, *namespace: Any, **by_name: Any) -> list[str]:
        return [] if self.fails else super().list(*namespace, **by_name)


@caught_by(ABSENCE)
class ScansNothingIfItFails(CanFail):
    def scan(self, primary_namespace: str | None = None) -> Any:
        return iter(()) if self.fails else super().scan(primary_namespace)


@caught_by(ABSENCE)
class WalksNothingIfItFails(CanFail):
    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        return iter(()) if self.fails else super().list_all_keys()


@caught_by(ABSENCE)
class PagesEndWhereItFails(CanFail):
    def list_paginated(self, *namespace: Any, **by_name: Any) -> Page:
        return Page([], None) if self.fails else super().list_paginated(*namespace, **by_name)


@caught_by(ABSENCE)
class LeavesOutValuesThatItCannotRead(CanFail):
    """LDK lets a page leave out what was removed meanwhile, and nothing else."""

    def list_paginated_with_values(self, *namespace: Any, **by_name: Any) -> PageWithValues:
        if self.fails:
            return PageWithValues([], None)
        return super().list_paginated_with_values(*namespace, **by_name)


@caught_by(ABSENCE, CHANGES)
class ClaimsWhatItCannotRead(CanFail):
    def check_and_put(self, *address: Any, **by_name: Any) -> bytes | None:
        return None if self.fails else super().check_and_put(*address, **by_name)


@caught_by(ABSENCE, CHANGES)
class BeginsAnewInATransaction(CanFail):
    @contextmanager
    def transaction(self) -> Iterator[Any]:
        if self.fails:
            with MemoryStore() as empty:
                yield empty
        else:
            with super().transaction() as txn:
                yield txn


@caught_by(ABSENCE)
class FailsForEver(CanFail):
    failed = False

    def _check_open(self) -> None:
        self.failed = self.failed or self.fails
        super()._check_open()
        if self.failed:
            raise StoreUnavailableError("the medium has failed; nothing was changed")


@caught_by(CHANGES)
class WritesNothingAndDoesNotSaySo(CanFail):
    def write(self, *address: Any, **by_name: Any) -> None:
        if not self.fails:
            super().write(*address, **by_name)


@caught_by(CHANGES)
class WritesAndSaysThatItHasNot(CanFail):
    def write(self, *address: Any, **by_name: Any) -> None:
        failed, self.fails = self.fails, False
        super().write(*address, **by_name)
        self.fails = failed
        self._check_open()


@caught_by(CHANGES)
class RemovesNothingAndDoesNotSaySo(CanFail):
    def remove(self, *address: Any, **by_name: Any) -> None:
        if not self.fails:
            super().remove(*address, **by_name)


@caught_by(CHANGES)
class FindsNothingDueIfItFails(CanFail):
    def sweep(self, *args: Any, **by_name: Any) -> SweepResult:
        return SweepResult(0, 0, more=False) if self.fails else super().sweep(*args, **by_name)


# Foreign things.


def plant(path: Path) -> None:
    (path / "p" / "s").mkdir(parents=True, exist_ok=True)
    (path / "p" / "s" / "a.tmp").write_bytes(b"v")
    (path / "p" / "lost+found").mkdir()


class HasForeignThings(FilesystemStore):
    """It shows none of them."""

    FOREIGN: ClassVar[Any] = {"files and folders": plant}

    def names(self, primary: str, secondary: str) -> list[str]:
        try:
            return os.listdir(Path(self._root, primary or "[empty]", secondary or "[empty]"))
        except FileNotFoundError:
            return []


@caught_by(FOREIGN, SWEEP)
class ListsEveryFile(HasForeignThings):
    def list(self, *namespace: Any, **by_name: Any) -> list[str]:
        return self.names(*namespace)


@caught_by(FOREIGN, SWEEP)
class ChokesOnAForeignName(HasForeignThings):
    """As LDK does."""

    def list(self, *namespace: Any, **by_name: Any) -> list[str]:
        if not all(map(is_name, self.names(*namespace))):
            raise StoreError("a file has a name that is none")
        return super().list(*namespace, **by_name)


@caught_by(FOREIGN)
class HidesItsOwnWithTheForeign(HasForeignThings):
    def list(self, *namespace: Any, **by_name: Any) -> list[str]:
        found = super().list(*namespace, **by_name)
        return [name for name in found if f"{name}.tmp" not in self.names(*namespace)]


@caught_by(FOREIGN)
class PagesEveryFile(HasForeignThings):
    def list_paginated(self, *namespace: Any, **by_name: Any) -> Page:
        page = super().list_paginated(*namespace, **by_name)
        foreign = [name for name in self.names(*namespace[:2]) if not is_name(name)]
        return attrs.evolve(page, keys=[*page.keys, *foreign])


@caught_by(FOREIGN)
class WalksEveryFolder(HasForeignThings):
    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        yield from super().list_all_keys()
        if "a.tmp" in self.names("p", "s"):
            yield "p", "s", "a.tmp"


@caught_by(SWEEP)
class SweepsNoneWhereSomeAreForeign(HasForeignThings):
    def sweep(self, *args: Any, **by_name: Any) -> SweepResult:
        if "a.tmp" in self.names("p", "s"):
            return SweepResult(0, 0, more=False)
        return super().sweep(*args, **by_name)


# What the rules allow.


@caught_by(NAMES)
class PagesShortNamesOnly(MemoryStore):
    def list_paginated(self, *namespace: Any, **by_name: Any) -> Page:
        page = super().list_paginated(*namespace, **by_name)
        return attrs.evolve(page, keys=[key for key in page.keys if len(key) < 100])


@caught_by(NAMES)
class SweepsShortNamespacesOnly(MemoryStore):
    def sweep(self, primary: str, *args: Any, **by_name: Any) -> SweepResult:
        return super().sweep(primary[:100], *args, **by_name)


@caught_by("test_values_of_some_mib[4]")
class ReadsTwoMib(MemoryStore):
    def read(self, *address: Any, **by_name: Any) -> bytes:
        return super().read(*address, **by_name)[: 2 * MIB]


@caught_by("test_large_values_are_compared_and_swept[4]")
class ComparesTheirStart(MemoryStore):
    def check_and_put(self, *address: Any, expected: Any, **by_name: Any) -> bytes | None:
        if expected is not None and len(expected) > 2 * MIB:
            expected = super().read(*address)
        return super().check_and_put(*address, expected=expected, **by_name)


@caught_by("test_large_values_on_pages[4]")
class PagesTheirStart(MemoryStore):
    def list_paginated_with_values(self, *namespace: Any, **by_name: Any) -> PageWithValues:
        page = super().list_paginated_with_values(*namespace, **by_name)
        return attrs.evolve(page, entries=[(key, value[: 2 * MIB]) for key, value in page.entries])


@caught_by("test_large_values_in_a_transaction[4]")
class CommitsTheirStart(MemoryStore):
    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with super().transaction() as txn:
            write = txn.write
            txn.write = lambda p, s, k, value: write(p, s, k, value[: 2 * MIB])
            yield txn


@caught_by("test_a_large_value_outlives_the_store_object")
class TellsTheirStart(FilesystemStore):
    def read_entry(self, *address: Any, **by_name: Any) -> Entry:
        found = super().read_entry(*address, **by_name)
        return attrs.evolve(found, value=found.value[: 2 * MIB])
