"""The services of the docs, as they stand there: their workers are killed at random, under load, again and again.

The bank pays at once and answers late, so a worker usually dies between the effect and the record.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from kvreplay import Replay, ReplayRecord, open_store
from support.bank import Bank, Transfer
from support.documented import SERVICES, documented_service
from support.http_servers import Server
from support.payment_audit import Kill, Payment, complaints
from support.payment_load import Clients

CLIENTS = 8
ANSWERS_AFTER = (0.05, 0.3)  # seconds
BETWEEN_KILLS = (0.1, 0.8)  # seconds

KILLS = {"fastapi": 0.15, "fastapi --preload": 0.35, "flask": 0.15, "flask --preload": 0.35}
"""Each service's part of the kills: less, where a new worker begins with all its imports."""
IN_BETWEEN = {"fastapi": 0.1, "fastapi --preload": 0.5, "flask": 0.1, "flask --preload": 0.5}
"""The part of these kills that must strike between effect and record: 38 of 100 in all."""
SETTINGS = 'Replay(store, "payments", ttl="24h"'
"""What each page says of its replay."""


@attrs.frozen
class Storm:
    """What came of a service whose workers were killed."""

    kills: Sequence[Kill]
    complaints: Sequence[str]
    payments: int
    in_doubt: Collection[Payment]
    in_doubt_in_the_store: Collection[tuple[str, str]]
    in_between: Collection[Kill]
    too_early: Collection[Kill]


@pytest.mark.parametrize("service", KILLS)
def test_each_payment_is_made_once_or_in_doubt(
    service: str, tmp_path: Path, worker_kills: int, tell: Callable[[str], None]
) -> None:
    framework, command = SERVICES[service]
    kills = round(worker_kills * KILLS[service])
    storm = stormed(documented_service(framework), command, tmp_path, kills)
    tell(
        f"{len(storm.kills)} kills: {len(storm.in_between)} between effect and record,"
        f" {len(storm.too_early)} between claim and effect; {storm.payments} payments,"
        f" {len(storm.in_doubt)} in doubt"
    )
    assert storm.complaints == []
    assert {(each.caller, each.key) for each in storm.in_doubt} == storm.in_doubt_in_the_store
    assert len(storm.in_between) >= IN_BETWEEN[service] * kills


@pytest.mark.parametrize("service", ["fastapi --preload", "flask --preload"])
def test_a_service_that_frees_what_is_in_doubt_pays_twice(service: str, tmp_path: Path) -> None:
    """So the test above can fail: this is the same service, but for one setting."""
    framework, command = SERVICES[service]
    source = documented_service(framework)
    assert source.count(SETTINGS) == 1
    source = source.replace(SETTINGS, f'{SETTINGS}, on_in_doubt="rerun"')
    storm = stormed(source, command, tmp_path, kills=6)
    assert any(complaint.startswith("paid 2 times") for complaint in storm.complaints)


def stormed(source: str, command: str, folder: Path, kills: int) -> Storm:
    """Serve, let clients ask, kill one worker after the other, and look what has come of it."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    url = f"lmdb:{folder}/replay"
    with Bank(folder, ANSWERS_AFTER) as bank:
        with serving(command, source, folder, bank, url) as server:
            clients = Clients(server.port, CLIENTS, seed)
            try:
                done = strike(server, clients, random.Random(seed), kills)
            finally:
                clients.stop()
            in_doubt = clients.ask_for_all()
            left = records_in_doubt(url)
        transfers = bank.transfers()
    return Storm(
        kills=done,
        complaints=[*clients.wrong(), *complaints(clients.observations(), transfers, done)],
        payments=len({each.payment for each in clients.observations()}),
        in_doubt=in_doubt,
        in_doubt_in_the_store={(record.key.scope, record.key.id) for record in left},
        **struck(done, left, clients, transfers),
    )


@contextmanager
def serving(command: str, source: str, folder: Path, bank: Bank, url: str) -> Iterator[Server]:
    told = {"BANK_URL": bank.url, "REPLAY_STORE": url}
    server = Server(command, source, folder, told)
    try:
        yield server
    except BaseException:
        print(server.log())
        raise
    finally:
        server.end()


def strike(server: Server, clients: Clients, chance: random.Random, times: int) -> Sequence[Kill]:
    """Kill workers that have accepted a request, each at a random instant."""
    kills: list[Kill] = []
    while len(kills) < times:
        assert not clients.wrong()
        time.sleep(chance.uniform(*BETWEEN_KILLS))  # the random instant
        if busy := server.busy():
            kills.append(Kill(chance.choice(busy), time.monotonic()))
            server.kill(kills[-1].worker)
    return kills


def records_in_doubt(url: str) -> Sequence[ReplayRecord]:
    with open_store(url) as store:
        return list(Replay(store, "payments", ttl="24h").records(in_doubt=True))


def struck(
    kills: Sequence[Kill],
    left: Sequence[ReplayRecord],
    clients: Clients,
    transfers: Sequence[Transfer],
) -> dict[str, Collection[Kill]]:
    """Find the kills that left a claim: after its payment was in the ledger, or before."""
    names = {
        (each.payment.caller, each.payment.key): each.payment.to for each in clients.observations()
    }
    paid = {each.to: each.at for each in transfers}
    in_between, too_early = set(), set()
    for record in left:
        assert record.claim is not None
        if record.claim.ended_at is not None:
            continue  # its run ended by itself: the bank had closed the connection
        (kill,) = (each for each in kills if each.worker == pid_of(record))
        paid_at = paid.get(names[record.key.scope, record.key.id])
        (too_early if paid_at is None or paid_at > kill.at else in_between).add(kill)
    return {"in_between": in_between, "too_early": too_early - in_between}


def pid_of(record: ReplayRecord) -> int:
    """The process that ran it, as its claim says for people who look for it."""
    assert record.claim is not None
    return int(record.claim.owner.split(":")[-2])
