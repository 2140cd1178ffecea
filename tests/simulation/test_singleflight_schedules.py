"""The single-flight table under every schedule of its callers: one leads, and nobody waits for ever.

The real class runs, its source changed in one way: wherever another thread may come in between (at
each lock, and at each statement outside of one) its methods yield. A caller here does what
``Replay`` does with the table; a leader may also die without landing, as a closed event loop does.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from types import GeneratorType
from typing import Any

import attrs
import pytest

from kvreplay._runtime import singleflight

pytestmark = pytest.mark.exhaustive

STEPPED = ("board", "give_up", "land", "bind", "wake_on_change")


class _Stepping(ast.NodeTransformer):
    """Makes generators of the table's methods."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if node.name not in STEPPED:
            return node
        node.body = self._stepped(node.body)
        return _Calls().visit(node)

    def _stepped(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """Yield before each statement; what holds the lock is one statement."""
        stepped: list[ast.stmt] = []
        for statement in body:
            if not isinstance(statement, ast.With):
                for block in ("body", "orelse"):
                    if getattr(statement, block, None):
                        setattr(statement, block, self._stepped(getattr(statement, block)))
            stepped += [*ast.parse("yield").body, statement]
        return stepped


class _Calls(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in STEPPED:
            return ast.YieldFrom(node)
        return node


def stepping(*changes: tuple[str, str]) -> Any:
    """Return the table's module, with its methods as generators, and some text changed."""
    source = inspect.getsource(singleflight)
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    tree = ast.fix_missing_locations(_Stepping().visit(ast.parse(source)))
    module: dict[str, Any] = {"__name__": "stepping"}
    exec(compile(tree, "stepping.py", "exec"), module)
    return module


@attrs.define(eq=False)
class Caller:
    """One request. ``hits``: it finds its answer, so that no handler runs and nothing is bound;
    ``fails``: it is interrupted; ``dies``: its loop is closed while its handler runs."""

    name: str
    params: bytes
    hits: bool = False
    fails: bool = False
    dies: bool = False
    running: bool = False
    dead: bool = False
    woken: bool = False
    waits: Callable[[], bool] | None = None
    end: str = ""

    def wake(self) -> None:
        self.woken = True

    def execute(self, module: Any, table: Any) -> Iterator[None]:
        """What ``Replay`` does with the table."""
        while not self.end:
            own = module["Flight"]("key", self.params)
            flight = yield from table.board(own)
            if flight is own:
                yield from self._lead(table, own)
            else:
                yield from self._follow(table, flight)

    def _lead(self, table: Any, own: Any) -> Iterator[None]:
        own.is_abandoned = lambda: self.dead
        yield
        if not self.hits:
            yield from table.bind(own)
            self.running = True
            yield
            self.running = False
        if self.dies:
            self.dead = True
            self.end = "died"
            return
        outcome = KeyboardInterrupt() if self.fails else self.name
        yield from table.land(own, outcome)
        self.end = "interrupted" if self.fails else f"answered {self.name}"

    def _follow(self, table: Any, flight: Any) -> Iterator[None]:
        others = flight.params != self.params
        while (yield from table.wake_on_change(flight, self.wake, until_bound=others)):
            while not self.woken:
                self.waits = lambda: self.woken or flight.is_abandoned()
                yield
                self.waits = None
                if not self.woken:
                    yield from table.give_up(flight)
            self.woken = False
        if others:
            self.end = "refused" if flight.bound else ""
        elif isinstance(flight.result, str):
            self.end = f"answered {flight.result}"


class Schedule:
    """The callers of one table, run step by step in a chosen order."""

    def __init__(self, module: Any, callers: list[Caller], choices: tuple[int, ...]) -> None:
        self.table = module["SingleFlight"]()
        self.callers = callers
        self.flows = [caller.execute(module, self.table) for caller in callers]
        for choice in choices:
            self.step(choice)

    def step(self, choice: int) -> None:
        next(self.flows[choice], None)

    def able(self) -> list[int]:
        """Return who can go on."""
        return [
            index
            for index, caller in enumerate(self.callers)
            if self.flows[index].gi_frame is not None and (caller.waits is None or caller.waits())
        ]

    def state(self) -> Any:
        """Return what decides about the future, comparable."""
        known: dict[int, int] = {}
        flights = list(self.table.table.values())
        return tuple(self._seen(each, known) for each in (self.flows, self.callers, flights))

    def _seen(self, value: Any, known: dict[int, int]) -> Any:
        if isinstance(value, GeneratorType):
            frame = value.gi_frame
            if frame is None:
                return "over"
            own = {name: each for name, each in frame.f_locals.items() if name != "module"}
            seen = tuple((name, self._seen(own[name], known)) for name in sorted(own))
            return frame.f_code.co_name, frame.f_lasti, seen, self._seen(value.gi_yieldfrom, known)
        if isinstance(value, list | tuple):
            return tuple(self._seen(each, known) for each in value)
        if isinstance(value, Caller):
            return value.name, value.running, value.dead, value.woken, value.end
        if type(value).__name__ == "Flight":
            if id(value) in known:
                return known[id(value)]
            known[id(value)] = len(known)
            parts = (value.params, value.bound, value.landed, value.result, tuple(value.wakers))
            return known[id(value)], self._seen(parts, known), value.is_abandoned()
        if inspect.ismethod(value):
            return value.__name__, self._seen(value.__self__, known)
        return value if isinstance(value, str | bytes | bool | int | None) else type(value).__name__


def walk(module: Any, make: Callable[[], list[Caller]]) -> tuple[int, set[tuple[str, ...]]]:
    """Walk all schedules: return how many states differ, and all ways in which they end."""
    seen: set[Any] = set()
    ends: set[tuple[str, ...]] = set()
    ahead: list[tuple[int, ...]] = [()]
    while ahead:
        choices = ahead.pop()
        schedule = Schedule(module, make(), choices)
        state = schedule.state()
        if state in seen:
            continue
        seen.add(state)
        told = " ".join(schedule.callers[choice].name for choice in choices)
        assert sum(caller.running for caller in schedule.callers) <= 1, f"two run at once: {told}"
        able = schedule.able()
        if not able:
            ends.add(tuple(caller.end for caller in schedule.callers))
            assert all(caller.end for caller in schedule.callers), f"one waits for ever: {told}"
            left = sum(caller.dead for caller in schedule.callers)  # nobody came after them
            assert len(schedule.table) <= left, f"the table does not empty: {told}"
        ahead.extend((*choices, index) for index in able)
    return len(seen), ends


SAME = {"a": b"A", "b": b"A"}
OTHERS = {"a": b"A", "b": b"B"}
THREE = {"a": b"A", "b": b"A", "c": b"B"}


@pytest.mark.parametrize(
    ("params", "first", "ends"),
    [
        (SAME, {}, {"answered a|answered a", "answered b|answered b", "answered a|answered b"}),
        (OTHERS, {}, {"answered a|refused", "refused|answered b", "answered a|answered b"}),
        (SAME, {"fails": True}, {"interrupted|answered b", "answered b|answered b"}),
        (
            OTHERS,
            {"fails": True},
            {"interrupted|answered b", "refused|answered b", "interrupted|refused"},
        ),
        (SAME, {"dies": True}, {"died|answered b", "answered b|answered b"}),
        (OTHERS, {"dies": True}, {"died|answered b", "refused|answered b", "died|refused"}),
        (
            SAME,
            {"hits": True},
            {"answered a|answered a", "answered b|answered b", "answered a|answered b"},
        ),
        (OTHERS, {"hits": True}, {"refused|answered b", "answered a|answered b"}),
        (THREE, {}, None),
        (THREE, {"hits": True}, None),
        (THREE, {"fails": True}, None),
        (THREE, {"dies": True}, None),
    ],
)
def test_one_leads_and_nobody_waits_for_ever(
    params: dict[str, bytes], first: dict[str, bool], ends: set[str] | None
) -> None:
    """``first``: what becomes of the first caller if it leads."""

    def make() -> list[Caller]:
        return [Caller(name, own, **(first if name == "a" else {})) for name, own in params.items()]

    states, met = walk(stepping(), make)
    print(f"{states:,} states")
    if ends is not None:
        assert {"|".join(each) for each in met} == ends


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        pytest.param(
            "            flight = table[own.key] if own.key in table else own  # noqa: SIM401 - a call\n"
            "            table[own.key] = flight\n",
            "        flight = self.table.get(own.key)\n"
            "        if flight is None:\n            self.table[own.key] = flight = own\n",
            "two run at once",
            id="boarding is read, then write",
        ),
        pytest.param(
            "                flight.landed = True\n            wakers, flight.wakers = flight.wakers, {}\n",
            "                flight.landed = True\n            wakers = {}\n",
            "one waits for ever",
            id="landing wakes nobody",
        ),
        pytest.param(
            "            flight.bound = True\n            wakers, flight.wakers = flight.wakers, {}\n",
            "            flight.bound = True\n            wakers, flight.wakers = {}, {}\n",
            "one waits for ever",
            id="binding forgets who waits",
        ),
        pytest.param(
            "if flight.landed or (until_bound and flight.bound):",
            "if until_bound and flight.bound:",
            "one waits for ever",
            id="who comes late waits for a landing that was",
        ),
        pytest.param(
            "        with self._lock.own():\n            if flight.landed or (until_bound",
            "        if True:\n            if flight.landed or (until_bound",
            "one waits for ever",
            id="a landing between the look and the wait",
        ),
        pytest.param(
            "                del table[flight.key]\n",
            "                pass\n",
            "the table does not empty",
            id="a landed flight stays",
        ),
    ],
)
def test_a_table_with_a_planted_bug_is_caught(old: str, new: str, seen: str) -> None:
    with pytest.raises(AssertionError, match=seen) as told:
        for params in (SAME, OTHERS):
            walk(stepping((old, new)), lambda: [Caller(*each) for each in params.items()])  # noqa: B023
    print(told.value)
