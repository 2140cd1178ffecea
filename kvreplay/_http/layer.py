"""The rules of one layer, without input and output: ``asgi.py`` and ``wsgi.py`` do that.

What is always true:

* A request that is covered and has a key runs the application only inside ``execute`` of the
  replay, under the key of its authenticated caller. Whatever cannot be decided is refused before.
* The application's answer is stored before a client sees its end.
* A run whose effect is not known never frees its key: an exception, an incomplete answer, a 5xx
  other than 503, and whatever the table of the profile says.
* No text of the layer shows a key of another request, a caller, or a body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar

import attrs

from kvreplay import NotStored, Outcome, ReplayKey, ReplayRecord, State
from kvreplay._http.answers import Answer, Headers, answer_in, marked, stored
from kvreplay._http.header import MalformedKeyError
from kvreplay._http.policy import page
from kvreplay._http.problems import Refusal
from kvreplay._http.profile import Profile, told
from kvreplay._http.requests import Ending, IdempotentRequest, Incoming
from kvreplay.clock import Duration
from kvreplay.errors import (
    ClaimLostError,
    ConfigError,
    ExpiredError,
    IndeterminateError,
    InDoubtError,
    InFlightError,
    KVReplayError,
    NotAppliedError,
    ParamsMismatchError,
    RecordError,
    ReplayClosedError,
    ResponseTypeError,
    StoredFailureError,
    StoreError,
    UnsupportedRecordVersionError,
)

__all__ = ["Asking", "InDoubtAnswerError", "Layer", "Request", "Run", "is_copy"]

C = TypeVar("C", bound=MutableMapping[str, Any])
"""An ASGI scope or a WSGI environ."""


class InDoubtAnswerError(IndeterminateError):
    """The application gave an answer by which nobody knows whether something happened."""


@attrs.define(repr=False)
class Asking:
    """A request with a key; ``of_state``: it asks what became of that key."""

    key: str
    of_state: bool


@attrs.define(repr=False)
class Request:
    """What is executed: ``key`` and ``params`` for the replay, ``told`` for the application.

    ``most``: bytes of an answer that can be kept; ``marks``: what the profile adds to its headers.
    """

    key: ReplayKey
    params: dict[str, Any]
    told: IdempotentRequest
    most: int
    marks: Headers


class Run(Protocol):
    """One run of the application, as the layer looks at it.

    ``answer``: what can be kept of a complete one.
    """

    answer: Answer | None

    @property
    def has_failed(self) -> bool:
        """Whether the application has ended without a complete answer."""

    def first_answer(self) -> Answer:
        """Return the application's answer as it gave it, with the marks of the profile."""


@attrs.frozen(repr=False, eq=False)
class Layer(Generic[C]):
    """The settings of a layer, checked (see ``settings.py``), and its decisions.

    Attributes:
        kept: the names of the headers that a record keeps.
        marker: what marks a replay.
        retry_after: seconds.
        most: bytes of an answer that can be kept; ``room``: the same, with the path and the query.
        ttl: how long an answer is kept (ms).
        now: the replay's clock.
    """

    profile: Profile
    caller_of: Callable[[C], Any]
    methods: frozenset[str]
    covers: Callable[[C], bool] | None
    required: bool | Callable[[C], bool]
    bare_keys: bool
    statuses: Mapping[int | str, Ending]
    kept: frozenset[bytes]
    marker: Headers
    wait_timeout: Duration | None
    retry_after: float
    max_body_bytes: int
    most: int
    room: int
    policy_path: bytes | None
    policy_url: str | None
    challenge: Headers
    ttl: int
    now: Callable[[], int]

    # Before the application runs.

    def asking(self, incoming: Incoming, at: C) -> Asking | Answer | None:
        """Return what a request asks for, or the answer to it; ``None``: it is not the layer's."""
        if "kvreplay.request" in at:
            return None  # a layer around this one has it already
        if incoming.method == "GET" and self._is_policy(incoming):
            if incoming.field is None:
                required = self.required
                needs = "may need" if callable(required) else "need" if required else "may have"
                methods = f"{', '.join(sorted(self.methods))} requests {needs}"
                return page(self.profile, self.ttl, methods, self.statuses)
            of_state = True
        else:
            # In any case: Django and Flask take "patch", which browsers send so, for PATCH.
            if incoming.method.upper() not in self.methods:
                return None
            if self.covers is not None and not self.covers(at):
                return None
            if incoming.field is None:
                required = self.required
                if required if isinstance(required, bool) else required(at):
                    return self.refuse(Refusal("missing-key"), incoming)
                return None
            of_state = False
        try:
            return Asking(self.profile.key_in(incoming.field, bare=self.bare_keys), of_state)
        except MalformedKeyError as error:
            why = f"The Idempotency-Key header is wrong: {error}."
            return self.refuse(Refusal("malformed-key", why=why), incoming)

    def identify(self, asking: Asking, caller: object, incoming: Incoming) -> ReplayKey | Answer:
        """Return the replay key, or the answer to a request without a caller."""
        if caller is None or caller == "":
            return self.refuse(Refusal("unauthenticated", headers=self.challenge), incoming)
        if not isinstance(caller, str):
            raise ConfigError(
                f"scope= returned a {type(caller).__name__}; it must return the authenticated"
                " caller as str, or None; nothing ran"
            )
        caller = str.__str__(caller)  # of a subclass, as SafeString or a StrEnum, the text itself
        if not asking.of_state:
            return self.profile.replay_key(caller, asking.key, incoming)
        key = self.profile.asked_key(caller, asking.key, incoming)
        return self.refuse(key, incoming) if isinstance(key, Refusal) else key

    def request(self, key: ReplayKey, incoming: Incoming, body: bytes) -> Request:
        """Return what to execute."""
        room = self.room - len(incoming.path) - len(incoming.query) - 4 * len(key.scope)
        room -= len(key.operation or "")
        params = self.profile.params(incoming, body)
        most = max(0, min(self.most, room))
        return Request(key, params, IdempotentRequest(key), most, self.marks(incoming))

    # After it has run.

    def result(self, answer: Answer, request: Request) -> dict[str, Any] | NotStored[Any]:
        """Return what the run returns to the replay, by the answer's status or as it was told.

        Raises:
            InDoubtAnswerError: the key is in doubt.
        """
        ending = request.told.ending or self._ending(answer.status)
        if ending == "kept" and answer.status >= 500 and not self.profile.keeps_5xx:
            ending = "in doubt"  # the application says so; nothing may run again either
        if ending == "in doubt":
            raise InDoubtAnswerError(
                f"the application answered {answer.status}: whether something happened is not known"
            )
        kept = stored(answer, self.kept)
        return NotStored(kept) if ending == "freed" else kept

    def unanswered(self, request: Request, error: BaseException | None) -> Exception:
        """Return what the run raises of an application that ended without a complete answer."""
        if isinstance(error, NotAppliedError) or request.told.ending == "freed":
            return NotAppliedError("the application says that nothing happened")
        how = "ended without a complete answer" if error is None else f"raised {_name_of(error)}"
        return IndeterminateError(f"the application {how}: whether something happened is not known")

    def answered(self, outcome: Outcome[Answer], run: Run, incoming: Incoming) -> Answer:
        """Return the answer to a request that ``execute`` has answered."""
        return self.replayed(outcome, incoming) if outcome.replayed else run.first_answer()

    def replayed(self, outcome: Outcome[Answer], incoming: Incoming) -> Answer:
        """Return the answer of a replay, or of a run that this request has waited for."""
        answer = outcome.response
        if answer.body is None:
            members = {"original_status": answer.status}
            return self.refuse(Refusal("not-kept", members=members), incoming)
        marker = () if outcome.expires_at is None else self.marker  # that one freed the key
        headers = marked(answer.headers, marker + self.marks(incoming))
        return Answer(answer.status, headers, answer.body)

    def marks(self, incoming: Incoming) -> Headers:
        """Return the headers that the profile adds to each answer to a request with a key."""
        return self.profile.headers(incoming.field or "")

    def refused(self, error: KVReplayError, run: Run, incoming: Incoming) -> Answer | None:
        """Return the answer to a request that ``execute`` has refused.

        ``None``: the application has ended without one.

        Raises:
            KVReplayError: the error itself: a setting is wrong.
        """
        if isinstance(error, InDoubtAnswerError) and run.answer is not None:
            return run.first_answer()  # else it is of the run that this request waited for
        if run.has_failed:
            return None
        return self.failed(error, incoming, run.answer)

    def failed(self, error: KVReplayError, incoming: Incoming, ran: Answer | None = None) -> Answer:
        """Return the answer that tells of an error; ``ran``: what the application has answered.

        Raises:
            KVReplayError: the error itself: a setting is wrong.
        """
        return self.refuse(self._refusal_of(error, ran), incoming)

    def _refusal_of(self, error: KVReplayError, ran: Answer | None) -> Refusal:
        soon = self.retry_after
        match error:
            case InDoubtError() if ran is not None:
                return Refusal("not-stored", soon, members={"application_status": ran.status})
            case InDoubtError():
                return Refusal("in-doubt", error.retry_after)
            case ClaimLostError():
                return Refusal("superseded", soon)
            case ParamsMismatchError():
                return Refusal("key-reused")
            case ExpiredError():
                return Refusal("expired")
            case InFlightError():
                return Refusal("running", soon)
            case ReplayClosedError() | UnsupportedRecordVersionError() | StoreError():
                return Refusal("unavailable", soon)
            case RecordError() | ResponseTypeError() | StoredFailureError():
                return Refusal("damaged")
        raise error

    def state(self, record: ReplayRecord | None, in_doubt: bool, incoming: Incoming) -> Answer:
        """Return the answer to a request that asks for the state of a key."""
        if record is None:
            return self.refuse(Refusal("unknown-key"), incoming)
        body: dict[str, Any] = {"created_at": _iso(record.created_at)}
        expires_at = record.expires_at
        if expires_at is None:  # it is a claim
            body["state"] = "in doubt" if in_doubt else "running"
        elif record.state is State.TOMBSTONE or expires_at <= self.now():
            body["state"] = "expired"
        else:
            body |= {"state": "answered", "expires_at": _iso(expires_at)}
            answer = answer_in(record.load_response())
            if answer is not None:
                body["status"] = answer.status
        headers = ((b"content-type", b"application/json"), *self.marks(incoming))
        return told(200, headers, body, Refusal("unknown-key"))

    def refuse(self, refusal: Refusal, incoming: Incoming) -> Answer:
        """Return the answer that tells of a problem, in the profile's form."""
        link = self.policy_url
        if link is None:
            assert self.policy_path is not None  # one of them was given
            link = (incoming.root + self.policy_path).decode("utf-8", "replace")
        return self.profile.refusal(refusal, link, incoming.field)

    def _ending(self, status: int) -> Ending:
        own = self.statuses
        found = own.get(status) or own.get(f"{status // 100}xx")
        return found or self.profile.ending(status)

    def _is_policy(self, incoming: Incoming) -> bool:
        path = self.policy_path
        return path is not None and incoming.path.removeprefix(incoming.root) == path


def is_copy(error: Exception) -> bool:
    """Say whether it is a copy, made for a request that waited for the run that raised it."""
    return type(error.__cause__) is type(error)


def _name_of(error: BaseException) -> str:
    return type(error).__name__


def _iso(at: int) -> str:
    moment = datetime.fromtimestamp(at / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
