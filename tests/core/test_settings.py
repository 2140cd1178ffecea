"""The settings: written once, and the same wherever they can be set."""

from __future__ import annotations

import inspect

import pytest

import kvreplay
from kvreplay import AsyncReplay, Replay, ReplaySettings
from kvreplay._runtime.settings import IN_A_FILE, Configured


@pytest.mark.parametrize("face", [Replay, AsyncReplay])
def test_both_faces_have_the_same_settings_and_their_documentation(face: type) -> None:
    own, shared = inspect.signature(face), inspect.signature(Configured)
    assert own == shared
    assert list(own.parameters)[:2] == ["store", "namespace"]
    documented = inspect.getdoc(face.__init__) or ""
    for name in own.parameters:
        assert f"    {name}: " in documented, name


def test_a_file_and_the_type_checker_know_every_setting_that_a_file_can_hold() -> None:
    arguments = set(inspect.signature(Replay).parameters)
    # No file can hold these; a secret should not be in one.
    objects = {"store", "doubt_on", "store_errors", "params_key", "clock", "on_event"}
    objects |= {"encode", "decode"}
    assert set(ReplaySettings.__annotations__) == arguments - objects
    assert set(IN_A_FILE) == arguments - objects - {"namespace"}


def test_the_public_names_are_what_completion_and_help_show() -> None:
    shown = {name for name in dir(kvreplay) if not name.startswith("_")}
    assert shown == set(kvreplay.__all__)
