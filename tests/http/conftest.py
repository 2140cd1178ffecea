"""Each test of a layer runs as ASGI and as WSGI; after it no request is on its way.

This folder is no package: as one it would hide the standard library's ``http`` from whatever starts
with ``tests`` on its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kvreplay._runtime.singleflight import flights
from support.engines import Engine
from support.http_apps import FACES, Web


@pytest.fixture(autouse=True)
def no_flight_left() -> Iterator[None]:
    yield
    assert len(flights) == 0


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "lmdb", "filesystem"])
def web(request: pytest.FixtureRequest, face: str, new_engine: Callable[[str], Engine]) -> Web:
    """Services on one store; an event loop reads the first two itself, the third on a thread."""
    return Web(face, new_engine(request.param))


@pytest.fixture
def plain(face: str, new_engine: Callable[[str], Engine]) -> Web:
    """Services on memory, for what no store changes."""
    return Web(face, new_engine("memory"))
