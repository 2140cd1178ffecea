"""The policy of a layer as a page, which the draft wants published (2.3, 2.5)."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from kvreplay._http.answers import Answer
from kvreplay._http.problems import PROBLEMS
from kvreplay._http.profile import Profile
from kvreplay._http.requests import ENDINGS, Ending

__all__ = ["page"]

_HAPPENS: Mapping[Ending, str] = {
    "kept": "Each retry gets this answer",
    "freed": "Nothing happened, so a retry runs anew",
    "in doubt": "It is not known whether something happened, so nothing runs again",
}


def page(profile: Profile, ttl: int, methods: str, statuses: Mapping[int | str, Ending]) -> Answer:
    """Return the page: who needs a key, its form, what is compared, how long answers are kept.

    Args:
        ttl: milliseconds.
        methods: which requests are covered, up to "need".
        statuses: the application's own, over those of the profile.
    """
    problems = "".join(
        f'<h3 id="{slug}">{escape(problem.title)} ({profile.status(slug)})</h3>'
        f"<p>{escape(problem.detail)}</p>\n"
        for slug, problem in PROBLEMS.items()
    )
    endings = "".join(
        f"<li>{_HAPPENS[ending]}: {escape(_told(profile, statuses, ending))}.</li>\n"
        for ending in ENDINGS
    )
    text = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Idempotency-Key</title></head><body>
<h1>Idempotency-Key</h1>
<p>{escape(methods)} an Idempotency-Key header, so that a retry does
not do the same thing twice.</p>
<ul>
<li>The key: {escape(profile.key_form)}. Use a new random one, such as a UUID, for each operation,
and the same one for each retry.</li>
<li>A request is identified by {escape(profile.identified_by)}.</li>
<li>Compared with the first request: {escape(profile.compared)}.</li>
<li>Expiry: an answer is kept for {_duration(ttl)} after the request has ended.</li>
</ul>
<h2>What becomes of an answer, by its status</h2>
<ul>
{endings}</ul>
<h2>Problems</h2>
{problems}</body></html>
"""
    body = text.encode()
    headers = (
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
    )
    return Answer(200, headers, body)


def _told(profile: Profile, statuses: Mapping[int | str, Ending], wanted: Ending) -> str:
    """Return the statuses that end so, as ranges: "200-400, 402, 404-407"."""
    runs: list[list[int]] = []
    for status in range(200, 600):
        own = statuses.get(status) or statuses.get(f"{status // 100}xx")
        if (own or profile.ending(status)) != wanted:
            continue
        if runs and runs[-1][1] == status - 1 and status % 100:
            runs[-1][1] = status
        else:
            runs.append([status, status])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs) or "none"


def _duration(ttl: int) -> str:
    for unit, size in (("day", 86_400_000), ("hour", 3_600_000), ("minute", 60_000)):
        if ttl >= size and ttl % size == 0:
            return f"{ttl // size} {unit}{'s' if ttl > size else ''}"
    return f"{ttl / 1000:g} seconds"
