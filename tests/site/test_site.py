"""The site of the docs, as ``tox -e docs`` has built it: what its own search finds, and where its links lead."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import attrs
import pytest

SITE = Path(os.environ["SITE"])
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if "_static" not in path.parts
)
WRITTEN = {"search.html"}  # by Sphinx: nobody's words are there


# The search.

QUESTIONS = {
    "http status": "http",
    "which http status does a retry get": "http",
    "bank timed out": "howto/bank-timed-out",
    "bank timeout": "howto/bank-timed-out",
    "payment provider time-out": "howto/bank-timed-out",
    "correct reconciler": "howto/reconciler",
    "how to write a reconciler": "howto/reconciler",
    "list keys in doubt": "howto/doubts",
    "settle doubt": "howto/doubts",
    "resolve or release a key": "howto/doubts",
    "pydantic": "howto/pydantic",
    "return a pydantic model": "howto/pydantic",
    "backup": "howto/backup",
    "back up and restore": "howto/backup",
    "move to another engine": "howto/backup",
    "ttl lease tombstone renew": "howto/lifetimes",
    "how long is an answer kept": "howto/lifetimes",
    "expired retry": "howto/lifetimes",
    "unit test doubt": "testing",
    "test my handler": "testing",
    "metrics": "metrics",
    "monitoring prometheus": "metrics",
    "write a backend": "howto/backend",
    "own storage engine": "howto/backend",
    "choose an engine": "howto/engine",
    "containers fork uwsgi": "howto/processes",
    "gunicorn preload": "howto/processes",
    "keep secrets out of logs": "howto/secrets",
    "ledger one commit": "ledger",
    "etcd": "etcd",
    "postgresql": "postgresql",
    "a machine of the cluster dies": "etcd",
    "quota compaction": "etcd",
    "clocks of machines differ": "explanation/clocks",
    "clock skew": "explanation/clocks",
    "why two commits": "explanation/two-commits",
    "InDoubtError": "api",
}
"""Natural words, and the page that must be among the first three."""


@pytest.fixture(scope="module")
def search() -> Iterator[subprocess.Popen[str]]:
    program = Path(__file__).parent / "search.js"
    with subprocess.Popen(
        ["node", program, SITE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as search:
        yield search


def found(search: subprocess.Popen[str], words: str) -> list[str]:
    assert search.stdin is not None
    assert search.stdout is not None
    search.stdin.write(f"{words}\n")
    search.stdin.flush()
    pages: list[str] = json.loads(search.stdout.readline())
    return pages


@pytest.mark.parametrize(("words", "page"), QUESTIONS.items())
def test_a_question_is_answered(search: subprocess.Popen[str], words: str, page: str) -> None:
    assert page in found(search, words)[:3]


def test_nonsense_finds_nothing(search: subprocess.Popen[str]) -> None:
    assert found(search, "xylophone") == []


# The links.


@attrs.frozen
class Page:
    """The places of a page, and what it links to."""

    places: set[str]
    links: list[str]


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page(set(), [])

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.page.places.add(value)
            elif (tag, name) in {("a", "href"), ("img", "src")} and value:
                self.page.links.append(value)


def read(page: str) -> Page:
    reader = Reader()
    reader.feed((SITE / page).read_text(encoding="utf-8"))
    return reader.page


READ = {page: read(page) for page in PAGES}


def broken(page: str, links: list[str]) -> list[str]:
    """Return which of these links of a page lead to nothing on the site."""
    bad = []
    for link in links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        path = Path(os.path.normpath(SITE / Path(page).parent / unquote(parts.path)))
        target = path.relative_to(SITE).as_posix() if parts.path else page
        places = READ[target].places if target in READ else set()
        if not (SITE / target).is_file() or (
            parts.fragment and unquote(parts.fragment) not in places
        ):
            bad.append(link)
    return bad


@pytest.mark.parametrize("page", sorted({*PAGES} - WRITTEN))
def test_each_link_leads_somewhere(page: str) -> None:
    assert broken(page, READ[page].links) == []


@pytest.mark.parametrize(
    "link", ["nowhere.html", "#nowhere", "tutorial.html#nowhere", "howto/../nowhere.svg"]
)
def test_a_broken_link_is_found(link: str) -> None:
    assert broken("index.html", ["tutorial.html#install", link]) == [link]


def test_the_readme_links_to_pages_of_the_site() -> None:
    """By their addresses, since it is read elsewhere too."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(https://kvreplay\.[\w.]+/en/stable/(.*?)\)", readme)
    assert broken("index.html", linked) == []
    assert len(linked) > 10


def test_every_page_can_be_reached() -> None:
    """From the first one, by the links of its sidebar."""
    linked = {urlsplit(link).path for link in READ["index.html"].links}
    assert {*PAGES} - linked - WRITTEN - {"index.html"} == set()
