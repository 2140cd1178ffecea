"""One drive of a flow on one key: the answers to the steps that need no handler and no sleep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, cast

from kvreplay._protocol.keys import ReplayKey, name, scope_name
from kvreplay._protocol.steps import (
    Begin,
    CheckAndPut,
    Log,
    Probe,
    Raised,
    Read,
    Returned,
    Settled,
    Transact,
    Undo,
)
from kvreplay._runtime import liveness
from kvreplay._runtime.observer import event_of
from kvreplay._runtime.patience import Patience
from kvreplay._runtime.settings import Settings
from kvreplay._runtime.singleflight import Flight, flights
from kvreplay.errors import (
    ConfigError,
    InFlightError,
    InvalidParamsError,
    KeyNotFoundError,
    RecordError,
    StoreError,
)
from kvreplay.events import ANSWERS, AnswerKind, EventKind, logger
from kvreplay.store import AsyncKVTransaction, Change, JoinedTransaction, PromptKVStore
from kvreplay.store.awaited import AsyncJoinedTransaction
from kvreplay.store.locks import ProcessMark

__all__ = ["PLAIN", "ReadsAndPuts", "Run"]

PLAIN: Final = frozenset((Begin, CheckAndPut, Log, Probe, Read, Undo))
"""The steps that a run answers alone: they need no function of the caller's and no sleep."""

_ENDS: Final = frozenset(ANSWERS)

_joined: Final[set[bytes]] = set()
"""The tokens of the runs of this process in transactions of callers' own.

Only in the same transaction can such a claim be seen: by the handler itself, which must not wait.
"""

_RUNNING: Final[Mapping[liveness.Liveness, bool | None]] = {
    liveness.Liveness.RUNNING: True,
    liveness.Liveness.GONE: False,
    liveness.Liveness.UNKNOWN: None,
}


class ReadsAndPuts(Protocol):
    """What a flow needs from a store, or from a transaction."""

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """As the store's."""

    def check_and_put(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        key: str,
        *,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None = None,
    ) -> bytes | None:
        """As the store's."""


class Run:
    """One drive of a flow on one key: the answers to its steps, and its token.

    Its store may be an awaited one: then :meth:`awaited_answer` answers what is asked of it.
    """

    __slots__ = (
        "_asked_about_doubt",
        "_began",
        "_caller",
        "_found",
        "_has_lost_claim",
        "_is_over",
        "_joins",
        "_patience",
        "_store",
        "_token",
        "_told",
        "_whole",
        "address",
        "flight",
        "is_observed",
        "key",
        "raised",
        "settings",
    )

    def __init__(
        self,
        settings: Settings,
        key: ReplayKey,
        flight: Flight[Any] | None = None,
        patience: Patience | None = None,
        *,
        began: float = 0.0,
        transaction: ReadsAndPuts | AsyncKVTransaction | None = None,
        whole: Run | None = None,
    ) -> None:
        self.settings = settings
        self.key = key
        self.flight = flight
        self._patience = patience
        self._began = began
        self._whole = whole  # not the run itself: only the collector would free it
        # Nothing is decided before a transaction commits.
        self.is_observed = transaction is None
        self._store: Any = settings.asked if transaction is None else transaction
        self.address = (settings.name, scope_name(key.scope), name(key.id, key.operation))
        self.raised: Exception | None = None
        self._token: bytes | None = None
        self._found: bytes | None = None  # the key's record, as last seen
        self._is_over = False
        self._asked_about_doubt = False
        self._has_lost_claim = False
        self._joins = False
        self._told: EventKind | None = None
        self._caller: ProcessMark | None = None  # the process that runs the handler

    def inside(self, transaction: ReadsAndPuts | AsyncKVTransaction) -> Run:
        """Return the same run on a transaction of the store."""
        return Run(
            *(self.settings, self.key, self.flight),
            began=self._began,
            transaction=transaction,
            whole=self,
        )

    def takes_over(self, inner: Run, error: Exception) -> bool:
        """Remember what the handler raised inside a transaction; say whether it is this error."""
        self.raised, inner.raised, inner.flight = inner.raised, None, None
        return error is self.raised

    @property
    def lock_timeout(self) -> float | None:
        """For how many seconds to wait for the locks of others; ``None``: no limit."""
        return 0.0 if self._patience is None else self._patience.seconds

    def join(self, transaction: JoinedTransaction | AsyncJoinedTransaction) -> None:
        """Go on in a transaction of the caller's own, in which nothing counts before its commit."""
        self._joins, self.is_observed = True, False
        self._store = cast(ReadsAndPuts, transaction)  # an asynchronous one is awaited elsewhere
        if not transaction.sees_commits:
            self._patience = None  # nobody's answer would ever show

    def calling(self) -> None:
        """Note that the handler is about to run: the key belongs to this run's params.

        Raises:
            ReplayClosedError: the replay was closed; the handler must not run.
        """
        self.settings.running.begin(self._whole or self, self.key)
        self._caller, self._asked_about_doubt = liveness.this_process(), False
        self.bind()
        self.settings.observer.emit("started", self.key, self._began)

    def reconciling(self) -> None:
        """Note that the key is in doubt, and that the reconciler is asked about it."""
        self._asked_about_doubt = True
        self.bind()

    def waiting(self, delay: int) -> float:
        """Note that another owner runs the key, with this run's params.

        Returns:
            For how many seconds to wait, up to ``delay`` (ms); 0: the time to wait is over.
        """
        self.bind()
        left = self._patience.left(delay / 1000) if self._patience is not None else 0.0
        if left and self._patience is not None and not self._patience.has_waited:
            self._patience.has_waited = True
            self.settings.observer.emit("waited", self.key, self._began)
        elif not left and self.flight is not None:
            self.flight.out_of_time = True
        return left

    def ended(self, ended: Returned | Raised) -> Returned | Raised:
        """Remember what the handler raised: it is no decision about this key.

        In a child that the handler forked this raises, since its parent's run goes on.
        """
        if isinstance(ended, Raised):
            self.raised = ended.error
        if self.is_inherited:
            if isinstance(ended, Raised):
                raise ended.take()
            raise InFlightError(
                "a forked child came out of a handler that its parent runs: that run goes on, and"
                " nothing was stored here; end such a child inside the handler, by os._exit()",
                1.0,
            )
        return ended

    def refuse_child(self) -> None:
        """Raise a StoreError in a forked child of the process whose handler this run has called."""
        if self.is_inherited:
            raise StoreError("a forked child cannot end its parent's run; nothing was changed")

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a forked child of the one whose handler this run has called."""
        return self._caller is not None and not self._caller[0]

    def locate(self, error: BaseException) -> None:
        """Say in an error about the key's record where that is."""
        if isinstance(error, RecordError) and not error.addresses:
            error.addresses = (self.address,)

    def failed(self, error: BaseException) -> StopIteration | None:
        """Emit the event of the error that ended this run, and forget what leads to the error.

        Returns the handler's StopIteration, if that is what ended the run: the flow, as every
        generator does, has made a RuntimeError of it.
        """
        raised, self.raised, self.flight = self.raised, None, None
        stopped = isinstance(raised, StopIteration) and error.__cause__ is raised
        if self._told is None:
            kind = self._end_of(error, is_own=stopped or error is raised)
            if kind is not None:
                self._tell(kind)
        return raised if stopped and isinstance(raised, StopIteration) else None

    def _end_of(self, error: BaseException, *, is_own: bool) -> AnswerKind | None:
        """Return how the request ended that this error ends, if no put has told it.

        ``is_own``: the handler raised it.
        """
        if is_own and self._has_lost_claim:
            return "claim_lost"
        if is_own:  # a claim is still there: it could not be withdrawn
            return "released" if self._token is None or self._joins else "doubt_begun"
        kind = event_of(error)
        if kind == "in_doubt" and self._caller is not None:
            return "doubt_begun"
        if kind is None and self._asked_about_doubt:  # the reconciler failed, or its verdict did
            return "in_doubt"
        if kind is None and not isinstance(error, InvalidParamsError | ConfigError):
            return "released"  # closed, undone, no thread: the key is as it was
        return kind

    def answered(self, settled: Settled | Raised) -> None:
        """Emit how the request ended, if no put has told it."""
        if self._told is not None:
            return
        if isinstance(settled, Raised):  # a final failure in the caller's transaction
            self._tell("joined")
        elif settled.replayed and not (self._joins and self._asked_about_doubt):
            self._tell("replayed")
        else:
            self._tell("joined" if self._joins and settled.expires_at is not None else "released")

    def _tell(self, kind: EventKind) -> None:
        if kind in _ENDS:
            self._told = kind
        claimed = self._caller is None or self._token is not None
        self.settings.observer.emit(kind, self.key, self._began, found=self._found, claimed=claimed)

    def bind(self) -> None:
        """Note that the key belongs to this run's params: requests with others are now refused."""
        if self.flight is not None:
            flights.bind(self.flight)

    def answer(self, step: object) -> Any:
        """Answer a step that is one of :data:`PLAIN`."""
        if isinstance(step, CheckAndPut):
            self.refuse_child()
            seen = self._store.check_and_put(
                *self.address,
                expected=step.expected,
                value=step.value,
                expires_at=step.expires_at,
            )
            return seen, self.settings.now()
        if isinstance(step, Read):
            try:
                found = self._store.read(*self.address)
            except KeyNotFoundError:
                return None, self.settings.now()
            self._found = found
            return found, self.settings.now()
        if isinstance(step, Begin):
            return self._begin()
        if isinstance(step, Probe):
            if step.claim.token in _joined:
                self._patience = None
            return _RUNNING[liveness.look_up(step.claim, self.settings.owners_file)]
        if isinstance(step, Undo):
            self.refuse_child()
            return cast(JoinedTransaction, self._store).undo()
        if isinstance(step, Log):
            return logger().warning(step.text, step.failure)
        raise TypeError(f"no answer to a {type(step).__name__} step")

    async def awaited_answer(self, step: CheckAndPut | Read) -> Any:
        """Answer a step that asks the store, on an awaited one."""
        if isinstance(step, CheckAndPut):
            self.refuse_child()
            seen = await self._store.check_and_put(
                *self.address,
                expected=step.expected,
                value=step.value,
                expires_at=step.expires_at,
            )
            return seen, self.settings.now()
        try:
            found = await self._store.read(*self.address)
        except KeyNotFoundError:
            return None, self.settings.now()
        self._found = found
        return found, self.settings.now()

    def put_at_once(self, step: CheckAndPut) -> Any:
        """Answer this step without waiting for anybody, on a store that is prompt.

        Raises:
            StoreUnavailableError: it would wait; nothing was changed.
        """
        store = cast(PromptKVStore, self.settings.store)
        seen = store.check_and_put_at_once(
            *self.address,
            expected=step.expected,
            value=step.value,
            expires_at=step.expires_at,
        )
        return seen, self.settings.now()

    def change(self, step: CheckAndPut) -> Change:
        """Return a check-and-put of this key as what a batching store takes."""
        return Change(*self.address, step.expected, step.value, step.expires_at)

    def emit_decision(self, step: object, answer: Any) -> None:
        """Emit what a successful put or transaction has decided, if the run ``is_observed``."""
        if isinstance(step, CheckAndPut):
            self._found = step.value if answer[0] == step.expected else answer[0]
            if step.event and answer[0] == step.expected:
                self._tell(step.event)
            elif step.event in _ENDS:
                self._has_lost_claim = True
        elif isinstance(step, Transact) and isinstance(answer, Settled):
            self._tell("released" if answer.expires_at is None else "completed")

    def _begin(self) -> tuple[bytes, str]:
        self.settings.running.check_open()  # before a claim is stored
        if self._token is not None:
            liveness.end(self._token)  # of an attempt in which another owner was faster
            _joined.discard(self._token)
        token = self._token = liveness.new_token()
        if self._joins:
            _joined.add(token)
        owner = liveness.begin(token, self.settings.owners_file)
        if self._is_over:  # it was cancelled while a thread did this
            liveness.end(token)
        return token, owner

    def end(self, closing: Callable[[Callable[[], None]], object] | None = None) -> None:
        """Note that nothing runs any more under this run's token.

        Args:
            closing: see :func:`kvreplay._runtime.liveness.end`.
        """
        self._is_over = True
        if self._whole is None:
            self.settings.running.end(self)
        if self._token is not None:
            _joined.discard(self._token)
            liveness.end(self._token, closing)
