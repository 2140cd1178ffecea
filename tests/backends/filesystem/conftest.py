"""A file-system store of the test's own, and the steps that it takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.filesystem import FilesystemStore


@pytest.fixture
def store(root: Path) -> Iterator[FilesystemStore]:
    with FilesystemStore(root) as store:
        yield store


@pytest.fixture
def trace(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps of the calls that follow, as ``"name path"``, with unique parts left out."""
    steps = list[str]()

    def shown(path: Any) -> str:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        name = os.path.relpath(path, root.parent).replace(os.sep, "/")
        if "/tmp/" in name:
            return "temporary"
        return name.split("~")[0] + "~" if "~" in name else name

    def traced(name: str, step: Any, *, of: int) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            steps.append(f"{name} {shown(args[of])}")
            return step(*args, **kwargs)

        return call

    for name, of in {"fsync": 0, "mkdir": 0, "rmdir": 0, "unlink": 0}.items():
        monkeypatch.setattr(os, name, traced(name, getattr(os, name), of=of))
    for name in ("rename", "link", "symlink"):
        monkeypatch.setattr(os, name, traced(name, getattr(os, name), of=1))
    return steps
