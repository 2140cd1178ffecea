"""No repr and no message shows a credential."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from kvreplay.cli import main
from kvreplay.config.file import load_config
from kvreplay.config.location import ask_table, ask_url, without_credentials
from kvreplay.config.registry import open_store
from kvreplay.errors import ConfigError, StoreError, StoreUnavailableError
from support.configuring import SERVER, Stranger, complaint
from support.extras import needs_postgresql

SECRET_URLS = [
    "rec://user:hunter2@host/db",
    "rec://user:hunter2@host/db?password=hunter2",
    "rec://user:hunter2/with/slash@host/db",
    "rec:user:hunter2@host",
    "rec://hunter2@host",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_no_repr_shows_credentials(stranger: Stranger, url: str) -> None:
    stranger.install("rec")
    config = load_config(None, environ={"KVREPLAY_STORE": f"{url}"})
    for text in (repr(config), repr(config.store), str(config)):
        assert "hunter2" not in text
        assert "host" in text
    assert "hunter2" in (config.store.location or "")


@pytest.mark.parametrize(
    "url",
    [
        *(url.replace("rec:", "recc:") for url in SECRET_URLS),
        *(url.partition("?")[0] + "?passwort=hunter2" for url in SECRET_URLS),
        *(url.partition("?")[0] + "?hunter2" for url in SECRET_URLS),
        *(url.partition("?")[0] + "#f" for url in SECRET_URLS),
        *(url.partition("?")[0] + "?pool=%zzhunter2" for url in SECRET_URLS),
        *(url.replace("rec:", "lmdb:") for url in SECRET_URLS if "rec://" in url),
        *(url.replace("rec:", "memory:") for url in SECRET_URLS),
        *(url.replace("rec:", "rec") for url in SECRET_URLS[:2]),
    ],
)
def test_no_message_shows_credentials(stranger: Stranger, url: str, here: Path) -> None:
    stranger.install("rec")
    for where in (url, {"url": url}, {"backend": url}):
        assert "hunter2" not in complaint(open_store, where)
    assert "hunter2" not in complaint(load_config, None, environ={"KVREPLAY_STORE": url})
    assert list(here.iterdir()) == []


PLANTED = [
    "srv://u:hunter2@h/db?sslmode=x",
    "srv:///db?sslpassword=hunter2",
    "srv:///db?sslmode=x&sslpassword=hunter2@home&pool=1",
    "srv://?sslpassword=a@hunter2",
    "srv://u:p%40hunter2@h/db?user=hunter2",
]
WRONG = [
    "srv://u:%zzhunter2@h/db",
    "srv:///db?sslpassword=hunter2%",
    "srv:///db?sslpassword=hunter2&sslpassword=hunter2",
    "srv:///db?sslpassword=hunter 2hunter2",
    "srv:///db?ssl_password=hunter2",
    "srv:///db?pool=1&sslpassword=hunter2#hunter2",
    "srv://u:a?hunter2@h/db",
    "srv://u:a?hunter2=b@h/db",
    "srv://u:a#hunter2@h/db",
    "srv://u:a/hunter2@h\n/db",
    "srv:u:hunter2@h/db",
    "srv://u:hunter2/x@h/db",
    "srv://u:a@hunter2@h/db",
    "srv:sslpassword=hunter2",
]


def test_no_repr_of_what_is_asked_for_shows_it() -> None:
    for url in PLANTED:
        assert "hunter2" not in repr(ask_url(url.replace("//?", "///?"), "here", None))
    assert "hunter2" not in repr(ask_table({"url": "srv:", "password": "hunter2"}, "here", None))


def test_no_repr_shows_what_a_query_has(stranger: Stranger) -> None:
    stranger.install("srv", SERVER)
    for url in PLANTED:
        store = load_config(None, environ={"KVREPLAY_STORE": url.replace("//?", "///?")}).store
        assert "hunter2" in (store.location or "")
        assert "hunter2" not in repr(store)
        assert "hunter2" not in without_credentials(store.location or "")
        assert "location='srv:" in repr(store)


@pytest.mark.parametrize("url", WRONG)
def test_no_message_shows_what_a_query_has(stranger: Stranger, url: str) -> None:
    stranger.install("srv", SERVER)
    for call, given in (
        (open_store, url),
        (open_store, {"url": url}),
        (open_store, {"url": "srv:", "sslpassword": "hunter2"}),
        (open_store, {"url": "srv:", "password": "hunter2"}),
    ):
        with pytest.raises(ConfigError) as caught:
            call(given)
        assert "hunter2" not in "".join(traceback.format_exception_only(caught.value))
        assert caught.value.__cause__ is None


@needs_postgresql
@pytest.mark.parametrize(
    ("url", "error"),
    [
        # What libpq cannot read.
        ("postgresql://u@h/db?password=hunter2=hunter2", ConfigError),
        ("postgresql://u:hunter2%00@h/db", ConfigError),
        ("postgresql://u:hunter2@[::1/db", ConfigError),
        ("postgresql://u:hunter2@[]/db", ConfigError),
        # Nobody listens there.
        ("postgresql://u:hunter2@127.0.0.1:1/db", StoreUnavailableError),
        (
            "postgresql://u@127.0.0.1:1/db?password=hunter2&sslpassword=hunter2",
            StoreUnavailableError,
        ),
        ("postgresql://u:hunter2@/db?host=/nowhere/hidden&port=1", StoreUnavailableError),
        ("postgresql://u:hunter2@127.0.0.1:1/db?sslmode=hunter3", StoreError),
    ],
)
def test_what_a_server_or_libpq_says_shows_no_password(
    url: str, error: type[Exception], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url += "&connect_timeout=2" if "?" in url else "?connect_timeout=2"
    with pytest.raises(error) as caught:
        open_store(url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert main(["init", url]) == 2
    assert main(["migrate", url, "memory:"]) == 2
    open_store("filesystem:source").close()
    assert main(["migrate", "filesystem:source", url]) == 2
    said = capsys.readouterr()
    assert "hunter2" not in said.out + said.err
    assert [line.partition(":")[0] for line in said.err.splitlines()] == [
        *("kvreplay", "kvreplay", "looking", "kvreplay")
    ]


def test_a_repr_shows_words_and_numbers_but_no_text(stranger: Stranger) -> None:
    stranger.install("rec")
    url = "rec:here?password=hunter2&mode=safe&cache=1KiB"
    shown = repr(load_config(None, environ={"KVREPLAY_STORE": url}).store)
    assert shown == (
        "<StoreSettings rec location='rec:here' options=(password=…, mode=safe, cache=1024)>"
    )
