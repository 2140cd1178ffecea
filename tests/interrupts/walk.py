"""Interrupt operations of one engine at each of their points, each time in a forked child of this program.

``python -m interrupts.walk ENGINE ERROR STRIDE [OPERATION ...]`` prints a line of JSON for each operation. With a
STRIDE of 5 it tries every fifth point, and of each operation its own fifth.

With ``RecursionError`` a point is a call that has no room on the stack for more than so many frames.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import signal
import sys
import traceback
import zlib
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import kvreplay
from interrupts.depths import Depths
from interrupts.operations import ASYNC, OPERATIONS, operations_of
from interrupts.points import Ended, Points, TimeLimit
from interrupts.world import Neighbour, World, have_few_lock_files

__all__ = ["ERRORS", "first_of", "main", "walk"]

_INTERRUPTS: Final[dict[str, type[BaseException]]] = {
    "KeyboardInterrupt": KeyboardInterrupt,
    "TimeLimit": TimeLimit,
}
ERRORS: Final = (*_INTERRUPTS, "RecursionError")
_LIMIT: Final = 20  # seconds, after which a child hangs
_ENOUGH: Final = 8  # frames more, with which there is still room: a call may make up for a lack
_PACKAGE: Final = os.path.dirname(kvreplay.__file__)


def in_the_package(frame: FrameType) -> bool:
    """Whether a point is kvreplay's own. An event loop's own points do not count: it cannot bear interrupts."""
    return frame.f_code.co_filename.startswith(_PACKAGE)


def walk(engine: str, name: str, error: str, stride: int) -> dict[str, Any]:
    """Walk the points of one operation; return the figures, what was damaged, and which interrupts were lost."""
    neighbour = Neighbour(engine)
    count = None
    if error not in _INTERRUPTS:  # else the last call tells
        count = attempt(engine, name, error, 0, neighbour)["points"]
    damaged, lost, tried, beyond = [], [], 0, 0
    for at in itertools.count(first_of(engine, name, error, stride), stride):
        told = attempt(engine, name, error, at, neighbour)
        if "trouble" in told:
            damaged.append({"at": at, **told})
            if told.get("point") is None:
                break  # it is not the interrupt's fault
            neighbour.end()
            neighbour = Neighbour(engine)
        elif told.get("point") is None:
            beyond += stride
            if error in _INTERRUPTS or beyond >= _ENOUGH:
                break  # the call has no such point
            continue
        beyond = 0
        tried += 1
        if told.get("lost"):
            lost.append({"at": at, **told})
    neighbour.end()
    return {
        "operation": name,
        "points": told.get("points", 0) if count is None else count,
        "tried": tried,
        "damaged": damaged,
        "lost": lost,
    }


def first_of(engine: str, name: str, error: str, stride: int) -> int:
    """The first point that is tried: each operation has its own, and one kind of interrupt comes halfway."""
    halfway = stride // 2 * (error == "TimeLimit")
    return 1 + (zlib.crc32(f"{engine}{name}".encode()) + halfway) % stride


def attempt(engine: str, name: str, error: str, at: int, neighbour: Neighbour) -> dict[str, Any]:
    """In a forked child: prepare, interrupt the operation at one point, and check."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        signal.alarm(_LIMIT)
        told: dict[str, Any] = {}
        ended = Ended()
        try:
            world = World(engine, neighbour)
            operation = OPERATIONS[name](world)
            call = next(operation)
            ended = _interrupted(world, name, call, error, at)
            told["point"], told["points"] = ended.point, ended.points
            # What is known until here, in case that the rest hangs.
            os.write(writer, json.dumps({**told, "stack": ended.stack}).encode() + b"\n")
            if (
                ended.point is None
                and ended.error
                and not isinstance(ended.error, ZeroDivisionError)
            ):
                raise ended.error
            told["lost"] = error == "KeyboardInterrupt" and _is_lost(ended)
            _finish(operation, ended)
            world.check()
            if world.in_doubt_for_nothing and ended.point is not None:
                began = ended.stack[0].startswith("world.py")  # where the handlers are
                assert began, "in doubt, and the handler had not begun"
            ended.error = None  # its traceback may have a connection that was being made
            world.end()
        except BaseException:
            told["trouble"] = traceback.format_exc()
        if "trouble" in told or told.get("lost"):
            told["stack"] = ended.stack
        os.write(writer, json.dumps(told).encode() + b"\n")
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as said:
        lines = said.readlines()
    _, status = os.waitpid(pid, 0)
    told = json.loads(lines[-1]) if lines else {}
    if status != 0 or not lines:
        told["trouble"] = f"it hung, or died: {status}"
    return dict(told)


def _interrupted(world: World, name: str, call: Callable[[], Any], error: str, at: int) -> Ended:
    if error in _INTERRUPTS:
        counts = in_the_package if name.startswith(ASYNC) else None
        return Points(_INTERRUPTS[error], counts).run(call, at)
    depths = Depths(at)
    if name.startswith(ASYNC):
        world.enter = depths.enter
        return depths.run(call)
    return depths.run(lambda: depths.enter(call))


def _is_lost(ended: Ended) -> bool:
    """Whether the call has gone on as if nothing were, and it is kvreplay's fault.

    The finalizers of Python's own imports lose interrupts too. An ``Exception`` does not count: an event
    loop, for one, catches and reports what its callbacks raise.
    """
    return ended.error is None and ended.file is not None and ended.file.startswith(_PACKAGE)


def _finish(operation: Any, ended: Ended) -> None:
    try:
        operation.send(ended)
    except StopIteration:
        return
    raise AssertionError("an operation yields once")


def main(arguments: list[str]) -> None:
    """Walk as the arguments say, and print the figures."""
    for module in ("asyncio", "concurrent.futures.thread", "encodings.ascii", "fcntl"):
        importlib.import_module(module)  # its import is no part of an operation
    gc.collect()
    gc.freeze()  # a child's collections leave alone what is here
    have_few_lock_files()
    engine, error, stride, *names = arguments
    for name in names or operations_of(engine):
        print(json.dumps(walk(engine, name, error, int(stride))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
