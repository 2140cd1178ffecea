"""The demo: its node, under right and wrong requests, and the story, true and untrue."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from kvreplay import ConfigError, OutcomeUnknownError, StoreUnavailableError, load_config
from kvreplay.backends.memory import MemoryStore
from kvreplay.demo import rpc
from kvreplay.demo.params import InvalidFieldError, InvoiceRequest
from kvreplay.demo.rpc import RpcError

try:
    from kvreplay.demo import story
    from kvreplay.demo.client import NODE, Client, Node, NodeFailedError, ask_at_once
    from kvreplay.demo.invoice import NodeKey, make_invoice, read_invoice
    from kvreplay.demo.node import NodeSettings
    from kvreplay.demo.orders import Ledger, Orders
    from kvreplay.demo.stage import REQUEST, Stage, UntrueError
except ConfigError as error:
    if os.environ.get("CI") == "true":
        raise
    pytest.skip(str(error), allow_module_level=True)

HASH = "ab" * 32
NODE_ID = "02" + "cd" * 32
GOOD: Mapping[str, Any] = {
    "lsp_node_id": NODE_ID,
    "claim_session_id": "session",
    "hash_index": "42",
    "payment_hash": HASH,
    "amount_msat": 3_000_000,
    "asset_id": "rgb:asset",
    "asset_amount": 7,
    "description_hash": "ef" * 32,
    "invoice_expiry_sec": 3600,
    "min_final_cltv_expiry_delta": 144,
}
CONFIG = '[store]\nurl = "{url}"\n\n[replay.request_invoice]\nttl = "1h"\n{more}\n'


# Parameters.

# field, a value that is refused, its twin that is not, and what that becomes
VALUES: list[tuple[str, object, object, object]] = [
    ("lsp_node_id", 2, "2", "2"),
    ("lsp_node_id", "", "x", "x"),
    ("lsp_node_id", None, "An-LSP", "An-LSP"),
    ("lsp_node_id", "\ud800", "\U0001f680", "\U0001f680"),
    ("lsp_node_id", "x" * 257, NODE_ID.upper(), NODE_ID),
    ("claim_session_id", ["s"], "s", "s"),
    ("claim_session_id", "", "A", "A"),
    ("claim_session_id", "s" * 257, "s" * 256, "s" * 256),
    ("hash_index", 42, "42", "42"),
    ("hash_index", "", "0", "0"),
    ("hash_index", "-1", "0042", "42"),
    ("hash_index", "4.2", "000", "0"),
    ("hash_index", "42\n", "1", "1"),
    ("hash_index", "٤٢", "9", "9"),
    ("hash_index", "0x42", "042", "42"),
    ("hash_index", str(2**64), str(2**64 - 1), str(2**64 - 1)),
    ("hash_index", "9" * 5000, "0" * 255 + "9", "9"),
    ("payment_hash", "zz" * 32, HASH, HASH),
    ("payment_hash", "ab" * 31, HASH.upper(), HASH),
    ("payment_hash", HASH + "ab", "aB" * 32, HASH),
    ("payment_hash", f"{HASH}\n", HASH, HASH),
    ("payment_hash", f"0x{'ab' * 31}", HASH, HASH),
    ("payment_hash", 7, HASH, HASH),
    ("description_hash", "", HASH, HASH),
    ("description_hash", "g" * 64, "F" * 64, "f" * 64),
    ("amount_msat", True, 1, 1),
    ("amount_msat", 0, 1, 1),
    ("amount_msat", -1, 1000, 1000),
    ("amount_msat", 1.0, 2**40 + 1, 2**40 + 1),
    ("amount_msat", "3000", 3000, 3000),
    ("amount_msat", 10**14, 10**14 - 1, 10**14 - 1),
    ("amount_msat", None, 5, 5),
    ("asset_id", 1, "1", "1"),
    ("asset_id", "", "rgb:x", "rgb:x"),
    ("asset_amount", False, 1, 1),
    ("asset_amount", 2**64, 2**64 - 1, 2**64 - 1),
    ("invoice_expiry_sec", 0, 1, 1),
    ("invoice_expiry_sec", 367 * 86_400, 366 * 86_400, 366 * 86_400),
    ("min_final_cltv_expiry_delta", {}, 18, 18),
    ("min_final_cltv_expiry_delta", 65_536, 65_535, 65_535),
]


@pytest.mark.parametrize(("field", "wrong", "right", "normal"), VALUES)
def test_each_wrong_value_is_named_and_its_right_twin_normalised(
    field: str, wrong: object, right: object, normal: object
) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        InvoiceRequest.read({**GOOD, field: wrong})
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    if isinstance(wrong, str) and len(wrong) > 10:
        assert wrong not in str(caught.value)
    read = InvoiceRequest.read({**GOOD, field: right})
    assert getattr(read, field) == normal
    assert type(getattr(read, field)) is type(normal)


@pytest.mark.parametrize("field", GOOD)
def test_every_field_is_required(field: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        InvoiceRequest.read({name: GOOD[name] for name in GOOD if name != field})
    assert (caught.value.field, caught.value.problem) == (field, "it is missing")


def test_an_unknown_field_is_refused_and_shown_cut_short() -> None:
    with pytest.raises(InvalidFieldError) as caught:
        InvoiceRequest.read({**GOOD, "x" * 1000: 1})
    assert caught.value.field == "x" * 64
    assert InvoiceRequest.read(GOOD).params == GOOD


def test_a_request_shows_nothing_in_its_repr() -> None:
    request = InvoiceRequest.read(GOOD)
    assert HASH not in repr(request)
    assert request.key == (NODE_ID, "session")


# Invoices.


@pytest.mark.parametrize("amount", [1, 999, 3_000_000, 10**11, 10**14 - 1])
def test_an_invoice_says_what_was_asked(amount: int) -> None:
    key = NodeKey.from_seed("a seed")
    request = InvoiceRequest.read({**GOOD, "amount_msat": amount})
    invoice = read_invoice(make_invoice(request, key))
    assert attrs.asdict(invoice) == {
        "currency": "bcrt",
        "node_id": key.node_id,
        "payment_hash": HASH,
        "amount_msat": amount,
        "description_hash": "ef" * 32,
        "expiry_sec": 3600,
        "min_final_cltv_expiry_delta": 144,
    }


def test_no_two_invoices_are_alike_and_another_seed_is_another_node() -> None:
    key, other = NodeKey.from_seed("a"), NodeKey.from_seed("b")
    request = InvoiceRequest.read(GOOD)
    assert make_invoice(request, key) != make_invoice(request, key)
    assert key.node_id == NodeKey.from_seed("a").node_id != other.node_id
    assert key.secret not in repr(key)


@pytest.mark.parametrize("text", ["", "lnbcrt1", "lnbcrt1qqqqqq", "bc1qw508d6qejxtdg4y5r3z"])
def test_what_is_no_invoice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no BOLT11 invoice"):
        read_invoice(text)
    whole = make_invoice(InvoiceRequest.read(GOOD), NodeKey.from_seed("a"))
    with pytest.raises(ValueError, match="no BOLT11 invoice"):
        read_invoice(whole[:-1])


# The methods, on a store of this process.


def orders_on(store: Any, more: str = "", tmp_path: Path | None = None) -> Orders:
    environ = {"KVREPLAY_STORE": "memory:"}
    file = None
    if tmp_path is not None:
        file = tmp_path / "node.toml"
        file.write_text(CONFIG.format(url="memory:", more=more))
    config = load_config(file, environ=environ)
    return Orders(store, config, NodeKey.from_seed("a seed"))


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    return orders_on(MemoryStore(), tmp_path=tmp_path)


def ask(orders: Orders, **changed: object) -> Any:
    return orders.methods[REQUEST]({**GOOD, **changed})


def refusal(orders: Orders, **changed: object) -> tuple[int, str, object]:
    with pytest.raises(RpcError) as caught:
        ask(orders, **changed)
    return caught.value.code, caught.value.message, caught.value.data


def status(orders: Orders) -> Any:
    return orders.methods["node.status"]({})


def test_a_retry_gets_the_same_and_other_params_are_stale(orders: Orders) -> None:
    first = ask(orders)
    stale = (1105, "stale_flow", {"reason": "params_mismatch"})
    for field in GOOD:
        if field in ("lsp_node_id", "claim_session_id"):
            continue
        other = {"hash_index": "43", "asset_id": "other"}.get(field) or (
            GOOD[field] + 1 if isinstance(GOOD[field], int) else "00" * 32
        )
        assert refusal(orders, **{field: other}) == stale
    assert ask(orders, hash_index="0042", payment_hash=HASH.upper()) == first
    assert status(orders) == {"invoices": 1, "made": 1, "records": {"completed": 1}}


def test_another_session_gets_no_invoice_for_a_used_payment_hash(orders: Orders) -> None:
    first = ask(orders)
    used = (1108, "payment_hash_used", {"field": "payment_hash"})
    assert refusal(orders, claim_session_id="another") == used
    assert refusal(orders, lsp_node_id="another") == used
    assert status(orders) == {"invoices": 1, "made": 1, "records": {"completed": 1}}
    assert ask(orders) == first  # and its own session still gets it
    other = ask(orders, claim_session_id="another", payment_hash="cd" * 32)
    assert other["bolt11"] != first["bolt11"]


def test_after_expiry_a_used_payment_hash_is_not_invoiced_again(tmp_path: Path) -> None:
    store = MemoryStore()
    orders = orders_on(store, tmp_path=tmp_path)
    orders.replay = type(orders.replay)(store, "request_invoice", ttl=0)
    first = ask(orders)
    assert refusal(orders) == (1105, "stale_flow", {"reason": "expired"})
    assert refusal(orders) == (1108, "payment_hash_used", {"field": "payment_hash"})
    assert orders.methods["node.invoice"]({"payment_hash": HASH}) == first
    assert status(orders) == {"invoices": 1, "made": 1, "records": {}}


class Unsure(MemoryStore):
    """Its first commit to the ledger ends with an unknown outcome."""

    def __init__(self, *, happens: bool) -> None:
        super().__init__()
        self._happens = happens
        self._sure = False

    def check_and_put(self, primary_namespace: str, *address: str, **change: Any) -> bytes | None:
        if primary_namespace == Ledger.NAMESPACE and not self._sure:
            self._sure = True
            if self._happens:
                super().check_and_put(primary_namespace, *address, **change)
            raise OutcomeUnknownError("the commit may or may not have happened")
        return super().check_and_put(primary_namespace, *address, **change)


@pytest.mark.parametrize("happens", [True, False])
def test_an_unknown_outcome_of_the_ledger_is_in_doubt_until_the_ledger_tells(
    happens: bool, tmp_path: Path
) -> None:
    orders = orders_on(Unsure(happens=happens), tmp_path=tmp_path)
    assert refusal(orders) == (1107, "in_doubt", {"retry_after": 1.0})
    assert status(orders)["records"] == {"in_progress": 1}
    answer = ask(orders)
    assert read_invoice(answer["bolt11"]).payment_hash == HASH
    assert status(orders) == {
        "invoices": 1,
        "made": 1 if happens else 2,  # one that nobody has seen was lost
        "records": {"completed": 1},
    }
    assert ask(orders) == answer


class Unavailable(MemoryStore):
    """The ledger cannot be written to while ``broken``."""

    broken = True

    def check_and_put(self, primary_namespace: str, *address: str, **change: Any) -> bytes | None:
        if primary_namespace == Ledger.NAMESPACE and self.broken:
            raise StoreUnavailableError("busy")
        return super().check_and_put(primary_namespace, *address, **change)


def test_a_failing_store_is_an_internal_error_and_a_retry_runs_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Unavailable()
    orders = orders_on(store, tmp_path=tmp_path)
    assert refusal(orders) == (-32603, "internal error", {"reason": "store"})
    assert HASH not in caplog.text
    assert status(orders)["records"] == {}
    store.broken = False
    assert ask(orders)["payment_hash"] == HASH


def test_a_damaged_record_is_an_internal_error(tmp_path: Path) -> None:
    store = MemoryStore()
    orders = orders_on(store, tmp_path=tmp_path)
    store.write("request_invoice", NODE_ID, "session", b"damaged")
    assert refusal(orders) == (-32603, "internal error", {"reason": "replay"})
    assert ask(orders, claim_session_id="another")["payment_hash"] == HASH


def test_a_claim_that_was_lost_is_in_flight_elsewhere(tmp_path: Path) -> None:
    store = MemoryStore()
    config = load_config(write_config(tmp_path), environ={})

    def lose() -> None:
        store.remove("request_invoice", NODE_ID, "session")

    orders = Orders(store, config, NodeKey.from_seed("a seed"), written=lose)
    assert refusal(orders) == (1106, "in_flight", {"retry_after": 1.0})


def test_a_ledger_entry_of_another_session_settles_nothing(tmp_path: Path) -> None:
    """In doubt, and meanwhile another session has used the payment hash: refused, not adopted."""
    store = Unsure(happens=False)
    orders = orders_on(store, tmp_path=tmp_path)
    assert refusal(orders)[0] == 1107
    ask(orders, claim_session_id="another")
    assert refusal(orders) == (1108, "payment_hash_used", {"field": "payment_hash"})
    assert status(orders)["records"] == {"completed": 1}


# JSON-RPC, at a real node.


def write_config(directory: Path, url: str = "memory:", more: str = "") -> Path:
    config = directory / "node.toml"
    config.write_text(CONFIG.format(url=url, more=more))
    return config


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    directory = tmp_path_factory.mktemp("node")
    node = Node(write_config(directory), directory / "node.log")
    try:
        yield node
        assert node.stop() == 0
        assert node.last_words() == ""
    finally:
        node.close()


def call(**changed: object) -> dict[str, object]:
    request = {"jsonrpc": "2.0", "id": 7, "method": "node.status", "params": {}, **changed}
    return {name: value for name, value in request.items() if value is not ...}


# body, the id of the answer, its error code (None: a result), a part of its message
BODIES: list[tuple[object, object, int | None, str]] = [
    (call(), 7, None, ""),
    (call(id="text"), "text", None, ""),
    (call(id=None), None, None, ""),
    (call(id=1.5), 1.5, None, ""),
    (call(params=...), 7, None, ""),
    (b"", None, -32700, "parse error"),
    (b"{", None, -32700, "parse error"),
    (b'{"jsonrpc": "2.0", "id": 7, "method": "node.status"}'[:-1], None, -32700, "parse error"),
    (b"\xff\xfe", None, -32700, "UTF-8"),
    (b'{"jsonrpc": "2.0", "id": NaN, "method": "node.status"}', None, -32700, "parse error"),
    (b'{"jsonrpc": "2.0", "id": 1, "id": 2, "method": "node.status"}', None, -32700, "parse"),
    (b"[" * 60_000, None, -32700, "parse error"),
    (b'{"id": ' + b"9" * 5000 + b"}", None, -32700, "parse error"),
    (7, None, -32600, "not an object"),
    ("node.status", None, -32600, "not an object"),
    (call(jsonrpc=...), 7, -32600, "jsonrpc"),
    (call(jsonrpc="1.0"), 7, -32600, "jsonrpc"),
    (call(jsonrpc=2.0), 7, -32600, "jsonrpc"),
    (call(method=...), 7, -32600, "method"),
    (call(method=1), 7, -32600, "method"),
    (call(params="x"), 7, -32600, "params"),
    (call(params=None), 7, -32600, "params"),
    (call(id=True), None, -32600, "id"),
    (call(id={}), None, -32600, "id"),
    (call(id=..., method=1), None, -32600, "method"),
    (call(method="node.Status"), 7, -32601, "method not found"),
    (call(params=[]), 7, -32602, "by name"),
    (call(params={"x": 1}), 7, -32602, "x: there is no such field"),
    (call(method=REQUEST, params=...), 7, -32602, "lsp_node_id: it is missing"),
    (call(method=REQUEST, params={**GOOD, "payment_hash": "zz"}), 7, -32602, "payment_hash: "),
    (call(method=REQUEST, params={**GOOD, "amount_msat": True}), 7, -32602, "amount_msat: "),
    (call(method="node.invoice", params={"payment_hash": "0"}), 7, -32602, "payment_hash: "),
    (call(method="node.invoice", params={"payment_hash": HASH}), 7, None, ""),
    ([], None, -32600, "batch"),
    ([1] * 101, None, -32600, "batch"),
]


@pytest.mark.parametrize(("body", "id_", "code", "part"), BODIES)
def test_each_body_has_the_answer_that_json_rpc_says(
    node: Node, body: object, id_: object, code: int | None, part: str
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with Client(node.port) as client:
        http, content = client.post(data)
        again, _ = client.post(json.dumps(call()).encode())  # the connection is still good
    assert (http, again) == (200, 200)
    answer = json.loads(content)
    assert answer["jsonrpc"] == "2.0"
    assert answer["id"] == id_
    assert ("result" in answer) == (code is None)
    if code is not None:
        assert answer["error"]["code"] == code
        assert part in answer["error"]["message"]
        if code == -32602 and ": " in part:
            assert answer["error"]["data"] == {"field": part.partition(":")[0]}


def test_a_notification_runs_and_has_no_answer(node: Node) -> None:
    params = {**GOOD, "claim_session_id": "notified", "payment_hash": "11" * 32}
    with Client(node.port) as client:
        body = call(id=..., method=REQUEST, params=params)
        assert client.post(json.dumps(body).encode()) == (204, b"")
        assert client.post(json.dumps(call(id=..., method="nobody")).encode()) == (204, b"")
        answer = client.call(REQUEST, params)
        assert client.call("node.invoice", {"payment_hash": "11" * 32}) == answer


def test_a_batch_is_answered_one_by_one_without_its_notifications(node: Node) -> None:
    params = {**GOOD, "claim_session_id": "batched", "payment_hash": "22" * 32}
    request = call(method=REQUEST, params=params)
    batch = [request, call(id=...), 1, {**request, "id": 8}, call(id=9, method="nobody")]
    with Client(node.port) as client:
        _, content = client.post(json.dumps(batch).encode())
        only_notifications = json.dumps([call(id=...), call(id=...)]).encode()
        assert client.post(only_notifications) == (204, b"")
    first, wrong, second, nobody = json.loads(content)
    assert (first["id"], second["id"]) == (7, 8)
    assert first["result"] == second["result"]
    assert (wrong["id"], wrong["error"]["code"]) == (None, -32600)
    assert (nobody["id"], nobody["error"]["code"]) == (9, -32601)


OK_BODY = json.dumps(call()).encode()


@pytest.mark.parametrize(
    ("head", "body", "status_line"),
    [
        (f"POST / HTTP/1.1\r\nContent-Length: {len(OK_BODY)}\r\n", OK_BODY, "200"),
        (f"POST /x HTTP/1.1\r\nContent-Length: {len(OK_BODY)}\r\n", OK_BODY, "404"),
        ("POST / HTTP/1.1\r\n", b"", "411"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n", "411"),
        ("POST / HTTP/1.1\r\nContent-Length: -1\r\n", b"", "411"),
        ("POST / HTTP/1.1\r\nContent-Length: 65537\r\n", b"x" * 65537, "413"),
        ("POST / HTTP/1.1\r\nContent-Length: 9999999999\r\n", b"x" * 100, "413"),
        ("GET / HTTP/1.1\r\n", b"", "501"),
    ],
)
def test_http_that_is_no_call_is_refused(
    node: Node, head: str, body: bytes, status_line: str
) -> None:
    with socket.create_connection(("127.0.0.1", node.port), timeout=30) as connection:
        connection.sendall(f"{head}Host: x\r\n\r\n".encode() + body)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert answer.startswith(f"HTTP/1.1 {status_line} ".encode())
    assert node.call("node.status", {})


@pytest.mark.parametrize("rudely", [False, True])
def test_a_client_that_leaves_in_the_middle_is_no_news(node: Node, rudely: bool) -> None:
    with socket.create_connection(("127.0.0.1", node.port), timeout=30) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        if rudely:  # a reset instead of an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert node.call("node.status", {})  # and at the end its log is empty


def test_asking_at_once_does_not_wait_for_who_cannot_connect(node: Node) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            ask_at_once([node.port, unused.getsockname()[1]], "node.status", {}, 4)
    assert len(ask_at_once([node.port], "node.status", {}, 4)) == 4


def test_a_bug_in_a_method_is_an_internal_error_that_shows_no_payload(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def boom(params: Mapping[str, Any]) -> object:
        raise KeyError(params["secret"])

    body = json.dumps(call(method="boom", params={"secret": "swordfish"})).encode()
    with caplog.at_level(logging.ERROR, logger="kvreplay.demo"):
        answer = rpc.answer(body, {"boom": boom})
    assert answer is not None
    assert json.loads(answer)["error"] == {"code": -32603, "message": "internal error"}
    assert "KeyError" in caplog.text
    assert "in boom" in caplog.text
    assert "swordfish" not in caplog.text


# The node as a process.


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
    with subprocess.Popen(
        [*NODE, "--config", str(write_config(tmp_path)), "--until-eof"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
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
    stage = Stage(url, tmp_path)
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


# The story.

STEPS = 11


def tell(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvreplay", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        # A node of the story is not to follow the settings of whoever runs it.
        env={**os.environ, "KVREPLAY_STORE": "nowhere:", "PYTHONIOENCODING": "utf-8", **environ},
    )


@pytest.mark.parametrize("engine", story.ENGINES)
def test_the_story_is_true(engine: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    done = tell("--engine", engine, "--dir", str(kept))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{STEPS} steps, all true"
    assert sum(bool(re.fullmatch(r"  ✓ .* +[0-9]+ ms", line)) for line in lines) == STEPS
    assert max(map(len, lines)) <= max(100, len(f"Stores, configs and logs are kept in {kept}"))
    assert f'url = "{story.ENGINES[engine]}"' in (kept / engine / "node.toml").read_text()
    assert (kept / engine / "node.log").read_text() == ""
    assert (kept / engine / "store").exists() == (engine != "memory")
    assert ("forgotten" in done.stdout) == (engine == "memory")
    assert "\033" not in done.stdout


def test_by_default_it_is_told_on_all_engines_and_leaves_nothing(tmp_path: Path) -> None:
    done = tell(TMPDIR=str(tmp_path), PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{3 * STEPS} steps, all true"
    headings = [line for line in lines if "node.toml" in line]
    assert [line.split()[0] for line in headings] == ["lmdb", "filesystem", "memory"]
    assert list(tmp_path.iterdir()) == []


HOT_CACHE = """
    # The node of before: its answers live in its memory, and only its ledger is durable.
    from kvreplay.backends.memory import MemoryStore

    class Broken(orders.Orders):
        def __init__(self, store, config, key, written):
            super().__init__(MemoryStore(), config, key, written)
            self.ledger = orders.Ledger(store)
"""
NAIVE = """
    # A node that makes an invoice for each request.
    from kvreplay.demo import invoice, params

    class Broken(orders.Orders):
        def request_invoice(self, asked):
            request = params.InvoiceRequest.read(asked)
            key = invoice.NodeKey.from_seed("kvreplay demo")
            self.ledger.add(request, made := invoice.make_invoice(request, key))
            return {"payment_hash": request.payment_hash, "bolt11": made}
"""


def broken_node(directory: Path, code: str) -> list[str]:
    script = directory / "broken.py"
    script.write_text(
        "import sys\nfrom kvreplay.demo import node, orders\n"
        + textwrap.dedent(code)
        + "sys.exit(node.main(orders=Broken))\n"
    )
    return [sys.executable, str(script)]


def untrue_steps(output: str) -> list[str]:
    return [
        line.partition(": ")[2] for line in output.splitlines() if line.startswith("untrue on ")
    ]


def test_a_hot_cache_is_untrue_exactly_where_processes_end_or_meet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = broken_node(tmp_path, HOT_CACHE)
    assert story.tell(["lmdb"], str(tmp_path / "kept"), command=command) == 1
    output = capsys.readouterr().out
    untrue = untrue_steps(output)
    assert [step.partition(",")[0] for step in untrue] == [
        "SIGKILL",
        "SIGKILL between ledger and record",
        "two node processes",
    ]
    assert output.splitlines()[-1] == f"{STEPS} steps, 3 untrue, 0 not run"


def test_an_invoice_for_each_request_is_untrue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = broken_node(tmp_path, NAIVE)
    assert story.tell(["memory"], str(tmp_path / "kept"), command=command) == 1
    output = capsys.readouterr().out
    untrue = untrue_steps(output)
    assert untrue[0].startswith("first request")
    assert any("64 requests at once" in step for step in untrue)
    assert "64, and should be 1" in output
    for line in output.splitlines():
        if "the same under another JSON-RPC id" in line:
            assert line.endswith("not run")
    assert not any("bad hex" in step for step in untrue)  # that much is true


def test_a_node_that_does_not_start_is_untrue_and_nothing_else_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "dies.py"
    script.write_text("import sys; sys.exit('out of luck')")
    assert story.tell(["lmdb"], str(tmp_path / "kept"), command=[sys.executable, str(script)]) == 1
    output = capsys.readouterr().out
    assert "out of luck" in output
    assert output.splitlines()[-1] == f"{STEPS} steps, 1 untrue, {STEPS - 1} not run"


def test_a_comparison_that_fails_cuts_long_values_short() -> None:
    from kvreplay.demo.stage import same

    same({"bolt11": "a"}, {"bolt11": "a"}, "x")
    with pytest.raises(UntrueError) as caught:
        same({"bolt11": "a" * 500}, {"bolt11": "b" * 500}, "the answer")
    assert len(str(caught.value)) < 140
