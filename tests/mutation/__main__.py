"""Mutation testing: break the code on purpose, one place at a time, and see the tests go red.

``python -m mutation`` in ``tests/`` tries a fixed sample, ``--all`` every mutant, ``--all kvreplay._protocol.flow``
every mutant of one module. It fails if a mutant survives that ``docs/mutation.md`` does not
explain, or if that page explains one that does not exist any more.

Every mutant is tried in a fork of this process,
in which an import of the module finds the mutated source: no file is changed. So only tests that
stay in their process can see a mutant, and those are the ones that are run.
"""

from __future__ import annotations

import argparse
import asyncio  # noqa: F401  # imported once here, not once in each fork
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import attrs
import hypothesis.strategies
import lmdb  # noqa: F401
import msgpack  # noqa: F401
import pytest

from mutation.mutants import Mutant, mutants_of, on_one_line, source_of
from support.disks import in_memory

ROOT = Path(__file__).parents[2]
EXPLAINED = ROOT / "docs" / "mutation.md"
# Tests that take long, and see what the quick ones see.
_SLOW = "costs or threads or and_lists_during or forked or race or killed or each_step or atomic_over or model"
_SERVERS = "postgresql or etcd"
CONTRACT = "tests/kit/test_store_contract.py"
IN_MEMORY = ("-k", f"not (filesystem or lmdb or sqlite or {_SERVERS})")
IN_LMDB = (
    *(CONTRACT, "tests/backends/lmdb", "-k"),
    f"not (memory or filesystem or sqlite or {_SERVERS} or {_SLOW}) and (contract or sweep or bytes or linger or stray"
    " or illegal or remembered or longest or takes_pages)",
)
ON_FILES = (
    *(CONTRACT, "tests/backends/filesystem"),
    *("-k", f"not (memory or lmdb or sqlite or {_SERVERS} or {_SLOW} or walk)"),
)
MEMORY_LIMIT = 4 << 30  # bytes, for a mutant that collects without end
ON_LOOPS = (
    *("tests/core/test_aio.py", "tests/core/test_aio_cancelling.py"),
    "tests/core/test_awaited_stores.py",
)


@attrs.frozen
class Target:
    """A module to mutate, and the tests that are to notice, the quickest first."""

    module: str
    tests: tuple[str, ...]
    functions: frozenset[str] = frozenset()
    """Only these, if it names any."""


TARGETS = [
    Target("kvreplay._protocol.flow", ("tests/core/flow", "tests/core/replay", *IN_MEMORY)),
    Target("kvreplay._protocol.endings", ("tests/core/flow", "tests/core/replay", *IN_MEMORY)),
    Target(
        "kvreplay._protocol.record",
        ("tests/core/test_record.py", "tests/core/flow", "tests/core/replay", *IN_MEMORY),
    ),
    Target(
        "kvreplay._protocol.failures",
        ("tests/core/test_failures.py", "tests/core/flow", "tests/core/replay", *IN_MEMORY),
    ),
    Target(
        "kvreplay._protocol.digests",
        (
            *("tests/core/test_digests.py", "tests/core/flow", "tests/core/test_record.py"),
            *("tests/core/replay", *IN_MEMORY),
        ),
    ),
    Target(
        "kvreplay._protocol.params",
        ("tests/core/test_params.py", "tests/core/replay/test_memory.py"),
    ),
    Target("kvreplay._protocol.keys", ("tests/core/test_keys.py",)),
    Target(
        "kvreplay._runtime.singleflight",
        (
            *("tests/core/test_singleflight.py", "tests/core/replay"),
            *(*ON_LOOPS, *IN_MEMORY),
        ),
    ),
    Target(
        "kvreplay._runtime.sweeping",
        ("tests/core/test_periodic.py", "tests/core/replay", *ON_LOOPS, *IN_MEMORY),
    ),
    Target("kvreplay._runtime.aio_sweeping", ("tests/core/test_periodic.py", *IN_MEMORY)),
    Target("kvreplay._runtime.walking", ("tests/core/replay", *ON_LOOPS, *IN_MEMORY)),
    Target(
        "kvreplay.backends.memory",
        (CONTRACT, "tests/backends/memory", *IN_MEMORY),
        frozenset({"_sweep", "_sort", "_put_now", "_put", "_delete", "_drop", "_unindex"}),
    ),
    Target("kvreplay.backends.lmdb.entries", IN_LMDB),
    Target("kvreplay.backends.lmdb.store", IN_LMDB, frozenset({"sweep"})),
    Target(
        "kvreplay.backends.filesystem.store",
        ON_FILES,
        frozenset({"sweep", "_sweep", "_forget_folders"}),
    ),
    Target("kvreplay.backends.filesystem.expiry", ON_FILES),
]


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports the mutant instead of the module."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: object, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def get_source(self, fullname: str) -> str:
        return self._mutant.source


def explained() -> set[tuple[str, ...]]:
    """Return the names of the survivors that the documentation accounts for."""
    items = re.findall(
        r"^- `([^`]+)` `([^`]+)`:\s+`([^`]+)`\s+->\s+`([^`]+)`",
        EXPLAINED.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {tuple(on_one_line(part.splitlines()) for part in item) for item in items}


class Trial:
    """A process that runs the tests on a mutant."""

    def __init__(self, mutant: Mutant, tests: tuple[str, ...], timeout: float) -> None:
        self.mutant = mutant
        self.began = time.monotonic()
        self.deadline = self.began + timeout
        self._temporary = tempfile.TemporaryDirectory(dir=in_memory(), ignore_cleanup_errors=True)
        self._pid = os.fork()
        if not self._pid:
            _run_tests(mutant, tests, self._temporary.name)
        self._handle = os.pidfd_open(self._pid)

    def fileno(self) -> int:
        """Return a descriptor that can be read once the process has ended."""
        return self._handle

    def end(self) -> str:
        """Return killed, survived, or timed out, which counts as killed."""
        ended, _, _ = select.select([self], [], [], 0)
        os.close(self._handle)
        os.killpg(self._pid, signal.SIGKILL)  # even what a test left behind
        _, status = os.waitpid(self._pid, 0)
        self._temporary.cleanup()
        if not ended:
            return "timed out"
        return "survived" if status == 0 else "killed"


def outcomes(
    mutants: Iterable[Mutant], targets: Mapping[str, Target], timeout: Callable[[Mutant], float]
) -> Iterator[tuple[Trial, str]]:
    """Try the mutants, as many at a time as there are cores; yield each as it ends."""
    waiting = iter(mutants)
    running: list[Trial] = []
    while True:
        for mutant in itertools.islice(waiting, (os.cpu_count() or 1) - len(running)):
            running.append(Trial(mutant, targets[mutant.module].tests, timeout(mutant)))
        if not running:
            return
        patience = min(trial.deadline for trial in running) - time.monotonic()
        ended, _, _ = select.select(running, [], [], max(patience, 0))
        now = time.monotonic()
        for trial in [each for each in running if each in ended or each.deadline <= now]:
            running.remove(trial)
            yield trial, trial.end()


def _run_tests(mutant: Mutant, tests: tuple[str, ...], temporary: str) -> None:
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
        code = pytest.main([*options, *tests])
    finally:
        os._exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "modules", nargs="*", metavar="module", help="as in kvreplay._protocol.flow"
    )
    parser.add_argument("--all", action="store_true", help="every mutant, not a sample")
    parser.add_argument("--sample", type=int, default=36, metavar="N", help="how many otherwise")
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

    targets = {
        target.module: target
        for target in TARGETS
        if not options.modules or target.module in options.modules
    }
    mutants = [
        mutant
        for target in targets.values()
        for mutant in mutants_of(target.module, target.functions)
    ]
    known = explained()
    stale = {name for name in known if name[0] in targets} - {mutant.name for mutant in mutants}
    if not options.all:
        # By hash, so that a change of the code elsewhere changes nothing of the sample.
        mutants.sort(key=lambda mutant: _lot(options.seed, mutant))
        mutants = mutants[: options.sample]

    modules = dict.fromkeys(mutant.module for mutant in mutants)
    unchanged = [Mutant(module, "", "", "", source_of(module)) for module in modules]
    timeouts = {}
    for trial, outcome in outcomes(unchanged, targets, lambda _: 600):
        if outcome != "survived":
            sys.exit(f"the tests of {trial.mutant.module} fail without any mutation")
        timeouts[trial.mutant.module] = 5 + 3 * (time.monotonic() - trial.began)

    counts: Counter[tuple[str, str]] = Counter()
    unexplained = []
    for trial, outcome in outcomes(mutants, targets, lambda mutant: timeouts[mutant.module]):
        mutant = trial.mutant
        if outcome == "survived" and mutant.name in known:
            outcome = "explained"
        elif outcome == "survived":
            unexplained.append(mutant)
            print(mutant, flush=True)
        counts[mutant.module, outcome] += 1

    print("| module | mutants | killed | timed out | explained | unexplained |")
    print("|---|---|---|---|---|---|")
    for module in modules:
        row = [counts[module, end] for end in ("killed", "timed out", "explained", "survived")]
        print(f"| `{module}` | {sum(row)} |", " | ".join(map(str, row)), "|")
    for name in sorted(stale):
        print(f"{EXPLAINED} explains what is no mutant:", *name)
    return 1 if unexplained or stale else 0


def _lot(seed: str, mutant: Mutant) -> str:
    return hashlib.sha256(repr((seed, mutant.name)).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
