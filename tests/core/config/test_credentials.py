"""No repr and no message shows a credential."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvreplay.config.file import load_config
from kvreplay.config.registry import open_store
from support.configuring import Stranger, complaint

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


def test_a_repr_shows_words_and_numbers_but_no_text(stranger: Stranger) -> None:
    stranger.install("rec")
    url = "rec:here?password=hunter2&mode=safe&cache=1KiB"
    shown = repr(load_config(None, environ={"KVREPLAY_STORE": url}).store)
    assert shown == (
        "<StoreSettings rec location='rec:here' options=(password=…, mode=safe, cache=1024)>"
    )
