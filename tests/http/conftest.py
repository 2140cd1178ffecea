"""Frameworks set up logging for the whole process: each test takes that away again."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
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
