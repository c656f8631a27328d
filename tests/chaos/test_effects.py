"""The effect audit of the reference application: who was told, who was charged, whatever was killed or restarted.

Real `saqkit worker` commands, a broker that restarts from its file, a database that crashes (PostgreSQL) or is held by
somebody (SQLite), a real mail server. After the storm the operator replays what has died, and then everybody has been
told exactly once by the ledger, repeated emails have the Message-ID of the first, and no order is charged twice.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from accounting import Tell
from seeds import seeds
from servers_to_restart import HeldFile, OneOfThem, OwnPostgres, Restarted, postgres_programs
from system_of_effects import System, system

from saqkit.app.handlers import Application
from saqkit.app.mail import build_providers
from saqkit.app.shop.charges import Charges
from saqkit.app.shop.checking import check_payments
from saqkit.app.shop.checkout import Checkout
from saqkit.app.shop.money import Money
from saqkit.app.shop.orders import Order
from saqkit.app.store import Store
from saqkit.broker import PrivateBroker

POSTGRESQL = pytest.mark.parametrize("kind", ["postgresql"])
SQLITE = pytest.mark.parametrize("kind", ["sqlite"])
FEW = ("worker", "broker", "database and worker")
MANY = (*FEW, "database", "launcher")
USERS = 100
QUICK = ("lease_s=2", "sweep_s=0.5")
SCHOOL = (
    *(f"queues.notifications.{setting}" for setting in (*QUICK, "rate_limit.limit=40")),
    "job_types.announce.fan_out={ to = 'notify', batch_size = 25, page_size = 100 }",
    "job_types.announce.retry.delays_s=[0.2, 1, 5]",
    "job_types.notify.retry.delays_s=[0.2, 1, 5]",
)
SHOP = (
    *(f"queues.{name}.{setting}" for name in ("payments", "notifications") for setting in QUICK),
    *(f"job_types.{name}.retry.delay_s=0.2" for name in ("payment", "order-email", "order-sms")),
    "providers.payments.latency.mean_s=0.1",
    "providers.payments.temporary_share=0.2",
    "providers.payments.permanent_share=0.1",
    "providers.sms.latency.mean_s=0.01",
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[OwnPostgres]:
    """A PostgreSQL that this module may crash."""
    programs = postgres_programs()
    if programs is None:
        reason = "PostgreSQL's programs are not installed (Debian: apt-get install postgresql)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    server = OwnPostgres(programs)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def database(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Restarted:
    """A database that can be taken away."""
    if kind == "sqlite":
        return HeldFile(tmp_path / "data.db")
    return OneOfThem(request.getfixturevalue("postgres"), tmp_path.name.lower().replace("-", "_")[-60:])


async def announced(made: System, draws: Random, over: asyncio.Event) -> list[int]:
    """Announce until it is `over`, each event until it is taken in, and some of them again: a key is one event."""
    found: list[int] = []
    while not over.is_set():

        async def announce(key: str = f"closing {len(found)}") -> int:
            return (await made.announcer.announce(title="The school is closed", key=key)).event

        found.append(await made.insist(announce))
        if draws.random() < 0.5:
            assert await made.insist(announce) == found[-1]
        await asyncio.sleep(draws.uniform(0.8, 1.3))
    return found


async def school(
    seed: int, strikes: tuple[str, ...], server: PrivateBroker, database: Restarted, folder: Path, tell: Tell
) -> None:
    refused = {3, USERS}
    addresses = {user: f"user{user}@users.example" for user in range(1, USERS + 1)}
    put_off = {addresses[user] for user in range(10, 20)}
    refuse = {addresses[user] for user in refused}
    async with system(
        "school-events", SCHOOL, server, database, folder, USERS, refuse=refuse, defer_once=put_off
    ) as made:
        over = asyncio.Event()
        announcing = asyncio.create_task(announced(made, Random(seed), over))
        await made.storm(seed, strikes, server)
        over.set()
        whose = await announcing
        await made.drained()
        letters = await made.replay()
        await made.drained()
        wanted = {(event, user) for event in whose for user in addresses.keys() - refused}
        await made.audit_of_emails(wanted, lambda row: tell({**row, "dead": letters}, {}))
        failed = [row for row in await made.ledger() if row.status != "sent"]
        assert {(row.event, row.user) for row in failed} == {(event, user) for event in whose for user in refused}
        assert all("550 5.1.1 no such mailbox here" in row.error for row in failed)
        assert len(whose) >= len(strikes)
        for event in whose:
            progress = await made.store.progress(event)
            assert (progress.users, progress.percent, progress.fan_out_finished) == (USERS, 100, True)


async def shop(
    seed: int, strikes: tuple[str, ...], server: PrivateBroker, database: Restarted, folder: Path, tell: Tell
) -> None:
    async with system("shop", SHOP, server, database, folder, USERS) as made:
        over = asyncio.Event()
        buying = asyncio.create_task(bought(made, Random(seed), over))
        await made.storm(seed, strikes, server)
        over.set()
        bills = await buying
        await made.drained()
        letters = 0
        for _ in range(2):  # a payment may lose its answer again when it is replayed: then the next poll asks for it
            await poll(made)
            letters += await made.replay()
            await made.drained()
        paid = await audit_of_orders(made, bills)
        wanted = {(order.event_id, order.user_id) for order in paid}
        await made.audit_of_emails(wanted, lambda row: tell({**row, "accepted": len(bills), "dead": letters}, {}))


async def bought(made: System, draws: Random, over: asyncio.Event) -> list[Order]:
    """Customers check out until it is `over`, each until the order is saved, and some again: a key is one order."""
    checkout, found = Checkout(made.announcer), list[Order]()
    while not over.is_set():
        user, money = draws.randint(1, USERS), Money(draws.randint(1, 5_000), "EUR")

        async def buy(key: str = f"cart {len(found)}", user: int = user, money: Money = money) -> Order:
            return (await checkout.check_out(user=user, money=money, key=key)).order

        found.append(await made.insist(buy))
        if draws.random() < 0.3:
            assert (await made.insist(buy)).id == found[-1].id
        await asyncio.sleep(draws.uniform(0, 0.1))
    return found


async def poll(made: System) -> None:
    """What the shop's schedule does each minute: ask for the charges of those orders that have no answer."""
    environment = {"SAQKIT_CHARGES": str(made.charges)}
    store, providers = await Store.open(made.database.url), build_providers(made.topology, 0)
    application = Application(made.topology, store, made.queues, providers, environ=environment)
    try:
        await check_payments(application, patience_s=0)
    finally:
        await application.close()


async def audit_of_orders(made: System, bills: list[Order]) -> list[Order]:
    """Each order has one charge, of its amount, and the state that its charge says; returns those that are paid.

    Or it has none yet, and its payment is a dead letter: what the simulated provider puts off in all attempts it puts
    off again when they are replayed, since its draws are those of the attempts.
    """
    charges, checkout = Charges(made.charges), Checkout(made.announcer)
    try:
        entries = await charges.entries()
    finally:
        await charges.close()
    orders = await checkout.orders.among([bill.id for bill in bills])
    assert len({order.id for order in orders}) == len(bills), "no order is lost, and none is another one"
    books = {entry.charge.key: entry.charge for entry in entries}
    payments = made.queues["payments"]
    dead = {key.decode() for key in await payments.redis.zrange(payments.namespace("dead"), 0, -1)}
    open_ = [order for order in orders if order.charge_key not in books]
    assert [order.state for order in open_] == ["charging"] * len(open_)
    assert {f"payment:{order.event_id}:{order.user_id}" for order in open_} == dead
    orders = [order for order in orders if order.charge_key in books]
    assert len(books) == len(entries) == len(bills) - len(dead)
    assert {order.charge_key: order.money for order in orders} == {one.key: one.money for one in books.values()}
    states = {order.id: "paid" if books[order.charge_key].paid else "declined" for order in orders}
    assert {order.id: order.state for order in orders} == states
    paid = [order for order in orders if order.state == "paid"]
    assert 0 < len(paid) < len(orders), "some were to be declined"
    told: dict[str, dict[tuple[int, int], str]] = {}
    for row in await made.ledger():
        told.setdefault(row.channel, {})[row.event, row.user] = row.status
    places = {(order.event_id, order.user_id): order.state for order in [*orders, *open_]}
    assert told["api.payment"] == {place: "sent" if state == "paid" else "failed" for place, state in places.items()}
    assert told["sms"] == {place: "sent" for place, state in places.items() if state == "paid"}
    return paid


@pytest.mark.row("000.19", "003.11", "C6")
@seeds(0)
@POSTGRESQL
async def test_everybody_is_told_once_through_a_short_storm(
    kind: str, seed: int, server: PrivateBroker, database: Restarted, tmp_path: Path, tell: Tell
) -> None:
    await school(seed, FEW, server, database, tmp_path, tell)


@seeds(0)
@POSTGRESQL
async def test_a_database_that_crashes_in_the_middle_of_batches_makes_nobody_be_told_twice(
    kind: str, seed: int, server: PrivateBroker, database: Restarted, tmp_path: Path, tell: Tell
) -> None:
    await school(seed, ("database", "database"), server, database, tmp_path, tell)  # no kill: no email is repeated


@pytest.mark.row("003.10", "003.11", "C6")
@seeds(0)
@SQLITE
async def test_no_order_is_charged_twice_through_a_short_storm(
    kind: str, seed: int, server: PrivateBroker, database: Restarted, tmp_path: Path, tell: Tell
) -> None:
    await shop(seed, FEW, server, database, tmp_path, tell)


@pytest.mark.chaos
@seeds(*range(1, 11))
@POSTGRESQL
async def test_everybody_is_told_once_whatever_is_killed_or_restarted(
    kind: str, seed: int, server: PrivateBroker, database: Restarted, tmp_path: Path, tell: Tell
) -> None:
    await school(seed, MANY, server, database, tmp_path, tell)


@pytest.mark.chaos
@seeds(*range(1, 11))
@POSTGRESQL
async def test_no_order_is_charged_twice_whatever_is_killed_or_restarted(
    kind: str, seed: int, server: PrivateBroker, database: Restarted, tmp_path: Path, tell: Tell
) -> None:
    await shop(seed, MANY, server, database, tmp_path, tell)


@pytest.mark.chaos
@seeds(11)
@SQLITE
async def test_everybody_is_told_once_on_sqlite_as_well(
    kind: str, seed: int, server: PrivateBroker, database: Restarted, tmp_path: Path, tell: Tell
) -> None:
    await school(seed, MANY, server, database, tmp_path, tell)


@pytest.mark.chaos
@seeds(11)
@SQLITE
async def test_no_order_is_charged_twice_on_sqlite_as_well(
    kind: str, seed: int, server: PrivateBroker, database: Restarted, tmp_path: Path, tell: Tell
) -> None:
    await shop(seed, MANY, server, database, tmp_path, tell)
