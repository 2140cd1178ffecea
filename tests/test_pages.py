"""Every Python example of every page is run: here, page by page, or by the tests that are named here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.console import Step, in_a_terminal, is_as_shown, steps
from support.needs import missing

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"

ELSEWHERE = {
    "howto/configuration.md": (1, "test_docs.py"),
    "http.md": (10, "http/test_docs.py"),
    "http/django.md": (2, "http/test_docs.py"),
    "http/fastapi.md": (1, "http/test_docs.py"),
    "http/flask.md": (3, "http/test_docs.py"),
    "http/litestar.md": (1, "http/test_docs.py"),
    "http/starlette.md": (1, "http/test_docs.py"),
    "ldk.md": (3, "test_docs.py"),
    "ledger.md": (5, "backends/postgresql/test_ledger_docs.py"),  # one of them by test_docs.py
    "metrics.md": (2, "test_docs.py"),
    "postgresql.md": (1, "backends/postgresql/test_docs.py"),
    "testing.md": (7, "test_docs.py"),  # one of them by http/test_docs.py
    "tutorial.md": (2, "test_tutorial.py"),
    "typed.md": (1, "test_docs.py"),
}
"""Pages whose examples need a world of their own: how many they are, and the tests that run them."""

BLOCK = re.compile(r"^( *)```(python|console|text)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)

# Runs the examples that come on its input, and says when one has ended.
RUNS = """
import sys
end, page = sys.argv[1:]
names, example, number = {"__name__": "__main__"}, "", 0
for line in sys.stdin:
    if line.rstrip() != end:
        example += line
        continue
    number += 1
    exec(compile(example, f"{page}, example {number}", "exec", dont_inherit=True), names)
    example = ""
    print(end, flush=True)
"""
END = "-- the end of an example --"


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the languages and texts of a page's blocks, even of those inside lists."""
    return [(found[2], textwrap.dedent(found[3])) for found in BLOCK.finditer(text)]


def file_of(text: str, block: str) -> str | None:
    """Return the name by which the reader is to save a block: the words before it say so."""
    words = text.partition(f"```python\n{block}")[0].rstrip().rpartition("\n\n")[2]
    found = re.search(r"[Ss]ave it as `(\w+\.py)`", words)
    return found[1] if found else None


def examples(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [block for language, block in blocks(text) if language == "python"]


PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
HERE = [page for page in PAGES if page not in ELSEWHERE and examples(page)]


def needed(example: str) -> set[str]:
    """Return the packages that an example imports."""
    found = set()
    for node in ast.walk(ast.parse(example)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.partition(".")[0])
    return found


class Examples:
    """The Python of one page, in one process, as if it stood in one file."""

    def __init__(self, page: str, folder: Path, terminal: Mapping[str, str]) -> None:
        self._complaints = (folder / "complaints").open("w+")
        self._python = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", RUNS, END, page],
            cwd=folder,
            env=terminal,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
        )

    def run(self, example: str) -> str:
        """Run the next one, and return what it prints."""
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(f"{example}{END}\n")
        self._python.stdin.flush()
        printed = ""
        for line in self._python.stdout:
            if line.rstrip() == END:
                return printed
            printed += line
        pytest.fail(f"an example has failed: {self._complained()}")

    def end(self) -> str:
        """Let the process end, and return what it has complained of."""
        with self._complaints:
            self._python.communicate()
            return self._complained()

    def _complained(self) -> str:
        self._complaints.seek(0)
        return self._complaints.read()


def run(page: str, text: str, folder: Path) -> None:
    """Run a page's examples and commands in their order, and compare what they print."""
    terminal = in_a_terminal(folder)
    examples = Examples(page, folder, terminal)
    try:
        printed: str | None = None  # by the example that stands just before
        for language, block in blocks(text):
            if language == "python" and (file := file_of(text, block)) is not None:
                (folder / file).write_text(block, encoding="utf-8")
            elif language == "python":
                printed = examples.run(block)
            elif language == "console":
                for step in steps(block):
                    shows(step, folder, terminal)
            elif printed is not None:
                assert is_as_shown(printed, block.rstrip("\n")), f"{page}:\n{printed}"
                printed = None
    finally:
        complaints = examples.end()
    assert "ResourceWarning" not in complaints, complaints


def shows(step: Step, folder: Path, terminal: Mapping[str, str]) -> None:
    """Run a command of a page, and compare what it prints."""
    done = subprocess.run(
        ["bash", "-c", step.command],
        cwd=folder,
        env=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert is_as_shown(done.stdout, step.shown), f"$ {step.command}\n{done.stdout}"
    assert done.returncode == 0, f"$ {step.command}\n{done.stdout}"


@pytest.mark.any_python
@pytest.mark.parametrize("page", HERE)
def test_each_example_of_a_page_does_what_it_says(page: str, tmp_path: Path) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    saved = {file.removesuffix(".py") for each in examples(page) if (file := file_of(text, each))}
    for package in set().union(*map(needed, examples(page))) - saved:
        if find_spec(package) is None:
            missing(f"needs {package}")
    run(page, text, tmp_path)


@pytest.mark.parametrize(("page", "told"), ELSEWHERE.items())
def test_the_examples_of_other_pages_are_run_elsewhere(page: str, told: tuple[int, str]) -> None:
    number, file = told
    assert len(examples(page)) == number, f"let {file} run what is new, and count it here"
    test = (TESTS / file).read_text(encoding="utf-8")
    assert Path(page).name in test or Path(page).stem in test


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```python\nassert 1 == 2\n```\n", "AssertionError"),
        ("- a list\n\n  ```python\n  1 / 0\n  ```\n", "example 1"),
        ("```python\nprint('a')\n```\n\n```text\nb\n```\n", "planted"),
        ("```python\nx = 1\n```\n\n```console\n$ echo a\nb\n```\n", "echo a"),
        (
            "```python\nfrom kvreplay import open_store\n\nopen_store('lmdb:x')\n```\n",
            "ResourceWarning",
        ),
    ],
)
def test_an_example_that_does_something_else_is_found(
    page: str, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=complaint):
        run("planted", page, tmp_path)


def test_an_example_that_does_what_it_says_is_right(tmp_path: Path) -> None:
    text = "```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n1\n```\n"
    run("planted", f"{text}\n```console\n$ echo a b\na ...\n```\n", tmp_path)
