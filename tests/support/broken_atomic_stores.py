"""More stores with one fault each: in check-and-put, in expiry and sweeps, in transactions."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import attrs

from kvreplay.backends.memory import MemoryStore
from kvreplay.errors import KeyNotFoundError, StoreError
from kvreplay.store import Change, SweepResult
from kvreplay.testing import threads
from support.broken_stores import caught_by, others_are_at_it

# Check-and-put.


@caught_by("test_one_of_many_threads_wins")
class ReadsThenWrites(MemoryStore):
    """Two threads that come between the reading and the writing meet there."""

    def __init__(self) -> None:
        super().__init__()
        self.between = threading.Barrier(2)

    def check_and_put(self, *address: Any, expected: Any, value: Any, **more: Any) -> bytes | None:
        try:
            found = self.read(*address)
        except KeyNotFoundError:
            found = None
        if others_are_at_it():
            with suppress(threading.BrokenBarrierError):
                self.between.wait(threads.PATIENCE)
        if found == expected:
            super().check_and_put(*address, expected=found, value=value, **more)
            if value is None:
                self.remove(*address)
            else:
                self.write(*address, value)
        return found


@caught_by("test_check_and_put")
class AnswersYesOrNo(MemoryStore):
    def check_and_put(self, *address: Any, expected: Any, **more: Any) -> Any:
        return super().check_and_put(*address, expected=expected, **more) == expected


@caught_by("test_check_and_put", "test_the_loser_learns_the_winners_bytes")
class AnswersWithWhatIsThereNow(MemoryStore):
    def check_and_put(self, *address: Any, **change: Any) -> bytes | None:
        super().check_and_put(*address, **change)
        entry = self._find(address)  # type: ignore[arg-type]
        return None if entry is None else entry[0]


@caught_by("test_check_and_put", "test_histories_agree_with_a_dictionary")
class TakesEmptyForAbsent(MemoryStore):
    def check_and_put(self, *address: Any, expected: Any, **more: Any) -> bytes | None:
        return super().check_and_put(*address, expected=expected or None, **more) or None


@caught_by("test_check_and_put")
class DeletesUnchecked(MemoryStore):
    def check_and_put(self, *address: Any, value: Any, **more: Any) -> bytes | None:
        found = super().check_and_put(*address, value=value, **more)
        if value is None:
            self.remove(*address)
        return found


@caught_by("test_only_the_whole_value_is_equal")
class ComparesTheBeginning(MemoryStore):
    def check_and_put(self, *address: Any, expected: Any, **more: Any) -> bytes | None:
        entry = self._find(address)  # type: ignore[arg-type]
        if entry is not None and expected and entry[0].startswith(expected):
            expected = entry[0]
        return super().check_and_put(*address, expected=expected, **more)


# Expiry.


@caught_by("test_read_never_hides_an_entry")
class HidesWhatIsDue(MemoryStore):
    def read(self, *address: Any, **by_name: Any) -> bytes:
        found = super().read(*address, **by_name)
        entry = self._find(address)  # type: ignore[arg-type]
        if entry is not None and entry[1] is not None and entry[1] < time.time() * 1000:
            raise KeyNotFoundError("no entry under that name")
        return found


@caught_by("test_a_refreshed_entry_stays")
class SweepsByTheFirstExpiry(MemoryStore):
    """Its index keeps what an entry was given first, and nobody asks the entry."""

    def __init__(self) -> None:
        super().__init__()
        self.due: dict[tuple[Any, ...], int] = {}

    def check_and_put(
        self, *address: Any, expected: Any, expires_at: int | None = None, **more: Any
    ) -> bytes | None:
        found = super().check_and_put(*address, expected=expected, expires_at=expires_at, **more)
        if found == expected and expires_at is not None:
            self.due.setdefault(address, expires_at)
        return found

    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        due = [a for a, at in self.due.items() if a[0] == primary_namespace and at <= now][:limit]
        for address in due:
            del self.due[address]
            self.remove(*address)
        return SweepResult(len(due), len(due), False)


@caught_by("test_threads_that_refresh_what_another_sweeps")
class SweepsInTwoSteps(MemoryStore):
    """What it has found due is refreshed, before it is removed all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: dict[str, threading.Event] = defaultdict(threading.Event)

    def check_and_put(self, *address: Any, **change: Any) -> bytes | None:
        found = super().check_and_put(*address, **change)
        if change["expires_at"] == 500:
            self.changed[address[2]].set()
        return found

    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        self._sort(primary_namespace)
        due = [
            (primary_namespace, secondary, key)
            for at, secondary, key in self._expiry.get(primary_namespace, [])[:limit]
            if at <= now
        ]
        for address in due:
            if others_are_at_it():
                self.changed[address[2]].wait(threads.PATIENCE)
            self.remove(*address)
        return SweepResult(len(due), len(due), bool(due))


@caught_by("test_a_sweep_is_bounded", "test_a_sweep_in_steps_comes_to_an_end")
class SweepsWithoutALimit(MemoryStore):
    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        return super().sweep(primary_namespace, now, 10**6)


@caught_by("test_a_sweep_is_bounded", "test_a_sweep_in_steps_comes_to_an_end")
class SaysThatNothingIsLeft(MemoryStore):
    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        result = super().sweep(primary_namespace, now, limit)
        return SweepResult(result.visited, result.removed, False)


@caught_by("test_a_sweep_removes_what_is_due_and_nothing_else")
class SweepsAMillisecondLate(MemoryStore):
    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        return super().sweep(primary_namespace, now - 1, limit)


@caught_by("test_a_sweep_removes_what_is_due_and_nothing_else")
class SweepsOtherNamespacesToo(MemoryStore):
    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        super().sweep("q", now, limit)
        return super().sweep(primary_namespace, now, limit)


@caught_by("test_a_sweep_costs_what_is_due_and_not_what_is_stored")
class SweepsByLookingAtEverything(MemoryStore):
    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        for address in self.list_all_keys():
            self.read(*address)
        return super().sweep(primary_namespace, now, limit)


@caught_by("test_a_refreshed_entry_stays")
class WritesAndKeepsTheExpiry(MemoryStore):
    def write(self, *address: Any, **by_name: Any) -> None:
        entry = self._find(address[:3])  # type: ignore[arg-type]
        super().write(*address, **by_name)
        if entry is not None:
            super().check_and_put(
                *address[:3], expected=address[3], value=address[3], expires_at=entry[1]
            )


@caught_by("test_an_equal_value_may_get_an_earlier_expiry", "test_a_refreshed_entry_stays")
class DoesNothingForAnEqualValue(MemoryStore):
    def check_and_put(self, *address: Any, expected: Any, value: Any, **more: Any) -> bytes | None:
        entry = self._find(address)  # type: ignore[arg-type]
        if entry is not None and entry[0] == expected == value:
            return value  # type: ignore[no-any-return]
        return super().check_and_put(*address, expected=expected, value=value, **more)


@caught_by("test_a_refused_change_moves_no_expiry")
class MovesTheExpiryOfARefusedChange(MemoryStore):
    def check_and_put(
        self, *address: Any, expected: Any, expires_at: int | None = None, **more: Any
    ) -> bytes | None:
        found = super().check_and_put(*address, expected=expected, expires_at=expires_at, **more)
        if found is not None and found != expected:
            super().check_and_put(*address, expected=found, value=found, expires_at=expires_at)
        return found


# Many changes at once.


class TakesMany(MemoryStore):
    """Sound: one after the other."""

    def check_and_put_each(self, changes: Sequence[Change]) -> Sequence[bytes | Exception | None]:
        return [self.outcome_of(change) for change in changes]

    def outcome_of(self, change: Change) -> bytes | Exception | None:
        try:
            return self.check_and_put(**attrs.asdict(change))
        except StoreError as error:
            return error


@caught_by("test_a_bad_change_harms_no_other")
class FailsAsAWhole(TakesMany):
    def check_and_put_each(self, changes: Sequence[Change]) -> Sequence[bytes | Exception | None]:
        return [self.check_and_put(**attrs.asdict(change)) for change in changes]


@caught_by("test_each_of_many_changes_has_its_own_outcome")
class AnswersBackwards(TakesMany):
    def check_and_put_each(self, changes: Sequence[Change]) -> Sequence[bytes | Exception | None]:
        return super().check_and_put_each(changes)[::-1]


@caught_by("test_each_of_many_changes_sees_those_before_it")
class ChangesBackwards(TakesMany):
    def check_and_put_each(self, changes: Sequence[Change]) -> Sequence[bytes | Exception | None]:
        return super().check_and_put_each(changes[::-1])[::-1]


# A change at once.


@caught_by("test_a_change_at_once_is_a_check_and_put")
class PutsAtOnceWhateverIsThere(MemoryStore):
    def check_and_put_at_once(self, *address: Any, expected: Any, **more: Any) -> bytes | None:
        try:
            expected = self.read(*address)
        except KeyNotFoundError:
            expected = None
        return super().check_and_put_at_once(*address, expected=expected, **more)


@caught_by("test_a_change_at_once_does_not_wait_for_a_transaction")
class WaitsAtOnce(MemoryStore):
    def check_and_put_at_once(self, *address: Any, **more: Any) -> bytes | None:
        return self.check_and_put(*address, **more)


# Transactions.


@caught_by("test_a_transaction_that_raises_changes_nothing")
class CommitsWhatRaised(MemoryStore):
    @contextmanager
    def transaction(self) -> Iterator[Any]:
        block = super().transaction()
        try:
            yield block.__enter__()
        finally:
            block.__exit__(None, None, None)


@caught_by("test_a_transaction_that_raises_changes_nothing")
class KeepsItsLockWhenABlockRaises(MemoryStore):
    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with super().transaction() as txn:
            try:
                yield txn
            except BaseException:
                self._writer.acquire()
                raise


@caught_by("test_a_transaction_that_raises_changes_nothing")
class SwallowsWhatABlockRaises(MemoryStore):
    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with suppress(Exception), super().transaction() as txn:
            yield txn


@caught_by("test_readers_are_not_held_up", "test_a_transaction_reads_its_own_changes")
class ShowsWhatIsNotCommitted(MemoryStore):
    """A transaction is the store itself; its undoing puts the old entries back."""

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        before = {address: self.read(*address) for address in self.list_all_keys()}
        try:
            yield self
        except BaseException:
            for address in self.list_all_keys():
                self.remove(*address)
            for address, value in before.items():
                self.write(*address, value)
            raise


@caught_by("test_readers_are_not_held_up")
class HoldsUpItsReaders(MemoryStore):
    def read(self, *address: Any, **by_name: Any) -> bytes:
        with self._turn:
            return super().read(*address, **by_name)


@caught_by("test_the_store_itself_is_refused_inside")
class TakesChangesBesideItsTransaction(MemoryStore):
    def _refuse_nested(self) -> None:
        pass
