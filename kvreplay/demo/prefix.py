"""A prefix of the story's own, in an etcd cluster that others may use too."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from kvreplay import StoreError, open_store

__all__ = ["new_prefix"]


@contextmanager
def new_prefix(url: str, *, kept: bool) -> Iterator[tuple[str, str]]:
    """Make a store below the URL's prefix, yield its URL and prefix, and remove it unless kept.

    Nothing was there before, so that nothing is removed but what the story has made.

    Raises:
        StoreError: it cannot be made, and nothing was; or it cannot be removed.
    """
    head, mark, options = url.partition("?")
    if not urlsplit(head).path.strip("/"):
        head = f"{head.rstrip('/')}/kvreplay"  # the default
    own = f"{head.rstrip('/')}/kvreplay_demo_{secrets.token_hex(4)}"
    prefix = f"{unquote(urlsplit(own).path)}/"
    own_url = f"{own}{mark}{options}"
    with open_store(own_url) as opened:
        store: Any = opened  # this engine can remove a store
        try:
            yield own_url, prefix
        finally:
            if not kept:
                try:
                    store.remove_store()
                except StoreError as error:
                    raise StoreError(
                        f"what the story wrote could not be removed ({error}); it is left there:"
                        f" etcdctl del --prefix {prefix} removes it"
                    ) from error
