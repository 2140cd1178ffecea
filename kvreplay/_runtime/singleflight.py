"""Single-flight: in one process, one key runs one handler at a time, and callers share its result.

The caller that comes first *leads*: it runs the handler. Every other caller that asks for the same
key meanwhile *follows*: it waits for the leader to *land* with a result, and shares that.

What is always true:

* The table belongs to the process. It holds between all ``Replay`` and ``AsyncReplay`` objects,
  threads and event loops on the same store. A forked child starts with an empty one.
* A key has at most one flight, and a flight lands exactly once. Before that it leaves the table,
  so no landed flight stays there. If an interrupt comes between, landing it again ends that.
* A flight is *bound* once it is known that the key belongs to the leader's params. From then on a
  request with other params is refused at once; before, it waits until the flight is bound or lands.
* The lock guards the table and the flights, and is held for moments only. Nobody is woken and no
  handler runs while it is held. Only operators are used under it: after them CPython gives the
  interpreter to no other thread, so a crowd never queues for this lock.
* An interrupt of the thread that wakes may lose a wake-up. So who waits also looks by itself.
* Who stops waiting, however that comes, takes its waker out of the flight: ``wakers.pop(wake)`` is
  one call in C, for which no lock is needed.

It knows no store and no protocol: a key is any hashable, params are bytes, and a result is
whatever the leader lands with.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from threading import get_ident
from types import MemberDescriptorType
from typing import Any, Final, Generic, TypeVar

from kvreplay.errors import ReplayError
from kvreplay.store import ForkSafeLock
from kvreplay.store.locks import ProcessMark, this_process

__all__ = ["Abandoned", "Flight", "SingleFlight", "fresh"]

T = TypeVar("T")
Waker = Callable[[], object]


class Abandoned(BaseException):
    """The result of a flight whose leader is gone: nothing to share, start over."""


def _never() -> bool:
    return False


class Flight(Generic[T]):
    """One leader's run of one key; the followers wait for it to land.

    ``bound``: the key is known to belong to the leader's params, so a request with others is
    refused at once. ``is_abandoned``: whether its leader is gone without landing it.
    ``out_of_time``: another owner runs the key, and the leader's own time to wait for it was over.
    ``wakers``: what wakes the followers; a set in the order of their coming.
    """

    __slots__ = (
        "bound",
        "is_abandoned",
        "key",
        "landed",
        "out_of_time",
        "params",
        "result",
        "thread",
        "wakers",
    )

    def __init__(self, key: Hashable, params: bytes) -> None:
        self.key = key
        self.params = params
        self.thread = get_ident()  # the leader's, or that of its event loop
        self.bound = False
        self.landed = False
        self.out_of_time = False
        self.result: T | BaseException | None = None
        self.is_abandoned: Callable[[], bool] = _never
        self.wakers: dict[Waker, None] = {}


class SingleFlight(Generic[T]):
    """The table of the keys in flight. An entry leaves it when its leader lands."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._owner: ProcessMark | None = None  # the process that the table belongs to
        self.table: dict[Hashable, Flight[T]] = {}
        self._aboard: ContextVar[tuple[Flight[T], ...]] = ContextVar("aboard", default=())

    def __len__(self) -> int:
        return len(self.table) if self._is_ours() else 0

    def _is_ours(self) -> bool:
        return self._owner is not None and bool(self._owner[0])

    def board(self, own: Flight[T]) -> Flight[T]:
        """Return the key's flight: ``own``, which the caller then leads, or another's to follow.

        The caller must :meth:`land` ``own`` whatever happens, even after an interrupt in this call.
        """
        with self._lock.own():
            owner = self._owner
            if owner is None or not owner[0]:
                self.table = {}
                self._owner = this_process()
            table = self.table
            flight = table[own.key] if own.key in table else own  # noqa: SIM401 - a call
            table[own.key] = flight
        if flight is not own and self.give_up(flight):
            return self.board(own)
        return flight

    def give_up(self, flight: Flight[T]) -> bool:
        """Land a flight whose leader is gone; say whether it is."""
        if not flight.is_abandoned():
            return False
        self.land(flight, Abandoned())
        return True

    def bound(self, key: Hashable) -> Flight[T] | None:
        """Return the key's flight if it is bound: its handler runs, or its answer is stored now."""
        flight = self.table.get(key)
        own = flight is not None and flight.bound and self._is_ours()
        return flight if own and flight is not None and not self.give_up(flight) else None

    def land(self, flight: Flight[T], result: T | BaseException) -> None:
        """End the flight and wake all who wait for it.

        A second call changes no result and wakes nobody twice. It ends what an interrupt cut short.
        """
        with self._lock.own():
            table = self.table
            if flight.key in table and table[flight.key] is flight:  # not so in a forked child
                del table[flight.key]
            if not flight.landed:
                flight.result = result
                flight.landed = True
            wakers, flight.wakers = flight.wakers, {}
        for wake in list(wakers):
            wake()

    def bind(self, flight: Flight[T]) -> None:
        """Note that the key belongs to the leader's params, and wake all who wait."""
        with self._lock.own():
            if flight.bound:
                return
            flight.bound = True
            wakers, flight.wakers = flight.wakers, {}
        for wake in list(wakers):
            wake()

    def wake_on_change(self, flight: Flight[T], wake: Waker, *, until_bound: bool) -> bool:
        """Call ``wake`` when the flight is next bound or lands.

        Returns False, and never calls it, if there is nothing to wait for: the flight has landed,
        or ``until_bound`` is true and it is bound.
        """
        with self._lock.own():
            if flight.landed or (until_bound and flight.bound):
                return False
            flight.wakers[wake] = None
            return True

    def is_aboard(self, flight: Flight[T]) -> bool:
        """Say whether the caller runs inside the flight's handler."""
        return flight in self._aboard.get()

    def aboard(self, flight: Flight[T]) -> _Aboard[T]:
        """Make :meth:`is_aboard` true for what this block calls, and for tasks that it starts.

        It is not true for threads that it starts: they must not wait for the block's own flight.
        """
        return _Aboard(self._aboard, flight)


class _Aboard(Generic[T]):
    """The block of :meth:`SingleFlight.aboard`; a class, since a generator costs twice as much."""

    __slots__ = ("_flight", "_token", "_variable")

    def __init__(self, variable: ContextVar[tuple[Flight[T], ...]], flight: Flight[T]) -> None:
        self._variable = variable
        self._flight = flight

    def __enter__(self) -> None:
        # A landed flight is there only if an interrupt came before its block could be left.
        still = [each for each in self._variable.get() if not each.landed]
        self._token = self._variable.set((*still, self._flight))

    def __exit__(self, *_: object) -> None:
        try:
            self._variable.reset(self._token)
        except ValueError:
            pass  # the garbage collector ends a coroutine, in a context that is not its own


def fresh(error: Exception) -> Exception:
    """Return a copy of an exception that another caller can raise.

    It has the same class, args, attributes and cause, a list of notes of its own, and no traceback.
    None of the class's code runs, so it may be frozen, and its constructor may want anything. The
    exceptions of a group are copied too. Where no copy can be made, this is a
    :class:`~kvreplay.ReplayError` that says so, with the exception as its cause.
    """
    kind = type(error)
    native: Any = kind  # the built-in class below it, which knows how to copy what it holds
    while native.__flags__ & _HEAP_TYPE and native.__base__ is not None:
        native = native.__base__
    try:
        _, args, *state = native.__reduce__(error)
        if isinstance(error, ExceptionGroup):
            args = (error.message, [fresh(each) for each in error.exceptions])
        clone: Exception = native.__new__(kind, *args)
        native.__init__(clone, *args)
        for name in ("__cause__", "__context__", "__suppress_context__"):
            object.__setattr__(clone, name, getattr(error, name))  # a frozen class would refuse
        for name, value in (state[0] if state and state[0] else {}).items():
            if name in vars(error):
                vars(clone)[name] = list(value) if name == "__notes__" else value
            else:  # not an attribute of its own, but the built-in class's
                object.__setattr__(clone, name, value)
        for slot in _slots_of(kind):
            with suppress(AttributeError):  # it is not set
                slot.__set__(clone, slot.__get__(error, kind))
    except Exception as failure:  # a class of foreign code may do anything
        clone = ReplayError(
            f"the run that this request waited for raised a {kind.__name__}, of which no copy can"
            f" be made ({type(failure).__name__}), so it is the cause of this error; nothing ran"
            " here"
        )
        clone.__cause__ = error
    return clone


_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the class was made at run time


def _slots_of(kind: type) -> Iterator[MemberDescriptorType]:
    """Yield the ``__slots__`` of a class and its bases that were made at run time."""
    for base in kind.__mro__:
        if base.__flags__ & _HEAP_TYPE:
            yield from (each for each in vars(base).values() if type(each) is MemberDescriptorType)


flights: Final[SingleFlight[object]] = SingleFlight()
"""This process's table."""
