"""Clients of a payment service: many threads that pay, retry, hurry, leave and err, and note what they saw."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import attrs

from support.http_servers import BrokenOffError, Response, ask, request_to
from support.payment_audit import Observation, Payment, What, is_settled, stands_in_doubt
from support.waiting import PATIENCE

__all__ = ["REFUSED", "TOKENS", "Clients", "quoted", "refusal", "request_of"]

T = TypeVar("T")

TOKENS = {"alice": "token-alice", "bob": "token-bob"}
_BEHAVIOURS = {"pays": 80, "declines": 7, "is-away": 7, "drops": 6}  # how often of a hundred


def quoted(key: str) -> str:
    return f'"{key}"'


def request_of(payment: Payment, **changes: Any) -> dict[str, Any]:
    """What ``ask`` is given to ask for a payment, except for what changes."""
    return {
        "method": "POST",
        "path": "/payments",
        "token": TOKENS[payment.caller],
        "key": quoted(payment.key),
        "body": {"amount": payment.amount, "to": payment.to},
        **changes,
    }


def _wrong(**changes: Any) -> dict[str, Any]:
    return request_of(Payment("alice", "never-used", "nobody", 1), **changes)


# What runs nothing, whatever else happens: the request, and the status and the problem that it gets.
REFUSED: Mapping[str, tuple[dict[str, Any], int, str | None]] = {
    "no key": (_wrong(key=None), 400, "missing-key"),
    "a key without quotes": (_wrong(key="never-used"), 400, "malformed-key"),
    "a key without an end": (_wrong(key='"never-used'), 400, "malformed-key"),
    "an empty key": (_wrong(key='""'), 400, "malformed-key"),
    "a key that is too long": (_wrong(key=quoted("k" * 256)), 400, "malformed-key"),
    "no token": (_wrong(token=None), 401, "unauthenticated"),
    "an unknown token": (_wrong(token="token-mallory"), 401, "unauthenticated"),
    "a method that is not covered": (_wrong(method="GET", key=None, body=None), 405, None),
    "a body over the limit": (_wrong(body=b"x" * (1 << 20) + b"x"), 413, "body-too-large"),
}


def refusal(port: int, name: str) -> str | None:
    """Ask for what is refused, and return what was wrong with the answer.

    Raises:
        BrokenOffError: there was none.
    """
    request, status, problem = REFUSED[name]
    response = ask(port, **request)
    if (response.status, response.problem) != (status, problem):
        return f"{name}: {response.status} {response.problem}"
    if status == 401 and not response.header("WWW-Authenticate"):
        return f"{name}: no challenge"
    if problem is not None and response.json["effect"] != "none":
        return f"{name}: the effect is told as {response.json['effect']}"
    return None


class Clients:
    """Threads that ask a service until they are told to stop, and what they have seen together."""

    def __init__(self, port: int, threads: int, seed: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._payments: list[Payment] = []
        self._observations: list[Observation] = []
        self._wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [_Client(self, random.Random(f"{seed} {n}")) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def observations(self) -> Sequence[Observation]:
        with self._lock:
            return list(self._observations)

    def wrong(self) -> Sequence[str]:
        """What was wrong with single answers, or with a client."""
        with self._lock:
            return list(self._wrong)

    def stop(self) -> None:
        """Let the threads end."""
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a client got no answer"

    def ask_for_all(self) -> Collection[Payment]:
        """Ask for every payment until it is answered or in doubt; return those that are in doubt."""
        with ThreadPoolExecutor(4) as pool:
            ends = list(pool.map(self._ask_to_the_end, self._payments))
        return [each.payment for each in ends if stands_in_doubt(each)]

    def _ask_to_the_end(self, payment: Payment) -> Observation:
        give_up = time.monotonic() + PATIENCE
        while not is_settled(seen := self.pay(payment)):
            assert time.monotonic() < give_up, "a payment was never answered"
        return seen

    # For the threads.

    def goes_on(self) -> bool:
        return not self._stop.is_set()

    def begin(self, payment: Payment) -> Payment:
        """Note a payment that somebody is about to ask for."""
        with self._lock:
            self._payments.append(payment)
        return payment

    def callers(self, key: str) -> Collection[str]:
        """Who has used a key."""
        with self._lock:
            return {each.caller for each in self._payments if each.key == key}

    def pay(self, payment: Payment) -> Observation:
        return self.ask("pay", payment, **request_of(payment))

    def ask(self, what: What, payment: Payment, **request: Any) -> Observation:
        """Ask once, and note what came."""
        began = time.monotonic()
        response: Response | None = None
        try:
            response = ask(self._port, **request)
        except BrokenOffError:
            pass
        return self._note(Observation(payment, what, began, time.monotonic(), response))

    def leave(self, payment: Payment) -> None:
        """Ask once, and close the connection as soon as the request is sent."""
        began = time.monotonic()
        try:
            request_to(self._port, **request_of(payment)).close()
        except ConnectionError:
            pass
        self._note(Observation(payment, "pay", began, time.monotonic(), None, left=True))

    def ask_in_vain(self, name: str) -> None:
        """Ask for one of ``REFUSED``."""
        try:
            wrong = refusal(self._port, name)
        except BrokenOffError:
            return
        if wrong is not None:
            self.complain(wrong)

    def complain(self, what: str) -> None:
        with self._lock:
            self._wrong.append(what)

    def _note(self, observation: Observation) -> Observation:
        with self._lock:
            self._observations.append(observation)
        return observation


class _Client(threading.Thread):
    """One of them: what it does next is chance."""

    def __init__(self, clients: Clients, chance: random.Random) -> None:
        super().__init__()
        self._clients = clients
        self._chance = chance
        self._own: list[Payment] = []
        self._settled: list[Payment] = []

    def run(self) -> None:
        acts = {
            self._pay_anew: 50,
            self._pay_again: 15,
            self._pay_three_times_at_once: 8,
            self._use_the_key_of_another_caller: 3,
            self._use_a_key_for_another_body: 6,
            self._ask_for_a_state: 6,
            self._leave: 3,
            self._err: 9,
        }
        try:
            while self._clients.goes_on():
                self._one_of(acts)()
        except BaseException as error:
            self._clients.complain(f"a client failed: {error!r}")
            raise

    def _one_of(self, weights: Mapping[T, int]) -> T:
        (chosen,) = self._chance.choices(list(weights), list(weights.values()))
        return chosen

    def _begin(self, caller: str | None = None, key: str | None = None) -> Payment:
        payment = Payment(
            caller or self._chance.choice(list(TOKENS)),
            key or secrets.token_hex(8),
            f"{self._one_of(_BEHAVIOURS)}:{secrets.token_hex(8)}",
            self._chance.randint(1, 10**6),
        )
        self._own.append(payment)
        return self._clients.begin(payment)

    def _insist(self, payment: Payment) -> None:
        """Pay; if the connection breaks, usually ask again at once, as clients do."""
        seen = self._clients.pay(payment)
        if seen.response is None and self._chance.random() < 0.8:
            seen = self._clients.pay(payment)
        if is_settled(seen):
            self._settled.append(payment)

    def _pay_anew(self) -> None:
        self._insist(self._begin())

    def _pay_again(self) -> None:
        if self._own:
            self._insist(self._chance.choice(self._own))

    def _pay_three_times_at_once(self) -> None:
        payment = self._begin()
        threads = [threading.Thread(target=self._clients.pay, args=(payment,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _use_the_key_of_another_caller(self) -> None:
        if self._own:
            key = self._chance.choice(self._own).key
            for caller in TOKENS.keys() - self._clients.callers(key):
                self._insist(self._begin(caller, key))

    def _use_a_key_for_another_body(self) -> None:
        if self._settled:
            payment = self._chance.choice(self._settled)
            another = request_of(attrs.evolve(payment, amount=payment.amount + 1))
            self._clients.ask("another body", payment, **another)

    def _ask_for_a_state(self) -> None:
        if self._own:
            payment = self._chance.choice(self._own)
            asked = request_of(payment, method="GET", path="/idempotency", body=None)
            self._clients.ask("state", payment, **asked)

    def _leave(self) -> None:
        self._clients.leave(self._begin())

    def _err(self) -> None:
        self._clients.ask_in_vain(self._chance.choice(list(REFUSED)))
