"""What the docs tell people to copy."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["SERVICES", "documented_service"]

DOCS = Path(__file__).parents[2] / "docs"

SERVICES = {
    "fastapi": ("fastapi", "uvicorn"),
    "fastapi --preload": ("fastapi", "gunicorn --preload with uvicorn's workers"),
    "flask": ("flask", "gunicorn"),
    "flask --preload": ("flask", "gunicorn --preload"),
}
"""The payment services of the docs: the page, and one of ``http_servers.COMMANDS``."""


def documented_service(framework: str) -> str:
    """The module that a framework's page begins with: a payment service, whole."""
    page = (DOCS / "http" / f"{framework}.md").read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found is not None, f"the page of {framework} has no example"
    return found[1]
