"""What a disk may hold after a power cut, made from all that processes have written to it.

The writes of real processes are recorded, as the kernel was asked for them. From these come the files as
they may lie on the disk at any later moment. What was flushed is there. Of what was not, each sector may be
there or not, in any order. Names that were made or removed since the folder was flushed come in their order,
up to any of them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from random import Random
from signal import SIGCONT
from typing import Any, Final

import attrs

from torture.ledger import Ledger

__all__ = ["Disk", "Recording", "Unflushed", "record"]

_SECTOR: Final = 512
_CALLS: Final = "pwrite64,write,openat,ftruncate,fdatasync,fsync,link,unlink,rename"
_HEX: Final = r'"((?:\\x[0-9a-f]{2})*)"'
_FILE: Final = r"\d+<([^>]*)>"
_FORMS: Final = {
    name: re.compile(form)
    for name, form in {
        "pwrite64": rf"{_FILE}, {_HEX}, \d+, (\d+)\) += \d",
        "write": rf"{_FILE}, {_HEX}, \d+\) += \d",
        "ftruncate": rf"{_FILE}, (\d+)\) += 0",
        "fdatasync": rf"{_FILE}\) += 0",
        "fsync": rf"{_FILE}\) += 0",
        "openat": rf"[^,]*, {_HEX}, [A-Z_|]*O_CREAT.* += \d",
        "link": rf"{_HEX}, {_HEX}\) += 0",
        "unlink": rf"{_HEX}\) += 0",
        "rename": rf"{_HEX}, {_HEX}\) += 0",
    }.items()
}


class Unflushed(Enum):
    """What becomes of what no flush has made durable."""

    KEPT = "all of it is there"
    LOST = "nothing of it is there"
    TORN = "some of its sectors are there"


@attrs.frozen
class _Call:
    name: str
    args: tuple[str, ...]
    began: int


def record(children: list[Any], log: Path) -> None:
    """Let stopped children go on to their end, and write down what they write."""
    ids = [part for child in children for part in ("-p", str(child.pid))]
    command = ["strace", "-f", "-y", "-xx", "-s", "1000000", "-e", f"trace={_CALLS}", *ids]
    with subprocess.Popen([*command, "-o", str(log)], stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        for _ in children:
            assert "attached" in (said := strace.stderr.readline()), said
        for child in children:
            os.kill(child.pid, SIGCONT)
        for child in children:
            assert child.wait() == 0, "a process failed"


class Recording:
    """What was written to a folder, and what was noted in the ledger meanwhile.

    Args:
        lies: whether a flush of this path does nothing, and says that it is done.
    """

    def __init__(
        self, log: Path, folder: Path, ledger: Ledger, lies: Callable[[str], bool]
    ) -> None:
        self._folder, self._ledger, self._lies = str(folder), str(ledger.path), lies
        self._calls = list(_calls_of(log))

    def __len__(self) -> int:
        return len(self._calls)

    def moments(self, moments: set[int]) -> Iterator[Disk]:
        """Yield the disk as it is after each of these calls."""
        disk = Disk()
        for at, call in enumerate(self._calls):
            path = call.args[0]
            if call.name == "write" and path == self._ledger:
                disk.notes += bytes.fromhex(call.args[1])
            elif path == self._folder or path.startswith(f"{self._folder}/"):
                self._apply(disk, call, path)
            if at in moments:
                yield disk

    def _apply(self, disk: Disk, call: _Call, path: str) -> None:
        match call.name:
            case "pwrite64":
                disk.change(path, call.began, int(call.args[2]), bytes.fromhex(call.args[1]))
            case "ftruncate":
                disk.change(path, call.began, int(call.args[1]), None)
            case "fdatasync" | "fsync":
                if not self._lies(path.removeprefix(self._folder)):
                    disk.flush(path, call.began, is_folder=path == self._folder)
            case "openat":
                if path not in disk.names:
                    disk.name("link", ("", path), call.began)
            case "link" | "rename" | "unlink":
                disk.name(call.name, call.args, call.began)
            case _:
                raise AssertionError(f"{call.name} was not expected of {path}")


@attrs.define
class _File:
    flushed: bytearray = attrs.field(factory=bytearray)
    pending: list[tuple[int, int, bytes | None]] = attrs.field(factory=list)


_Names = dict[str, _File]


@attrs.define
class Disk:
    """Files and names: what is flushed, and what is not."""

    names: _Names = attrs.field(factory=dict)
    notes: bytes = b""
    _flushed: _Names = attrs.field(factory=dict)
    _pending: list[tuple[int, str, tuple[str, ...], _File]] = attrs.field(factory=list)

    def change(self, path: str, when: int, at: int, data: bytes | None) -> None:
        """Write data there, or cut the file off there."""
        if path in self.names:
            self.names[path].pending.append((when, at, data))

    def name(self, what: str, paths: tuple[str, ...], when: int) -> None:
        """Make, move or remove a name."""
        file = self.names.get(paths[0]) or _File()
        self._pending.append((when, what, paths, file))
        _rename(self.names, what, paths, file)

    def flush(self, path: str, when: int, *, is_folder: bool) -> None:
        """Make durable what was written before the flush began."""
        if is_folder:
            for began, what, paths, file in self._pending:
                if began < when:
                    _rename(self._flushed, what, paths, file)
            self._pending = [each for each in self._pending if each[0] >= when]
        elif path in self.names:
            file = self.names[path]
            for began, at, data in file.pending:
                if began < when:
                    _put(file.flushed, at, data)
            file.pending = [each for each in file.pending if each[0] >= when]

    def lay_down(self, folder: Path, unflushed: Unflushed, rng: Random) -> None:
        """Write the files to a folder as they may be found after a power cut now."""
        names = dict(self._flushed)
        landed = {
            Unflushed.KEPT: len(self._pending),
            Unflushed.LOST: 0,
            Unflushed.TORN: rng.randint(0, len(self._pending)),
        }[unflushed]
        for _, what, paths, file in self._pending[:landed]:
            _rename(names, what, paths, file)
        chance = rng.choice((0.1, 0.5, 0.9, 0.99))
        folder.mkdir()
        for path, file in names.items():
            content = bytearray(file.flushed)
            if unflushed is not Unflushed.LOST:
                for _, at, data in file.pending:
                    if unflushed is Unflushed.KEPT:
                        _put(content, at, data)
                    else:
                        _put_some(content, at, data, lambda: rng.random() < chance)
            (folder / path.rpartition("/")[2]).write_bytes(content)


def _rename(names: _Names, what: str, paths: tuple[str, ...], file: _File) -> None:
    if what != "link":
        names.pop(paths[0], None)
    if what != "unlink":
        names[paths[1]] = file


def _put(content: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        del content[at:]
    if len(content) < at:
        content += bytes(at - len(content))
    if data is not None:
        content[at : at + len(data)] = data


def _put_some(content: bytearray, at: int, data: bytes | None, lands: Callable[[], bool]) -> None:
    if data is None:
        if lands():
            _put(content, at, None)
        return
    start = 0
    while start < len(data):
        end = min(len(data), start + _SECTOR - (at + start) % _SECTOR)
        if lands():
            _put(content, at + start, data[start:end])
        start = end


def _calls_of(log: Path) -> Iterator[_Call]:
    """Yield what strace has written down: a write when it begins, a flush when it has ended."""
    begun: dict[str, tuple[int, str]] = {}
    found: list[tuple[int, _Call]] = []
    with log.open(encoding="ascii") as lines:
        for number, line in enumerate(lines):
            thread, _, text = line.rstrip("\n").partition(" ")
            text, began = text.lstrip(), number
            if text.endswith("<unfinished ...>"):
                begun[thread] = number, text.removesuffix("<unfinished ...>").rstrip()
                continue
            if text.startswith("<... "):
                began, first = begun.pop(thread)
                text = first + text.partition(" resumed>")[2]
            name, _, rest = text.partition("(")
            form = _FORMS.get(name)
            if form is not None and (match := form.match(rest)) is not None:
                args = tuple(_plain(name, n, each) for n, each in enumerate(match.groups()))
                happens = number if name in ("fsync", "fdatasync", "openat") else began
                found.append((happens, _Call(name, args, began)))
    found.sort(key=lambda each: each[0])
    return (call for _, call in found)


def _plain(name: str, index: int, text: str) -> str:
    """Paths as they are; data as hexadecimal digits."""
    digits = text.replace("\\x", "")
    if text.startswith("\\x") and not (name in ("write", "pwrite64") and index == 1):
        return bytes.fromhex(digits).decode()
    return digits
