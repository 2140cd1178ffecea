"""Death at a chosen moment of a flow: right before one of its steps is answered, or right after."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from kvreplay._protocol import flow
from kvreplay._protocol.steps import Flow, Transact

PROTOCOLS = ("execute", "execute_in_transaction", "settle", "prune")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def doom(moment: int) -> None:
    """Let this process die when its flows come to that moment; there are two for each step."""
    moments = itertools.count()

    def pass_moment() -> None:
        if next(moments) == moment:
            die()

    for name in PROTOCOLS:
        setattr(flow, name, _dying(getattr(flow, name), pass_moment))


def _dying(protocol: Callable[..., Flow[Any]], pass_moment: Callable[[], None]) -> Any:
    return lambda *args: _steps(protocol(*args), pass_moment)


def _steps(steps: Flow[Any], pass_moment: Callable[[], None]) -> Iterator[Any]:
    try:
        step = next(steps)
        while True:
            pass_moment()
            if isinstance(step, Transact):
                step = Transact(_steps(step.flow, pass_moment))  # type: ignore[arg-type]
            try:
                answer = yield step
            except BaseException as error:
                pass_moment()
                step = steps.throw(error)
            else:
                pass_moment()
                step = steps.send(answer)
    except StopIteration as end:
        return end.value
