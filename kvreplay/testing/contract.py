"""The class that a backend's test inherits: it opens the store, and holds every test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kvreplay.store import KVStoreSync
from kvreplay.testing.backups import BackupTests
from kvreplay.testing.batches import BatchTests
from kvreplay.testing.check_and_put import CheckAndPutTests
from kvreplay.testing.checking import CheckTests
from kvreplay.testing.claims import class_opened_by, leave_out, unclaimed
from kvreplay.testing.closing import ClosingTests
from kvreplay.testing.expiry import ExpiryTests
from kvreplay.testing.faults import FaultTests
from kvreplay.testing.foreign import ForeignTests
from kvreplay.testing.forking import Child, ForkingTests
from kvreplay.testing.inspecting import InspectionTests
from kvreplay.testing.lazy import LazyTests
from kvreplay.testing.limits import LimitTests
from kvreplay.testing.names import NameTests
from kvreplay.testing.paging import PagingTests
from kvreplay.testing.plain import PlainTests
from kvreplay.testing.processes import Process, ProcessTests
from kvreplay.testing.prompt import PromptTests
from kvreplay.testing.scanning import ScanTests
from kvreplay.testing.threads import elsewhere
from kvreplay.testing.transactions import TransactionTests
from kvreplay.testing.walking import WalkingTests
from kvreplay.testing.whole import WholeTests

__all__ = ["StoreContract"]


# pytest takes the tests of the last base first. So a store that can do little yet fails at what is
# simple, and not by a process that hangs.
class StoreContract(
    ForkingTests,
    ProcessTests,
    WholeTests,
    ForeignTests,
    FaultTests,
    PromptTests,
    BatchTests,
    LazyTests,
    TransactionTests,
    PagingTests,
    BackupTests,
    CheckTests,
    ScanTests,
    InspectionTests,
    ExpiryTests,
    CheckAndPutTests,
    WalkingTests,
    ClosingTests,
    LimitTests,
    NameTests,
    PlainTests,
):
    """The whole store contract over one backend.

    A subclass, named ``Test…``, says how its store is opened. A store offers the capabilities
    whose methods it has, and the tests of the others are left out. Where only the opened store
    shows its methods, they are skipped instead, and the reason names the missing method.
    """

    open: ClassVar[Callable[..., Any]]
    """The store's class, or a method whose return annotation is that class. ``open(path)`` opens a
    store at a path in the test's own folder. At first there is nothing; later calls find the
    entries, if the store is ``durable``.

    Other processes call it too, so define it at the top of a module that can be imported.
    """

    durable: ClassVar[bool] = True
    """Whether entries outlive the store object and its process."""

    multi_process: ClassVar[bool] = True
    """Whether a durable store may be open several times at once, in one process or many."""

    faults: ClassVar[Mapping[str, Callable[[Any, Path], AbstractContextManager[object]]]] = {}
    """How reading can fail, each way under a name: a function of the opened store and its path. It
    returns a context manager, inside which some or all of the store cannot be read. It harms
    nothing for good. What it destroys must be more than an entry's own absence looks like."""

    foreign: ClassVar[Mapping[str, Callable[[Path], object]]] = {}
    """What others may leave where the store's entries lie, each kind under a name: a function of
    the path, called while the store is closed. It puts there what can be no entry: for example
    something with a name that is none, above all in the namespaces ``("p", "s")`` and ``("", "")``.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        absent: set[str] = set()
        if hasattr(cls, "open") and (opened := class_opened_by(cls.open)):
            absent.update(unclaimed(opened))
        if not cls.durable:
            absent.update(("reopen", "spawn"))
        if not (cls.durable and cls.multi_process):
            absent.update(("another", "beside"))
        if not cls.faults:
            absent.add("failing")
        if not cls.foreign:
            absent.add("foreign_things")
        leave_out(cls, absent)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        for fixture, ways in (("failing", self.faults), ("foreign_things", self.foreign)):
            if fixture in metafunc.fixturenames:
                metafunc.parametrize(fixture, list(ways), indirect=True)

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "store"

    @pytest.fixture
    def opened(self) -> Iterator[list[Any]]:
        """The stores that a test has opened; they are closed after it."""
        stores: list[Any] = []
        yield stores
        for store in stores:
            elsewhere(store.close)

    @pytest.fixture
    def open_again(self, path: Path, opened: list[Any]) -> Callable[[], Any]:
        """Open this test's store; again while it is open, if several may be open at once."""

        def open_again() -> Any:
            opened.append(self.open(path))
            return opened[-1]

        return open_again

    @pytest.fixture
    def store(self, open_again: Callable[[], Any]) -> Any:
        store = open_again()
        assert isinstance(store, KVStoreSync)
        return store

    @pytest.fixture
    def walkable(self, store: Any) -> Any:
        return _claiming(store, "walkable")

    @pytest.fixture
    def atomic(self, store: Any) -> Any:
        return _claiming(store, "atomic")

    @pytest.fixture
    def backable(self, store: Any) -> Any:
        return _claiming(store, "backable")

    @pytest.fixture
    def open_at(self, opened: list[Any]) -> Callable[[Path], Any]:
        """``open_at(path)`` opens the store at a path in the test's own folder."""

        def open_at(path: Path) -> Any:
            opened.append(self.open(path))
            return opened[-1]

        return open_at

    @pytest.fixture
    def batching(self, store: Any) -> Any:
        return _claiming(store, "batching")

    @pytest.fixture
    def bounded(self, store: Any) -> Any:
        return _claiming(store, "bounded")

    @pytest.fixture
    def checkable(self, store: Any) -> Any:
        return _claiming(store, "checkable")

    @pytest.fixture
    def compactable(self, store: Any) -> Any:
        return _claiming(store, "compactable")

    @pytest.fixture
    def expiring(self, store: Any) -> Any:
        return _claiming(store, "expiring")

    @pytest.fixture
    def inspectable(self, store: Any) -> Any:
        return _claiming(store, "inspectable")

    @pytest.fixture
    def paginated(self, store: Any) -> Any:
        return _claiming(store, "paginated")

    @pytest.fixture
    def prompt(self, store: Any) -> Any:
        return _claiming(store, "prompt")

    @pytest.fixture
    def scannable(self, store: Any) -> Any:
        return _claiming(store, "scannable")

    @pytest.fixture
    def transactional(self, store: Any) -> Any:
        return _claiming(store, "transactional")

    @pytest.fixture
    def reopen(self, opened: list[Any], open_again: Callable[[], Any]) -> Callable[[], Any]:
        """``reopen()`` closes whatever is open, and opens the store again."""

        def reopen() -> Any:
            for store in opened:
                elsewhere(store.close)
            return open_again()

        return reopen

    @pytest.fixture
    def shared(self) -> bool:
        """Whether a forked child shares the entries of its parent."""
        return self.durable and self.multi_process

    @pytest.fixture
    def another(self, open_again: Callable[[], Any]) -> Callable[[], Any]:
        """``another()`` opens the store once more while it is open."""
        return open_again

    @pytest.fixture
    def spawn(self, path: Path) -> Iterator[Callable[[Callable[[Any], Any]], Process]]:
        """``spawn(action)`` starts a process that opens the store; it is closed in this process."""
        processes: list[Process] = []

        def spawn(action: Callable[[Any], Any]) -> Process:
            processes.append(Process(self.open, path, action))
            return processes[-1]

        yield spawn
        for process in processes:
            process.kill()

    @pytest.fixture
    def beside(
        self, spawn: Callable[[Callable[[Any], Any]], Process]
    ) -> Callable[[Callable[[Any], Any]], Process]:
        """``beside(action)`` starts a process that opens the store; it is open in this one too."""
        return spawn

    @pytest.fixture
    def failing(
        self, request: pytest.FixtureRequest, store: Any, path: Path
    ) -> Callable[[], AbstractContextManager[object]]:
        """``with failing():`` the opened store's medium fails in one of the ways."""
        return partial(self.faults[request.param], store, path)

    @pytest.fixture
    def foreign_things(self, request: pytest.FixtureRequest, path: Path) -> Callable[[], object]:
        """``foreign_things()`` leaves what others may leave, beside a store that is closed."""
        return partial(self.foreign[request.param], path)

    @pytest.fixture
    def fork(self) -> type[Child]:
        """``fork(action)`` runs an action in a forked child; ``.join()`` fails if that failed."""
        if not hasattr(os, "fork"):
            pytest.skip("this system has no fork")
        return Child


def _claiming(store: Any, fixture: str) -> Any:
    if reason := unclaimed(store).get(fixture):
        pytest.skip(reason)
    return store
