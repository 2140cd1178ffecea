"""Each step of each change fails, or its process is killed there: what is left is the old or the new value."""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.filesystem.layout import EntryFile
from kvreplay.backends.filesystem.locks import flocked, lock_file
from kvreplay.errors import OutcomeUnknownError, StoreError, StoreFullError
from kvreplay.store import SweepResult
from kvreplay.testing.entries import put
from support.file_stores import MINUTE, NEW, OLD, beside, files, fresh, index_files, value_of
from support.forking import Child
from support.told import told

pytestmark = pytest.mark.any_python


def put_old_expiring(store: FilesystemStore) -> None:
    put(store, "k", OLD, 5 * MINUTE)


def put_old(store: FilesystemStore) -> None:
    store.write("p", "s", "k", OLD)


def put_nothing(store: FilesystemStore) -> None:
    pass


def do_write(store: FilesystemStore) -> None:
    store.write("p", "s", "k", NEW)


def do_create(store: FilesystemStore) -> None:
    store.check_and_put("p", "s", "k", expected=None, value=NEW, expires_at=9 * MINUTE)


def do_update(store: FilesystemStore) -> None:
    store.check_and_put("p", "s", "k", expected=OLD, value=NEW, expires_at=9 * MINUTE)


def do_delete(store: FilesystemStore) -> None:
    store.check_and_put("p", "s", "k", expected=OLD, value=None)


def do_remove(store: FilesystemStore) -> None:
    store.remove("p", "s", "k")


def do_remove_lazily(store: FilesystemStore) -> None:
    store.remove("p", "s", "k", lazy=True)


def do_sweep(store: FilesystemStore) -> None:
    store.sweep("p", 5 * MINUTE, 10)


Action = Callable[[FilesystemStore], None]
CHANGES: list[tuple[Action, Action, bytes | None, bytes | None]] = [
    (put_nothing, do_write, None, NEW),
    (put_nothing, do_create, None, NEW),
    (put_old, do_write, OLD, NEW),
    (put_old, do_update, OLD, NEW),
    (put_old_expiring, do_write, OLD, NEW),
    (put_old_expiring, do_update, OLD, NEW),
    (put_old, do_remove, OLD, None),
    (put_old_expiring, do_delete, OLD, None),
    (put_old_expiring, do_remove, OLD, None),
    (put_old_expiring, do_remove_lazily, OLD, None),
    (put_old_expiring, do_sweep, OLD, None),
]
each_change = pytest.mark.parametrize(
    ("prepare", "change", "old", "new"),
    CHANGES,
    ids=[f"{a.__name__}-{b.__name__}" for a, b, _, _ in CHANGES],
)


FAILING_STEPS = ("open", "write", "fsync", "rename", "link", "symlink", "unlink", "mkdir", "utime")


@each_change
@pytest.mark.parametrize(
    ("durability", "code"),
    [("full", errno.EIO), ("full", errno.ENOSPC), ("process", errno.ENOSPC)],
)
def test_each_step_fails(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Action,
    change: Action,
    old: bytes | None,
    new: bytes | None,
    code: int,
    durability: Any,
) -> None:
    """The n-th step fails, for every n: the error tells the truth about the value."""
    error_class = StoreFullError if code == errno.ENOSPC else StoreError
    for n in itertools.count():
        store = fresh(root, durability)
        prepare(store)
        before = index_files(root)
        steps = itertools.count()

        def failing(step: Any, steps: Iterator[int] = steps, n: int = n) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                if next(steps) == n:
                    raise OSError(code, os.strerror(code), "secret")
                return step(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in FAILING_STEPS:
                patch.setattr(os, name, failing(getattr(os, name)))
            try:
                change(store)
                outcome: StoreError | None = None
            except StoreError as error:
                outcome = error
        if outcome is None:
            assert value_of(store) == new
        elif type(outcome) is OutcomeUnknownError:
            assert value_of(store) == new
            assert durability == "full" or change is do_sweep
        else:
            assert type(outcome) is error_class
            assert value_of(store) == old
            assert index_files(root) == before
        if outcome is not None:
            assert "secret" not in told(outcome)
            assert isinstance(outcome.__cause__, OSError)
        assert not list((beside(root) / "tmp").iterdir())
        change(store) if value_of(store) == old else None  # the store works again
        assert value_of(store) == new
        store.sweep("p", 99 * MINUTE, 10)
        assert index_files(root) <= {"stamps/p/s/k"}, "it could not be unlinked: no harm"
        store.write("p", "s", "k", b"again")
        assert index_files(root) == set()
        store.close()
        if next(steps) <= n:
            break
    assert n > 2


# Crashes.

STEPS = (*FAILING_STEPS, "close", "rmdir", "chmod", "fchmod")


def killed_at(n: int, action: Callable[[], object]) -> bool:
    """Run an action in a child that is killed at its n-th step; say whether it came to that."""

    def act() -> None:
        left = iter(range(n))

        def dying(name: str, step: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                if next(left, None) is None:
                    if name == "write":
                        step(args[0], args[1][: len(args[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(*args, **kwargs)

            return call

        for name in STEPS:
            setattr(os, name, dying(name, getattr(os, name)))
        action()

    code = Child(act).wait()
    assert code in (0, -signal.SIGKILL), "the forked child failed before it was killed"
    return code != 0


@each_change
def test_killed_at_each_step(
    root: Path, prepare: Action, change: Action, old: bytes | None, new: bytes | None
) -> None:
    seen = set[bytes | None]()
    for n in itertools.count():
        with fresh(root) as store:
            prepare(store)
        store = FilesystemStore(root)
        killed = killed_at(n, lambda store=store: change(store))  # type: ignore[misc]
        store.close()
        assert set(files(root)) <= {"p/s/k"}

        with FilesystemStore(root) as store:
            assert not list((beside(root) / "tmp").iterdir())
            value = value_of(store)
            assert value in (old, new)
            seen.add(value)
            # When the old value is due, the old value goes and the new one stays.
            store.sweep("p", 5 * MINUTE, 10)
            gone = value == OLD and prepare is put_old_expiring
            assert value_of(store) == (None if gone else value)
            # When the new value is due, nothing of either is left behind.
            store.sweep("p", 9 * MINUTE, 10)
            if value == NEW and change in (do_create, do_update):
                assert value_of(store) is None
            elif not gone:
                assert value_of(store) == value
            assert index_files(root) == set()
            store.write("p", "s", "k", b"again")
        if not killed:
            break
    assert n > 3
    assert value == new
    assert seen == {old, new}


def test_killed_while_adopting(tmp_path: Path) -> None:
    """At each of the first and last steps: those between make one empty lock file each."""

    def steps_of_adoption() -> int:
        counter = itertools.count()
        with pytest.MonkeyPatch.context() as patch:
            for name in STEPS:
                patch.setattr(os, name, counting(getattr(os, name), counter))
            FilesystemStore(tmp_path / "count" / "store").close()
        return next(counter)

    def counting(step: Any, counter: Iterator[int]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            next(counter)
            return step(*args, **kwargs)

        return call

    total = steps_of_adoption()
    for n in [*range(50), *range(total - 30, total + 1)]:
        root = tmp_path / str(n) / "store"
        assert killed_at(n, lambda root=root: FilesystemStore(root).close()) == (n < total)  # type: ignore[misc]
        with FilesystemStore(root) as store:
            store.write("p", "s", "k", b"v")
            assert store.read("p", "s", "k") == b"v"
        assert {path.name for path in beside(root).iterdir()} == {
            "format",
            "locks",
            "tmp",
            "expiry",
            "stamps",
        }


def test_opening_spares_the_temporary_of_a_living_writer(root: Path) -> None:
    FilesystemStore(root).close()
    stripe = EntryFile("p", "s", "k").stripe
    temporary = beside(root) / "tmp" / f"{stripe:02x}-{'0' * 32}.tmp"
    temporary.write_bytes(b"half")
    with flocked(lock_file(str(beside(root)), stripe)):
        FilesystemStore(root).close()
        assert temporary.exists()
    FilesystemStore(root).close()
    assert not temporary.exists()


def test_stripe_is_the_same_in_every_process() -> None:
    """Golden: another number would let two versions write one entry at once."""
    assert EntryFile("p", "s", "k").stripe == 0x0E
    assert EntryFile("", "", "manager").stripe == 0x6B


def test_interrupted_after_the_rename(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at the worst moment must not take the marker of a value that is in place."""
    rename = os.rename

    def interrupted(*args: Any) -> None:
        rename(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", interrupted)
        do_create(store)
    assert value_of(store) == NEW
    assert store.sweep("p", 9 * MINUTE, 10) == SweepResult(1, 1, False)
