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

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Generic, Literal, TypeVar

import attrs

from kvreplay import AsyncReplay, NotStored, Replay, ReplayKey, ReplayRecord
from kvreplay._http.acp import ACP
from kvreplay._http.answers import Answer, answer_in, keeping, stored
from kvreplay._http.header import MalformedKeyError
from kvreplay._http.policy import page
from kvreplay._http.problems import Refusal
from kvreplay._http.profile import Profile, told
from kvreplay._http.requests import ENDINGS, Ending, IdempotentRequest, Incoming
from kvreplay._http.stripe import Stripe
from kvreplay.clock import Duration, to_ms
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
    StoreError,
    UnsupportedRecordVersionError,
)

__all__ = ["Asking", "InDoubtAnswerError", "Layer", "ProfileName", "Request"]

C = TypeVar("C")
"""An ASGI scope or a WSGI environ."""

ProfileName = Literal["ietf", "stripe", "acp"]

PROFILES: Final[Mapping[str, type[Profile]]] = {"ietf": Profile, "stripe": Stripe, "acp": ACP}

_ROOM: Final = 16 * 1024
"""Bytes of a record besides the answer, the path and the query."""

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


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

    ``most``: bytes of an answer that can be kept.
    """

    key: ReplayKey
    params: dict[str, Any]
    told: IdempotentRequest
    most: int


class Layer(Generic[C]):
    """The settings of a layer, checked, and its decisions.

    The arguments are those of :class:`kvreplay.asgi.IdempotencyMiddleware`; ``kind``: the class of
    the replay.
    """

    def __init__(
        self,
        replay: Replay | AsyncReplay,
        *,
        kind: type[Replay] | type[AsyncReplay],
        scope: Callable[[C], Any],
        profile: ProfileName,
        methods: Collection[str] | None,
        covers: Callable[[C], bool] | None,
        required: bool | Callable[[C], bool] | None,
        bare_keys: bool,
        statuses: Mapping[int | str, Ending] | None,
        stored_headers: Iterable[str],
        replay_header: str | None,
        wait_timeout: Duration | None,
        retry_after: Duration,
        max_body_bytes: int,
        max_answer_bytes: int | None,
        policy_path: str | None,
        policy_url: str | None,
        challenge: str,
    ) -> None:
        _check(callable(scope), "scope", scope, "a function that returns the authenticated caller")
        if not isinstance(replay, kind):
            raise ConfigError(
                f"replay is a {type(replay).__name__}; this layer needs a kvreplay.{kind.__name__}"
            )
        self._settings = settings = replay._settings  # adapters of this package may look
        if settings.policy.lease is None:
            raise ConfigError(
                "the replay has lease=None, so a crash in the middle leaves no trace, and a retry"
                " would run again: give it a lease"
            )
        if settings.codec is not None:
            raise ConfigError(
                "the replay has encode= and decode=; the layer stores HTTP answers by itself: give"
                " it a replay without them, in a namespace of its own"
            )
        if profile not in PROFILES:
            raise ConfigError(f"profile is {profile!r}; it can be {', '.join(map(repr, PROFILES))}")
        own = PROFILES[profile]()
        self.profile = own
        self.caller_of = scope
        self._methods = own.methods if methods is None else _methods(methods)
        _check(covers is None or callable(covers), "covers", covers, "a function, or None")
        self._covers = covers
        if required is None:
            required = own.required
        _check(
            isinstance(required, bool) or callable(required),
            *("required", required, "True, False or a function"),
        )
        self._required = required
        _check(isinstance(bare_keys, bool), "bare_keys", bare_keys, "True or False")
        if bare_keys and own.name != "ietf":
            raise ConfigError(f"bare_keys is for profile 'ietf'; under {profile!r} every key is")
        self._bare_keys = bare_keys
        self._statuses = _statuses(statuses)
        self._kept = keeping(stored_headers)
        _check(
            replay_header is None or isinstance(replay_header, str),
            *("replay_header", replay_header, "the name of a header, or None"),
        )
        self._marker = (replay_header and ((replay_header.lower().encode("ascii"), b"true"),)) or ()
        if wait_timeout is not None:
            to_ms(wait_timeout, "wait_timeout")
        self.wait_timeout = wait_timeout
        self._retry_after = to_ms(retry_after, "retry_after") / 1000
        _check(
            type(max_body_bytes) is int and max_body_bytes >= 0,
            *("max_body_bytes", max_body_bytes, "an int of at least 0"),
        )
        self.max_body_bytes = max_body_bytes
        self._room = _room(settings.policy.max_record_bytes)
        self._most = _most(max_answer_bytes, self._room)
        _check_policy(policy_path, policy_url)
        self._policy_path = None if policy_path is None else policy_path.encode()
        self._policy_url = policy_url
        _check(isinstance(challenge, str), "challenge", challenge, "the text of WWW-Authenticate")
        self._challenge = ((b"www-authenticate", challenge.encode("latin-1")),)

    # Before the application runs.

    def asking(self, incoming: Incoming, at: C) -> Asking | Answer | None:
        """Return what a request asks for, or the answer to it; ``None``: it is not the layer's."""
        if incoming.method == "GET" and self._is_policy(incoming):
            if incoming.field is None:
                required = self._required
                needs = "may need" if callable(required) else "need" if required else "may have"
                methods = f"{', '.join(sorted(self._methods))} requests {needs}"
                return page(self.profile, self._settings.ttl, methods, self._statuses)
            of_state = True
        else:
            if incoming.method not in self._methods:
                return None
            if self._covers is not None and not self._covers(at):
                return None
            if incoming.field is None:
                required = self._required
                if required if isinstance(required, bool) else required(at):
                    return self.refuse(Refusal("missing-key"), incoming)
                return None
            of_state = False
        try:
            return Asking(self.profile.key_in(incoming.field, bare=self._bare_keys), of_state)
        except MalformedKeyError as error:
            why = f"The Idempotency-Key header is wrong: {error}."
            return self.refuse(Refusal("malformed-key", why=why), incoming)

    def identify(self, asking: Asking, caller: object, incoming: Incoming) -> ReplayKey | Answer:
        """Return the replay key, or the answer to a request without a caller."""
        if caller is None or caller == "":
            return self.refuse(Refusal("unauthenticated", headers=self._challenge), incoming)
        if not isinstance(caller, str):
            raise ConfigError(
                f"scope= returned a {type(caller).__name__}; it must return the authenticated"
                " caller as str, or None; nothing ran"
            )
        return self.profile.replay_key(caller, asking.key, incoming)

    def request(self, key: ReplayKey, incoming: Incoming, body: bytes) -> Request:
        """Return what to execute."""
        room = self._room - len(incoming.path) - len(incoming.query) - 4 * len(key.scope)
        params = self.profile.params(incoming, body)
        return Request(key, params, IdempotentRequest(key), max(0, min(self._most, room)))

    # After it has run.

    def result(self, answer: Answer, request: Request) -> dict[str, Any] | NotStored[Any]:
        """Return what the run returns to the replay, by the answer's status or as it was told.

        Raises:
            InDoubtAnswerError: the key is in doubt.
        """
        ending = request.told.ending or self._ending(answer.status)
        if ending == "in doubt":
            raise InDoubtAnswerError(
                f"the application answered {answer.status}: whether something happened is not known"
            )
        kept = stored(answer, self._kept)
        return NotStored(kept) if ending == "freed" else kept

    def unanswered(self, request: Request, error: BaseException | None) -> Exception:
        """Return what the run raises of an application that ended without a complete answer."""
        if isinstance(error, NotAppliedError) or request.told.ending == "freed":
            return NotAppliedError("the application says that nothing happened")
        how = "ended without a complete answer" if error is None else f"raised {_name_of(error)}"
        return IndeterminateError(f"the application {how}: whether something happened is not known")

    def replayed(self, response: object, incoming: Incoming) -> Answer:
        """Return the answer of a replay."""
        answer = answer_in(response)
        if answer is None:
            return self.refuse(Refusal("damaged"), incoming)
        if answer.body is None:
            members = {"original_status": answer.status}
            return self.refuse(Refusal("not-kept", members=members), incoming)
        return attrs.evolve(answer, headers=answer.headers + self._marker + self.marks(incoming))

    def marks(self, incoming: Incoming) -> tuple[tuple[bytes, bytes], ...]:
        """Return the headers that the profile adds to each answer to a request with a key."""
        return self.profile.headers(incoming.field or "")

    def failed(self, error: KVReplayError, ran: int | None, incoming: Incoming) -> Answer:
        """Return the answer to a request that ``execute`` has refused.

        Args:
            ran: the status of the application's answer, if it has given one.

        Raises:
            KVReplayError: the error itself: a setting is wrong.
        """
        return self.refuse(self._refusal_of(error, ran), incoming)

    def _refusal_of(self, error: KVReplayError, ran: int | None) -> Refusal:
        soon = self._retry_after
        match error:
            case InDoubtError() if ran is not None:
                return Refusal("not-stored", soon, members={"application_status": ran})
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
            case RecordError():
                return Refusal("damaged")
        raise error

    def state(self, record: ReplayRecord | None, in_doubt: bool, incoming: Incoming) -> Answer:
        """Return the answer to a request that asks for the state of a key."""
        if record is None:
            return self.refuse(Refusal("unknown-key"), incoming)
        answer = answer_in(record.load_response())
        if in_doubt:
            state = "in doubt"
        elif record.claim is not None:
            state = "running"
        elif record.expires_at is not None and record.expires_at <= self._settings.now():
            state, answer = "expired", None
        else:
            state = "answered"
        body: dict[str, Any] = {"state": state, "created_at": _iso(record.created_at)}
        if answer is not None:
            body["status"] = answer.status
        if record.expires_at is not None:
            body["expires_at"] = _iso(record.expires_at)
        headers = ((b"content-type", b"application/json"), *self.marks(incoming))
        return told(200, headers, body, Refusal("unknown-key"))

    def refuse(self, refusal: Refusal, incoming: Incoming) -> Answer:
        """Return the answer that tells of a problem, in the profile's form."""
        link = self._policy_url
        if link is None:
            assert self._policy_path is not None  # one of them was given
            link = (incoming.root + self._policy_path).decode("utf-8", "replace")
        return self.profile.refusal(refusal, link, incoming.field)

    def _ending(self, status: int) -> Ending:
        own = self._statuses
        found = own.get(status) or own.get(f"{status // 100}xx")
        return found or self.profile.ending(status)

    def _is_policy(self, incoming: Incoming) -> bool:
        path = self._policy_path
        return path is not None and incoming.path.removeprefix(incoming.root) == path


def _check(is_right: bool, name: str, given: object, wanted: str) -> None:
    if not is_right:
        raise ConfigError(f"{name} is {given!r}; give {wanted}")


def _methods(methods: Collection[str]) -> frozenset[str]:
    if isinstance(methods, str) or not all(isinstance(each, str) for each in methods):
        raise ConfigError(f"methods is {methods!r}; give a tuple, such as ('POST', 'PATCH')")
    chosen = frozenset(each.upper() for each in methods)
    if safe := chosen & _SAFE:
        raise ConfigError(
            f"methods has {', '.join(sorted(safe))}, which changes nothing, so it needs no key"
        )
    return chosen


def _statuses(statuses: Mapping[int | str, Ending] | None) -> Mapping[int | str, Ending]:
    chosen: dict[int | str, Ending] = {}
    for status, ending in (statuses or {}).items():
        is_one = type(status) is int and 200 <= status <= 599
        if not is_one and status not in ("2xx", "3xx", "4xx", "5xx"):
            raise ConfigError(
                f"statuses has {status!r}; give a status such as 404, or a class such as '4xx'"
            )
        if ending not in ENDINGS:
            raise ConfigError(
                f"statuses says {ending!r} of {status!r}; it can be {', '.join(map(repr, ENDINGS))}"
            )
        chosen[status] = ending
    return chosen


def _room(max_record_bytes: int) -> int:
    room = max_record_bytes - _ROOM
    if room < 1:
        raise ConfigError(
            f"the replay's max_record_bytes is {max_record_bytes}, which leaves no room for an"
            f" answer: give it at least {_ROOM * 2}"
        )
    return room


def _most(max_answer_bytes: int | None, room: int) -> int:
    if max_answer_bytes is None:
        return room
    if type(max_answer_bytes) is not int or not 0 <= max_answer_bytes <= room:
        raise ConfigError(
            f"max_answer_bytes is {max_answer_bytes!r}; give an int of 0 to {room}, which the"
            " replay's max_record_bytes leaves for it"
        )
    return max_answer_bytes


def _check_policy(path: object, url: object) -> None:
    if path is None and url is None:
        raise ConfigError(
            "policy_path and policy_url are both None: clients must be able to read the policy of"
            " keys, and each problem links to it; give one of them"
        )
    _check(
        path is None or (isinstance(path, str) and path.startswith("/") and path.isascii()),
        *("policy_path", path, "a path that begins with '/', or None"),
    )
    _check(
        url is None or (isinstance(url, str) and url.isascii() and "://" in url),
        *("policy_url", url, "an absolute URL, or None"),
    )


def _name_of(error: BaseException) -> str:
    return type(error).__name__


def _iso(at: int) -> str:
    moment = datetime.fromtimestamp(at / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
