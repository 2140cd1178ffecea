"""Profile ``acp``."""

from __future__ import annotations

from kvreplay._http.profile import Profile

__all__ = ["ACP"]


class ACP(Profile):
    """The rules of acp."""

    name = "acp"
