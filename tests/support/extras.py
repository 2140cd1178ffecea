"""Tests that need an extra: skipped where it is missing, and an error with ``CI=true``."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

__all__ = [
    "needs_cli",
    "needs_demo",
    "needs_http",
    "needs_opentelemetry",
    "needs_postgresql",
    "needs_prometheus",
]


def _needs(extra: str, *modules: str) -> pytest.MarkDecorator:
    missing = [module for module in modules if not _is_there(module)]
    if missing and os.environ.get("CI") == "true":
        raise ImportError(f"the extra {extra!r} is missing: {missing}")
    return pytest.mark.skipif(bool(missing), reason=f"the extra {extra!r} is missing: {missing}")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


needs_cli = _needs("cli", "click", "rich")
needs_demo = _needs("demo", "bolt11", "click", "rich")
needs_http = _needs("test-http", "django", "fastapi", "flask", "httpx", "litestar", "starlette")
needs_opentelemetry = _needs("opentelemetry", "opentelemetry.sdk")
needs_postgresql = _needs("postgresql", "psycopg", "psycopg_pool")
needs_prometheus = _needs("prometheus", "prometheus_client")
