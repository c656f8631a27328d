"""Checking out: what is saved, what is refused, and what the same key brings; money; and the provider's own answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from measured import run
from shop_system import SHOP, Shop, open_shop, shop, until
from sqlalchemy import NullPool, make_url, text, update
from sqlalchemy.ext.asyncio import create_async_engine

from saqkit.app import tables
from saqkit.app.announcing import Announcer
from saqkit.app.mail.simulated import Simulated
from saqkit.app.shop.charges import Charge, Charges
from saqkit.app.shop.checkout import Checkout
from saqkit.app.shop.money import Money
from saqkit.app.shop.orders import NewOrder, Order, Orders
from saqkit.app.shop.payment_provider import LOST_SHARE, SimulatedPayments
from saqkit.app.store import Store
from saqkit.cli import main
from saqkit.errors import DescriptionError, PermanentFailure, TemporaryFailure, UsageError
from saqkit.spec.distributions import Lognormal
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.topology import Priority, Provider, Topology

TEN = Money(1000, "EUR")


@pytest.fixture
async def made(redis_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    """A shop without workers."""
    async with open_shop(shop(), redis_url, tmp_path, 9) as opened:
        yield opened


@pytest.mark.row("003.10", "003.11")
async def test_a_checkout_saves_order_event_and_outbox_row_and_queues_the_payment(made: Shop) -> None:
    done = await made.buys(6, key="cart 17", tenant="harbour")
    order = done.order
    assert (done.new, done.enqueued) == (True, True)
    assert (order.state, order.user_id, str(order.money), order.key) == ("new", 6, "12.50 EUR", "cart 17")
    job = await made.queues["payments"].job(f"payment:{order.event_id}:6")
    assert job is not None
    assert (job.kwargs, job.priority) == ({"event": order.event_id, "users": [6]}, Priority.HIGH)
    assert job.meta["tenant"] == "harbour"
    event = await made.store.event(order.event_id)
    assert event is not None
    assert (event.title, event.topic) == ("Your payment of 12.50 EUR", "checkout")
    assert await made.store.undelivered() == []


async def test_one_key_is_one_order_also_where_ten_ask_at_once(made: Shop) -> None:
    done = await asyncio.gather(*(made.buys(4, key="cart 1") for _ in range(10)))
    assert [one.new for one in done].count(True) == 1
    assert {one.order.id for one in done} == {1}
    assert await made.orders.counts() == {"new": 1}
    assert await made.queues["payments"].count("queued") == 1
    other = await made.buys(3, key="cart 1", tenant="harbour")
    assert other.new, "a key belongs to its tenant"
    assert await made.orders.counts("harbour") == {"new": 1}
    assert await made.orders.order(other.order.id, "harbour") == other.order
    assert await made.orders.order(other.order.id, "north") is None


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"user": 99}, "no active user 99"),
        ({"user": 4, "tenant": "harbour"}, "no active user 4 of tenant harbour"),
        ({"cents": -1250}, "an amount of -1,250 cannot be charged"),
        ({"cents": 0}, "an amount of 0 cannot be charged"),
        ({"cents": 10**12 + 1}, "1 to 1,000,000,000,000 minor units"),
        ({"cents": 12.5}, "12.5 is no amount of minor units of EUR"),
        ({"cents": True}, "True is no amount"),
        ({"title": "Hello\nBcc: all@users.example"}, "a title is one line"),
        ({"key": ""}, "a key one of 1 to 200 characters"),
        ({"key": "k" * 201}, "a key one of 1 to 200 characters"),
        ({"cents": 1, "key": "known"}, 'the key "known" belongs to order 1 of user 3, 12.50 EUR'),
        ({"user": 4, "key": "known"}, "use a new key for a new order"),
        ({"key": "announced"}, "belongs to an event that is no order"),
    ],
)
async def test_a_wrong_checkout_saves_nothing(made: Shop, more: dict[str, Any], why: str) -> None:
    await made.buys(3, key="known")
    await made.announcer.announce(title="no order", key="order announced")
    with pytest.raises(UsageError) as refused:
        await made.buys(**{"user": 3, **more})
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)
    assert await made.orders.counts() == {"new": 1}


@pytest.mark.parametrize(
    ("change", "why"),
    [({"charge_key": "nobody's"}, "no order has the charge key"), ({"money": Money(999, "EUR")}, "its charge ch_1 of"),
     ({"money": Money(1250, "USD")}, "12.50 USD")],
)  # fmt: skip
async def test_a_wrong_confirmation_changes_nothing(made: Shop, change: dict[str, Any], why: str) -> None:
    order = (await made.buys(3)).order
    words = {"charge_key": order.charge_key, "charge_id": "ch_1", "money": order.money, **change}
    with pytest.raises(UsageError, match=why):
        await made.checkout.payment_confirmed(**words)
    assert (await made.order(order.id)).state == "new"


async def test_a_confirmed_refusal_declines_the_order_for_good(made: Shop, caplog: pytest.LogCaptureFixture) -> None:
    order = (await made.buys(3)).order
    told = (order.charge_key, "ch_1", order.money)
    assert (await made.checkout.payment_confirmed(*told, paid=False, reason="card expired")).error == "card expired"
    assert "somebody has to look" not in caplog.text
    assert (await made.checkout.payment_confirmed(*told)).state == "declined"
    assert 'order 1 is declined by charge "ch_1", and now said to be paid by charge "ch_1"' in caplog.text


async def test_who_is_gone_after_the_checkout_has_bought_all_the_same(redis_url: str, tmp_path: Path) -> None:
    async with open_shop(shop(), redis_url, tmp_path) as made:
        new = NewOrder(3, TEN, "payment", "checkout", "Paid", "Thank you")
        order, _ = await made.orders.add(new, time.time())
        await made.store.remove_users([3])
        async with made.worker():
            await until(made.charges.entries)
            await made.drained()
        assert (await made.order(order.id)).state == "paid"
        assert await made.receipts() == {(order.event_id, 3): "failed"}, "there is no address left to tell"


async def test_orders_are_kept_by_postgresql_as_well(postgres_url: str) -> None:
    async with await Store.open(postgres_url) as store:
        await store.add_numbered_users(3)
        orders = Orders(store.database)
        new = NewOrder(2, TEN, "payment", "checkout", "Paid", "Thank you", key="cart")
        done = await asyncio.gather(*(orders.add(new, 1.0) for _ in range(4)))
        assert [is_new for _, is_new in done].count(True) == 1
        order = done[0][0]
        event = await store.event(order.event_id)
        assert event is not None
        fresh = await orders.begin(event, [2, 3], "payment", "sms", 2.0)
        assert ([o.id for o in fresh.fresh], fresh.unsure, fresh.unknown) == ([order.id], [], [3])
        unsure = await orders.begin(event, [2, 3], "payment", "sms", 3.0)
        assert [(o.id, o.state) for o in unsure.unsure] == [(order.id, "charging")]
        assert unsure.unknown == [], "who has no order has failed once"
        checkout = Checkout(Announcer(shop(), store, {}))
        assert [o.id for o in await orders.unsettled(4.0, 10)] == [order.id]
        done_by = await checkout.confirm(order, Charge(order.charge_key, "ch", TEN, False, "no"))
        assert (done_by.state, done_by.error) == ("declined", "no")


async def test_an_answer_that_is_recorded_as_its_job_begins_stands(postgres_url: str) -> None:
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    async with await Store.open(postgres_url) as store:
        await store.add_numbered_users(3)
        orders, database = Orders(store.database), store.database
        order, _ = await orders.add(NewOrder(2, TEN, "payment", "checkout", "Paid", "Thank you"), 1.0)
        event = await store.event(order.event_id)
        assert event is not None
        engine = create_async_engine(make_url(postgres_url), poolclass=NullPool)
        async with engine.begin() as webhook:
            await webhook.execute(update(tables.orders).values(state="paid", charge_id="ch", settled_at=2.0))
            job = asyncio.create_task(orders.begin(event, [2], "payment", "sms", 3.0))

            async def waits() -> bool:
                return bool(await database.read(lambda c: c.execute(waiting).scalar_one()))

            await until(waits)
        begun = await job
        await engine.dispose()
        assert (begun.fresh, begun.unsure, begun.paid) == ([], [], [2])
        assert [(o.state, o.charge_id) for o in await orders.among([order.id])] == [("paid", "ch")]


@pytest.mark.parametrize(
    ("amount", "currency", "minor"),
    [("12.5", "EUR", 1250), ("0.010", "EUR", 1), ("1200", "JPY", 1200), ("1", "KWD", 1000)],
)  # fmt: skip
def test_money_that_people_type(amount: str, currency: str, minor: int) -> None:
    money = Money.of(amount, currency)
    assert money.minor == minor
    assert Money.of(str(money).split()[0], currency) == money


@pytest.mark.parametrize(
    ("amount", "currency", "why"),
    [("12,50", "EUR", "is no amount of EUR"), ("-3", "EUR", "cannot be charged"), ("0.005", "EUR", "more digits"),
     ("1.5", "JPY", "more digits than JPY"), ("1", "EURO", 'did you mean "EUR"'), ("", "EUR", "is no amount"),
     ("1.", "EUR", "is no amount"), ("1e3", "EUR", "is no amount"), ("\N{ARABIC-INDIC DIGIT ONE}", "EUR", "is no")],
)  # fmt: skip
def test_money_that_there_is_not(amount: str, currency: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        Money.of(amount, currency)
    assert why in str(refused.value)


# --- the simulated provider


def order_of(user: int) -> Order:
    return Order(1, "", None, 1, user, "payment", 1000, "EUR", "charging", f"key {user}", "", "", 0.0, 0.0, None, "")


def payments(path: Path, seed: int = 0, **spec: Any) -> SimulatedPayments:
    drawn = Simulated("payments", Provider(channel="sms", **spec), seed)
    return SimulatedPayments(drawn, Charges(path / "charges.db"))


async def test_a_charge_that_is_slower_than_anybody_waits_is_made_all_the_same(tmp_path: Path) -> None:
    slow = Lognormal(mean_s=0.15, cv=2.0)
    streams = ((Stream.LATENCY, 1), (Stream.LATENCY, 2), (Stream.FINDING, 2))
    took = {u: [slow.quantile(uniform(0, stream, 1, u, n)) for stream, n in streams] for u in range(1, 900)}
    user = next(user for user, (first, *others) in took.items() if 0.6 < first < 2 and max(others) < 0.05)
    provider = payments(tmp_path, latency=slow, timeout_s=0.2)
    with pytest.raises(TemporaryFailure, match=r"no answer within 0\.2 s"):
        await provider.charge(order_of(user), 1)
    assert await provider.find(order_of(user), 2) is None, "it is still under way"
    with pytest.raises(TemporaryFailure, match="no answer"):  # asked again, it is the same charge that is waited for
        await provider.charge(order_of(user), 2)
    await asyncio.sleep(max(took[user]))
    found = await provider.find(order_of(user), 2)
    assert found is not None
    assert found.paid
    assert [(entry.charge, entry.asked) for entry in await provider.charges.entries()] == [(found, 2)]
    await provider.close()


async def test_a_key_is_one_charge_of_one_amount_whoever_asks_at_once(tmp_path: Path) -> None:
    ours, theirs = payments(tmp_path), payments(tmp_path)
    answers = await asyncio.gather(*(one.charge(order_of(1), 1) for one in (ours, theirs) for _ in range(5)))
    assert len(set(answers)) == 1
    (entry,) = await ours.charges.entries()
    assert entry.asked == 10
    with pytest.raises(PermanentFailure, match=r"was used for 10\.00 EUR, not 0\.01 EUR"):
        await theirs.charges.enter(Charge("key 1", "ch_2", Money(1, "EUR"), True, ""), 0.0)
    await ours.close()
    await theirs.close()


async def test_half_of_the_temporary_failures_are_charges_whose_answer_is_lost(tmp_path: Path) -> None:
    provider = payments(tmp_path, temporary_share=0.6, latency={"kind": "constant", "mean_s": 0.0})
    for user in range(1, 101):
        draw = uniform(0, Stream.TEMPORARY, 1, user, 1)
        if draw < 0.6:
            with pytest.raises(TemporaryFailure):
                await provider.charge(order_of(user), 1)
            assert (await provider.find(order_of(user), 2) is not None) == (draw < 0.6 * LOST_SHARE)
        else:
            assert (await provider.charge(order_of(user), 1)).paid
    await provider.close()


# --- topologies


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("job_types__payment__work", "paiment", 'there is no work "paiment" (did you mean "payment"?)'),
        ("job_types__payment__per_user", {"database": "none", "provider": "payments"}, "where that is written down"),
        ("job_types__receipt__work", "payment", '"receipt" charges by it, and it sends email'),
    ],
)
def test_a_wrong_shop_is_refused_in_one_line_with_status_2(
    path: str, value: Any, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DescriptionError) as refused:
        shop(**{path: value})
    assert why in str(refused.value)
    changed = deepcopy(SHOP)
    _, name, field = path.split("__")
    changed["job_types"][name][field] = value
    file = tmp_path / "shop.toml"
    file.write_text("".join(f"{key} = {as_toml(part)}\n" for key, part in changed.items()), encoding="utf-8")
    assert main(["show", str(file)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert why in told
    file.write_text("".join(f"{key} = {as_toml(part)}\n" for key, part in SHOP.items()), encoding="utf-8")
    assert main(["show", str(file)]) == 0


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(part)}" for key, part in value.items()) + "}"
    return "[" + ", ".join(map(as_toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


async def test_a_topology_without_payments_takes_no_orders(redis_url: str, tmp_path: Path) -> None:
    topology = Topology.parse({**SHOP, "job_types": {
        name: {**spec, "work": "messages"} for name, spec in SHOP["job_types"].items()
    }})  # fmt: skip
    async with open_shop(topology, redis_url, tmp_path) as made:
        with pytest.raises(DescriptionError, match='no job type of topology shop has work = "payment"'):
            await made.buys(3)
        assert await made.orders.counts() == {}


async def test_a_measured_run_pays_an_order_for_each_arrival() -> None:
    topology = shop(providers__payments__permanent_share=0.2, providers__payments__temporary_share=0.2,
                    job_types__payment__retry={"max_attempts": 9, "backoff": "fixed", "delay_s": 0.05})  # fmt: skip
    measured = await run(topology, users=40, workers=1, seed=1)
    rows = measured.attempts
    payment, receipt = (rows[rows["job_type"] == name] for name in ("payment", "receipt"))
    declined = sum(uniform(1, Stream.PERMANENT, 1, user) < 0.2 for user in range(1, 41))
    assert 0 < declined < 40
    assert (payment["users_done"].sum(), payment["users_failed"].sum()) == (40 - declined, declined)
    assert receipt["users_done"].sum() == 40 - declined
    assert (payment["provider_s"] > 0.009).all()
    assert (payment["outcome"] == "retry").sum() > 0
