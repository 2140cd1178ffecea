"""A process whose threads pay: a row of the ledger and the answer, in one transaction of their own.

It says one line for each thing that happens, and dies where it is told to::

    inserted KEY TOKEN      the row is in the open transaction
    told KEY TOKEN          it is committed, and this is the answer
    cut PHASE KEY           the connection broke then
    bug TEXT                what must never be
"""

from __future__ import annotations

import os
import random
import signal
import threading
import traceback
import uuid
from typing import Any

import psycopg

import kvreplay.backends.postgresql  # noqa: F401  # once, before the payers are forked
from kvreplay import InFlightError, Replay, StoreError, open_store

POINTS = ("called", "inserted", "answered", "committing", "committed")
"""Where a payer can die: before its row, after it, before the commit, while that is under way, after it."""
BEFORE_COMMIT = POINTS[1:3]
ROOM = 3  # keys, of which a thread takes one


class Payer:
    def __init__(self, told: dict[str, Any]) -> None:
        self.url, self.own_url, self.twin = told["url"], told["own_url"], told["twin"]
        self.point, self.left = told["point"], told["after"]
        self.store = open_store(self.url)
        self.replay = Replay(self.store, "pay", ttl="1h", wait_timeout=30)

    def say(self, *words: str) -> None:
        os.write(1, f"{' '.join(words)}\n".encode())

    def at(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def work(self, number: int, chance: random.Random) -> None:
        connection = None
        while True:
            number += chance.randint(1, ROOM)
            paid = False
            while not paid:
                self.phase.at = "connecting"
                try:
                    if connection is None or connection.closed:
                        connection = psycopg.connect(self.own_url)
                    self.pay(connection, str(number))
                    paid = True
                except (psycopg.OperationalError, StoreError, InFlightError) as error:
                    self.say("cut", self.phase.at, str(number), type(error).__name__)
                    if connection is not None:
                        connection.close()
                    threading.Event().wait(0.01)  # the server is starting
                except BaseException:
                    self.say("bug", " ".join(traceback.format_exc().split()))
                    os._exit(1)

    phase = threading.local()

    def pay(self, connection: psycopg.Connection[Any], key: str) -> None:
        token = uuid.uuid4().hex

        def handler(connection: psycopg.Connection[Any]) -> str:
            self.phase.at = "called"
            self.at("called")
            self.insert(connection, key, token)
            self.say("inserted", key, token)
            self.phase.at = "inserted"
            self.at("inserted")
            return token

        outcome = self.replay.execute_in_transaction(
            ("payer", key), {"msat": 1000}, handler, connection=connection
        )
        if not outcome.replayed:
            self.phase.at = "answered"
            self.at("answered")
            if self.point == "committing":
                self.left -= 1
                if self.left < 0:
                    connection.pgconn.send_query(b"COMMIT")
                    connection.pgconn.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
        self.phase.at = "committing"
        connection.commit()
        self.at("committed")
        self.say("told", key, outcome.response)

    def insert(self, connection: psycopg.Connection[Any], key: str, token: str) -> None:
        row = "INSERT INTO ledger VALUES (%s, %s)"
        if not self.twin:
            connection.execute(row, (key, token))
            return
        with psycopg.connect(self.own_url) as another:  # which commits by itself
            another.execute(row, (key, token))


def main(told: dict[str, Any]) -> None:
    payer, chance = Payer(told), random.Random(told["seed"])
    payer.say("begun")
    for _ in range(told["threads"] - 1):
        own = random.Random(chance.random())
        threading.Thread(target=payer.work, args=(told["first"], own), daemon=True).start()
    payer.work(told["first"], chance)
