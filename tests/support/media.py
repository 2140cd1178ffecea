"""What happens to the medium of each engine: how reading it fails, and what others leave in it.

These are the hooks ``faults`` and ``foreign`` of the kit, for the engines.
"""

from __future__ import annotations

import os
import resource
import socket
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from kvreplay.backends.lmdb.entries import digest_of
from support.file_stores import beside
from support.lmdb_stores import Process

__all__ = ["FAULTS", "FOREIGN", "some"]

T = TypeVar("T")

Fault = Callable[[Any, Path], AbstractContextManager[object]]
NOBODY = 65534
TOO_LONG = "N" * 121


# Faults of every engine.


@contextmanager
def no_descriptor(store: Any, path: Path) -> Iterator[None]:
    """The process may open no file any more (EMFILE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def away(path: Path) -> Iterator[None]:
    """Somebody has moved it away."""
    kept = path.with_name(path.name + "-away")
    path.rename(kept)
    try:
        yield
    finally:
        kept.rename(path)


def moved_away(store: Any, path: Path) -> AbstractContextManager[None]:
    return away(path)


def denied(part: str, mode: int) -> Fault:
    """This user may not use a part of the store, or use it by this mode only (EACCES)."""

    @contextmanager
    def fault(store: Any, path: Path) -> Iterator[None]:
        roots = [each for each in path.parent.glob(f"{path.name}*") if each.exists()]
        everything = [each for root in roots for each in (root, *root.rglob("*"))]
        above = [each for each in path.parents if not each.stat().st_mode & 0o001]
        before = {each: each.stat().st_mode for each in (*above, path / part)}
        as_root = os.geteuid() == 0
        try:
            if as_root:
                for each in everything:
                    os.chown(each, NOBODY, NOBODY, follow_symlinks=False)
                for each in above:
                    each.chmod(0o711)
            (path / part).chmod(mode)
            if as_root:
                os.seteuid(NOBODY)
            yield
        finally:
            if as_root:
                os.seteuid(0)
            for each, bits in before.items():
                each.chmod(bits)

    return fault


# Faults of one engine.


def link_to_nothing(part: str) -> Fault:
    """A folder was a link to another disk, which is not mounted now."""

    @contextmanager
    def fault(store: Any, path: Path) -> Iterator[None]:
        with away_to(path / part, path.with_name("disk")):
            yield

    @contextmanager
    def away_to(folder: Path, disk: Path) -> Iterator[None]:
        folder.rename(disk)
        folder.symlink_to(disk / "unmounted")
        try:
            yield
        finally:
            folder.unlink()
            disk.rename(folder)

    return fault


def links_to_nothing(store: Any, path: Path) -> AbstractContextManager[None]:
    """Each entry was a link to another disk, which is not mounted now."""

    @contextmanager
    def fault() -> Iterator[None]:
        disk = path.with_name("disk")
        files = [each for each in path.rglob("*") if each.is_file()]
        for n, each in enumerate(files):
            os.link(each, path.with_name(f"kept-{n}"))
            each.unlink()
            each.symlink_to(disk / str(n))
        try:
            yield
        finally:
            for n, each in enumerate(files):
                kept = path.with_name(f"kept-{n}")
                if each.is_symlink():
                    kept.rename(each)

    return fault()


def sidecar_away(store: Any, path: Path) -> AbstractContextManager[None]:
    return away(beside(path))


def locks_away(store: Any, path: Path) -> AbstractContextManager[None]:
    return away(beside(path) / "locks")


@contextmanager
def no_reader_slot(store: Any, path: Path) -> Iterator[None]:
    """Another program reads so much at once that LMDB has no slot left."""
    code = """
import lmdb
env = lmdb.open(path, max_readers=512, readonly=True)
readers = []
try:
    while True: readers.append(env.begin())
except lmdb.ReadersFullError:
    say("full")
wait()
"""
    with Process(code, path) as process:
        assert process.hear() == "full"
        yield
        process.tell("end")
        process.join()


# What others leave.


def plant_files(path: Path) -> None:
    """Files that are no entries: of editors, of killed writers, of copying programs, of people."""
    for folder in (path / "p" / "s", path / "[empty]" / "[empty]"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in [
            *("a.tmp", "a.0.tmp", "a.trash", ".hidden", ".a.swp", "a~", "#a#", "a b", "a\n"),
            *("a.part", ".nfs000000001", "klüssel", "ключ", "[empty]", TOO_LONG, "N" * 255),
        ]:
            (folder / name).write_bytes(b"foreign")
        with open(os.fsencode(folder) + b"/\xff\xfe", "wb") as file:
            file.write(b"not UTF-8")


def plant_folders(path: Path) -> None:
    """Folders where none belong, and files where only folders do."""
    for folder in (path, path / "p", path / "p" / "s", path / "[empty]"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("lost+found", ".snapshot", "[EMPTY]", "with space", TOO_LONG + "M"):
            (folder / name / "s").mkdir(parents=True)
            (folder / name / "s" / "k").write_bytes(b"foreign")
        os.makedirs(os.fsencode(folder) + b"/\xff/s")
    (path / "p" / "s" / "folder").mkdir()
    (path / "file").write_bytes(b"foreign")
    (path / "p" / "file").write_bytes(b"foreign")
    (path / "[empty]" / "s").mkdir()
    (path / "[empty]" / "s" / "k").write_bytes(b"no legal address leads here")


def plant_special(path: Path) -> None:
    """What is neither a file nor a folder, though its name is legal."""
    for folder in (path / "p" / "s", path / "p", path):
        folder.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / "pipe")
        (folder / "circle").symlink_to("circle")
        (folder / "to-a-pipe").symlink_to("pipe")
        here = os.getcwd()
        os.chdir(folder)  # a socket's path has at most 108 bytes
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind("socket")
        finally:
            os.chdir(here)
    (path / "p" / "s" / "to-a-folder").symlink_to("..")


def plant_beside(path: Path) -> None:
    """The same in the folder of what is no entry."""
    for top in ("expiry", "stamps"):
        folder = beside(path) / top / "p" / "000000000000000" / "s"
        folder.mkdir(parents=True, exist_ok=True)
        for each in (folder, folder.parent, folder.parent.parent):
            (each / "a.tmp").write_bytes(b"foreign")
            (each / "0~a~0").write_bytes(b"foreign")
            (each / ("0" * 19 + "~a.b~" + "0" * 32)).write_bytes(b"foreign")
            os.mkfifo(each / "pipe")
    (beside(path) / "tmp" / "left.tmp").write_bytes(b"foreign")
    stamp = beside(path) / "stamps" / "p" / "s" / "b"
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    stamp.write_bytes(b"foreign")


_ILLEGAL: tuple[Any, ...] = (
    *("a.b", "a/b", "a b", " ", "a\0b", "a\0", "\0", "ключ", TOO_LONG, "a\n", 1.5, -0.5, "ä"),
    *(b"a", b"a.b", b"\xff", b""),
)


def plant_rows(path: Path) -> None:
    """Rows that another program has put into ldk-node's table."""
    with sqlite3.connect(path) as db:
        put = "INSERT INTO ldk_node_data VALUES (?, ?, ?, ?, ?)"
        for order, name in enumerate(_ILLEGAL):
            for address in [
                *(("p", "s", name), (name, "s", "k"), ("p", name, "k"), ("", "", name)),
                *((name, name, name), ("", name, "k")),
            ]:
                with suppress(sqlite3.IntegrityError):  # an empty key
                    db.execute(put, (*address, b"foreign", order % 7))
        db.execute(put, ("", "s", "k", b"no legal address", 1))
        for where in ("'p', 's', CAST(x'ff' AS TEXT)", "'p', 's', CAST(x'6100ff' AS TEXT)"):
            db.execute(f"INSERT INTO ldk_node_data VALUES ({where}, x'00', 1)")
        db.execute("INSERT INTO ldk_node_data VALUES (CAST(x'ff' AS TEXT), x'ff', 'k', x'00', 1)")
        expire = "INSERT INTO kvreplay_expiry VALUES (?, ?, ?, ?, ?)"
        for name in _ILLEGAL:
            db.execute(expire, ("p", name, name, 1, 3))
            db.execute(expire, (name, "s", "k", 1, 3))
        db.execute("INSERT INTO kvreplay_expiry VALUES ('p', CAST(x'ff' AS TEXT), 'k', 1, 3)")
    db.close()


def plant_keys(path: Path) -> None:
    """Keys and values that another program has put into LMDB's databases."""
    with lmdb.open(str(path), max_dbs=8, map_size=2**34, lib_version=0) as env:
        entries, expiry = env.open_db(b"entries"), env.open_db(b"expiry")
        created = env.open_db(b"created")
        with env.begin(write=True) as txn:
            names = [
                *(each.encode() for each in _ILLEGAL if isinstance(each, str)),
                *(b"\xff\xfe", b"a.b", b"a\0b\0c"),
            ]
            for name in names:
                for key in (b"p\0s\0" + name, name + b"\0s\0k", b"p\0" + name + b"\0k", name):
                    if key != b"a\0b\0c":
                        txn.put(key, bytes(16) + b"foreign", db=entries)
                txn.put(b"\0\0" + name, b"short", db=entries)
            for key in (b"\0s\0k", b"p", b"p\0s", b"p\0s\0", b"\0\0", b"\0", b"p\0s\0a\0b", b"zz"):
                txn.put(key, b"", db=entries)
            for namespace in (b"p\0s", b"\0"):
                digest = digest_of(namespace)
                for n, name in enumerate(names):
                    txn.put(digest + (n + 2**40).to_bytes(8, "big"), name, db=created)
                for n, tail in enumerate((b"", b"\0", bytes(9), b"\xff" * 8, b"\xff" * 30)):
                    txn.put(digest + tail, b"k%d" % n, db=created)
                txn.put(digest + b"\x7f" * 8, b"without-an-entry", db=created)
            for tail in (b"", b"\0", bytes(8), bytes(7) + b"\1", bytes(7) + b"\1s", b"\0" * 30):
                txn.put(b"p\0" + tail, b"", db=expiry)
            txn.put(b"p\0" + bytes(7) + b"\1" + b"\xff\0a.b", b"", db=expiry)


FAULTS: Mapping[str, Mapping[str, Fault]] = {
    "filesystem": {
        "no descriptor is left": no_descriptor,
        "the root is moved away": moved_away,
        "the sidecar is moved away": sidecar_away,
        "the locks are moved away": locks_away,
        "the root is denied": denied("", 0o000),
        "a namespace is denied": denied("p/s", 0o000),
        "a namespace can only be listed": denied("p/s", 0o444),
        "a namespace can only be searched": denied("p/s", 0o111),
        "a namespace's parent is denied": denied("p", 0o000),
        "an entry is denied": denied("p/s/k1", 0o000),
        "a namespace is a link to nothing": link_to_nothing("p/s"),
        "a namespace's parent is a link to nothing": link_to_nothing("p"),
        "every entry is a link to nothing": links_to_nothing,
    },
    "lmdb": {
        "no descriptor is left": no_descriptor,
        "the folder is moved away": moved_away,
        "the folder is denied": denied("", 0o000),
        "the file is denied": denied("data.mdb", 0o000),
        "no reader slot is left": no_reader_slot,
    },
    "sqlite": {
        "no descriptor is left": no_descriptor,
        "the file is moved away": moved_away,
        "the file is denied": denied("", 0o000),
    },
}

FOREIGN: Mapping[str, Mapping[str, Callable[[Path], None]]] = {
    "filesystem": {
        "files": plant_files,
        "folders": plant_folders,
        "pipes, sockets and circles": plant_special,
        "things in the sidecar": plant_beside,
    },
    "lmdb": {"keys": plant_keys},
    "sqlite": {"rows": plant_rows},
}


def some(ways: Mapping[str, T], *names: str) -> Mapping[str, T]:
    """Return those with these names."""
    return {name: ways[name] for name in names}
