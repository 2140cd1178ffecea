"""Each example of docs/http.md, and of the page of each framework, does what the page says."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import httpx
import pytest

import kvreplay.http
from kvreplay._http.acp import ACP
from kvreplay._http.answers import keeping
from kvreplay._http.problems import PROBLEMS
from kvreplay._http.profile import Profile
from kvreplay._http.stripe import Stripe
from support.django_settings import forget_settings
from support.extras import needs_http
from support.http_clients import ALICE, BOB, ASGIClient, Client, WSGIClient
from support.pages import DOCS, examples, imported
from support.small_bank import SmallBank
from support.waiting import until

pytestmark = [needs_http, pytest.mark.usefixtures("no_logging_left")]

WSGI = ("flask", "django")
PAGES = ("fastapi", "starlette", "litestar", *WSGI)
CAROL = {"amount": 5, "to": "carol"}


@pytest.fixture
def bank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SmallBank]:
    monkeypatch.chdir(tmp_path)
    with SmallBank() as bank:
        monkeypatch.setenv("BANK_URL", bank.url)
        monkeypatch.setenv("REPLAY_STORE", "lmdb:./replay")
        yield bank


@attrs.frozen
class Service:
    """The service of a page, with the names of its module."""

    name: str
    names: ModuleType
    client: Client

    def give_up(self) -> None:
        """Let it wait for the bank's answers no longer."""
        self.names.bank.timeout = httpx.Timeout(60, read=0.01)


@pytest.fixture(params=PAGES)
def service(request: pytest.FixtureRequest, bank: SmallBank, tmp_path: Path) -> Iterator[Service]:
    yield from serving(request.param, tmp_path)


def serving(name: str, folder: Path, *more: str) -> Iterator[Service]:
    if name == "django":
        forget_settings()
    names = imported(folder, examples(f"http/{name}.md")[0], *more)
    app = names.application if name == "django" else names.app
    with WSGIClient(app) if name in WSGI else ASGIClient(app) as client:
        yield Service(name, names, client)
    if name in WSGI:
        names.store.close()
        names.bank.close()


def test_every_page_is_tested() -> None:
    assert {path.stem for path in (DOCS / "http").iterdir()} == set(PAGES)


# The services of the pages.


def test_a_payment_is_made_once(service: Service, bank: SmallBank) -> None:
    first, retry = (service.client.post("/payments", CAROL) for _ in range(2))
    assert first.status_code == retry.status_code == 201
    assert first.json() == retry.json() == {"transfer": "t-1"}
    assert "idempotent-replayed" not in first.headers
    assert retry.headers["idempotent-replayed"] == "true"
    (made,) = bank.ledger
    assert re.fullmatch("[0-9a-f]{32}", made["key"])


def test_the_same_key_of_another_caller_is_another_key(service: Service, bank: SmallBank) -> None:
    for who in (ALICE, BOB):
        assert service.client.post("/payments", CAROL, who=who).status_code == 201
    assert len({each["key"] for each in bank.ledger}) == 2


def test_another_payment_with_the_key_is_refused(service: Service, bank: SmallBank) -> None:
    service.client.post("/payments", CAROL)
    other = service.client.post("/payments", {**CAROL, "amount": 6})
    assert (other.status_code, kind(other)) == (422, "key-reused")
    assert len(bank.ledger) == 1


@pytest.mark.parametrize(
    ("key", "who", "status"),
    [
        (None, ALICE, 400),
        ("no-quotes", ALICE, 400),
        ('"k"', {}, 401),
        ('"k"', {"Authorization": "Bearer token-eve"}, 401),
        ('"k"', {"Authorization": "token-alice"}, 401),
        ('"k"', {"authorization": "bearer token-alice"}, 201),
    ],
)
def test_who_may_pay(
    service: Service, bank: SmallBank, key: str | None, who: dict[str, str], status: int
) -> None:
    assert service.client.post("/payments", CAROL, key, who).status_code == status
    assert len(bank.ledger) == (status == 201)


def test_a_declined_payment_is_declined_for_good(service: Service) -> None:
    first, retry = (service.client.post("/payments", {**CAROL, "to": "declined"}) for _ in range(2))
    assert first.status_code == retry.status_code == 402
    assert retry.headers["idempotent-replayed"] == "true"


def test_a_closed_bank_is_asked_again(service: Service, bank: SmallBank) -> None:
    closed = [service.client.post("/payments", {**CAROL, "to": "closed"}) for _ in range(2)]
    assert [each.status_code for each in closed] == [503, 503]
    assert "idempotent-replayed" not in closed[1].headers
    assert service.client.post("/payments", CAROL).status_code == 201  # the key is free
    assert bank.paid("carol") == 1


@pytest.mark.parametrize("to", ["late", "broken"])
def test_a_bank_of_which_nobody_knows_leaves_the_key_in_doubt(
    service: Service, bank: SmallBank, to: str
) -> None:
    if to == "late":
        service.give_up()
    first, retry = (service.client.post("/payments", {**CAROL, "to": to}) for _ in range(2))
    assert first.status_code == 500
    assert (retry.status_code, kind(retry)) == (409, "in-doubt")
    until(lambda: bank.paid(to))
    assert bank.paid(to) == 1
    assert service.client.state().json()["state"] == "in doubt"


@pytest.mark.parametrize("sent", [{}, {"amount": "five", "to": "carol"}, []])
def test_what_is_no_payment_is_refused_for_good(service: Service, sent: object) -> None:
    first, retry = (service.client.post("/payments", sent) for _ in range(2))
    assert first.status_code == retry.status_code
    assert first.status_code in (400, 422)
    assert retry.headers["idempotent-replayed"] == "true"


def test_what_is_no_json_is_refused_for_good(service: Service) -> None:
    headers = {**ALICE, "Idempotency-Key": '"k"', "Content-Type": "application/json"}
    answer = service.client.request("POST", "/payments", content=b"{,}", headers=headers)
    assert answer.status_code in (400, 422)


def test_the_policy_can_be_read(service: Service) -> None:
    answer = service.client.request("GET", "/idempotency")
    assert answer.status_code == 200
    assert "Idempotency-Key" in answer.text


# What is further on them.


@pytest.fixture
def flask(bank: SmallBank, tmp_path: Path) -> Iterator[Service]:
    yield from serving("flask", tmp_path)


def test_flask_sweeps_and_knows_a_bank_that_is_not_there(flask: Service) -> None:
    _, sweep, unreachable = examples("http/flask.md")
    exec(compile(sweep + "\n" + unreachable, "flask.md", "exec"), vars(flask.names))
    result = flask.names.app.test_cli_runner().invoke(args=["sweep"])
    assert result.exit_code == 0, result.output
    there = flask.names.bank.base_url
    flask.names.bank.base_url = "http://127.0.0.1:1"
    assert flask.client.post("/payments", CAROL).status_code == 503
    flask.names.bank.base_url = there
    assert flask.client.post("/payments", CAROL).status_code == 201, "the key was freed"


@pytest.fixture
def django(bank: SmallBank, tmp_path: Path) -> Iterator[Service]:
    yield from serving("django", tmp_path, examples("http/django.md")[1])


def test_django_under_asgi(django: Service, bank: SmallBank) -> None:
    with ASGIClient(django.names.asgi, lifespan=False) as client:
        for _ in range(2):
            answer = client.post("/payouts", CAROL)
            assert (answer.status_code, answer.json()) == (201, {"transfer": "t-1"})
        assert client.post("/payouts", {}, '"other"').status_code == 400
        assert client.post("/payouts", CAROL, who={}).status_code == 401
        client.run(django.names.waiting_bank.aclose)
    assert bank.paid("carol") == 1


# docs/http.md: one application grows through the page.


class Page:
    """The module that the page's examples make, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.names: dict[str, Any] = vars(imported(folder))
        self._examples = iter(examples("http.md"))
        self.clients: list[ASGIClient] = []

    def run(self, examples: int) -> None:
        """Run the page up to this example."""
        for number in range(examples):
            code = compile(next(self._examples), f"docs/http.md, example {number + 1}", "exec")
            exec(code, self.names)

    def served(self, app: Any = None) -> ASGIClient:
        client = ASGIClient(self.app if app is None else app)
        self.clients.append(client)
        return client

    def with_reconciler(self, name: str) -> ASGIClient:
        """Serve the payouts with a reconciler of the page."""
        from fastapi import FastAPI

        app = FastAPI()
        replay = kvreplay.AsyncReplay(
            self.store, "payouts", ttl="24h", on_in_doubt=self.names[name]
        )
        app.add_middleware(self.IdempotencyMiddleware, replay=replay, scope=self.caller)
        app.post("/payouts", status_code=201)(self.pay_out)
        return self.served(app)

    def give_up(self) -> None:
        self.bank.timeout = httpx.Timeout(60, read=0.01)

    def be_patient(self) -> None:
        self.bank.timeout = httpx.Timeout(60)

    def __getattr__(self, name: str) -> Any:
        return self.names[name]

    def close(self) -> None:
        if "bank" in self.names and self.clients:
            self.clients[-1].run(self.bank.aclose)
        for client in self.clients:
            client.close()
        if "store" in self.names:
            self.store.close()


@pytest.fixture
def page(bank: SmallBank, tmp_path: Path) -> Iterator[Page]:
    page = Page(tmp_path)
    yield page
    page.close()


FIRST, ENDING, TIMED_OUT, TWICE, RECONCILER, TOO_EARLY, REFUSING, OPERATOR, WHO, NOBODY = range(
    1, 11
)


def test_there_is_no_other_example() -> None:
    assert len(examples("http.md")) == NOBODY


def test_the_first_example_has_fifteen_lines_and_does_what_is_shown(page: Page) -> None:
    lines = [line for line in examples("http.md")[0].splitlines() if line.strip()]
    assert len(lines) <= 15
    page.run(FIRST)
    client = page.served()
    first, retry = (client.post("/payments", {"amount": 5}, '"8e03978e"') for _ in range(2))
    assert first.status_code == retry.status_code == 201
    assert first.text == retry.text == '{"transfer":1}'
    assert retry.headers["idempotent-replayed"] == "true"
    assert len(page.transfers) == 1


def test_the_application_says_how_it_ends(page: Page) -> None:
    page.run(ENDING)
    client = page.served()
    page.names["stock"] = []
    assert client.post("/orders", {}).status_code == 409
    page.stock.append("book")
    for _ in range(2):
        assert client.post("/orders", {}).json() == {"item": "book"}


@pytest.mark.parametrize(
    ("to", "statuses", "paid"),
    [
        ("carol", [201, 201], 1),
        ("declined", [402, 402], 0),
        ("closed", [500, 409], 0),
        ("broken", [500, 409], 1),
        ("late", [500, 409], 1),
    ],
)
def test_a_payout_is_paid_once(
    page: Page, bank: SmallBank, to: str, statuses: list[int], paid: int
) -> None:
    page.run(TIMED_OUT)
    client = page.served()
    if to == "late":
        page.give_up()
    sent = {**CAROL, "to": to}
    assert [client.post("/payouts", sent).status_code for _ in range(2)] == statuses
    until(lambda: bank.paid(to) >= paid)
    assert bank.paid(to) == paid


def test_a_bank_that_was_not_reached_has_paid_nothing(page: Page, bank: SmallBank) -> None:
    page.run(TIMED_OUT)
    client = page.served()
    page.bank.base_url = "http://127.0.0.1:1"
    assert client.post("/payouts", CAROL).status_code == 503
    page.bank.base_url = bank.url
    assert client.post("/payouts", CAROL).status_code == 201
    assert bank.paid("carol") == 1


def test_a_503_for_a_time_out_pays_twice(page: Page, bank: SmallBank) -> None:
    page.run(TWICE)
    client = page.served()
    page.give_up()
    for _ in range(2):
        assert client.post("/wrong-payouts", {**CAROL, "to": "late"}).status_code == 503
    until(lambda: bank.paid("late") == 2)


def test_what_the_page_says_of_the_exceptions_of_httpx() -> None:
    for each in (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
        assert issubclass(each, httpx.TransportError)
    for each in (httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError):
        assert issubclass(each, httpx.TransportError)
        assert not issubclass(each, TimeoutError | ConnectionError)


QUEUED = {"amount": 5, "to": "queued"}


def left_in_the_queue(page: Page, reconciler: str) -> ASGIClient:
    """Return a client whose payout the bank has heard of, and not taken up."""
    client = page.with_reconciler(reconciler)
    page.give_up()
    assert client.post("/payouts", QUEUED).status_code == 500
    page.be_patient()
    return client


def test_a_correct_reconciler_waits_for_the_first_request(page: Page, bank: SmallBank) -> None:
    page.run(RECONCILER)
    client = left_in_the_queue(page, "ask_the_bank")
    early = client.post("/payouts", QUEUED)
    assert (early.status_code, kind(early), early.headers["retry-after"]) == (409, "in-doubt", "60")
    bank.takes_up.set()
    until(lambda: bank.paid("queued"))
    for _ in range(2):
        retry = client.post("/payouts", QUEUED)
        assert (retry.status_code, retry.json()) == (201, {"transfer": "t-1"})
        assert retry.headers["content-type"] == "application/json"
    assert bank.paid("queued") == 1


def test_a_reconciler_that_cannot_ask_does_not_know(page: Page, bank: SmallBank) -> None:
    page.run(RECONCILER)
    client = left_in_the_queue(page, "ask_the_bank")
    page.bank.base_url = "http://127.0.0.1:1"
    answer = client.post("/payouts", QUEUED)
    assert (answer.status_code, kind(answer)) == (409, "in-doubt")
    page.bank.base_url = bank.url


def test_a_reconciler_that_raises_keeps_the_doubt(page: Page) -> None:
    page.run(RECONCILER)
    client = left_in_the_queue(page, "ask_the_bank")
    page.names["Unknown"] = None  # what it returns cannot be made
    page.bank.base_url = "http://127.0.0.1:1"
    assert client.post("/payouts", QUEUED).status_code == 500
    assert client.run(_states, page.store) == [True]


async def _states(store: Any) -> list[bool]:
    replay = kvreplay.AsyncReplay(store, "payouts", ttl="24h")
    return [await replay.is_in_doubt(each) async for each in replay.records()]


def test_a_reconciler_that_asks_too_early_pays_twice(page: Page, bank: SmallBank) -> None:
    page.run(TOO_EARLY)
    client = left_in_the_queue(page, "ask_too_early")
    page.names["bank"].event_hooks["request"].append(_take_up_the_second_one(bank))
    assert client.post("/payouts", QUEUED).status_code == 201
    until(lambda: bank.paid("queued") == 2)


def _take_up_the_second_one(bank: SmallBank) -> Any:
    async def on_request(request: httpx.Request) -> None:
        if request.method == "POST":
            bank.takes_up.set()

    return on_request


def test_a_bank_that_refuses_a_key_settles_it(page: Page, bank: SmallBank) -> None:
    page.run(REFUSING)
    client = left_in_the_queue(page, "ask_and_refuse")
    for _ in range(2):
        answer = client.post("/payouts", QUEUED)
        assert (answer.status_code, answer.json()["error"][:16]) == (410, "nothing was paid")
        assert answer.headers["idempotent-replayed"] == "true"
    bank.takes_up.set()
    late = left_in_the_queue_of_another_key(page, client, bank)
    assert late.json() == {"transfer": "t-1"}
    assert bank.paid("queued") == 0


def left_in_the_queue_of_another_key(
    page: Page, client: ASGIClient, bank: SmallBank
) -> httpx.Response:
    """Return the answer of the same reconciler about a payment that was made."""
    page.give_up()
    sent = {**CAROL, "to": "late"}
    assert client.post("/payouts", sent, '"late"').status_code == 500
    page.be_patient()
    until(lambda: bank.paid("late"))
    return client.post("/payouts", sent, '"late"')


def test_an_operator_settles_keys(
    page: Page, bank: SmallBank, capsys: pytest.CaptureFixture[str]
) -> None:
    page.run(REFUSING)
    client = page.served()
    for key, to in (('"1"', "broken"), ('"2"', "closed"), ('"3"', "broken")):
        assert client.post("/payouts", {**CAROL, "to": to}, key).status_code == 500
    paid, third = (each["key"] for each in bank.ledger)
    never_paid = kvreplay.http.downstream_key(kvreplay.ReplayKey("alice", "2"))
    page.names.update(paid={paid: "t-1"}, never_paid={never_paid})
    page.run(1)
    shown = capsys.readouterr().out
    for key in (paid, third, never_paid):
        assert f"alice POST b'/payouts' {key}\n" in shown
    answered = client.post("/payouts", {**CAROL, "to": "broken"}, '"1"')
    assert (answered.status_code, answered.json()) == (201, {"transfer": "t-1"})
    assert client.post("/payouts", CAROL, '"2"').status_code == 201, "it was free"
    assert client.post("/payouts", {**CAROL, "to": "broken"}, '"3"').status_code == 409
    assert bank.paid("broken") == 2


class Sessions:
    async def user_of(self, cookie: bytes | None) -> str | None:
        return "alice" if cookie == b"session=1" else None


@pytest.fixture
def callers() -> dict[str, Any]:
    """The names of the examples that say who asks, right and wrong."""
    names: dict[str, Any] = {
        "accounts": {hashlib.sha256(b"token-alice").hexdigest(): "alice"},
        "sessions": Sessions(),
    }
    for example in examples("http.md")[WHO - 1 :]:
        exec(compile(example, "docs/http.md", "exec"), names)
    return names


@pytest.mark.parametrize(
    ("way", "right", "wrong"),
    [
        ("by_token", (b"authorization", b"Bearer token-alice"), (b"authorization", b"Bearer eve")),
        ("by_session", (b"cookie", b"session=1"), (b"cookie", b"session=2")),
    ],
)
def test_ways_to_know_who_asks(
    callers: dict[str, Any], way: str, right: tuple[bytes, bytes], wrong: tuple[bytes, bytes]
) -> None:
    def asked(*headers: tuple[bytes, bytes]) -> Any:
        answer = callers[way]({"headers": headers})
        return asyncio.run(answer) if inspect.iscoroutine(answer) else answer

    assert asked(right) == "alice"
    assert asked(wrong) is asked() is None


def test_a_middleware_outside_knows_who_asks(callers: dict[str, Any]) -> None:
    from starlette.authentication import SimpleUser, UnauthenticatedUser

    class Named(SimpleUser):
        @property
        def name(self) -> str:
            return self.username

    asked = callers["by_what_stands_outside"]
    assert asked({"user": Named("alice")}) == "alice"
    assert asked({"user": UnauthenticatedUser()}) is asked({}) is None


def test_what_they_say_of_themselves_gives_away_an_answer(
    page: Page, callers: dict[str, Any]
) -> None:
    from fastapi import FastAPI

    page.run(FIRST)
    app = FastAPI()
    scope = callers["by_what_they_say"]
    app.add_middleware(page.IdempotencyMiddleware, replay=page.replay, scope=scope)
    app.post("/payments", status_code=201)(page.pay)
    client = page.served(app)
    client.post("/payments", {}, who={**ALICE, "X-User": "alice"})
    stolen = client.post("/payments", {}, who={**BOB, "X-User": "alice"})
    assert stolen.headers["idempotent-replayed"] == "true"


def test_the_example_of_the_readme(page: Page) -> None:
    (example,) = (each for each in examples("../README.md") if "Idempotency" in each)
    exec(compile(example, "README.md", "exec"), page.names)
    page.names["store"] = page.replay._settings.store  # so that it is closed
    page.app.post("/payments")(lambda: "paid")
    client = page.served()
    for key, who, status in ((None, ALICE, 400), ('"k"', BOB, 401), ('"k"', ALICE, 200)):
        assert client.post("/payments", {}, key, who).status_code == status
    assert client.post("/payments", {}, '"k"').headers["idempotent-replayed"] == "true"


# The example of docs/testing.md.

WITH_HTTPX = "ignore:Using `httpx` with `starlette.testclient`"  # here is no httpx2


@pytest.mark.filterwarnings(WITH_HTTPX)
@pytest.mark.parametrize(
    ("raised", "is_right"), [("TimeoutError", True), ("HTTPException(503)", False)]
)
def test_the_test_of_an_application_sees_a_retry_that_pays(
    tmp_path: Path, raised: str, is_right: bool
) -> None:
    (example,) = (each for each in examples("testing.md") if "TestClient" in each)
    assert example.count("raise TimeoutError") == 1
    played = example.replace("raise TimeoutError", f"raise {raised}")
    names = vars(imported(tmp_path, "from starlette.exceptions import HTTPException", played))
    (test,) = (each for name, each in names.items() if name.startswith("test_"))
    with nullcontext() if is_right else pytest.raises(AssertionError):
        test()


# What the tables of docs/http.md say, beside the code.


def kind(answer: httpx.Response) -> str:
    """Return the last part of a problem's type."""
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["type"].rpartition("#")[2])


def rows(heading: str) -> list[list[str]]:
    """Return the rows of the table of docs/http.md with this heading."""
    text = (DOCS / "http.md").read_text(encoding="utf-8")
    (table,) = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in table.splitlines()]


def test_the_table_of_answers_has_each_problem_with_its_status() -> None:
    told = {slug.strip("`"): status for _, status, slug, _ in rows("the request") if slug}
    for slug, problem in PROBLEMS.items():
        if slug in ("unknown-key", "missing-path"):  # of the state, further down
            continue
        assert int(told.pop(slug)[:3]) == problem.status, slug
    assert not told


def test_each_effect_is_told() -> None:
    told = {effect.strip("`") for effect, _ in rows("`effect`")}
    assert told == {problem.effect for problem in PROBLEMS.values()}


@pytest.mark.parametrize(("column", "profile"), [(1, Profile()), (2, Stripe()), (3, ACP())])
def test_the_profiles_end_runs_as_told(column: int, profile: Profile) -> None:
    told = {row[0]: row[column] for row in rows("rule")}
    assert told["methods"] == ", ".join(sorted(profile.methods, key=["POST", "PATCH"].index))
    assert told["a request without a key"] == ("400" if profile.required else "passes through")
    assert told["another request with the key, or an expired one"] == str(
        profile.status("key-reused")
    )
    assert profile.status("key-reused") == profile.status("expired")
    freed = {int(each) for each in told["freed, and not kept"].split(", ")}
    for status in range(200, 600):
        ending = "kept" if f"{status // 100}xx" in told["kept"] else "in doubt"
        assert profile.ending(status) == ("freed" if status in freed else ending)
    assert told["`ttl`"] == ("at least 24 hours" if profile.least_ttl else "as you like")


def test_the_stored_headers_are_told() -> None:
    (told,) = (left for left, _ in rows("stored") if "`Content-Type`" in left)
    named = {name.lower().encode() for name in re.findall(r"`([A-Z][A-Za-z-]+)`", told)}
    assert named == keeping(())
