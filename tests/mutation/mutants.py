"""The mutants of a module: its source with one place broken, by cosmic-ray's operators and two more."""

from __future__ import annotations

import ast
import copy
import difflib
import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import attrs
import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names

__all__ = ["Mutant", "mutants_of", "on_one_line", "source_of"]


@attrs.frozen
class Mutant:
    """One change of one module's source."""

    module: str
    function: str
    before: str
    """The lines that differ, on one line."""
    after: str
    source: str = attrs.field(repr=False, eq=False)

    @property
    def name(self) -> tuple[str, str, str, str]:
        return self.module, self.function, self.before, self.after

    def __str__(self) -> str:
        return "- `{}` `{}`: `{}` -> `{}`".format(*self.name)


def source_of(module: str) -> str:
    """Read the source of a module of the package, which is not imported for it."""
    package = importlib.util.find_spec("kvreplay")
    assert package is not None
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0])
    return folder.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")


def mutants_of(module: str, functions: frozenset[str]) -> list[Mutant]:
    """Make every mutant of a module, without those that are the same to the compiler.

    Args:
        functions: those to mutate; none: all of the module.
    """
    source = source_of(module)
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
                if functions and name not in functions:
                    continue
                before = _top(node).get_code()
                after = _mutated(node, operator, index)
                if (meaning := _meaning(after)) is not None and meaning not in seen:
                    seen.add(meaning)
                    change = _difference(before, after)
                    mutated = source.replace(before, after, 1)
                    mutants.append(Mutant(module, name, *change, mutated))
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
        on_one_line(line for _, i, j, _, _ in changes for line in old[i:j]),
        on_one_line(line for _, _, _, i, j in changes for line in new[i:j]) or "nothing",
    )


def on_one_line(lines: Iterable[str]) -> str:
    """Write code without its comments and its layout."""
    code = " ".join(re.sub("  # .*", "", line) for line in lines)
    return re.sub(r"(?<=[(\[]) | (?=[)\]])", "", " ".join(code.split()))


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
