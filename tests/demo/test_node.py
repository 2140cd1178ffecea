"""The node as a process."""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path

import pytest

from kvreplay import ConfigError, load_config
from kvreplay.demo.client import NODE, Node, NodeFailedError
from kvreplay.demo.node import NodeSettings
from kvreplay.demo.stage import REQUEST, Stage
from support.demo_node import CONFIG, GOOD, write_config
from support.interrupts import hearing_ctrl_c


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ('[node]\nhost = "0.0.0.0"', "host"),
        ('[node]\nhost = "example.org"', "host"),
        ("[node]\nhost = 1", "host"),
        ("[node]\nport = 65536", "port"),
        ("[node]\nport = true", "port"),
        ('[node]\nseed = ""', "seed"),
        ("[node]\nprot = 1", "prot"),
    ],
)
def test_a_wrong_node_table_is_named(table: str, named: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, more=table)
    with pytest.raises(ConfigError, match=named):
        NodeSettings.read(load_config(config, environ={}, also=("node",)))
    no_table = tmp_path / "no-table.toml"
    no_table.write_text("node = 1\n" + CONFIG.format(url="memory:", more=""))
    with pytest.raises(ConfigError, match="not a table"):
        NodeSettings.read(load_config(no_table, environ={}, also=("node",)))
    right = write_config(tmp_path, more='[node]\nhost = "127.0.0.2"\nport = 4711\nseed = "s"')
    read = NodeSettings.read(load_config(right, environ={}, also=("node",)))
    assert read == NodeSettings("127.0.0.2", 4711, "s")


def test_a_node_that_cannot_start_says_why_and_is_2(tmp_path: Path, node: Node) -> None:
    def start(more: str) -> subprocess.CompletedProcess[str]:
        config = write_config(tmp_path, more=more)
        command = [*NODE, "--config", str(config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    for more, named in (
        (f"[node]\nport = {node.port}", "in use"),
        ("[nod]", '"nod"'),
    ):
        done = start(more)
        assert done.returncode == 2
        assert named in done.stderr
        assert "Traceback" not in done.stderr
    with pytest.raises(NodeFailedError, match="in use"):
        Node(write_config(tmp_path, more=f"[node]\nport = {node.port}"), tmp_path / "log")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, "eof"])
def test_a_node_ends_when_told_to(end: signal.Signals | str, tmp_path: Path) -> None:
    with hearing_ctrl_c():
        process = subprocess.Popen(
            [*NODE, "--config", str(write_config(tmp_path)), "--until-eof"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"listening 127.0.0.1:")
        if isinstance(end, signal.Signals):
            process.send_signal(end)
            assert process.wait(30) == 0
        else:
            process.stdin.write(b"anything")
            process.stdin.close()
            assert process.wait(30) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize("url", ["lmdb:store", "filesystem:store"])
def test_a_request_that_another_process_runs_is_in_flight(url: str, tmp_path: Path) -> None:
    stage = Stage({"url": url}, tmp_path)
    try:
        holding = stage.start("--hold-after-ledger")
        caught: list[BaseException] = []

        def hold() -> None:
            try:
                holding.call(REQUEST, GOOD)
            except OSError as error:
                caught.append(error)

        asking = threading.Thread(target=hold)
        asking.start()
        try:
            holding.wait_for("holding")
            stage.start(environ={"KVREPLAY_REPLAY_REQUEST_INVOICE_WAIT_TIMEOUT": "0"})
            error = stage.refusal(GOOD, 1106)
            assert error.message == "in_flight"
            assert 0 < error.data["retry_after"] <= 1  # type: ignore[index]
            other = {**GOOD, "amount_msat": 1}
            assert stage.refusal(other, 1105).data == {"reason": "params_mismatch"}
        finally:
            holding.kill()
            asking.join(30)
        assert len(caught) == 1
        assert stage.request(GOOD) == stage.ledger(GOOD)
        assert stage.nodes[-1].stop() == 0
    finally:
        stage.close()
