"""Migrations of every pair, killed at each batch and at any instant, and resumed."""

from __future__ import annotations

import random
import time
from itertools import product
from pathlib import Path
from signal import SIGKILL

import pytest

from kvreplay import Entry, open_store
from support.migrations import (
    LDK,
    MARK,
    SCRIPT,
    Copied,
    content,
    fill,
    killed_at_each_batch,
    ldk_files,
    node_file,
    order,
    url_of,
)
from support.nursery import ForkedProgram
from torture.conftest import DURABLE, Tally

KILLS = 20  # of each pair, in CI's budget


def made(source: str, folder: Path, entries: int) -> Copied:
    """Make a source: a store, or LDK's own files."""
    path = folder / "source"
    if source == "ldk-node":
        node_file(path, 3)
        url = url_of("sqlite", path)
    elif source.startswith("ldk"):
        ldk_files(path, source)
        url = f"filesystem:{path}?layout={source}"
    else:
        url = url_of(source, path)
        with open_store(url) as store:
            fill(store, entries)
            return Copied(url, content(store), order(store))
    return Copied(url, {address: Entry(value, None) for address, value in LDK.items()}, None)


@pytest.mark.parametrize(
    ("one", "other"), [*product((*DURABLE, "ldk-v1", "ldk-v2", "ldk-node"), DURABLE)]
)
def test_killed_at_each_batch(one: str, other: str, tmp_path: Path, tally: Tally) -> None:
    copied = made(one, tmp_path, 13)
    steps = killed_at_each_batch(copied, other, tmp_path)
    assert steps >= 2 + 1 + 2  # look, copy, compare
    tally("SIGKILLs of a migration after a batch", other, 2 * steps)


@pytest.mark.parametrize(("one", "other"), [*product(DURABLE, DURABLE)])
def test_killed_at_random_instants(
    one: str, other: str, tmp_path: Path, tally: Tally, times: int
) -> None:
    copied, number, kills = made(one, tmp_path, 300), 0, 0
    while kills < KILLS * times:
        path = tmp_path / f"{number}"
        destination = url_of(other, path)
        told = {"source": copied.source, "destination": destination, "batch": 20, "kill_at": 0}
        with ForkedProgram(SCRIPT, told) as process:
            time.sleep(random.expovariate(1 / 0.05))  # the random instant
            said, code = process.kill(), process.popen.returncode
        assert code in (0, -SIGKILL), "it failed by itself"
        if code:
            kills += 1
            tally("SIGKILLs of a migration at a random instant", other)
        if said or (path.exists() and has_ended(destination)):
            copied.check(destination)
            number += 1
    if path.exists() and not has_ended(destination):
        assert copied.run(destination)
        copied.check(destination)


def has_ended(destination: str) -> bool:
    """Whether a migration has removed its mark, which it may have had no time to say."""
    with open_store(destination) as store:
        addresses = set(store.list_all_keys())
    return bool(addresses) and MARK not in addresses
