"""Loops inside ``with`` and ``try``, where CPython looks for signals before a loop jumps back.

CPython 3.13's compiler may leave such a jump outside of the handlers that the loop is in: where a loop's
body ends with an ``if``, or the loop is a ``while`` with a condition. An interrupt at that jump skips
them, so a lock stays held. Older CPythons look after the jump. A loop of a function of its own is safe.
"""

from __future__ import annotations

import dis
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator
from types import CodeType

import kvreplay

# What an interrupt leaves there ends by itself: an LMDB cursor with its transaction.
HARMLESS = {
    f"kvreplay.backends.lmdb.entries {each}"
    for each in ("sweep", "keys_from", "page", "_drop_damaged")
}

PLANTED = """
def held(lock, items):
    with lock:
        for item in items:
            if item:
                print(item)

def safe(lock, items):
    with lock:
        for item in items:
            print(item)
"""


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def jumps_outside(code: CodeType) -> bool:
    """Whether a loop's head is in a ``with`` or ``try`` in which a jump back to it is not."""
    handlers = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]  # in no stub
    instructions = {each.offset: each for each in dis.get_instructions(code)}

    def handler(offset: int) -> int | None:
        return next((each.target for each in handlers if each.start <= offset < each.end), None)

    def is_outside(jump: dis.Instruction) -> bool:
        head = handler(jump.argval)
        # Other handlers are the compiler's own, of generators and comprehensions.
        is_written = head is not None and instructions[head].opname == "PUSH_EXC_INFO"
        return is_written and handler(jump.offset) != head

    jumps = [each for each in instructions.values() if each.opname == "JUMP_BACKWARD"]
    return any(map(is_outside, jumps))


if sys.version_info >= (3, 13):

    def test_no_loop_jumps_back_outside_of_its_handlers() -> None:
        found = set()
        for module in pkgutil.walk_packages(kvreplay.__path__, "kvreplay."):
            if not module.name.endswith("__main__") and ".testing" not in module.name:
                spec = importlib.util.find_spec(module.name)
                code = spec.loader.get_code(module.name)  # type: ignore[union-attr]  # a source file's
                found |= {
                    f"{module.name} {each.co_qualname}"
                    for each in codes(code)
                    if jumps_outside(each)
                }
        assert found == HARMLESS

    def test_a_planted_loop_is_found() -> None:
        module = compile(PLANTED, "planted", "exec")
        assert [each.co_name for each in codes(module) if jumps_outside(each)] == ["held"]
