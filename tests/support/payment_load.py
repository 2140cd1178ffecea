"""Clients of a payment service: many threads that pay, retry, hurry, leave and err, and note what they saw."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from support.http_servers import BrokenOffError, Response, ask, request_to
from support.payment_audit import Observation, Payment, in_the_end, is_settled, stands_in_doubt
from support.waiting import PATIENCE

__all__ = ["REFUSED", "TOKENS", "Clients", "quoted", "refusal"]

TOKENS = {"alice": "token-alice", "bob": "token-bob"}
_BEHAVIOURS = {"pays": 80, "declines": 7, "is-away": 7, "drops": 6}  # how often of a hundred


def quoted(key: str) -> str:
    return f'"{key}"'


def _to_pay(**changes: Any) -> dict[str, Any]:
    return {
        "method": "POST",
        "path": "/payments",
        "token": TOKENS["alice"],
        "key": quoted("never-used"),
        "body": {"amount": 1, "to": "nobody"},
        **changes,
    }


# What runs nothing, whatever else happens: the request, and the status and the problem that it gets.
REFUSED: Mapping[str, tuple[dict[str, Any], int, str | None]] = {
    "no key": (_to_pay(key=None), 400, "missing-key"),
    "a key without quotes": (_to_pay(key="never-used"), 400, "malformed-key"),
    "a key without an end": (_to_pay(key='"never-used'), 400, "malformed-key"),
    "an empty key": (_to_pay(key='""'), 400, "malformed-key"),
    "a key that is too long": (_to_pay(key=quoted("k" * 256)), 400, "malformed-key"),
    "no token": (_to_pay(token=None), 401, "unauthenticated"),
    "an unknown token": (_to_pay(token="token-mallory"), 401, "unauthenticated"),
    "a method that is not covered": (_to_pay(method="GET", key=None, body=None), 405, None),
    "a body over the limit": (_to_pay(body=b"x" * (1 << 20) + b"x"), 413, "body-too-large"),
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
    """Threads that ask a service until they are told to stop."""

    def __init__(self, port: int, threads: int, seed: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._observations: list[Observation] = []
        self._payments: list[Payment] = []
        self._wrong: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed} {n}"),))
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def observations(self) -> Sequence[Observation]:
        with self._lock:
            return list(self._observations)

    def check(self) -> None:
        """Fail if a client has."""
        with self._lock:
            assert not self._wrong, self._wrong

    def stop(self) -> Sequence[str]:
        """Let the threads end, and return what was wrong with what each answer alone can show."""
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a client got no answer"
        return self._wrong

    def ask_for_all(self) -> None:
        """Ask for every payment until it is answered or in doubt, as it is bound to be in the end."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._ask_to_the_end, self._payments))

    def _ask_to_the_end(self, payment: Payment) -> None:
        give_up = time.monotonic() + PATIENCE
        while not is_settled(self._pay(payment)):
            assert time.monotonic() < give_up, "a payment was never answered"

    def unsettled(self) -> Sequence[Payment]:
        """The payments whose last answer was neither final nor that they are in doubt."""
        last = in_the_end([each for each in self.observations() if each.what == "pay"])
        return [payment for payment in self._payments if not is_settled(last[payment])]

    def in_doubt(self) -> Sequence[Payment]:
        last = in_the_end([each for each in self.observations() if each.what == "pay"])
        return [payment for payment in self._payments if stands_in_doubt(last[payment])]

    # What a client does.

    def _run(self, chance: random.Random) -> None:
        own: list[Payment] = []
        settled: list[Payment] = []
        acts: Mapping[Callable[[], None], int] = {
            lambda: self._new(chance, own, settled): 50,
            lambda: self._same_key_of_another_caller(chance, own, settled): 3,
            lambda: self._retry(chance, own, settled): 15,
            lambda: self._at_once(chance, own): 8,
            lambda: self._leave(chance, own): 3,
            lambda: self._another_body(chance, settled): 6,
            lambda: self._state(chance, own): 6,
            lambda: self._refused(chance): 9,
        }
        try:
            while not self._stop.is_set():
                (act,) = chance.choices(list(acts), list(acts.values()))
                act()
        except BaseException as error:
            self._complain(f"a client failed: {error!r}")
            raise

    def _begun(self, chance: random.Random, own: list[Payment], key: str | None = None) -> Payment:
        """Make up a payment."""
        (behaviour,) = chance.choices(list(_BEHAVIOURS), list(_BEHAVIOURS.values()))
        to = f"{behaviour}:{secrets.token_hex(8)}"
        caller = chance.choice(list(TOKENS))
        payment = Payment(caller, key or secrets.token_hex(8), to, chance.randint(1, 10**6))
        own.append(payment)
        with self._lock:
            self._payments.append(payment)
        return payment

    def _new(self, chance: random.Random, own: list[Payment], settled: list[Payment]) -> None:
        self._insist(chance, self._begun(chance, own), settled)

    def _insist(self, chance: random.Random, payment: Payment, settled: list[Payment]) -> None:
        """Pay; if the connection breaks, usually ask again at once, as clients do."""
        seen = self._pay(payment)
        if seen.response is None and chance.random() < 0.8:
            seen = self._pay(payment)
        if is_settled(seen):
            settled.append(payment)

    def _same_key_of_another_caller(
        self, chance: random.Random, own: list[Payment], settled: list[Payment]
    ) -> None:
        if not own:
            return
        theirs = chance.choice(own)
        with self._lock:
            callers = {each.caller for each in self._payments if each.key == theirs.key}
        if callers == {theirs.caller}:
            (other,) = set(TOKENS) - callers
            payment = Payment(other, theirs.key, f"pays:{secrets.token_hex(8)}", 7)
            own.append(payment)
            with self._lock:
                self._payments.append(payment)
            self._insist(chance, payment, settled)

    def _retry(self, chance: random.Random, own: list[Payment], settled: list[Payment]) -> None:
        if own:
            self._insist(chance, chance.choice(own), settled)

    def _at_once(self, chance: random.Random, own: list[Payment]) -> None:
        """Ask three times at the same moment."""
        payment = self._begun(chance, own)
        threads = [threading.Thread(target=self._pay, args=(payment,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _leave(self, chance: random.Random, own: list[Payment]) -> None:
        """Close the connection as soon as the request is sent."""
        payment = self._begun(chance, own)
        began = time.monotonic()
        try:
            request_to(self._port, **self._request(payment)).close()
        except ConnectionError:
            pass
        self._note(Observation(payment, "pay", began, time.monotonic(), None, left=True))

    def _another_body(self, chance: random.Random, settled: list[Payment]) -> None:
        if settled:
            payment = chance.choice(settled)
            body = {"amount": payment.amount + 1, "to": payment.to}
            self._observe(payment, "another body", self._request(payment, body))

    def _state(self, chance: random.Random, own: list[Payment]) -> None:
        if own:
            payment = chance.choice(own)
            asked = {"token": TOKENS[payment.caller], "key": quoted(payment.key)}
            self._observe(payment, "state", {"method": "GET", "path": "/idempotency", **asked})

    def _refused(self, chance: random.Random) -> None:
        try:
            wrong = refusal(self._port, chance.choice(list(REFUSED)))
        except BrokenOffError:
            return
        if wrong:
            self._complain(wrong)

    # How it asks, and what it notes.

    def _pay(self, payment: Payment) -> Observation:
        return self._observe(payment, "pay", self._request(payment))

    def _request(self, payment: Payment, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return _to_pay(
            token=TOKENS[payment.caller],
            key=quoted(payment.key),
            body=body or {"amount": payment.amount, "to": payment.to},
        )

    def _observe(
        self,
        payment: Payment,
        what: Literal["pay", "another body", "state"],
        request: dict[str, Any],
    ) -> Observation:
        began = time.monotonic()
        response: Response | None = None
        try:
            response = ask(self._port, **request)
        except BrokenOffError:
            pass
        return self._note(Observation(payment, what, began, time.monotonic(), response))

    def _note(self, observation: Observation) -> Observation:
        with self._lock:
            self._observations.append(observation)
        return observation

    def _complain(self, what: str) -> None:
        with self._lock:
            self._wrong.append(what)
