"""docs/command.md names each command and each of its options, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.extras import needs_cli

pytestmark = needs_cli

PAGE = (Path(__file__).parents[2] / "docs" / "command.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def options(command: str) -> set[str]:
    from kvreplay.cli.commands import commands

    return {
        option
        for parameter in commands.commands[command].params
        if parameter.param_type_name == "option"
        for option in parameter.opts
    } - {"-h", "--help"}


def test_each_command_has_its_section() -> None:
    from kvreplay.cli.commands import commands

    assert SECTIONS.keys() == commands.commands.keys()


@pytest.mark.parametrize("command", SECTIONS)
def test_each_option_is_told(command: str) -> None:

    usage = "".join(re.findall(r"^    .*\n", SECTIONS[command], re.MULTILINE))
    assert set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", usage)) == options(command)
    explained = re.findall(r"^\| (`--.*?) \|", SECTIONS[command], re.MULTILINE)
    assert set(re.findall(r"--[\w-]+", "".join(explained))) <= options(command)


def test_the_exit_statuses_are_those_that_the_help_tells() -> None:
    from kvreplay.cli.commands import commands

    told = re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)
    assert told == re.findall(r"(\d+):", commands.epilog or "")
