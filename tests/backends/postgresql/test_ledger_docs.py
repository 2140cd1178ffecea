"""The examples of docs/ledger.md for PostgreSQL do what the page says, each in a process and a database of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("psycopg")
pytest.importorskip("sqlalchemy")

from support.extras import needs_http
from support.pages import DOCS, examples
from support.postgres import execute
from support.programs import run_code

pytestmark = pytest.mark.any_python

OURS = "postgresql://node@db.example/payments"

ASKS = """
from kvreplay import ParamsMismatchError
import asyncio, inspect

def asked(*args):
    answer = pay(*args)
    return asyncio.run(answer) if inspect.isawaitable(answer) else answer

for _ in range(2):
    assert asked("02payer", "payment-1", 5) == {"booked": 5}
try:
    asked("02payer", "payment-1", 6)
except ParamsMismatchError:
    pass
else:
    raise AssertionError
assert asked("02payer", "payment-2", 6) == {"booked": 6}
store.close()
"""

SETTINGS = """
import django
from django.conf import settings
database = {{"ENGINE": "django.db.backends.postgresql", "USER": "postgres", **{place}}}
settings.configure(DATABASES={{"default": database}})
django.setup()
"""

DJANGO = """
from django.db import IntegrityError, connection
with connection.schema_editor() as editor:
    editor.create_model(Payment)
"""

# What Django does of errors, and without a transaction.
MISUSED = """
import contextlib
from kvreplay import ConfigError
store = open_store("{url}&schema=replay")
replay = Replay(store, "pay", ttl="1d")
rows = Payment.objects.count

def joined(handler, key="3"):
    return replay.execute_in_transaction(("p", key), 1, handler, connection=connection.connection)

def never(_):
    raise AssertionError

try:
    joined(never)
except ConfigError as error:
    assert "commits each statement by itself" in str(error)
else:
    raise AssertionError

def twice(_):
    with transaction.atomic() if own else contextlib.nullcontext():
        Payment.objects.create(payer="02payer", payment="payment-1", msat=5)

for own in (True, False):
    before = rows()
    with contextlib.suppress(transaction.TransactionManagementError), transaction.atomic():
        joined(lambda _: Payment.objects.create(payer="p", payment=str(own), msat=1).msat, str(own))
        try:
            joined(twice)
        except IntegrityError:
            pass
        else:
            raise AssertionError
    assert rows() - before == own
    assert (replay.lookup(("p", str(own)), 1) is not None) == own
    assert replay.record(("p", "3")) is None
store.close()
"""


@pytest.fixture
def database(postgres: Any) -> Iterator[str]:
    """The URL of a database of this test."""
    postgres.server.execute(f"CREATE DATABASE {postgres.name}")
    yield str(postgres.server.url).replace("/postgres?", f"/{postgres.name}?")
    postgres.server.execute(f"DROP DATABASE {postgres.name} WITH (FORCE)")


def example(number: int, url: str) -> str:
    """One of the page's examples, on this database."""
    code = examples("ledger.md")[number].replace(f"{OURS}?", f"{url}&").replace(OURS, url)
    with_driver = OURS.replace("postgresql:", "postgresql+psycopg:")
    return code.replace(with_driver, url.replace("postgresql:", "postgresql+psycopg:"))


def table() -> str:
    page = (DOCS / "ledger.md").read_text(encoding="utf-8")
    return page.partition("```sql\n")[2].partition("```")[0]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_example(database: str, number: int) -> None:
    execute(database, table())
    ran = run_code(example(number, database) + ASKS)
    assert not ran.returncode, ran.stderr
    assert execute(database, "SELECT payment, msat FROM ledger ORDER BY 2") == [
        ("payment-1", 5),
        ("payment-2", 6),
    ]
    found = execute(database, "SELECT count(*) FROM replay.kvreplay_entries")
    assert found == [(2,)]
    with pytest.raises(Exception, match="duplicate key"):  # the second belt
        execute(database, "INSERT INTO ledger VALUES ('02payer', 'payment-1', 5)")


@needs_http  # it has Django
def test_the_example_of_django(database: str) -> None:
    """As the first statement of the block, too; and what it does of errors."""
    query = parse_qs(urlsplit(database).query)
    place = {
        "NAME": urlsplit(database).path[1:],
        "HOST": query["host"][0],
        "PORT": query["port"][0],
    }
    code = [SETTINGS.format(place=place), example(4, database), DJANGO, ASKS]
    ran = run_code("\n".join([*code, MISUSED.format(url=database)]))
    assert not ran.returncode, ran.stderr
    assert execute(database, "SELECT count(*) FROM payments_payment") == [(3,)]
    assert len(examples("ledger.md")) == 5
