"""The kit is tested too: each deliberately broken store fails the test that names its fault."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import broken_atomic_stores  # it registers its stores
import pytest
from broken_stores import BROKEN

from kvreplay.backends.memory import MemoryStore
from kvreplay.testing import threads

pytest_plugins = ["pytester"]

assert broken_atomic_stores


@pytest.fixture
def run(pytester: pytest.Pytester) -> Any:
    """Run some tests of the kit, as they are given, over a class of stores."""

    def run(store: type, tests: Sequence[str]) -> pytest.RunResult:
        in_memory = issubclass(store, MemoryStore)
        pytester.makepyfile(
            test_it=f"""
            from {store.__module__} import {store.__name__} as Store
            from kvreplay.testing import StoreContract


            class TestIt(StoreContract):
                durable = {not in_memory}

                def open(self, path) -> Store:
                    return {"Store()" if in_memory else "Store(path)"}
            """
        )
        return pytester.runpytest_inprocess(
            "-W", "error", *(f"test_it.py::TestIt::{test}" for test in tests)
        )

    return run


@pytest.mark.parametrize("broken", BROKEN, ids=lambda store: store.__name__)
def test_a_broken_store_is_caught(broken: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = run(broken.__mro__[1], broken.caught_by).parseoutcomes()
    assert right.keys() == {"passed"}, "the twin is right"
    monkeypatch.setattr(threads, "PATIENCE", 1.0)  # for the stores that hang
    for test in broken.caught_by:
        assert "failed" in run(broken, [test]).parseoutcomes(), test
