"""Settings: each wrong one is refused when the layer is made, with a text that helps."""

from __future__ import annotations

from typing import Any

import pytest

from kvreplay import AsyncReplay, ConfigError, Replay
from kvreplay.asgi import IdempotencyMiddleware as ASGILayer
from kvreplay.backends.memory import MemoryStore
from kvreplay.wsgi import IdempotencyMiddleware as WSGILayer
from support.http_apps import Says, Web

LAYERS = {"asgi": (ASGILayer, AsyncReplay), "wsgi": (WSGILayer, Replay)}


def make(face: str, replay: Any = None, **settings: Any) -> Any:
    layer, kind = LAYERS[face]
    if replay is None:
        replay = kind(MemoryStore(), "http", ttl="1d")
    return layer(lambda *given: None, replay, **{"scope": lambda at: "alice", **settings})


async def coroutine(at: Any) -> Any:
    return None


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"scope": None}, "scope is None; give a function that returns the authenticated caller"),
    ({"scope": "alice"}, "scope is 'alice'; give a function"),
    ({"profile": "IETF"}, "profile is 'IETF'; it can be 'ietf', 'stripe', 'acp'"),
    ({"profile": None}, "profile is None; it can be 'ietf'"),
    ({"methods": "POST"}, "methods is 'POST'; give a tuple, such as ('POST', 'PATCH')"),
    ({"methods": [b"POST"]}, "methods is [b'POST']; give a tuple"),
    ({"methods": 5}, "methods is 5; give a tuple"),
    ({"methods": ()}, "methods is (); give a tuple"),
    ({"methods": ("POST", "get")}, "methods has GET, which changes nothing, so it needs no key"),
    ({"methods": ("HEAD", "OPTIONS")}, "methods has HEAD, OPTIONS, which changes nothing"),
    ({"covers": True}, "covers is True; give a function, or None"),
    ({"covers": coroutine}, "covers is a coroutine function"),
    ({"required": None, "covers": "/pay"}, "covers is '/pay'"),
    ({"required": "yes"}, "required is 'yes'; give True, False or a function"),
    ({"required": 1}, "required is 1; give True, False or a function"),
    ({"required": coroutine}, "required is a coroutine function"),
    ({"bare_keys": 1}, "bare_keys is 1; give True or False"),
    ({"bare_keys": True, "profile": "stripe"}, "bare_keys is for profile 'ietf'"),
    ({"statuses": {"404": "freed"}}, "statuses has '404'; give a status such as 404, or a class"),
    ({"statuses": {True: "freed"}}, "statuses has True; give a status"),
    ({"statuses": {600: "freed"}}, "statuses has 600; give a status"),
    ({"statuses": {199: "freed"}}, "statuses has 199; give a status"),
    ({"statuses": {"1xx": "freed"}}, "statuses has '1xx'; give a status"),
    (
        {"statuses": {404: "free"}},
        "statuses says 'free' of 404; it can be 'kept', 'freed', 'in doubt'",
    ),
    ({"statuses": {404: None}}, "statuses says None of 404"),
    ({"statuses": [404]}, "statuses is [404]; give a mapping"),
    ({"stored_headers": "X-Own"}, "stored_headers is a str; give a tuple of names of headers"),
    ({"stored_headers": [b"X-Own"]}, "stored_headers names b'X-Own', which is no name of a header"),
    ({"stored_headers": [""]}, "stored_headers names '', which is no name"),
    ({"stored_headers": ["X Own"]}, "stored_headers names 'X Own', which is no name"),
    ({"stored_headers": ["X-Own:"]}, "stored_headers names 'X-Own:', which is no name"),
    ({"stored_headers": ["X-Öwn"]}, "stored_headers names 'X-Öwn', which is no name"),
    ({"stored_headers": 5}, "stored_headers is a int; give a tuple of names of headers"),
    ({"stored_headers": None}, "stored_headers is a NoneType; give a tuple of names of headers"),
    *(
        (
            {"stored_headers": ["X-Own", name]},
            f"stored_headers names {name}, which belongs to one answer",
        )
        for name in (
            *("Set-Cookie", "DATE", "Server", "Age", "RateLimit", "RateLimit-Remaining"),
            *("X-RateLimit-Reset", "X-Rate-Limit-Limit", "Connection", "Transfer-Encoding"),
            *("Keep-Alive", "Upgrade", "Trailer", "TE", "WWW-Authenticate", "Proxy-Authenticate"),
        )
    ),
    ({"replay_header": 5}, "replay_header is 5; give the name of a header, or None"),
    ({"replay_header": ""}, "replay_header is ''; give the name of a header, or None"),
    ({"replay_header": "X-Ä"}, "replay_header is 'X-Ä'; give the name of a header"),
    ({"replay_header": "X-A\r\nX-B"}, "replay_header is 'X-A\\r\\nX-B'; give the name"),
    ({"wait_timeout": -1}, "wait_timeout is -1"),
    ({"wait_timeout": "soon"}, "wait_timeout"),
    ({"retry_after": -1}, "retry_after is -1"),
    ({"retry_after": None}, "retry_after"),
    ({"max_body_bytes": -1}, "max_body_bytes is -1; give an int of at least 0"),
    ({"max_body_bytes": 1.5}, "max_body_bytes is 1.5; give an int"),
    ({"max_body_bytes": True}, "max_body_bytes is True; give an int"),
    ({"max_body_bytes": None}, "max_body_bytes is None; give an int"),
    ({"max_answer_bytes": -1}, "max_answer_bytes is -1; give an int of 0 to 1032192"),
    ({"max_answer_bytes": 1032193}, "max_answer_bytes is 1032193; give an int of 0 to 1032192"),
    ({"max_answer_bytes": "1MiB"}, "max_answer_bytes is '1MiB'; give an int of 0 to 1032192"),
    ({"policy_path": None}, "policy_path and policy_url are both None"),
    ({"policy_path": "idempotency"}, "policy_path is 'idempotency'; give a path that begins with"),
    ({"policy_path": "/schlüssel"}, "policy_path is '/schlüssel'; give a path"),
    ({"policy_path": "/a b>"}, "policy_path is '/a b>'; give a path"),
    ({"policy_path": 5}, "policy_path is 5; give a path"),
    ({"policy_url": "/keys"}, "policy_url is '/keys'; give an absolute URL without"),
    (
        {"policy_url": "https://pay.example/schlüssel"},
        "policy_url is 'https://pay.example/schlüssel'",
    ),
    ({"policy_url": "https://pay.example/>;\r\nX-A: b"}, "policy_url is 'https://pay.example/>"),
    ({"challenge": None}, "challenge is None; give the text of WWW-Authenticate"),
    ({"challenge": "Bearer\r\nX-A: b"}, "challenge is 'Bearer\\r\\nX-A: b'; give the text"),
    ({"challenge": "€"}, "challenge is '€'; give the text"),
    ({"challenge": ""}, "challenge is ''; give the text"),
]


@pytest.mark.parametrize(("settings", "text"), WRONG, ids=[text for _, text in WRONG])
def test_a_wrong_setting_is_refused(face: str, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        make(face, **settings)
    assert text in str(error.value)


RIGHT: list[dict[str, Any]] = [
    {},
    {"scope": lambda at: None},
    *({"profile": name} for name in ("ietf", "stripe", "acp")),
    {"methods": ["POST"]},
    {"methods": {"delete", "PUT"}},
    {"covers": lambda at: True},
    {"required": True},
    {"required": lambda at: True},
    {"bare_keys": True},
    {"statuses": {404: "freed", "4xx": "kept", "5xx": "in doubt", 200: "kept", 599: "freed"}},
    {"statuses": None},
    {"stored_headers": ["X-Own", "content-type"]},
    {"stored_headers": {"X-Own"}},
    {"stored_headers": dict.fromkeys(["X-Own"])},
    {"replay_header": None},
    {"replay_header": "X-Replayed"},
    {"wait_timeout": None},
    {"wait_timeout": "5s"},
    {"wait_timeout": 2.5},
    {"retry_after": 0},
    {"retry_after": "10s"},
    {"max_body_bytes": 0},
    {"max_answer_bytes": 0},
    {"max_answer_bytes": 1032192},
    {"max_answer_bytes": None},
    {"policy_path": "/"},
    {"policy_path": None, "policy_url": "https://pay.example/keys"},
    {"policy_url": "https://pay.example/keys"},
    {"challenge": 'Basic realm="pay", charset="UTF-8"'},
]


@pytest.mark.parametrize("settings", RIGHT, ids=lambda settings: ", ".join(settings) or "none")
def test_a_right_setting_is_accepted(face: str, settings: dict[str, Any]) -> None:
    make(face, **settings)


def test_a_layer_without_a_scope_does_not_start(face: str) -> None:
    layer, kind = LAYERS[face]
    with pytest.raises(TypeError, match="scope"):
        layer(lambda *given: None, kind(MemoryStore(), "http", ttl="1d"))


def test_settings_are_named(face: str) -> None:
    layer, kind = LAYERS[face]
    with pytest.raises(TypeError, match="positional"):
        layer(lambda *given: None, kind(MemoryStore(), "http", ttl="1d"), lambda at: "a")


def test_a_coroutine_function_is_a_scope_only_where_it_is_awaited() -> None:
    make("asgi", scope=coroutine)
    with pytest.raises(ConfigError, match="scope is a coroutine function"):
        make("wsgi", scope=coroutine)


# The replay.


def test_a_replay_of_the_other_kind_is_refused(face: str) -> None:
    wanted, other = (AsyncReplay, Replay) if face == "asgi" else (Replay, AsyncReplay)
    with pytest.raises(ConfigError) as error:
        make(face, replay=other(MemoryStore(), "http", ttl="1d"))
    said = f"replay is of the class {other.__name__}; this layer needs kvreplay's {wanted.__name__}"
    assert said in str(error.value)
    with pytest.raises(ConfigError, match="replay is of the class MemoryStore"):
        make(face, replay=MemoryStore())


@pytest.mark.parametrize("profile", ["stripe", "acp"])
def test_a_replay_whose_answers_expire_too_early_for_a_profile(face: str, profile: Any) -> None:
    kind = LAYERS[face][1]
    with pytest.raises(ConfigError, match="the replay's ttl is 86399 s; under profile"):
        make(face, replay=kind(MemoryStore(), "http", ttl=86_399), profile=profile)
    make(face, replay=kind(MemoryStore(), "http", ttl=86_399))
    make(face, replay=kind(MemoryStore(), "http", ttl=86_400), profile=profile)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"lease": None}, "the replay has lease=None, so a crash in the middle leaves no trace"),
        ({"encode": repr, "decode": str}, "the replay has encode= and decode="),
        ({"max_record_bytes": 16 * 1024}, "max_record_bytes is 16384, which leaves no room"),
    ],
)
def test_a_replay_that_does_not_fit_is_refused(face: str, settings: Any, text: str) -> None:
    kind = LAYERS[face][1]
    with pytest.raises(ConfigError) as error:
        make(face, replay=kind(MemoryStore(), "http", ttl="1d", **settings))
    assert text in str(error.value)
    make(face, replay=kind(MemoryStore(), "http", ttl="1d", max_record_bytes=32 * 1024))


@pytest.mark.parametrize(
    "settings",
    [
        {"params_key": b"k" * 16},
        {"renew": True},
        {"on_expired": "rerun"},
        {"store_errors": (ValueError,)},
        {"wait_timeout": 0},
        {"tombstone_ttl": "1d"},
    ],
    ids=str,
)
def test_other_settings_of_the_replay_fit(web: Web, settings: Any) -> None:
    service = web.serve(settings=settings)
    assert service.post().status == 201
    assert service.post().is_replay
    assert service.post(body=b"b").slug == "key-reused"


# Two layers in one another.


def test_a_layer_inside_a_layer_leaves_the_request_to_it(web: Web) -> None:
    """As happens when a framework and a server's configuration both add one."""
    inner = web.serve()
    outer = web.serve()
    outer.app._app = inner.app
    assert outer.post().status == 201
    assert outer.post().is_replay
    assert len(inner.runs) == 1


def test_a_function_of_the_application_that_raises_runs_nothing(plain: Web) -> None:
    def wrong(at: Any) -> Any:
        raise LookupError("no such tenant")

    for name in ("scope", "covers", "required"):
        setting: dict[str, Any] = {name: wrong}
        service = plain.serve(**setting)
        exchange = service.ask(key=None if name == "required" else "k")
        assert isinstance(exchange.error, LookupError)
        assert exchange.reply is None
        assert service.runs == []
    assert not list(plain.store.list_all_keys())
    assert plain.serve(Says()).post().status == 201
