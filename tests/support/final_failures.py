"""What handlers raise that is final, and classes that cannot be built again."""

from __future__ import annotations

from typing import Any

__all__ = ["Declined", "DeclinedByBank", "Formats", "KeywordOnly"]


class Declined(Exception):
    """A final failure."""


class DeclinedByBank(Declined):
    """A subclass that no test lists."""


class KeywordOnly(Declined):
    """It wants something else than its arguments."""

    def __init__(self, code: Any, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class Formats(Declined):
    """It makes its text of what it is given, and so another one of that text."""

    def __init__(self, code: Any) -> None:
        super().__init__(f"declined with {code}")
