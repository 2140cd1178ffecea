"""The examples of docs/postgresql.md are run against a real server."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from support.postgres import Schema

PAGE = Path(__file__).parents[3] / "docs" / "postgresql.md"


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_example_for_event_loops(postgres: Schema) -> None:
    names: dict[str, Any] = {}
    exec(compile(examples()[0], PAGE.name, "exec"), names)
    for _ in range(2):  # the second loop has connections of its own, and finds the answer
        asyncio.run(names["answer"](postgres.url))
