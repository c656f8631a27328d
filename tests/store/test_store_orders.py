"""Orders: placed once for a key, paid once whoever says so, and never seen by another tenant."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from saqkit.app.store import Store
from saqkit.errors import StoreError, UsageError


async def place(store: Store, key: str = "k", tenant: str = "north", **given: Any) -> tuple[int, bool]:
    purchase: dict[str, Any] = {"user": 7, "amount_cents": 1_999, "currency": "EUR", "subject": "course 3", "at": 5.0}
    order, new = await store.orders.place(key=key, tenant=tenant, **{**purchase, **given})
    return order.id, new


async def test_an_order_is_saved_with_its_payment_pending(store: Store) -> None:
    number, new = await place(store)
    order = await store.orders.get("north", number)
    assert new
    assert order is not None
    assert (order.user_id, order.amount_cents, order.currency, order.subject) == (7, 1_999, "EUR", "course 3")
    assert (order.payment, order.payment_reference, order.created_at, order.settled_at) == ("pending", "", 5.0, None)


async def test_a_checkout_that_is_asked_for_many_times_is_one_order(store: Store) -> None:
    made = await asyncio.gather(*(place(store) for _ in range(8)))
    assert sorted(new for _, new in made) == [False] * 7 + [True]
    assert len({number for number, _ in made}) == 1
    assert (await place(store, tenant="south"))[1]  # a tenant's keys are its own
    assert (await place(store, key="l"))[1]


@pytest.mark.parametrize("given", [{"amount_cents": 2_000}, {"user": 8}, {"currency": "USD"}, {"subject": "course 4"}])
async def test_a_key_that_was_used_for_another_purchase_is_refused(store: Store, given: dict[str, Any]) -> None:
    number, _ = await place(store)
    [name] = given
    other = "user_id" if name == "user" else name
    with pytest.raises(UsageError, match=f'the key "k" belongs to order {number} with another {other}'):
        await place(store, **given)
    assert len(await store.orders.unsettled(before=6.0)) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"amount_cents": 0}, "an order of 0 cents cannot be paid"),
        ({"amount_cents": -5}, "an order of -5 cents cannot be paid"),
        ({"currency": "eur"}, '"eur" is no currency: three capital letters'),
        ({"key": ""}, "an order needs a key"),
    ],
)
async def test_an_order_that_cannot_be_is_refused(store: Store, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        await place(store, **given)
    assert await store.orders.unsettled(before=6.0) == []


async def test_of_the_job_the_webhook_and_the_poller_one_settles_the_payment(store: Store) -> None:
    number, _ = await place(store)
    said = await asyncio.gather(
        *(store.orders.settle("north", number, "paid", reference="ch_1", at=9.0) for _ in range(8))
    )
    assert sorted(said) == [False] * 7 + [True]
    order = await store.orders.get("north", number)
    assert order is not None
    assert (order.payment, order.payment_reference, order.settled_at) == ("paid", "ch_1", 9.0)


async def test_what_is_paid_stays_paid_and_money_taken_overrides_a_refusal(store: Store) -> None:
    number, _ = await place(store)
    assert await store.orders.settle("north", number, "declined", error="card\x00 expired")
    assert not await store.orders.settle("north", number, "declined", error="again")
    order = await store.orders.get("north", number)
    assert order is not None
    assert (order.payment, order.payment_error) == ("declined", "card expired")
    assert await store.orders.settle("north", number, "paid", reference="ch_1")
    assert not await store.orders.settle("north", number, "declined", error="late")
    order = await store.orders.get("north", number)
    assert order is not None
    assert (order.payment, order.payment_error) == ("paid", "")


async def test_one_charge_pays_one_order(store: Store) -> None:
    first, _ = await place(store, "1")
    second, _ = await place(store, "2")
    assert await store.orders.settle("north", first, "paid", reference="ch_1")
    with pytest.raises(StoreError) as caught:
        await store.orders.settle("north", second, "paid", reference="ch_1")
    assert "\n" not in str(caught.value)
    order = await store.orders.get("north", second)
    assert order is not None
    assert order.payment == "pending"


async def test_a_tenant_neither_sees_nor_settles_the_orders_of_another(store: Store) -> None:
    number, _ = await place(store)
    assert await store.orders.get("south", number) is None
    assert await store.orders.of_user("south", 7) == []
    assert not await store.orders.settle("south", number, "paid", reference="ch_1")
    assert [order.payment for order in await store.orders.of_user("north", 7)] == ["pending"]


async def test_orders_of_a_user_come_newest_first(store: Store) -> None:
    made = [(await place(store, str(n)))[0] for n in range(5)]
    await place(store, "other", user=8)
    assert [order.id for order in await store.orders.of_user("north", 7, limit=3)] == made[:1:-1]


async def test_the_poller_finds_what_is_open_for_long_oldest_first(store: Store) -> None:
    late, _ = await place(store, "late", at=100.0)
    old, _ = await place(store, "old", "south", at=20.0)
    older, _ = await place(store, "older", at=10.0)
    paid, _ = await place(store, "paid", at=1.0)
    await store.orders.settle("north", paid, "paid")
    assert [order.id for order in await store.orders.unsettled(before=50.0)] == [older, old]
    assert [order.id for order in await store.orders.unsettled(before=500.0, limit=3)] == [older, old, late]
