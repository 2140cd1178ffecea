"""A copy of each version's store of each engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.engines import SHARED, Engine
from versions.kept import STORE, VERSIONS, Version, lay


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def held(version: str) -> Version:
    return Version.named(version)


@pytest.fixture
def keep(
    version: str, tmp_path: Path, new_engine: Callable[[str], Engine]
) -> Iterator[Callable[[str], Engine]]:
    """``keep("lmdb")`` is that engine's store of the version, a copy."""
    engines = list[Engine]()

    def copy(name: str) -> Engine:
        if name in ("postgresql", "etcd"):
            engine = new_engine(name)
        else:
            place = tmp_path / f"kept-{name}"
            place.mkdir()
            engine = Engine(name, place / STORE)
            engines.append(engine)
        lay(version, engine)
        return engine

    yield copy
    for engine in engines:
        for store in engine.opened:
            store.close()


@pytest.fixture(params=SHARED)
def kept(request: pytest.FixtureRequest, keep: Callable[[str], Engine]) -> Engine:
    return keep(request.param)
