"""Profile ``stripe``."""

from __future__ import annotations

from kvreplay._http.profile import Profile

__all__ = ["Stripe"]


class Stripe(Profile):
    """The rules of stripe."""

    name = "stripe"
