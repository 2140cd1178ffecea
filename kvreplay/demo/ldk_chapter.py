"""The story on two real LDK nodes: channels, payments, and ``request_invoice`` over restarts."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kvreplay import ParamsMismatchError
from kvreplay.demo.chapter import Step
from kvreplay.demo.ldk.pair import Pair
from kvreplay.demo.ldk.process import LDKNodes, LDKNodesError
from kvreplay.demo.ldk.program import install
from kvreplay.demo.stage import UntrueError, same

__all__ = ["LDKChapter"]

_SESSION: Final = ("02" + "ab" * 32, "session-1")
_MSAT: Final = 3_000_000


class _Killable(LDKNodes):
    """Nodes that are killed when a certain call of theirs is done, and not yet answered."""

    kills_at = ""

    def serve(self, header: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        answer = super().serve(header, body)
        if header["call"] == self.kills_at:
            self.kill()
        return answer


class LDKChapter:
    """The steps, in a directory of their own. The nodes keep all they have in LMDB."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._program = place / "program"
        self._pair: Pair | None = None
        self._bolt11 = ""

    def close(self) -> None:
        """End the nodes."""
        if self._pair is not None:
            self._pair.close()
            self._pair = None

    def steps(self) -> list[Step]:
        """Return the story in its order."""
        program = "npm brings LDK 0.1.2 (24 MB)"
        begin = "two nodes open a channel, and pay both ways"
        first = "request_invoice: LDK's bolt11, record and manager in one commit"
        return [
            Step(program, self._install, None),
            Step(begin, self._begin, program),
            Step(first, self._first, begin),
            Step("SIGKILL, restart, retry: the same bolt11, made once", self._again, first),
            Step("another amount: stale flow, params_mismatch", self._mismatch, first),
            Step("it is paid; LDK repeats its event, which counts once", self._paid, first),
            Step("SIGKILL in a turn, restart: the channel is as before", self._killed, begin),
        ]

    def _install(self) -> None:
        try:
            install(self._program)
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines() or ["nothing"]
            raise UntrueError(f"npm ci failed; its last words: {said[-1]}") from error

    @property
    def _nodes(self) -> Pair:
        assert self._pair is not None  # the step that starts it is needed by those that use it
        return self._pair

    def _begin(self) -> None:
        self._pair = pair = Pair(self._program, self._place, "lmdb", turns=True, nodes=_Killable)
        same(pair.open_channel(), True, "whether both can use the channel")
        same(pair.pay("alice", 30_000), "sent", "Alice's payment")
        same(pair.pay("bob", 10_000), "sent", "Bob's payment")

    def _first(self) -> None:
        outcome = self._nodes.request_invoice("bob", _SESSION, _MSAT)
        same(outcome.replayed, False, "whether the first answer was replayed")
        same(outcome.response.startswith("lnbcrt30u1"), True, "whether it is 30 µBTC on regtest")
        self._bolt11 = outcome.response

    def _again(self) -> None:
        self._nodes.restart()
        again = self._nodes.request_invoice("bob", _SESSION, _MSAT)
        same(again.response, self._bolt11, "the answer after the restart")
        same(self._nodes.invoices("bob"), [_SESSION[1]], "the sessions in Bob's ledger")

    def _mismatch(self) -> None:
        try:
            self._nodes.request_invoice("bob", _SESSION, _MSAT + 1)
        except ParamsMismatchError:
            return
        raise UntrueError("the node gave an invoice instead of an error")

    def _paid(self) -> None:
        pair = self._nodes
        before = pair.received("bob")
        same(pair.pay_invoice("alice", self._bolt11), "sent", "the payment")
        told = len(self._claims("bob"))
        pair.restart()
        same(pair.pay("bob", 1_000), "sent", "a payment after the restart")
        same(len(self._claims("bob")) > told, True, "whether LDK has repeated its event")
        same(pair.received("bob") - before, _MSAT, "what Bob has counted")

    def _claims(self, name: str) -> list[str]:
        return [
            event["payment_hash"]
            for node, event in self._nodes.events
            if (node, event["kind"]) == (name, "payment_claimed")
        ]

    def _killed(self) -> None:
        pair = self._nodes
        invoice = {"msat": 5_000, "description": "", "expiry_seconds": 3600}
        bolt11 = pair.ask("invoice", node="bob", **invoice)
        pair.nodes.kills_at = "write"  # they are _Killable
        try:
            pair.pay_invoice("alice", bolt11)
        except LDKNodesError:
            pass
        same(pair.nodes.process.returncode, -signal.SIGKILL, "how the nodes' process ended")
        pair.start()
        same(pair.is_force_closed(), False, "whether the channel was closed")
        same(pair.pay("alice", 2_000), "sent", "Alice's payment after the restart")
        same(pair.pay("bob", 2_000), "sent", "Bob's payment after the restart")
