"""Each test of a layer runs as ASGI and as WSGI; after it no request is on its way.

This folder is no package: as one it would hide the standard library's ``http`` from whatever starts
with ``tests`` on its path.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable, Iterator

import pytest

from kvreplay._runtime.singleflight import flights
from support.engines import Engine, these
from support.http_apps import FACES, Web


@pytest.fixture(autouse=True)
def no_flight_left() -> Iterator[None]:
    yield
    assert len(flights) == 0


@pytest.fixture
def no_logging_left() -> Iterator[None]:
    """Frameworks set up logging for the whole process."""
    root, loggers = logging.getLogger(), logging.Logger.manager.loggerDict
    level, handlers = root.level, [*root.handlers]
    named = {name: each for name, each in loggers.items() if isinstance(each, logging.Logger)}
    before = {
        name: (each.level, [*each.handlers], each.propagate, each.disabled)
        for name, each in named.items()
    }
    yield
    for each in {*root.handlers}.difference(handlers):
        if hasattr(each, "listener"):  # Litestar's has a thread
            each.listener.stop()
            atexit.unregister(each.listener.stop)  # a second time it would fail
        each.close()
    root.setLevel(level)
    root.handlers[:] = handlers
    for name, (its_level, its_handlers, propagate, disabled) in before.items():
        logger = named[name]
        logger.setLevel(its_level)
        logger.handlers[:] = its_handlers
        logger.propagate, logger.disabled = propagate, disabled


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=these("memory", "lmdb", "filesystem", "postgresql"))
def web(request: pytest.FixtureRequest, face: str, new_engine: Callable[[str], Engine]) -> Web:
    """Services on one store; a loop reads the first two itself, the third on a thread, and awaits the last."""
    return Web(face, new_engine(request.param))


@pytest.fixture
def plain(face: str, new_engine: Callable[[str], Engine]) -> Web:
    """Services on memory, for what no store changes."""
    return Web(face, new_engine("memory"))
