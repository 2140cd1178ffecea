"""Django is configured once in a process; tests configure it as often as they need."""

from __future__ import annotations

__all__ = ["forget_settings"]


def forget_settings() -> None:
    """Let ``settings.configure()`` be called anew."""
    from django.conf import settings
    from django.urls import clear_url_caches
    from django.utils.functional import empty

    settings._wrapped = empty  # it forgets what it has cached, too
    clear_url_caches()
