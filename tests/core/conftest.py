"""After each test no request is on its way; and a stranger's distribution."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvreplay._runtime.singleflight import flights
from support.configuring import Stranger


@pytest.fixture(autouse=True)
def no_flight_left() -> Iterator[None]:
    yield
    assert len(flights) == 0


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stranger]:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    installed = Stranger(site)
    yield installed
    for module in installed.modules:
        sys.modules.pop(module, None)
