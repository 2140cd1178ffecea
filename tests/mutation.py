"""Mutation testing: break the code on purpose, one place at a time, and see the tests go red.

``python tests/mutation.py`` tries a fixed sample, ``--all`` every mutant, ``--all kvreplay.flow``
every mutant of one module. It fails if a mutant survives that ``docs/mutation.md`` does not
explain, or if that page explains one that does not exist any more.

The operators are cosmic-ray's and the two below. Every mutant is tried in a fork of this process,
in which an import of the module finds the mutated source: no file is changed. So only tests that
stay in their process can see a mutant, and those are the ones that are run.
"""

from __future__ import annotations

import argparse
import ast
import asyncio  # noqa: F401  # imported once here, not once in each fork
import copy
import difflib
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import attrs
import hypothesis.strategies
import lmdb  # noqa: F401
import msgpack  # noqa: F401
import parso
import pytest
from cosmic_ray.ast import ast_nodes
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parent.parent
EXPLAINED = ROOT / "docs" / "mutation.md"
# Tests that take long, and see what the quick ones see.
_SLOW = "costs or threads or during or forked or race or killed or each_step or atomic_over"
IN_MEMORY = ("-k", "not filesystem and not lmdb")
IN_LMDB = (
    *("tests/test_store_contract.py", "tests/test_lmdb.py", "tests/test_group_commit.py", "-k"),
    f"not filesystem and not memory and not ({_SLOW}) and (contract or sweep or bytes or linger"
    " or illegal or remembered or longest or takes_pages)",
)
ON_FILES = (
    *("tests/test_store_contract.py", "tests/test_filesystem.py"),
    *("-k", f"not memory and not lmdb and not ({_SLOW} or walk)"),
)
MEMORY_LIMIT = 4 << 30  # bytes, for a mutant that collects without end


@attrs.frozen
class Target:
    """A module to mutate, and the tests that are to notice, the quickest first."""

    module: str
    tests: tuple[str, ...]
    functions: frozenset[str] = frozenset()
    """Only these, if it names any."""


TARGETS = [
    Target("kvreplay.flow", ("tests/test_flow.py", "tests/test_replay.py", *IN_MEMORY)),
    Target(
        "kvreplay.record",
        ("tests/test_record.py", "tests/test_flow.py", "tests/test_replay.py", *IN_MEMORY),
    ),
    Target("kvreplay.canonical", ("tests/test_canonical.py",)),
    Target("kvreplay.keys", ("tests/test_keys.py",)),
    Target(
        "kvreplay.singleflight",
        (
            *("tests/test_singleflight.py", "tests/test_replay.py", "tests/test_aio.py"),
            *IN_MEMORY,
        ),
    ),
    Target("kvreplay.sweep", ("tests/test_periodic.py", *IN_MEMORY)),
    Target("kvreplay.aio_sweep", ("tests/test_periodic.py", *IN_MEMORY)),
    Target("kvreplay.walk", ("tests/test_replay.py", "tests/test_aio.py", *IN_MEMORY)),
    Target(
        "kvreplay.backends.memory",
        ("tests/test_store_contract.py", "tests/test_memory.py", *IN_MEMORY),
        frozenset({"sweep", "_put", "_delete", "_drop", "_unindex"}),
    ),
    Target("kvreplay.backends.lmdb_entries", IN_LMDB),
    Target("kvreplay.backends.lmdb", IN_LMDB, frozenset({"sweep"})),
    Target("kvreplay.backends.filesystem", ON_FILES, frozenset({"sweep", "_sweep"})),
    Target("kvreplay.backends.filesystem_expiry", ON_FILES),
]

# Left out are operators that mostly make a TypeError, which any test would notice.
_USED = re.compile(
    r"core/(AddNot|ExceptionReplacer|NumberReplacer|RemoveDecorator|ZeroIterationForLoop"
    r"|Replace(AndWithOr|OrWithAnd|TrueWithFalse|FalseWithTrue|BreakWithContinue"
    r"|ContinueWithBreak|UnaryOperator_.*"
    r"|BinaryOperator_(Add_Sub|Sub_Add|Mul_FloorDiv|Div_Mul|FloorDiv_Mul|BitOr_BitAnd|BitAnd_BitOr)"
    r"|ComparisonOperator_(Is_IsNot|IsNot_Is|Eq_(NotEq|LtE|GtE)|NotEq_(Eq|Lt|Gt)"
    r"|Lt_(LtE|GtE)|LtE_(Lt|Gt)|Gt_(GtE|LtE)|GtE_(Gt|Lt))))"
).fullmatch


class DeleteStatement(Operator):
    """Put ``pass`` in the place of a statement inside a function."""

    _KEPT = ("string", "strings", "keyword", "assert_stmt")  # no code, or code for type checkers

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if (
            node.type == "simple_stmt"
            and node.children[0].type not in self._KEPT
            and node.search_ancestor("funcdef")
        ):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        prefix = node.get_first_leaf().prefix
        node.children[0] = parso.python.tree.Keyword("pass", node.start_pos, prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class LoseArgument(Operator):
    """Put ``None`` in the place of an argument, unless it is a message or a constant."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        for value in self._values(node):
            yield value.start_pos, value.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        value = list(self._values(node))[index]
        siblings = value.parent.children
        none = parso.python.tree.Keyword("None", value.start_pos, value.get_first_leaf().prefix)
        siblings[siblings.index(value)] = none
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()

    def _values(self, node: Any) -> Iterator[Any]:
        if node.type != "trailer" or node.children[0] != "(" or len(node.children) == 2:
            return
        inner = node.children[1]
        for each in inner.children if inner.type == "arglist" else [inner]:
            value = each
            if each.type == "argument":
                if each.children[1] != "=":
                    continue
                value = each.children[2]
            if value.type not in ("string", "strings", "fstring", "keyword", "operator"):
                yield value


@attrs.frozen
class Mutant:
    """One change of one module's source."""

    target: Target = attrs.field(repr=False)
    source: str = attrs.field(repr=False)
    name: tuple[str, str, str, str]
    """Module, function, and the lines that differ, before and after."""

    def __str__(self) -> str:
        return "- `{}` `{}`: `{}` -> `{}`".format(*self.name)


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports the mutant instead of the module."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: object, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.target.module:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def get_source(self, fullname: str) -> str:
        return self._mutant.source


def source_of(module: str) -> str:
    package = importlib.util.find_spec("kvreplay")  # imports nothing yet
    assert package is not None
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0])
    return folder.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")


def mutants_of(target: Target) -> list[Mutant]:
    """Make every mutant of a module, without those that are the same to the compiler."""
    source = source_of(target.module)
    tree = parso.parse(source)
    seen = {_meaning(each.get_code()) for each in tree.children}
    operators: list[Operator] = [DeleteStatement(), LoseArgument()]
    operators += [get_operator(name)() for name in sorted(operator_names()) if _USED(name)]
    mutants = []
    for operator in operators:
        for node in ast_nodes(tree):
            for index, _ in enumerate(operator.mutation_positions(node)):
                function = node.search_ancestor("funcdef") or node.search_ancestor("classdef")
                name = function.name.value if function else "module"
                if target.functions and name not in target.functions:
                    continue
                before = _top(node).get_code()
                after = _mutated(node, operator, index)
                if (meaning := _meaning(after)) is not None and meaning not in seen:
                    seen.add(meaning)
                    names = (target.module, name, *_difference(before, after))
                    mutants.append(Mutant(target, source.replace(before, after, 1), names))
    return mutants


def _top(node: Any) -> Any:
    """Return the statement of the module that holds a node."""
    while node.parent.parent is not None:
        node = node.parent
    return node


def _mutated(node: Any, operator: Operator, index: int) -> str:
    """Return the code of the module's statement with one node of it mutated."""
    clone = copy.deepcopy(node, {id(node.parent): node.parent})
    mutated = operator.mutate(clone, index)
    code = "" if mutated is None else mutated.get_code()
    top = _top(node)
    lines = parso.split_lines(top.get_code(), keepends=True)
    first, _ = top.get_first_leaf().get_start_pos_of_prefix()
    start, end = (
        sum(map(len, lines[: line - first])) + column
        for line, column in (node.get_first_leaf().get_start_pos_of_prefix(), node.end_pos)
    )
    whole = "".join(lines)
    return whole[:start] + code + whole[end:]


class _Unannotated(ast.NodeTransformer):
    """Drops annotations, which nothing evaluates, and where in the source the code is."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.Pass()
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def _meaning(source: str) -> CodeType | None:
    """Compile a statement; ``None``: that is not possible."""
    try:
        tree = _Unannotated().visit(ast.parse(source))
        for node in ast.walk(tree):
            if hasattr(node, "lineno"):
                node.lineno = node.end_lineno = 1
                node.col_offset = node.end_col_offset = 0
        return compile(ast.fix_missing_locations(tree), "mutant", "exec")
    except SyntaxError:
        return None


def _difference(before: str, after: str) -> tuple[str, str]:
    """Return the lines that differ, as the documentation shows them."""
    old, new = before.splitlines(), after.splitlines()
    changes = [
        each
        for each in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        if each[0] != "equal"
    ]
    return (
        _on_one_line(line for _, i, j, _, _ in changes for line in old[i:j]),
        _on_one_line(line for _, _, _, i, j in changes for line in new[i:j]) or "nothing",
    )


def _on_one_line(lines: Iterable[str]) -> str:
    code = " ".join(re.sub("  # .*", "", line) for line in lines)
    return re.sub(r"(?<=[(\[]) | (?=[)\]])", "", " ".join(code.split()))


def explained() -> set[tuple[str, ...]]:
    """Return the names of the survivors that the documentation accounts for."""
    items = re.findall(
        r"^- `([^`]+)` `([^`]+)`:\s+`([^`]+)`\s+->\s+`([^`]+)`",
        EXPLAINED.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {tuple(_on_one_line(part.splitlines()) for part in item) for item in items}


def outcome_of(mutant: Mutant, timeout: float) -> str:
    """Run the tests on a mutant: killed, survived, or timed out, which counts as killed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        child = os.fork()
        if not child:
            _run_tests(mutant, temporary)
        handle = os.pidfd_open(child)
        try:
            ended, _, _ = select.select([handle], [], [], timeout)
        finally:
            os.close(handle)
            os.killpg(child, signal.SIGKILL)  # also what a test left behind
            _, status = os.waitpid(child, 0)
    if not ended:
        return "timed out"
    return "survived" if status == 0 else "killed"


def _run_tests(mutant: Mutant, temporary: str) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
        silence = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(silence, descriptor)
        sys.meta_path.insert(0, Mutated(mutant))
        options = ("-x", "--tb=no", "--assert=plain", "-p", "no:cacheprovider")
        options += (f"--basetemp={temporary}/tests",)
        code = pytest.main([*options, *mutant.target.tests])
    finally:
        os._exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="module", help="as in kvreplay.flow")
    parser.add_argument("--all", action="store_true", help="every mutant, not a sample")
    parser.add_argument("--sample", type=int, default=100, metavar="N", help="how many otherwise")
    parser.add_argument("--seed", default="0", help="which sample")
    options = parser.parse_args()

    os.chdir(ROOT)
    sys.dont_write_bytecode = True
    hypothesis.settings.register_profile(
        "mutation",
        derandomize=True,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )
    hypothesis.settings.load_profile("mutation")

    targets = [each for each in TARGETS if not options.modules or each.module in options.modules]
    mutants = [mutant for target in targets for mutant in mutants_of(target)]
    known = explained()
    stale = [name for name in known if name[0] in {each.module for each in targets}]
    stale = sorted(set(stale) - {mutant.name for mutant in mutants})
    if not options.all:
        # By hash, so that a change of the code elsewhere changes nothing of the sample.
        mutants.sort(key=lambda mutant: _lot(options.seed, mutant))
        mutants = mutants[: options.sample]

    timeouts = {}
    for target in dict.fromkeys(mutant.target for mutant in mutants):
        began = time.monotonic()
        unchanged = Mutant(target, source_of(target.module), (target.module, "", "", ""))
        if outcome_of(unchanged, timeout=600) != "survived":
            sys.exit(f"the tests of {target.module} fail without any mutation")
        timeouts[target] = 5 + 3 * (time.monotonic() - began)

    counts: Counter[tuple[str, str]] = Counter()
    unexplained = []
    for mutant in mutants:
        outcome = outcome_of(mutant, timeouts[mutant.target])
        if outcome == "survived" and mutant.name in known:
            outcome = "explained"
        elif outcome == "survived":
            unexplained.append(mutant)
            print(mutant, flush=True)
        counts[mutant.target.module, outcome] += 1

    print("| module | mutants | killed | timed out | explained | unexplained |")
    print("|---|---|---|---|---|---|")
    for target in timeouts:
        row = [
            counts[target.module, outcome]
            for outcome in ("killed", "timed out", "explained", "survived")
        ]
        print(f"| `{target.module}` | {sum(row)} |", " | ".join(map(str, row)), "|")
    for name in stale:
        print(f"{EXPLAINED} explains what is no mutant:", *name)
    return 1 if unexplained or stale else 0


def _lot(seed: str, mutant: Mutant) -> str:
    return hashlib.sha256(repr((seed, mutant.name)).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
