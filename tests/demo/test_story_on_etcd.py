"""The story on etcd: below a prefix of its own on a server, and on members of its own, which it kills."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.test_story import HOT_CACHE, broken_node, untrue_steps
from kvreplay import CorruptStoreError, StoreError, open_store
from kvreplay.cli import main
from kvreplay.demo import story
from support.etcd import coded, decoded, end_of_range
from support.etcd_programs import etcd_program
from support.interrupts import hearing_ctrl_c
from support.needs import needs_h11
from support.process_table import processes
from support.programs import run_python
from support.waiting import until

STEPS = 11
ON_OWN_MEMBERS = 16


@pytest.fixture(scope="module", autouse=True)
def _needed() -> None:
    needs_h11()


@pytest.fixture
def path() -> str:
    """A ``PATH`` with etcd in it."""
    return f"{etcd_program().parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def dying(tmp_path: Path) -> list[str]:
    """The command of a node that does not start, so that the story is short."""
    script = tmp_path / "dies.py"
    script.write_text("import sys; sys.exit('out of luck')")
    return [sys.executable, str(script)]


def keys(etcd: Any) -> list[str]:
    first = f"/{etcd.name}".encode()
    told = etcd.server.call(
        "/v3/kv/range", key=coded(first), range_end=coded(end_of_range(first)), keys_only=True
    )
    return [decoded(kv["key"]).decode() for kv in told.get("kvs", ())]


def test_the_story_is_true_and_its_prefix_is_kept_with_the_directory(
    etcd: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    code = main(["demo", "--store", f"{etcd.one_url}?timeout=20s", "--dir", str(kept)])
    out, err = capfd.readouterr()
    assert (code, err) == (0, ""), out
    [name] = set(re.findall(r"kvreplay_demo_[0-9a-f]{8}", out))
    lines = out.splitlines()
    assert lines[-2] == f"The store in etcd is kept too: /{etcd.name}/{name}/"
    assert lines[-1] == f"{STEPS} steps, all true"
    assert max(map(len, (line for line in lines if str(tmp_path) not in line))) <= 80
    assert any("two node processes" in line and line.startswith("  ✓") for line in lines)
    assert "timeout" not in out
    with open_store(f"{etcd.url}/{name}?create=false") as store:
        assert len(store.list("inbound_payments", "")) == 5


@pytest.mark.parametrize("with_a_store", [True, False])
def test_without_a_directory_it_leaves_what_was_there_and_nothing_else(
    etcd: Any, with_a_store: bool, dying: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if with_a_store:
        with open_store(etcd.url) as store:
            store.write("p", "s", "k", b"precious")
    before = keys(etcd)
    assert story.tell([etcd.url], command=dying) == 1
    out = capsys.readouterr().out
    assert "out of luck" in out
    assert "kvreplay_demo_" in out
    assert "kept" not in out
    assert keys(etcd) == before
    assert bool(before) == with_a_store


@pytest.mark.any_python
def test_a_store_beside_is_no_hindrance_and_a_cluster_that_is_down_is_one_line(
    etcd: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(story, "tell", lambda *stores, **more: told.append(stores) or 0)
    open_store(f"{etcd.url}/another").close()  # so that etcd.url has keys, and no store
    assert main(["demo", "--store", etcd.url]) == 0
    open_store(f"{etcd.url}/another").close()
    assert main(["demo", "--store", f"{etcd.url}/another"]) == 0
    assert len(told) == 2
    url = "etcd://root:hunter2@127.0.0.1:1/x?timeout=1s"
    assert main(["demo", "--store", url]) == 2
    assert len(told) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "no member of the etcd cluster" in err
    assert "hunter2" not in err


@pytest.mark.any_python
def test_no_credentials_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from kvreplay.demo.printing import Printer

    url = f"etcd://root:hunter2@{'a' * 40}:2379/prefix/kvreplay_demo_00000000?key=hunter2"
    Printer().heading("etcd", {"url": url})
    out = capsys.readouterr().out
    assert "hunter2" not in out
    assert "/prefix/kvreplay_demo_00000000" in out


@pytest.mark.any_python
def test_only_what_the_story_made_is_removed_and_by_whoever_ends_it(etcd: Any) -> None:
    from kvreplay.demo.prefix import new_prefix

    with open_store(etcd.url) as store:
        store.write("p", "s", "k", b"precious")
        before = keys(etcd)
        with pytest.raises(KeyboardInterrupt), new_prefix(etcd.url, kept=False) as (url, prefix):
            with open_store(url) as own:
                own.write("p", "s", "k", b"v")
            assert len(keys(etcd)) > len(before)
            assert prefix.startswith(f"/{etcd.name}/kvreplay_demo_")
            raise KeyboardInterrupt
        assert keys(etcd) == before
        assert store.read("p", "s", "k") == b"precious"


@pytest.mark.any_python
def test_a_prefix_that_cannot_be_removed_is_named(etcd: Any) -> None:
    from kvreplay.demo.prefix import new_prefix

    with pytest.raises(StoreError) as caught, new_prefix(etcd.url, kept=False) as (url, prefix):
        with open_store(url) as own:
            own.remove_store()  # type: ignore[attr-defined]  # this engine can
        open_store(url).close()  # another one, which is not the story's
    assert f"etcdctl del --prefix {prefix} removes it" in str(caught.value)
    open_store(url + "?create=false").close()


@pytest.mark.any_python
def test_a_removed_store_is_gone_for_all_who_have_it_open_and_nothing_beside_it(etcd: Any) -> None:
    with open_store(etcd.url) as one, open_store(f"{etcd.url}/below") as below:
        one.check_and_put("p", "s", "k", expected=None, value=b"v", expires_at=1)
        below.write("p", "s", "k", b"v")
        with open_store(etcd.url) as other:
            other.remove_store()  # type: ignore[attr-defined]  # this engine can
        with pytest.raises(CorruptStoreError):
            one.check_and_put("p", "s", "k", expected=None, value=b"again")
        assert below.read("p", "s", "k") == b"v"
    left = keys(etcd)
    assert left
    assert all(key.startswith(f"/{etcd.name}/below/") for key in left)


# On members of its own.


def tell(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return run_python(
        *("-m", "kvreplay", "demo", "--store", "etcd:", *arguments),
        timeout=300,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environ},
    )


def members_below(folder: Path) -> list[int]:
    """The processes whose command names this folder, and that run."""
    found = []
    for pid, _, state in processes():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"--data-dir=" + os.fsencode(folder) in command and state not in "ZX":
            found.append(pid)
    return found


def test_members_are_killed_and_the_story_is_true(tmp_path: Path, path: str) -> None:
    # What etcd would take for its own settings does not reach it.
    done = tell(TMPDIR=str(tmp_path), PATH=path, ETCD_LISTEN_CLIENT_URLS="nonsense")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{ON_OWN_MEMBERS} steps, all true"
    assert sum(bool(re.fullmatch(r"  ✓ .* +[0-9]+ ms", line)) for line in lines) == ON_OWN_MEMBERS
    assert max(map(len, lines)) <= 80
    assert "\033" not in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert members_below(tmp_path) == []


@pytest.mark.any_python
def test_answers_in_a_node_s_memory_are_untrue_when_members_are_killed(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", path)
    command = broken_node(tmp_path, HOT_CACHE)
    assert story.tell(["etcd:"], str(tmp_path / "kept"), command=command) == 1
    output = capsys.readouterr().out
    killed = [step for step in untrue_steps(output) if step.startswith("SIGKILL of the leader")]
    assert len(killed) == 1
    assert output.splitlines()[-1].endswith(" 3 not run"), output
    assert members_below(tmp_path) == []


@pytest.mark.any_python
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_members_end_with_the_story(tmp_path: Path, path: str, how: signal.Signals) -> None:
    environ = {**os.environ, "PATH": path, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "kvreplay", "demo", "--store", "etcd:"]
    with (
        hearing_ctrl_c(),
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ
        ) as told,
    ):
        assert told.stdout is not None
        for line in told.stdout:
            if b"first request" in line:
                break
        assert len(members_below(tmp_path)) == 3
        told.send_signal(how)
        told.stdout.read()  # its nodes have it too
    until(lambda: members_below(tmp_path) == [])


@pytest.mark.any_python
def test_without_etcd_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["demo", "--store", "etcd:"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "no etcd on the PATH; nothing was started: install it (Debian: etcd-server)" in err


@pytest.mark.any_python
def test_a_member_that_does_not_start_is_untrue_and_nothing_else_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "etcd"
    program.write_text(f"#!{sys.executable}\nimport sys; sys.exit('out of luck')\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert story.tell(["etcd:"], str(tmp_path / "kept")) == 1
    out = capsys.readouterr().out
    assert "untrue: a member of etcd has ended\n      out of luck" in out
    assert out.splitlines()[-1] == f"{ON_OWN_MEMBERS} steps, 1 untrue, {ON_OWN_MEMBERS - 1} not run"


@pytest.fixture(autouse=True)
def _all_end(tmp_path: Path) -> Iterator[None]:
    yield
    for pid in members_below(tmp_path):
        os.kill(pid, signal.SIGKILL)
