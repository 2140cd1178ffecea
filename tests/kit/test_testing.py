"""The kit is tested too: what it leaves out, and that each broken store fails the right test."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.memory import MemoryStore
from kvreplay.testing import StoreContract, threads
from support import broken_atomic_stores, broken_lazy_stores, broken_media_stores
from support.broken_stores import BROKEN, begin
from support.programs import run_python

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parent.parent
RIGHT = set[tuple[type, str]]()
"""The tests that a twin has passed."""


class FourCalls:
    """A store that claims ``KVStoreSync`` and no more."""

    def __init__(self) -> None:
        store = MemoryStore()
        self._store = store
        self.write, self.remove, self.close = store.write, store.remove, store.close

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        return self._store.read(primary_namespace, secondary_namespace, key)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        return self._store.list(primary_namespace, secondary_namespace)

    def __enter__(self) -> FourCalls:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Delegates(FourCalls):
    """Its class does not tell what it claims; a store of it has a walk, and no check-and-put."""

    def __getattr__(self, name: str) -> Any:
        if name != "list_all_keys":
            raise AttributeError(name)
        return self._store.list_all_keys


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the kit, or some of its tests, over a class of stores."""
    # Else a file of the same size, written in the same second, would be taken for the one before.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(store: type, tests: Sequence[str] = (), annotated: bool = True) -> pytest.RunResult:
        in_memory = issubclass(store, MemoryStore | FourCalls)
        pytester.makepyfile(
            test_it=f"""
            from {store.__module__} import {store.__name__} as Store
            from kvreplay.testing import StoreContract


            class TestIt(StoreContract):
                durable = {not in_memory}
                faults = getattr(Store, "FAULTS", {{}})
                foreign = getattr(Store, "FOREIGN", {{}})

                def open(self, path){" -> Store" if annotated else ""}:
                    return {"Store()" if in_memory else "Store(path)"}
            """
        )
        begin()
        return pytester.runpytest_inprocess(
            *("-W", "error", "-rs", "-p", "no:hypothesispytest"),
            *(f"test_it.py::TestIt::{test}" for test in tests),
        )

    return run


def test_all_modules_of_broken_stores_are_there() -> None:
    modules = {store.__module__ for store in BROKEN}
    others = (broken_atomic_stores, broken_lazy_stores, broken_media_stores)
    assert modules == {"support.broken_stores", *(each.__name__ for each in others)}


@pytest.mark.any_python
@pytest.mark.parametrize("broken", BROKEN, ids=lambda store: store.__name__)
def test_a_broken_store_is_caught(broken: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = broken.__mro__[1]
    if unseen := [test for test in broken.caught_by if (twin, test) not in RIGHT]:
        assert run(twin, unseen).parseoutcomes().keys() == {"passed"}, "the twin is right"
        RIGHT.update((twin, test) for test in unseen)
    monkeypatch.setattr(threads, "PATIENCE", 0.3)  # for the stores that hang
    for test in broken.caught_by:
        assert "failed" in run(broken, [test]).parseoutcomes(), test


# What a store does not claim.


ONE_OF_EACH_CAPABILITY = [
    "test_round_trip",
    "test_a_walk_that_is_left_blocks_nobody",
    "test_the_loser_learns_the_winners_bytes",
    "test_read_never_hides_an_entry",
    "test_readers_are_not_held_up",
]


@pytest.mark.any_python
def test_only_what_a_class_claims_is_run(run: Any) -> None:
    assert run(FourCalls).parseoutcomes().keys() == {"passed"}
    run(FourCalls, ONE_OF_EACH_CAPABILITY[:1]).assert_outcomes(passed=1)
    for test in ONE_OF_EACH_CAPABILITY[1:]:
        assert run(FourCalls, [test]).ret == pytest.ExitCode.USAGE_ERROR, "it is not there"
    run(MemoryStore, ONE_OF_EACH_CAPABILITY).assert_outcomes(passed=5)


@pytest.mark.parametrize(
    ("store", "annotated", "runs", "missing"),
    [(FourCalls, False, 1, "list_all_keys"), (Delegates, True, 2, "check_and_put")],
)
def test_what_only_the_opened_store_shows_is_skipped_with_the_reason(
    run: Any, store: type, annotated: bool, runs: int, missing: str
) -> None:
    result = run(store, ONE_OF_EACH_CAPABILITY, annotated=annotated)
    result.assert_outcomes(passed=runs, skipped=5 - runs)
    capabilities = ["MigratableKVStore", "AtomicKVStore", "ExpiringKVStore", "TransactionalKVStore"]
    for capability in capabilities[runs - 1 :]:
        result.stdout.fnmatch_lines(
            [f"SKIPPED*{store.__name__} is no {capability}: it has no {missing}()"]
        )


def test_without_hypothesis_one_test_is_skipped(run: Any, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import sys; sys.modules['hypothesis'] = None")
    result = run(MemoryStore, ["test_histories_agree_with_a_dictionary", "test_round_trip"])
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*needs Hypothesis: pip install*"])


# What a stranger sees.


IN_ORDER = (
    *("plain", "names", "limits", "closing", "walking", "check_and_put", "expiry", "inspecting"),
    *("scanning", "checking", "backups"),
    *("paging", "transactions", "lazy", "batches", "prompt", "faults", "foreign", "whole"),
    *("processes", "forking"),
)


def test_what_is_simple_comes_first(pytester: pytest.Pytester) -> None:
    """Who begins to write a store is told of its reads and writes, and not of a fork that hangs."""
    pytester.makepyfile(
        test_it="""
        from kvreplay.backends.memory import MemoryStore
        from kvreplay.testing import StoreContract


        class Whole(MemoryStore):
            def __init__(self, path): ...

            def check_and_put_each(self, changes): ...

            def check(self): ...

            def backup(self, path): ...

            def compact(self): ...


        class TestIt(StoreContract):
            open = Whole
            faults = foreign = {"one": print}
        """
    )
    result = pytester.runpytest_inprocess("--collect-only", "-q")
    names = re.findall(r"^test_it\.py::TestIt::(\w+)", result.stdout.str(), re.MULTILINE)
    assert names[0] == "test_round_trip"
    modules = [getattr(StoreContract, name).__module__.rpartition(".")[2] for name in names]
    assert tuple(dict.fromkeys(modules)) == IN_ORDER
    assert modules == sorted(modules, key=IN_ORDER.index)


def test_a_failure_shows_what_was_found(pytester: pytest.Pytester) -> None:
    """Where nothing of kvreplay was imported before pytest began."""
    pytester.makepyfile(
        test_it="""
        from support.broken_atomic_stores import AnswersYesOrNo
        from kvreplay.testing import StoreContract


        class TestIt(StoreContract):
            durable = False

            def open(self, path) -> AnswersYesOrNo:
                return AnswersYesOrNo()
        """
    )
    done = run_python(
        *("-m", "pytest", "-W", "error", "-p", "no:cacheprovider", "--basetemp=run"),
        *("-o", f"pythonpath={TESTS}", "test_it.py::TestIt::test_check_and_put[None]"),
    )
    assert done.returncode == 1, done.stdout
    assert "assert found == there" in done.stdout
    assert "assert True == None" in done.stdout


def test_an_open_that_no_other_process_can_import_fails_with_advice(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        from kvreplay.backends.filesystem import FilesystemStore
        from kvreplay.testing import StoreContract


        class TestIt(StoreContract):
            open = staticmethod(lambda path: FilesystemStore(path))
        """
    )
    result = pytester.runpytest_inprocess("-k", "test_processes_see or test_round_trip")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E*open cannot be sent to another process*"])


def test_a_store_that_hangs_fails_and_ends(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PATIENCE", 0.3)
    (hangs,) = (store for store in BROKEN if store.__name__ == "HoldsUpItsReaders")
    result = run(hangs, ["test_readers_are_not_held_up"])
    result.stdout.fnmatch_lines(["E*Failed: it has not come back in 0.3 s: a deadlock"])
