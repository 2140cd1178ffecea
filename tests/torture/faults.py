"""A process whose n-th system call of a kind fails, while it does one thing and no other."""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import attrs

# What does no input or output: waiting for each other, memory, signals, identity.
IDLE = re.compile(
    r"futex|rt_sig\w+|restart_syscall|mmap|munmap|mremap|mprotect|madvise|brk|getpid|gettid|getppid"
    r"|kill|tgkill|exit|exit_group|uname|getrandom|sched_yield|clock_\w+|nanosleep|alarm|set_\w+"
    r"|rseq|clone3?|prctl|getuid|geteuid|sched_getaffinity"
)


@attrs.frozen
class Struck:
    """What became of the process."""

    code: int | None  # if it ended in the act: its exit code, or the negative of its signal
    said: Any  # what the act returned
    effects: int  # how often the handler ran
    afterwards: Any  # what the same process could do once nothing failed any more
    calls: Counter[str]  # the system calls of the act
    injected: bool


class Slate:
    """What a process says without a system call, so that no fault can hit that."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1 << 16)

    @property
    def effects(self) -> int:
        return self._memory[0]

    def effect(self) -> None:
        self._memory[0] += 1

    def say(self, what: Any, *, at: int) -> None:
        text = json.dumps(what).encode()
        self._memory[at : at + len(text)] = text

    def said(self, *, at: int) -> Any:
        text = self._memory[at : at + (1 << 14)].rstrip(b"\0")
        return json.loads(text) if text else None


ACT, AFTERWARDS = 1 << 14, 1 << 15


def struck(
    fork: Any,
    log: Path,
    prepare: Callable[[Slate], tuple[Callable[[], Any], Callable[[], Any]]],
    call: str = "",
    fault: str = "",
    n: int = 0,
) -> Struck:
    """Run the act that ``prepare`` makes with its n-th ``call`` failing, and then what comes after.

    Without a ``call`` nothing fails.
    """
    slate = Slate()

    def run() -> None:
        act, afterwards = prepare(slate)
        os.kill(os.getpid(), SIGSTOP)
        slate.say(act(), at=ACT)
        os.kill(os.getpid(), SIGSTOP)
        slate.say(afterwards(), at=AFTERWARDS)

    child = fork(run)
    assert child.wait_for_stop() is None
    inject = ("-e", f"inject={call}:{fault}:when={n}") if call else ()
    with subprocess.Popen(
        ["strace", "-f", "-p", str(child.pid), "-o", log, *inject],
        stderr=subprocess.PIPE,
        text=True,
    ) as strace:
        assert strace.stderr is not None
        assert "attached" in (said := strace.stderr.readline()), said
        os.kill(child.pid, SIGCONT)
        code = child.wait_for_stop()
        strace.terminate()
    if code is None:
        os.kill(child.pid, SIGCONT)
        assert child.wait() == 0, "it was not usable afterwards"
    text = log.read_text()
    calls = Counter(re.findall(r"^\d+ +(\w+)\(", text, re.MULTILINE))
    return Struck(
        code,
        slate.said(at=ACT),
        slate.effects,
        slate.said(at=AFTERWARDS),
        Counter({name: count for name, count in calls.items() if not IDLE.fullmatch(name)}),
        "(INJECTED)" in text,
    )
