"""The checker itself: on small histories that a reader can decide, and against trying every order."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import attrs
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from support.linearizability import Operation, Value, linearization

pytestmark = pytest.mark.any_python


def read(found: Value, invoked: float, returned: float = math.inf) -> Operation:
    return Operation("read", invoked, returned, found=found)


def write(value: str, invoked: float, returned: float = math.inf) -> Operation:
    return Operation("write", invoked, returned, value=value)


def remove(invoked: float, returned: float = math.inf) -> Operation:
    return Operation("remove", invoked, returned)


def put(
    expected: Value, value: Value, found: Value, invoked: float, returned: float = math.inf
) -> Operation:
    return Operation("check_and_put", invoked, returned, expected, value, found)


# Each pair differs in one thing: the first can be explained, the second cannot.
PAIRS = {
    "an old value, read during and after a write": (
        [write("a", 0, 1), write("b", 2, 5), read("a", 3, 6)],
        [write("a", 0, 1), write("b", 2, 5), read("a", 6, 7)],
    ),
    "two reads during a write, that see it and then do not": (
        [write("a", 0, 1), write("b", 2, 9), read("a", 3, 4), read("b", 5, 6)],
        [write("a", 0, 1), write("b", 2, 9), read("b", 3, 4), read("a", 5, 6)],
    ),
    "two winners of one absence": (
        [put(None, "a", None, 0, 5), put(None, "b", "a", 1, 6)],
        [put(None, "a", None, 0, 5), put(None, "b", None, 1, 6)],
    ),
    "two winners of one value": (
        [write("a", 0, 1), put("a", "b", "a", 2, 5), put("a", "c", "b", 2, 5)],
        [write("a", 0, 1), put("a", "b", "a", 2, 5), put("a", "c", "a", 2, 5)],
    ),
    "a lost write": (
        [write("a", 0, 1), write("b", 2, 3), read("b", 4, 5)],
        [write("a", 0, 1), write("b", 2, 3), read("a", 4, 5)],
    ),
    "a write that is swapped in time with what it overwrote": (
        [write("a", 0, 1), write("b", 2, 3), read("b", 4, 5)],
        [write("b", 0, 1), write("a", 2, 3), read("b", 4, 5)],
    ),
    "a refused check-and-put that changed something": (
        [write("a", 0, 1), put("b", "c", "a", 2, 3), read("a", 4, 5)],
        [write("a", 0, 1), put("b", "c", "a", 2, 3), read("c", 4, 5)],
    ),
    "a check-and-put that removes": (
        [write("a", 0, 1), put("a", None, "a", 2, 3), read(None, 4, 5)],
        [write("a", 0, 1), put("a", None, "a", 2, 3), read("a", 4, 5)],
    ),
    "a removal that comes back": (
        [write("a", 0, 1), remove(2, 3), read(None, 4, 5)],
        [write("a", 0, 1), remove(2, 3), read("a", 4, 5)],
    ),
    "a write of unknown outcome, seen after and before it began": (
        [write("a", 0, 1), write("b", 2), read("a", 3, 4), read("b", 5, 6)],
        [write("a", 0, 1), write("b", 5), read("b", 2, 3), read("a", 6, 7)],
    ),
    "a write of unknown outcome that happens once, not twice": (
        [write("a", 0, 1), write("b", 2), read("b", 3, 4), write("c", 5, 6), read("c", 7, 8)],
        [write("a", 0, 1), write("b", 2), read("b", 3, 4), write("c", 5, 6), read("b", 7, 8)],
    ),
    "a check-and-put of unknown outcome, on what was there and on what never was": (
        [write("a", 0, 1), put("a", "b", None, 2), read("b", 3, 4)],
        [write("a", 0, 1), put("c", "b", None, 2), read("b", 3, 4)],
    ),
    "a read of unknown outcome": (
        [write("a", 0, 1), read(None, 2), read("a", 3, 4)],
        [write("a", 0, 1), read(None, 2, 5), read("a", 3, 4)],
    ),
    "a value out of nowhere": ([read(None, 0, 1)], [read("a", 0, 1)]),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_history_is_accepted_and_its_twin_rejected(
    pair: tuple[list[Operation], list[Operation]],
) -> None:
    accepted, rejected = pair
    assert linearization(accepted) is not None
    assert linearization(rejected) is None


def test_nothing_and_only_unknown_outcomes_are_explained() -> None:
    assert linearization([]) == []
    assert linearization([write("a", 0), remove(1)]) == []


# Against trying every order.


def is_explained_by(order: Sequence[Operation]) -> bool:
    """Whether single steps in this order give what was seen, and none precedes its past."""
    state: Value = None
    for operation in order:
        possible, state = operation.step(state)
        if not possible:
            return False
    return not any(
        later.returned < earlier.invoked for earlier, later in itertools.combinations(order, 2)
    )


def can_be_explained(history: Sequence[Operation]) -> bool:
    ended = [operation for operation in history if operation.has_ended]
    unknown = [operation for operation in history if not operation.has_ended]
    return any(
        is_explained_by(order)
        for count in range(len(unknown) + 1)
        for happened in itertools.combinations(unknown, count)
        for order in itertools.permutations([*ended, *happened])
    )


VALUES = st.sampled_from([None, "a", "b"])
EARLY = st.sampled_from([1, 4, 9, 15, 35])
LATE = st.sampled_from([1, 4, 9, 15, 35, math.inf])


@st.composite
def true_histories(draw: st.DrawFn) -> list[Operation]:
    """Calls that did take effect in single steps, one after another, with an interval around each.

    The n-th step is at moment 10 n. A call without a known end may also never have happened.
    """
    state: Value = None
    history = []
    for n in range(draw(st.sampled_from([6, 5, 4, 3, 2, 1, 0]))):
        operation = Operation(
            draw(st.sampled_from(["read", "write", "remove", "check_and_put"])),
            10 * n - draw(EARLY),
            10 * n + draw(LATE),
            expected=draw(VALUES),
            value=draw(VALUES),
            found=state,
        )
        history.append(operation)
        if operation.has_ended or draw(st.booleans()):
            _, state = operation.step(state)
    return draw(st.permutations(history))


@settings(deadline=None)
@given(true_histories())
def test_what_happened_in_steps_is_accepted(history: list[Operation]) -> None:
    order = linearization(history)
    assert order is not None
    assert is_explained_by(order)
    assert not Counter(each for each in history if each.has_ended) - Counter(order)
    assert not Counter(order) - Counter(history)


@settings(max_examples=400, deadline=None)
@given(true_histories(), st.data())
def test_as_trying_every_order(history: list[Operation], data: st.DataObject) -> None:
    changes = st.tuples(st.sampled_from(["found", "expected", "value"]), VALUES)
    for n, (name, value) in enumerate(
        data.draw(st.lists(changes, min_size=len(history), max_size=len(history)))
    ):
        history[n] = attrs.evolve(history[n], **{name: value})
    accepted = can_be_explained(history)
    event("accepted" if accepted else "rejected")
    order = linearization(history)
    assert (order is not None) == accepted
    assert order is None or is_explained_by(order)
