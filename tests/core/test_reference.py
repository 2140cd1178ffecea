"""docs/reference.md names each setting, event, log line and error, and none that is not there."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import kvreplay
from kvreplay import EVENT_KINDS, ReplayEvent, asgi, errors, load_config, wsgi
from kvreplay._http.settings import Configured as HTTPConfigured
from kvreplay._runtime.settings import IN_A_FILE, Configured
from kvreplay.config.registry import BACKENDS, engine_of
from kvreplay.events import ANSWERS
from support.configuring import has_driver

PACKAGE = Path(kvreplay.__file__).parent
ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return the part of the page below a heading, up to the next one that is as high."""
    level = title.partition(" ")[0]
    _, there, below = PAGE.partition(f"\n{title}\n")
    assert there, title
    return re.split(rf"^#{{1,{len(level)}}} ", below, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str, heading: str) -> list[list[str]]:
    """Return the rows of each table with this heading, without the backticks of code."""
    found: list[list[str]] = []
    for table in re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        found += [
            [cell.strip().strip("`") for cell in line.strip("|").split("|")]
            for line in table.splitlines()
        ]
    assert found, heading
    return found


# Settings.


def test_each_setting_has_its_default() -> None:
    parameters = list(inspect.signature(Configured).parameters.values())
    told = {name: default for name, default, _ in rows(section("## Settings"), "setting")}
    assert list(told) == [each.name for each in parameters]
    for each in parameters:
        if each.default is inspect.Parameter.empty:
            assert told[each.name] == "required"
        else:
            assert eval(told[each.name]) == each.default


def test_what_a_file_can_hold_is_read_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    examples = rows(section("## Settings"), "in a file")
    file = tmp_path / "app.toml"
    lines = "\n".join(line for line, _ in examples)
    file.write_text(f"[replay.payments]\n{lines}\n", encoding="utf-8")
    assert tomllib.loads(lines).keys() == IN_A_FILE.keys()
    environment = {"KVREPLAY_STORE": "memory:"}
    in_file = load_config(file, environ=environment).replay("payments")
    assert in_file.keys() == {"namespace", *IN_A_FILE}
    variables = dict(variable.split("=") for _, variable in examples)
    assert len(variables) == len(examples)
    file.write_text("[replay.payments]\n", encoding="utf-8")
    assert load_config(file, environ=environment | variables).replay("payments") == in_file


# Options of the engines.


def test_each_option_has_its_default_and_its_engines() -> None:
    classes = {name: engine_of(name, "").construct for name in BACKENDS if has_driver(name)}
    told = rows(section("## The store"), "option")
    for name, engine in classes.items():
        parameters = inspect.signature(engine).parameters
        listed = [row for row in told if row[2] == "all" or f"`{name}`" in f"`{row[2]}`"]
        assert {option for option, *_ in listed} == set(engine.OPTIONS)  # type: ignore[attr-defined]
        for option, default, *_ in listed:
            assert eval(default) == parameters[option].default, (name, option)
    assert all(set(re.findall(r"\w+", of)) <= {*BACKENDS, "all"} for _, _, of, _ in told)


# Settings of the HTTP layers.


def test_each_setting_of_the_http_layers_has_its_default() -> None:
    parameters = list(inspect.signature(HTTPConfigured).parameters.values())
    page = section("## Settings of the HTTP layers")
    told = {name: default for name, default, _ in rows(page, "argument")}
    assert list(told) == [each.name for each in parameters]
    for each in parameters:
        if each.default is inspect.Parameter.empty:
            assert told[each.name] == "required"
        else:
            default = eval(told[each.name])
            assert (type(default), default) == (type(each.default), each.default)


def test_both_http_layers_have_these_settings() -> None:
    layers = (asgi.IdempotencyMiddleware, wsgi.IdempotencyMiddleware)
    for layer in layers:
        assert layer.__init__ is HTTPConfigured.__init__
        assert inspect.signature(layer) == inspect.signature(HTTPConfigured)


def test_each_setting_of_the_http_layers_is_explained_in_its_order() -> None:
    text = inspect.getdoc(HTTPConfigured.__init__)
    assert text is not None
    arguments = text.partition("Args:\n")[2].partition("\nRaises:")[0]
    told = re.findall(r"^    (\w+): ", arguments, re.MULTILINE)
    assert told == list(inspect.signature(HTTPConfigured).parameters)


# Events.


def test_each_kind_of_event_is_told_among_its_own() -> None:
    answers = [kind for kind, *_ in rows(section("### How a request ends"), "kind")]
    others = [kind for kind, *_ in rows(section("### What else happens"), "kind")]
    assert answers == list(ANSWERS)
    assert answers + others == list(EVENT_KINDS)


def test_each_field_of_an_event_is_told() -> None:
    told = [field for field, _ in rows(section("## Events"), "field")]
    fields = [each.name for each in attrs.fields(ReplayEvent) if not each.name.startswith("_")]
    assert sorted(told) == sorted([*fields, "key"])


# Log lines.


LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}

# Functions that log what they are given: what they log is told where they are called.
PASS_ON = {"Log": "warning", "_warn": "warning"}
PASSED_ON = {"step.text", "text"}


def shown(text: str) -> str:
    return re.sub(r"%[a-z]", "…", text)


def text_of(node: ast.expr) -> str | None:
    """Return a text that stands in the code, with ``…`` for what differs; ``None``: it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return shown(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
        return "".join(map(str, parts))
    return None


def logged(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the level and the text of each line that a module may log."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            level = level_of(node.func)
            if level is None:
                continue
            text = text_of(node.args[0])
            if text is not None:
                yield level, text
            else:
                assert ast.unparse(node.args[0]) in PASSED_ON, ast.unparse(node)
        elif (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id == "_DOUBTS"
        ):
            assert isinstance(node.value, ast.Dict)
            for each in node.value.values:
                text = text_of(each)
                assert text is not None
                yield "warning", text


def level_of(function: ast.expr) -> str | None:
    """Return at which level a call of this logs; ``None``: it does not log."""
    if isinstance(function, ast.Name):
        return PASS_ON.get(function.id)
    if isinstance(function, ast.Attribute) and function.attr in LEVELS:
        of = ast.unparse(function.value)
        if re.search(r"logger|getLogger|logging", of):
            return "error" if function.attr == "exception" else function.attr
    return None


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] != "demo":  # its node has a log of its own
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_each_log_line_is_told() -> None:
    told = [(level, line) for level, line, *_ in rows(section("## Log lines"), "level")]
    assert len(set(told)) == len(told)
    assert set(told) == {line for _, tree in modules() for line in logged(tree)}


def test_no_module_logs_in_another_way() -> None:
    """A logger under a name of its own would hide its lines from the test above."""
    for path, tree in modules():
        loggers = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger")
        ]
        used = [
            node.func.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LEVELS
        ]
        for each in loggers:
            assert ast.unparse(each) == "logging.getLogger('kvreplay')", path
            assert each in used or path.name == "events.py", path


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("logger().warning('a %s', x)", ("warning", "a …")),
        ("logger().exception('b')", ("error", "b")),
        ("logging.getLogger('kvreplay').info('c')", ("info", "c")),
        ("_warn(f'd {x} e')", ("warning", "d … e")),
        ("yield_(Log('f %r', x))", ("warning", "f …")),
    ],
)
def test_a_line_is_found(code: str, line: tuple[str, str]) -> None:
    assert list(logged(ast.parse(code))) == [line]


def test_a_text_that_is_made_elsewhere_must_be_known() -> None:
    with pytest.raises(AssertionError, match="made"):
        list(logged(ast.parse("logger().warning(made)")))


# Errors.


def test_each_error_is_told_once() -> None:
    told = [name for name, *_ in rows(section("## Errors"), "error")]
    assert sorted(told) == sorted(errors.__all__)


def test_the_tree_of_errors_is_that_of_the_classes() -> None:
    above: list[str] = []
    told: dict[str, list[str]] = {}
    for line in re.findall(r"^    .*", section("## Errors"), re.MULTILINE):
        depth = (len(line) - len(line.lstrip())) // 4 - 1
        name, *beside = re.findall(r"\w+", line)
        above[depth:] = [name]
        told[name] = [*above[-2:-1], *beside]
    told["KVReplayError"] = ["Exception"]
    classes: dict[str, Any] = {name: getattr(errors, name) for name in errors.__all__}
    assert told == {
        name: [base.__name__ for base in each.__bases__] for name, each in classes.items()
    }
