"""Orders are charged once: real queues and workers, and a provider whose books outlive them; whoever is killed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from saq.job import Status
from shop_system import Shop, open_shop, shop, until

from saqkit.app.announcing import Announcer, new_job
from saqkit.app.attempt import Attempt
from saqkit.app.audience import Audience
from saqkit.app.handlers import Application
from saqkit.app.shop import checking
from saqkit.app.shop.charges import Charge
from saqkit.app.shop.checking import check_payments
from saqkit.app.shop.checkout import Checkout
from saqkit.app.shop.money import Money
from saqkit.app.shop.orders import Order
from saqkit.app.shop.payment_provider import LOST_SHARE
from saqkit.broker import PrivateBroker
from saqkit.queue.building import build_queues
from saqkit.queue.dead_letters import purge, replay
from saqkit.queue.fault_sites import VARIABLE
from saqkit.spec.distributions import Lognormal
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.topology import Entry

UNRELIABLE: dict[str, Any] = {
    "providers__payments__temporary_share": 0.5,
    "providers__payments__permanent_share": 0.2,
    "job_types__payment__retry": {"max_attempts": 12, "backoff": "fixed", "delay_s": 0.05},
}
SLOW: dict[str, Any] = {"providers__payments__latency": {"kind": "constant", "mean_s": 0.4}}
LOST: dict[str, Any] = {
    "providers__payments__temporary_share": 1.0,
    "job_types__payment__retry": {"max_attempts": 1, "backoff": "fixed", "delay_s": 0},
}


def loses_first_answer(event: int, user: int, seed: int, share: float = 1.0) -> bool:
    return uniform(seed, Stream.TEMPORARY, event, user, 1) < share * LOST_SHARE


def seed_that_loses(event: int, user: int) -> int:
    return next(seed for seed in range(100) if loses_first_answer(event, user, seed))


@pytest.mark.row("003.10", "003.11")
async def test_orders_are_paid_or_declined_once_and_who_paid_is_told_once(redis_url: str, tmp_path: Path) -> None:
    async with open_shop(shop(**UNRELIABLE), redis_url, tmp_path) as made, made.processes(2):
        orders = [(await made.buys(user, 100 + user)).order for user in range(1, 31)]
        await made.drained()
        entries = await made.audit(orders)
        declined = [o.user_id for o in orders if uniform(0, Stream.PERMANENT, o.event_id, o.user_id) < 0.2]
        assert 0 < len(declined) < 30
        states = {(await made.order(order.id)).state: order.id for order in orders}
        assert set(states) == {"paid", "declined"}
        assert sorted(e.charge.money.minor - 100 for e in entries if not e.charge.paid) == declined
        lost = [o for o in orders if loses_first_answer(o.event_id, o.user_id, 0, 0.5)]
        assert lost, "some answers were to be lost"
        assert {entry.asked for entry in entries} == {1}, "who has no answer asks for the charge, and does not charge"
        failed = {row["job"] for row in await made.rows("payments") if row["outcome"] == "retry"}
        assert {f"payment:{o.event_id}:{o.user_id}" for o in lost} <= failed


@pytest.mark.row("003.11")
@pytest.mark.parametrize("moment", ["the answer is on its way", "the answer waits to be recorded", "it is recorded"])
async def test_a_worker_killed_at_the_worst_moment_charges_nobody_twice(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    if moment == "it is recorded":
        monkeypatch.setenv(VARIABLE, "rate=1,only=job.effect,actions=kill")
    async with open_shop(shop(**SLOW), redis_url, tmp_path) as made, made.processes(1) as launcher:
        monkeypatch.delenv(VARIABLE, raising=False)  # whoever is started in its place lives
        order = (await made.buys(7)).order
        await until(made.charges.entries)
        assert (await made.order(order.id)).state == "charging", "the intent is committed before anybody is asked"
        if moment == "the answer is on its way":
            launcher.kill(0)
        elif moment == "the answer waits to be recorded":
            with sqlite3.connect(f"{tmp_path}/data.db", isolation_level=None) as held:
                held.execute("BEGIN IMMEDIATE")
                await asyncio.sleep(1.2)  # three times as long as the answer takes
                launcher.kill(0)
                held.execute("ROLLBACK")
        await made.drained()
        (entry,) = await made.audit([order])
        assert entry.asked == 1
        outcomes = [row["outcome"] for row in await made.rows("payments")]
        assert outcomes == ["lost", "done"]
        assert [row["outcome"] for row in await made.rows("notifications")] == ["done"]


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.chaos) for seed in range(1, 11))]


@pytest.mark.row("003.11")
@pytest.mark.parametrize("seed", SEEDS)
async def test_no_order_is_charged_twice_whoever_is_killed(tmp_path: Path, seed: int) -> None:
    draws, orders = Random(seed), list[Order]()
    topology = shop(**UNRELIABLE, providers__payments__latency={"kind": "exponential", "mean_s": 0.1})
    server = PrivateBroker(folder=tmp_path / "server")
    url = (await asyncio.to_thread(server.start)).url
    try:
        async with open_shop(topology, url, tmp_path) as made, made.processes(2, seed) as launcher:

            async def customers() -> None:
                for user in range(1, 41):
                    orders.append((await made.buys(user)).order)
                    await asyncio.sleep(draws.uniform(0, 0.15))

            buying = asyncio.create_task(customers())
            for kill in range(5):
                await asyncio.sleep(draws.uniform(0.2, 0.8))
                with suppress(ProcessLookupError):
                    launcher.kill(draws.randrange(2))
                if kill == 2:
                    await asyncio.to_thread(server.restart, 0.5)
            await buying
            await made.drained(90)
            async with made.application(seed) as application:
                await settle_what_died(application)
            await made.drained(90)
            await made.audit(orders)
    finally:
        await asyncio.to_thread(server.stop)


async def settle_what_died(application: Application) -> None:
    """What an operator does after a storm: polls, then replays what has died of too many crashes."""
    await check_payments(application, patience_s=0)
    for queue in application.queues.values():
        letters = [job.key async for job in queue.iter_jobs(statuses=[Status.FAILED])]
        await replay(queue, letters)


@pytest.mark.parametrize("how", ["webhook", "polling", "polling job"])
async def test_an_order_whose_answer_was_lost_for_good_is_completed(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    seed = seed_that_loses(1, 7)
    async with open_shop(shop(**LOST), redis_url, tmp_path) as made, made.worker(seed) as application:
        order = (await made.buys(7)).order
        await made.drained()
        assert (await made.order(order.id)).state == "charging"
        assert await made.receipts() == {}
        (entry,) = await made.charges.entries()
        if how == "webhook":
            told = (entry.charge.key, entry.charge.id, entry.charge.money)
            for _ in range(2):
                assert (await made.checkout.payment_confirmed(*told)).state == "paid"
        elif how == "polling":
            checked = await check_payments(application, patience_s=0)
            assert (checked.asked, checked.settled) == (1, 1)
        else:
            monkeypatch.setattr(checking, "PATIENCE_S", 0.0)
            await made.announcer.announce(
                title="poll", entry=Entry(job_type="check-payments"), audience=Audience(nobody=True), patience_s=5
            )
        await until(made.receipts)
        await made.drained()
        (entry,) = await made.audit([order])
        assert entry.asked == 1
        assert (await made.order(order.id)).settled_by == "confirmation"
        assert (await check_payments(application, patience_s=0)).told_again == 0
        outcomes = [row["outcome"] for row in await made.rows("payments") if row["job_type"] == "payment"]
        assert outcomes == ["dead", "done"]


async def test_a_webhook_that_comes_before_the_retry_ends_the_order_and_the_retry_tells_the_customer(
    redis_url: str, tmp_path: Path
) -> None:
    waits = {"max_attempts": 2, "backoff": "fixed", "delay_s": 1.0}
    seed = seed_that_loses(1, 7)
    async with open_shop(shop(**LOST | {"job_types__payment__retry": waits}), redis_url, tmp_path) as made:
        async with made.worker(seed):
            order = (await made.buys(7)).order

            async def waits_for_its_retry() -> bool:
                return bool(await made.rows("payments"))

            await until(waits_for_its_retry)
            (entry,) = await made.charges.entries()
            told = await made.checkout.payment_confirmed(order.charge_key, entry.charge.id, order.money)
            assert told.state == "paid"
            await made.drained()
        (entry,) = await made.audit([order])
        assert entry.asked == 1
        assert [row["outcome"] for row in await made.rows("payments")] == ["retry", "done"]


async def buys_and_is_confirmed(made: Shop, application: Application, *, too_late: bool) -> Order:
    """The confirmation comes before the job's last look at the order, or after it and before the job is dead."""
    looks, confirmed, among = asyncio.Event(), asyncio.Event(), application.orders.among

    async def last_look(identities: Sequence[int]) -> list[Order]:
        found = await among(identities)
        looks.set()
        await confirmed.wait()
        return found if too_late else await among(identities)

    application.orders.among = last_look  # type: ignore[method-assign]
    order = (await made.buys(7)).order
    await looks.wait()
    (entry,) = await made.charges.entries()
    await made.checkout.payment_confirmed(order.charge_key, entry.charge.id, order.money)
    confirmed.set()
    await made.drained()
    return order


async def test_a_payment_confirmed_as_its_job_dies_is_told_by_the_poll(redis_url: str, tmp_path: Path) -> None:
    seed = seed_that_loses(1, 7)
    async with open_shop(shop(**LOST), redis_url, tmp_path) as made, made.worker(seed) as application:
        order = await buys_and_is_confirmed(made, application, too_late=True)
        assert [row["outcome"] for row in await made.rows("payments")] == ["dead"]
        assert await made.receipts() == {}, "its job ran and could not be enqueued again"
        assert (await check_payments(application, patience_s=0)).told_again == 1
        await until(made.receipts)
        await made.drained()
        await made.audit([order])
        assert (await check_payments(application, patience_s=0)).told_again == 0


async def test_a_paid_order_whose_dead_letter_was_purged_is_told_once_by_the_poll(
    redis_url: str, tmp_path: Path
) -> None:
    async with open_shop(shop(**LOST), redis_url, tmp_path) as made:
        async with made.worker(seed_that_loses(1, 7)) as application:
            order = await buys_and_is_confirmed(made, application, too_late=True)
            letters = [job.key async for job in made.queues["payments"].iter_jobs(statuses=[Status.FAILED])]
            assert letters
            await purge(made.queues["payments"], letters)
            assert (await check_payments(application, patience_s=0)).told_again == 1
            await until(made.receipts)
            await made.drained()
            await made.audit([order])
        for queue in made.queues.values():  # and the broker forgets all that it had
            await queue.redis.flushall()
        async with made.application() as application:
            assert (await check_payments(application, patience_s=0)).told_again == 0, "the ledger has the receipt"


async def test_a_poll_looks_at_all_that_was_confirmed_in_a_day(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "MOST", 3)
    async with open_shop(shop(**LOST), redis_url, tmp_path) as made:
        for user in range(1, 11):
            await made.checkout.payment_confirmed(*told_of((await made.buys(user)).order))
        await made.queues["payments"].redis.flushall()
        async with made.application() as application:
            assert (await check_payments(application, patience_s=0)).told_again == 10
        assert await made.queues["payments"].count("queued") == 10


def told_of(order: Order) -> tuple[str, str, Money]:
    return order.charge_key, f"ch_{order.id}", order.money


async def test_a_poll_finds_a_charge_that_was_too_slow_for_its_job(redis_url: str, tmp_path: Path) -> None:
    latency = Lognormal(mean_s=0.15, cv=2.0)
    seed = next(s for s in range(900) if 0.3 < latency.quantile(uniform(s, Stream.LATENCY, 1, 7, 1)) < 2)
    slow = {"providers__payments__latency": latency.model_dump(), "providers__payments__timeout_s": 0.2,
            "job_types__payment__retry": LOST["job_types__payment__retry"]}  # fmt: skip
    async with open_shop(shop(**slow), redis_url, tmp_path) as made, made.worker(seed) as application:
        order = (await made.buys(7)).order
        await made.drained()
        assert (await made.order(order.id)).state == "charging"
        async with asyncio.timeout(20):
            while not (await check_payments(application, patience_s=0)).settled:
                await asyncio.sleep(0.01)
        await until(made.receipts)
        await made.drained()
        await made.audit([order])


async def test_a_poll_that_runs_out_of_time_leaves_the_others_to_the_next_one(redis_url: str, tmp_path: Path) -> None:
    slow = {"kind": "constant", "mean_s": 0.1}
    async with open_shop(shop(providers__payments__latency=slow), redis_url, tmp_path) as made:
        orders = [(await made.buys(user)).order for user in range(1, 13)]
        async with made.application() as application:
            for order in orders:
                event = await made.store.event(order.event_id)
                assert event is not None
                await made.orders.begin(event, [order.user_id], "payment", "sms", 1.0)
            attempt = Attempt({})
            checked = await check_payments(application, patience_s=0, within_s=0.6, attempt=attempt)
            assert 1 <= checked.asked <= 4, "each takes 0.1 s, of 0.3 s"
            assert attempt.provider_s >= 0.1 * checked.asked
            asked = {o.id for o in orders if ((await made.order(o.id)).asked_at or 0) > 1.0}
            assert asked == {o.id for o in orders[: checked.asked]}
            with pytest.raises(TimeoutError):  # as a job that is cancelled
                async with asyncio.timeout(0.05):
                    await check_payments(application, patience_s=0)
            (next_,) = {o.id for o in orders if ((await made.order(o.id)).asked_at or 0) > 1.0} - asked
            assert next_ == orders[checked.asked].id


async def test_a_poll_passes_the_gate_whose_wait_is_no_time_of_the_provider(redis_url: str, tmp_path: Path) -> None:
    one = {"latency": {"kind": "constant", "mean_s": 0.01}, "channel": "sms", "connections": 1}
    async with open_shop(shop(providers__payments=one), redis_url, tmp_path) as made:
        order = (await made.buys(7)).order
        event = await made.store.event(order.event_id)
        assert event is not None
        await made.orders.begin(event, [7], "payment", "sms", 1.0)
        async with made.application() as application:
            attempt = Attempt({}, sample_every=1)
            async with application.gates["payments"].passing():
                poll = asyncio.create_task(check_payments(application, patience_s=0, attempt=attempt))

                async def is_about_to_ask() -> bool:
                    return (await made.order(order.id)).asked_at != 1.0

                await until(is_about_to_ask)
                await asyncio.sleep(0.5)
                assert not poll.done()
            assert (await poll).asked == 1
        ((user, _, waited_s, took_s),) = [step for step in attempt.steps if step[1] == "provider"]
        assert (user, waited_s > 0.2, took_s > 0.009) == (7, True, True)
        assert attempt.provider_s == pytest.approx(waited_s + took_s, abs=1e-5)


async def test_an_order_is_not_declined_because_its_charge_is_of_another_amount(redis_url: str, tmp_path: Path) -> None:
    async with open_shop(shop(**LOST | {"providers__payments__temporary_share": 0.0}), redis_url, tmp_path) as made:
        order = (await made.buys(7)).order
        await made.charges.enter(Charge(order.charge_key, "ch_other", Money(1, "EUR"), True, ""), 0.0)
        async with made.worker():
            await made.drained()
        assert (await made.order(order.id)).state == "charging", "money has moved: somebody has to look"
        assert [row["outcome"] for row in await made.rows("payments")] == ["dead"]
        (failure,) = await made.store.failures(order.event_id)
        assert "was used for 0.01 EUR, not 12.50 EUR" in failure.error


async def test_an_order_confirmed_while_its_last_attempt_runs_is_told_by_that(redis_url: str, tmp_path: Path) -> None:
    seed = seed_that_loses(1, 7)
    async with open_shop(shop(**LOST), redis_url, tmp_path) as made, made.worker(seed) as application:
        order = await buys_and_is_confirmed(made, application, too_late=False)
        await until(made.receipts)
        await made.drained()
        await made.audit([order])
        (row,) = await made.rows("payments")
        assert (row["outcome"], row["users_done"], row["users_failed"]) == ("done", 1, 0)


async def test_a_replayed_dead_letter_of_a_declined_order_leaves_the_ledger_as_it_was(
    redis_url: str, tmp_path: Path
) -> None:
    async with open_shop(shop(**LOST), redis_url, tmp_path) as made, made.worker(seed_that_loses(1, 7)):
        order = (await made.buys(7)).order
        await made.drained()
        await made.checkout.payment_confirmed(*told_of(order), paid=False, reason="card expired")
        await made.store.reopen(order.event_id, [7], "sms")  # as the commands that replay do
        await replay(made.queues["payments"], [f"payment:{order.event_id}:7"])
        await made.drained()
        assert [row["outcome"] for row in await made.rows("payments")] == ["dead", "done"]
        (failure,) = await made.store.failures(order.event_id)
        assert (failure.user, failure.error) == (7, "card expired")
        assert (await made.store.progress(order.event_id)).pending == 0


async def test_who_has_no_order_has_failed_in_one_attempt_only(redis_url: str, tmp_path: Path) -> None:
    topology = shop(providers__payments__temporary_share=1.0)
    async with open_shop(topology, redis_url, tmp_path) as made:
        order = (await made.buys(7)).order
        await made.queues["payments"].redis.flushall()
        event = await made.store.event(order.event_id)
        assert event is not None
        queue = made.queues["payments"]
        await queue.redis.set(queue.namespace("recording"), 1)
        await queue.enqueue(new_job(topology, "payment", "two", event, [7, 8]))
        async with made.worker(seed_that_loses(1, 7)):
            await made.drained()
        rows = await made.rows("payments")
        assert next((row["users"], row["users_failed"]) for row in rows if row["outcome"] == "retry") == (2, 1)
        assert sum(row["users_failed"] for row in rows) == 1


async def test_an_order_that_was_never_charged_waits_for_its_replay(redis_url: str, tmp_path: Path) -> None:
    seed = next(seed for seed in range(100) if not loses_first_answer(1, 7, seed))
    async with open_shop(shop(**LOST), redis_url, tmp_path) as made, made.worker(seed) as application:
        order = (await made.buys(7)).order
        await made.drained()
        checked = await check_payments(application, patience_s=0)
        assert (checked.asked, checked.settled) == (1, 0)
        assert (await made.order(order.id)).state == "charging"
        assert await made.charges.entries() == []
        (failure,) = await made.store.failures(order.event_id)
        assert "try again later" in failure.error


@pytest.mark.row("003.10", "003.11")
async def test_an_order_whose_broker_is_away_is_saved_and_paid_by_the_relay(redis_url: str, tmp_path: Path) -> None:
    topology = shop()
    away = build_queues(topology, "redis://127.0.0.1:1")
    async with open_shop(topology, redis_url, tmp_path) as made:
        try:
            checkout = Checkout(Announcer(topology, made.store, away))
            done = await checkout.check_out(user=3, money=(await made.buys(4)).order.money)
        finally:
            for queue in away.values():
                await queue.disconnect()
        assert (done.new, done.enqueued) == (True, False)
        assert await made.store.undelivered() == [done.order.event_id]
        async with made.worker():
            await made.drained()
        orders = [await made.order(1), await made.order(2)]
        await made.audit(orders)


async def test_what_follows_a_poll_is_for_the_users_of_the_poll(redis_url: str, tmp_path: Path) -> None:
    entry, follow = [{"job_type": "check-payments"}], [{"to": "receipt"}]
    polls = shop(entry=entry, **{"job_types__check-payments__follow_up": follow})
    async with open_shop(polls, redis_url, tmp_path) as made, made.worker():
        await made.announcer.announce(title="a poll", audience=Audience(users=(1, 2)), patience_s=5)
        await until(made.receipts)
        await made.drained()
        assert sorted(user for _, user in await made.receipts()) == [1, 2]


async def test_a_payment_of_no_order_fails_and_charges_nobody(redis_url: str, tmp_path: Path) -> None:
    async with open_shop(shop(), redis_url, tmp_path) as made, made.worker():
        await made.announcer.announce(title="x", audience=Audience(users=(3,)), patience_s=5)
        await made.drained()
        (row,) = await made.rows("payments")
        assert (row["outcome"], row["users"], row["users_done"], row["users_failed"]) == ("done", 1, 0, 1)
        assert await made.rows("notifications") == []
        assert await made.charges.entries() == []
