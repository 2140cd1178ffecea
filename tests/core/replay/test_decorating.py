"""Decorated functions: two of them never share an answer, and what of a call is compared."""

from __future__ import annotations

import asyncio
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kvreplay import (
    AsyncReplay,
    ConfigError,
    InDoubtError,
    InvalidParamsError,
    ParamsMismatchError,
    Replay,
    ReplayKey,
)
from kvreplay._protocol.record import decode
from kvreplay.backends.memory import MemoryStore
from support.replaying import Handler, Interrupt
from support.requesting import NAMESPACE


def by_user(user: str, order: str) -> tuple[str, str]:
    return user, order


def invoice(user: str, order: str) -> str:
    return "invoice"


def refund(user: str, order: str) -> str:
    return "refund"


@pytest.fixture
def plain() -> Replay:
    """A replay of the test's own, in memory."""
    return Replay(MemoryStore(), "pay", ttl=60)


# Two functions.


def test_a_second_function_needs_an_operation(replay: Any) -> None:
    first = replay.decorated(invoice, key=by_user)
    with pytest.raises(ConfigError, match="would answer each other's requests.*nothing was decor"):
        replay.decorated(refund, key=by_user)
    second = replay.decorated(refund, key=by_user, operation="refund")
    with pytest.raises(ConfigError, match="operation 'refund'"):
        replay.decorated(invoice, key=by_user, operation="refund")
    assert [first("u", "1"), second("u", "1")] == ["invoice", "refund"]
    assert [first("u", "1"), second("u", "1")] == ["invoice", "refund"]


def test_a_refusal_names_both_functions(plain: Replay) -> None:
    plain.idempotent(key=by_user)(invoice)
    with pytest.raises(ConfigError, match=rf"{__name__}\.invoice and {__name__}\.refund would"):
        plain.idempotent(key=by_user)(refund)
    with pytest.raises(ConfigError, match=r"functools\.a partial would"):
        plain.idempotent(key=by_user)(functools.partial(refund))


def test_what_was_refused_takes_no_operation(plain: Replay) -> None:
    async def later(user: str, order: str) -> str:
        return "never"

    with pytest.raises(ConfigError, match="AsyncReplay"):
        plain.idempotent(key=by_user)(later)
    with pytest.raises(ConfigError):
        plain.idempotent(key=by_user, operation="")(refund)
    assert plain.idempotent(key=by_user)(invoice)("u", "1") == "invoice"


def test_each_replay_has_functions_of_its_own(plain: Replay) -> None:
    other = Replay(MemoryStore(), "refunds", ttl=60)
    assert plain.idempotent(key=by_user)(invoice)("u", "1") == "invoice"
    assert other.idempotent(key=by_user)(refund)("u", "1") == "refund"


def test_one_function_may_be_decorated_twice(plain: Replay) -> None:
    one, two = (plain.idempotent(key=by_user)(invoice) for _ in range(2))
    assert one("u", "1") == two("u", "1") == "invoice"


def test_closures_of_one_function_are_two_functions(plain: Replay) -> None:
    def paying(node: str) -> Callable[[str], str]:
        return plain.idempotent(key=lambda order: ("u", order))(lambda order: node)

    assert paying("a")("1") == "a"
    with pytest.raises(ConfigError, match="each other's requests"):
        paying("b")
    with pytest.raises(ConfigError, match="each other's requests"):  # defaults tell them apart too
        plain.idempotent(key=lambda order: ("u", order))(lambda order, node="b": node)


@pytest.mark.parametrize("other", [True, 1.0])
@pytest.mark.parametrize("inside", [False, True])
def test_defaults_of_another_type_make_another_function(
    plain: Replay, other: object, inside: bool
) -> None:
    def paying(node: object) -> Callable[..., Any]:
        node = (node,) if inside else node
        return plain.idempotent(key=lambda order, node: ("u", order))(lambda order, node=node: node)

    paying(1)
    paying(1)
    with pytest.raises(ConfigError, match="each other's requests"):
        paying(other)


def test_functions_with_other_globals_are_two_functions(plain: Replay) -> None:
    def loaded(node: str) -> Callable[[str], str]:
        """A file that is executed, as some programs load their plug-ins."""
        its = {"__name__": "plugin", "NODE": node}
        exec("def pay(order): return NODE", its)
        pay: Callable[[str], str] = plain.idempotent(key=lambda order: ("u", order))(its["pay"])  # type: ignore[arg-type]
        return pay

    assert loaded("a")("1") == "a"
    with pytest.raises(ConfigError, match=r"plugin\.pay and plugin\.pay would answer each other's"):
        loaded("b")


def test_a_reloaded_module_decorates_its_function_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "replay_of_test.py").write_text(
        "from kvreplay import Replay, open_store\nreplay = Replay(open_store('memory:'), 'p', ttl=9)"
    )
    source = (
        "from replay_of_test import replay\n"
        "@replay.idempotent(key=lambda n: ('s', n))\n"
        "def pay(n): return 'paid'\n"
    )
    (tmp_path / "payments_of_test.py").write_text(source)
    try:
        payments = importlib.import_module("payments_of_test")
        before = payments.pay
        assert importlib.reload(payments).pay is not before
        assert before("1") == payments.pay("1") == "paid"
        (tmp_path / "payments_of_test.py").write_text(source.replace("'paid'", "'paid twice'"))
        with pytest.raises(ConfigError, match="payments_of_test.pay and payments_of_test.pay"):
            importlib.reload(payments)
    finally:
        for module in ("payments_of_test", "replay_of_test"):
            sys.modules.pop(module, None)


# The operation is a part of the key.


def test_an_operation_is_part_of_the_key_everywhere(
    replay: Any, make: Callable[..., Any], store: Any
) -> None:
    runs: list[str] = []

    def fails(user: str, order: str) -> str:
        runs.append(order)
        if order == "2":
            raise Interrupt
        return "refunded"

    decorated = replay.decorated(fails, key=by_user, operation="refund")
    params = {"user": "u", "order": "1"}
    assert decorated("u", "1") == decorated("u", "1") == "refunded"
    assert runs == ["1"]
    assert replay.lookup(("u", "1"), params) is None
    assert replay.lookup(("u", "1"), params, operation="invoice") is None
    assert replay.lookup(("u", "1"), params, operation="refund").response == "refunded"
    key = ReplayKey("u", "1", "refund")
    assert replay.lookup(key, params).response == "refunded"
    assert replay.lookup(key, params, operation="refund").response == "refunded"
    with pytest.raises(InvalidParamsError, match="another operation"):
        replay.lookup(key, params, operation="invoice")
    assert replay.execute(key, params, Handler("never")).replayed
    assert replay.execute(("u", "1"), params, Handler("plain")).response == "plain"
    (record,) = [each for each in replay.records() if each.key.operation == "refund"]
    assert record.key == key

    with pytest.raises(Interrupt):
        decorated("u", "2")
    with pytest.raises(InDoubtError):
        decorated("u", "2")
    again = make()  # the operation is in the store, not in the replay
    assert not again.release(("u", "2"))
    assert not again.resolve(("u", "2"), response="r", operation="invoice")
    assert again.resolve(("u", "2"), response="by hand", operation="refund")
    assert decorated("u", "2") == "by hand"
    with pytest.raises(Interrupt):
        again.decorated(fails, key=lambda u, order: ("v", order), operation="refund")("v", "2")
    (seen,) = [each for each in again.records() if each.claim is not None]
    assert seen.key == ReplayKey("v", "2", "refund")
    assert not again.release(("v", "2"), seen=seen)
    assert again.release(seen.key, seen=seen)
    assert store.list(NAMESPACE, "v") == []


@pytest.mark.parametrize("operation", ["", "\ud800", 5, b"refund"])
def test_an_operation_is_a_text(plain: Replay, operation: Any) -> None:
    with pytest.raises(ConfigError, match="operation"):
        plain.idempotent(key=by_user, operation=operation)(invoice)
    with pytest.raises(InvalidParamsError, match="operation"):
        plain.lookup(("u", "1"), {}, operation=operation)
    with pytest.raises(InvalidParamsError, match="operation"):
        plain.release(("u", "1"), operation=operation)


def test_a_key_that_carries_an_operation_belongs_to_it(plain: Replay) -> None:
    other = plain.idempotent(
        key=lambda user, order: ReplayKey(user, order, "invoice"), operation="refund"
    )(refund)
    with pytest.raises(InvalidParamsError, match="another operation"):
        other("u", "1")
    same = plain.idempotent(
        key=lambda user, order: ReplayKey(user, order, "invoice"), operation="invoice"
    )(invoice)
    assert same("u", "1") == "invoice"


# What of a call is compared.


class Node:
    """Its methods, of each kind, decorated."""

    replay = Replay(MemoryStore(), "node", ttl=60)
    runs: ClassVar[list[tuple[object, ...]]] = []

    def __init__(self, name: str) -> None:
        self.name = name

    @replay.idempotent(key=lambda self, order: (self.name, order), operation="method")
    def pay(self, order: str, amount: int = 1) -> str:
        self.runs.append(("method", self.name, order, amount))
        return self.name

    @classmethod
    @replay.idempotent(key=lambda cls, order: (cls.__name__, order), operation="class method")
    def create(cls, order: str) -> str:
        cls.runs.append(("class method", order))
        return cls.__name__

    @staticmethod
    @replay.idempotent(key=lambda order, amount: ("s", order), operation="static method")
    def quote(order: str, amount: int) -> int:
        Node.runs.append(("static method", order))
        return amount


def test_self_and_cls_are_not_compared() -> None:
    Node.runs.clear()
    one, two = Node("a"), Node("a")
    assert one.pay("1") == two.pay("1") == Node.pay(two, "1") == "a"
    assert Node.create("1") == one.create("1") == "Node"
    assert Node.runs == [("method", "a", "1", 1), ("class method", "1")]
    assert Node("b").pay("1") == "b"
    record = Node.replay.lookup(("a", "1"), {"order": "1", "amount": 1}, operation="method")
    assert record is not None
    assert record.response == "a"


def test_all_arguments_of_a_static_method_are_compared() -> None:
    Node.runs.clear()
    assert Node.quote("2", 7) == Node("a").quote("2", 7) == 7
    with pytest.raises(ParamsMismatchError):
        Node.quote("2", 8)
    assert Node.runs == [("static method", "2")]


def test_other_parameters_are_never_left_out(plain: Replay) -> None:
    def self_in_a_plain_function(self: object, order: str) -> str:
        return "never"

    class Odd:
        def method(this, order: str) -> str:  # noqa: N805
            return "never"

        @staticmethod
        def third(order: str, self: object) -> str:
            return "never"

        def call_it(self, *, cls: object) -> str:
            return "never"

    functions: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str]] = [
        (self_in_a_plain_function, (Odd(), "1"), {}, "self"),
        (Odd.method, (Odd(), "1"), {}, "this"),
        (Odd.third, ("1", Odd()), {}, "self"),
        (Odd().call_it, (), {"cls": Odd}, "cls"),
    ]
    for function, args, kwargs, name in functions:
        decorated = plain.idempotent(key=lambda *a, **k: ("s", "1"), operation=name)(function)
        with pytest.raises(InvalidParamsError, match=rf"argument '{name}' .*params="):
            decorated(*args, **kwargs)
        plain = Replay(MemoryStore(), "pay", ttl=60)


def test_an_async_method_leaves_its_self_out() -> None:
    replay = AsyncReplay(MemoryStore(), "node", ttl=60)

    class Service:
        @replay.idempotent(key=lambda self, order: ("s", str(order)))
        async def pay(self, order: str) -> int:
            return id(self)

    one, two = Service(), Service()

    async def both() -> None:
        assert await one.pay("1") == await two.pay("1") == id(one)
        with pytest.raises(InvalidParamsError, match=r"argument 'order' .*params="):
            await one.pay(object())  # type: ignore[arg-type]  # the point of the test

    asyncio.run(both())


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (object(), "hold a object"),
        (float("nan"), "NaN"),
        (2**64, "64 bits"),
        ("\ud800", "surrogate"),
    ],
)
def test_an_argument_that_cannot_be_compared_is_named(replay: Any, bad: Any, says: str) -> None:
    runs: list[Any] = []
    decorated = replay.decorated(
        lambda order, amount, trace=None: runs.append(trace), key=lambda *a, **k: ("s", "1")
    )
    with pytest.raises(InvalidParamsError, match=rf"'trace' .*{says}.*nothing ran.*params="):
        decorated("1", 5, trace=bad)
    assert runs == []
    told = replay.decorated(
        lambda order, trace: runs.append("ran"),
        key=lambda order, trace: ("s", order),
        params=lambda order, trace: order,
        operation="told",
    )
    told("1", bad)
    assert runs == ["ran"]


@pytest.mark.parametrize("what", ["key", "params"])
@pytest.mark.parametrize("bad", [("u", "1"), "user", 5, ()])
def test_what_makes_a_key_is_called(plain: Replay, what: str, bad: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{what}= is a {type(bad).__name__}; give a function"):
        plain.idempotent(**{"key": by_user, what: bad})
    assert plain.idempotent(key=by_user, params=by_user)(invoice)("u", "1") == "invoice"


def test_a_wrong_ttl_is_told_when_decorating(plain: Replay) -> None:
    with pytest.raises(ConfigError, match="ttl"):
        plain.idempotent(key=by_user, ttl=-1)


def test_only_functions_are_decorated(plain: Replay) -> None:
    for wrapped in (staticmethod(invoice), classmethod(invoice), property(invoice), "invoice"):
        with pytest.raises(ConfigError, match=f"a {type(wrapped).__name__} cannot be decorated"):
            plain.idempotent(key=by_user)(wrapped)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="params="):
        plain.idempotent(key=lambda *a: ("s", "1"), operation="a")(iter)


def test_a_callable_object_is_decorated(plain: Replay) -> None:
    class Payer:
        def __call__(self, user: str, order: str) -> str:
            return "paid"

    payer = Payer()
    assert plain.idempotent(key=by_user)(payer)("u", "1") == "paid"
    assert plain.idempotent(key=by_user)(payer)("u", "1") == "paid"
    with pytest.raises(ConfigError, match=r"Payer"):
        plain.idempotent(key=by_user)(Payer())


def test_a_stored_operation_is_golden(plain: Replay) -> None:
    plain.idempotent(key=by_user, operation="refund")(refund)("alice", "7")
    store: Any = plain._settings.store
    assert store.list("pay", "alice") == ["sha256-LkW_fOuuNtuRkj78zBz6X-PzqHDI7QYzSxanZ1z9_CM"]
    assert (
        decode(
            store.read("pay", "alice", "sha256-LkW_fOuuNtuRkj78zBz6X-PzqHDI7QYzSxanZ1z9_CM")
        ).key.operation
        == "refund"
    )
