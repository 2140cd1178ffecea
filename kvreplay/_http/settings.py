"""The settings of a layer: named, explained and checked here, and only here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar

from kvreplay import AsyncReplay, Replay
from kvreplay._http.acp import ACP
from kvreplay._http.answers import Headers, is_header_name, keeping
from kvreplay._http.layer import C, Layer
from kvreplay._http.profile import Profile
from kvreplay._http.requests import ENDINGS, Ending
from kvreplay._http.stripe import Stripe
from kvreplay.clock import Duration, to_ms
from kvreplay.errors import ConfigError

__all__ = ["Configured", "ProfileName"]

A = TypeVar("A")
R = TypeVar("R", bound=Replay | AsyncReplay)
S = TypeVar("S")

ProfileName = Literal["ietf", "stripe", "acp"]

PROFILES: Final[Mapping[str, type[Profile]]] = {"ietf": Profile, "stripe": Stripe, "acp": ACP}

_ROOM: Final = 16 * 1024
"""Bytes of a record besides the answer, the path and the query."""

_is_printable: Final = re.compile(r"[ -~]+").fullmatch
# What may stand in a URL, without "<", ">" and quotes, since it goes into a Link header.
_is_path: Final = re.compile(r"/[!$-;=@-~]*").fullmatch
_is_url: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[!$-;=?-~]+").fullmatch

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class Configured(Generic[A, R, C, S]):
    """An application with a layer around it.

    ``A``: the application. ``R``: the replay. ``C``: an ASGI scope or a WSGI environ. ``S``: what
    ``scope=`` returns.
    """

    _kind: ClassVar[type[Any]]

    def __init__(
        self,
        app: A,
        replay: R,
        *,
        scope: Callable[[C], S],
        profile: ProfileName = "ietf",
        methods: Collection[str] | None = None,
        covers: Callable[[C], bool] | None = None,
        required: bool | Callable[[C], bool] | None = None,
        bare_keys: bool = False,
        statuses: Mapping[int | str, Ending] | None = None,
        stored_headers: Iterable[str] = (),
        replay_header: str | None = "Idempotent-Replayed",
        wait_timeout: Duration | None = 0,
        retry_after: Duration = 1,
        max_body_bytes: int = 1024 * 1024,
        max_answer_bytes: int | None = None,
        policy_path: str | None = "/idempotency",
        policy_url: str | None = None,
        challenge: str = "Bearer",
    ) -> None:
        """Check the settings.

        Args:
            app: the application; any one.
            replay: an :class:`~kvreplay.AsyncReplay`, for WSGI a :class:`~kvreplay.Replay`, with a
                lease, in a namespace of its own.
            scope: returns the authenticated caller of a request, or ``None``, for which the answer
                is 401. It is given the ASGI scope, and may be a coroutine function; or the WSGI
                environ. No answer is ever given to another caller.
            profile: ``"ietf"``, ``"stripe"`` or ``"acp"``. Under the last two the replay's ``ttl``
                must be 24 hours or more.
            methods: those that are covered; by default the profile's: ``POST``, under ``ietf`` also
                ``PATCH``.
            covers: says of a scope or environ whether the layer covers the request; by default it
                covers all.
            required: whether a covered request without a key is refused (``True``) or passed
                through; or a function of the scope or environ that says it. By default the
                profile's: ``True``, under ``stripe`` ``False``.
            bare_keys: profile ``ietf`` accepts keys without quotes too.
            statuses: how a run ends by its answer's status, where the profile's table does not fit:
                ``{404: "freed", "5xx": "in doubt"}``. A status counts before its class.
            stored_headers: names of further headers of an answer that replays have.
            replay_header: marks replays: ``Idempotent-Replayed: true``; ``None``: nothing does.
            wait_timeout: how long a duplicate waits for the run of its key before it is refused; 0:
                not at all; ``None``: no limit.
            retry_after: the time in ``Retry-After``.
            max_body_bytes: the largest body of a request with a key; one that is larger is refused.
            max_answer_bytes: the largest answer, with its headers, that is kept; by default what
                the replay's ``max_record_bytes`` leaves. A larger one is passed on as it comes, and
                a retry is told that it was answered.
            policy_path: where ``GET`` shows the policy of keys, and, with a key, that key's state;
                below the application's ``root_path`` or ``SCRIPT_NAME``. ``None``: nowhere.
            policy_url: where problems link to, if the policy is published elsewhere too.
            challenge: ``WWW-Authenticate`` of a 401.

        Raises:
            ConfigError: a setting is wrong; it names which.
        """
        _check(callable(scope), "scope", scope, "a function that returns the authenticated caller")
        if self._kind is not AsyncReplay:
            _check_plain("scope", scope)
        if not isinstance(replay, self._kind):
            raise ConfigError(
                f"replay is of the class {type(replay).__name__}; this layer needs kvreplay's"
                f" {self._kind.__name__}"
            )
        settings = replay._settings  # private, but of this package
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
        if settings.ttl < own.least_ttl:
            raise ConfigError(
                f"the replay's ttl is {settings.ttl / 1000:g} s; under profile {profile!r} clients"
                f" count on their answers for {own.least_ttl / 1000:g} s: give it at least that"
            )
        if required is None:
            required = own.required
        _check(covers is None or callable(covers), "covers", covers, "a function, or None")
        _check(
            isinstance(required, bool) or callable(required),
            *("required", required, "True, False or a function"),
        )
        _check_plain("covers", covers)
        _check_plain("required", required)
        _check(isinstance(bare_keys, bool), "bare_keys", bare_keys, "True or False")
        if bare_keys and own.name != "ietf":
            raise ConfigError(f"bare_keys is for profile 'ietf'; under {profile!r} every key is")
        _check(
            type(max_body_bytes) is int and max_body_bytes >= 0,
            *("max_body_bytes", max_body_bytes, "an int of at least 0"),
        )
        _check(
            isinstance(challenge, str) and _is_printable(challenge) is not None,
            *("challenge", challenge, "the text of WWW-Authenticate, such as 'Bearer'"),
        )
        endings = _statuses(statuses)
        if not own.keeps_5xx and "kept" in map(endings.get, ("5xx", *range(500, 600))):
            raise ConfigError(
                f"statuses keeps answers of 5xx, which profile {profile!r} never does: say 'in"
                " doubt', or 'freed' where nothing happened"
            )
        if wait_timeout is not None:
            to_ms(wait_timeout, "wait_timeout")
        _check_policy(policy_path, policy_url)
        room = _room(settings.policy.max_record_bytes)
        self._app = app
        # Whatever goes wrong once the application has begun, the layer's own faults too, leaves the
        # key in doubt: only what says so frees it. An expired key says so more than once.
        self._replay: R = replay._with_policy(
            doubt_on=(Exception,),
            store_errors=(),
            tombstone_ttl=settings.policy.tombstone_ttl or settings.ttl,
        )
        self._layer: Layer[C] = Layer(
            profile=own,
            caller_of=scope,
            methods=own.methods if methods is None else _methods(methods),
            covers=covers,
            required=required,
            bare_keys=bare_keys,
            statuses=endings,
            kept=keeping(stored_headers),
            marker=_marker(replay_header),
            wait_timeout=wait_timeout,
            retry_after=to_ms(retry_after, "retry_after") / 1000,
            max_body_bytes=max_body_bytes,
            most=_most(max_answer_bytes, room),
            room=room,
            policy_path=None if policy_path is None else policy_path.encode(),
            policy_url=policy_url,
            challenge=((b"www-authenticate", challenge.encode()),),
            ttl=settings.ttl,
            now=settings.now,
        )
        self._set_up()

    def _set_up(self) -> None:
        """Make what the layer needs besides."""

    def __repr__(self) -> str:
        return f"<IdempotencyMiddleware {self._layer.profile.name} with {self._replay!r}>"


def _check(is_right: bool, name: str, given: object, wanted: str) -> None:
    if not is_right:
        raise ConfigError(f"{name} is {given!r}; give {wanted}")


def _check_plain(name: str, given: object) -> None:
    if inspect.iscoroutinefunction(given):
        raise ConfigError(
            f"{name} is a coroutine function, which nobody awaits here, so it would count as true:"
            " give a plain function"
        )


def _methods(methods: Collection[str]) -> frozenset[str]:
    if (
        isinstance(methods, str)
        or not isinstance(methods, Collection)
        or not methods
        or not all(isinstance(each, str) for each in methods)
    ):
        raise ConfigError(f"methods is {methods!r}; give a tuple, such as ('POST', 'PATCH')")
    chosen = frozenset(each.upper() for each in methods)
    if safe := chosen & _SAFE:
        raise ConfigError(
            f"methods has {', '.join(sorted(safe))}, which changes nothing, so it needs no key"
        )
    return chosen


def _statuses(statuses: Mapping[int | str, Ending] | None) -> Mapping[int | str, Ending]:
    chosen: dict[int | str, Ending] = {}
    _check(
        statuses is None or isinstance(statuses, Mapping),
        *("statuses", statuses, "a mapping, such as {404: 'freed'}, or None"),
    )
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


def _marker(replay_header: object) -> Headers:
    if replay_header is None:
        return ()
    if not isinstance(replay_header, str) or not is_header_name(replay_header):
        raise ConfigError(f"replay_header is {replay_header!r}; give the name of a header, or None")
    return ((replay_header.lower().encode(), b"true"),)


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
        path is None or (isinstance(path, str) and _is_path(path) is not None),
        *("policy_path", path, "a path that begins with '/', as URLs have it, or None"),
    )
    _check(
        url is None or (isinstance(url, str) and _is_url(url) is not None),
        *("policy_url", url, "an absolute URL without a fragment, or None"),
    )
