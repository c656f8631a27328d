"""Courses, places, codes, and copies of another system, on both databases."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import text

from saqkit.app.audience import Audience
from saqkit.app.courses.codes import MOST_TRIES, Codes
from saqkit.app.courses.enrolments import DUE_S, Enrolments, due
from saqkit.app.courses.reporting import week_of
from saqkit.app.courses.source import CourseRow
from saqkit.app.courses.synchronised import Synchronised
from saqkit.app.shop.charges import Charge
from saqkit.app.shop.money import Money
from saqkit.app.shop.orders import NewOrder, Order, Orders
from saqkit.app.shop.payments import settlement
from saqkit.app.store import EventRow, Store, UserRow
from saqkit.errors import TemporaryFailure, UsageError

NOW = time.time()
ROWS = [CourseRow("py", "Python", NOW + 60), CourseRow("go", "=Go", NOW + 2 * DUE_S), CourseRow("c", "C", None)]


@pytest.fixture
async def kept(store: Store) -> Synchronised:
    """Users 1 to 3, user 4 of tenant north; courses 1 c, 2 go, 3 py."""
    people = [UserRow(f"{name}@x.example", name) for name in ("Ada", "Ben", "Cleo")]
    await store.add_users([*people, UserRow("dan@x.example", "Dan", tenant="north")])
    kept = Synchronised(store.database)
    assert await kept.begin("", "courses", 1) == ""
    await kept.store_courses("", 1, "", ROWS, None, NOW)
    assert {name: row[0] for name, row in (await kept.courses()).items()} == {"c": 1, "go": 2, "py": 3}
    return kept


async def event_of(store: Store, number: int) -> EventRow:
    found = await store.event(number)
    assert found is not None
    return found


async def settle(store: Store, order: Order, paid: bool) -> None:
    charge = Charge(order.charge_key, f"ch{order.id}", order.money, paid, "" if paid else "no money")
    assert await Orders(store.database).settle([settlement(order, charge, NOW)], "api.payment") == 1


def order_of(user: int, course: int, **more: str) -> NewOrder:
    return NewOrder(user, Money(900, "EUR"), "verify-payment", "job:verify-payment", "T", "", course=course, **more)


@pytest.mark.row("001.16")
async def test_a_place_is_completed_once_and_not_before_its_order_is_paid(store: Store, kept: Synchronised) -> None:
    orders, places = Orders(store.database), Enrolments(store.database)
    order, _ = await orders.add(order_of(1, 3, key="k"), NOW)
    event = await event_of(store, order.event_id)
    assert await places.complete(event, [1], NOW) == []
    assert [place.state for place in await places.of_user(1)] == ["pending"]
    await settle(store, order, paid=True)
    said = await asyncio.gather(*(places.complete(event, [1, 2], NOW + n) for n in range(1, 6)))
    assert said == [[1]] * 5
    (place,) = await places.of_user(1)
    assert (place.course, place.order, place.event, place.state) == (3, order.id, event.id, "completed")
    first = place.completed_at
    await places.complete(event, [1], NOW + 99)
    assert (await places.of_user(1))[0].completed_at == first


@pytest.mark.row("001.16")
async def test_nobody_pays_twice_for_one_place(store: Store, kept: Synchronised) -> None:
    orders = Orders(store.database)
    order, _ = await orders.add(order_of(1, 3, key="k"), NOW)
    assert await orders.add(order_of(1, 3, key="k"), NOW) == (order, False)
    with pytest.raises(UsageError, match=r"belongs to order 1 of course 3 \(use a new key"):
        await orders.add(order_of(1, 2, key="k"), NOW)
    with pytest.raises(UsageError, match="user 1 is about to be enrolled in course 3 already"):
        await orders.add(order_of(1, 3), NOW)
    with pytest.raises(UsageError, match="there is no course 9 for user 1"):
        await orders.add(order_of(1, 9), NOW)
    with pytest.raises(UsageError, match="there is no course 3 for user 4"):
        await orders.add(order_of(4, 3), NOW)
    assert sum((await orders.counts()).values()) == 1, "what is refused leaves no order"
    await settle(store, order, paid=False)
    again, new = await orders.add(order_of(1, 3), NOW)  # the money was not there; the place is free again
    assert new
    await settle(store, again, paid=True)
    places = Enrolments(store.database)
    assert await places.complete(await event_of(store, again.event_id), [1], NOW) == [1]
    with pytest.raises(UsageError, match="user 1 is enrolled in course 3 already"):
        await orders.add(order_of(1, 3), NOW)


async def test_a_place_that_costs_nothing_is_asked_for_once(store: Store, kept: Synchronised) -> None:
    places = Enrolments(store.database)
    asked = [places.enrol(2, 1, topic="job:complete-enrollment", title="T") for _ in range(4)]
    said = await asyncio.gather(*asked)
    assert sorted(one.new for one in said) == [False, False, False, True]
    assert len({one.event_id for one in said}) == 1
    assert await store.undelivered() == [said[0].event_id]
    assert await places.complete(await event_of(store, said[0].event_id), [2], NOW) == [2]
    with pytest.raises(UsageError, match="there is no course 77"):
        await places.enrol(2, 77, topic="job:complete-enrollment", title="T")
    with pytest.raises(UsageError, match="there is no active user 50"):
        await places.enrol(50, 1, topic="job:complete-enrollment", title="T")


@pytest.mark.row("001.18")
async def test_who_has_a_lesson_within_a_day_is_due(store: Store, kept: Synchronised) -> None:
    for user, there in ((1, ["py", "c"]), (2, ["go"]), (3, ["py"])):
        assert await kept.store_enrolments(user, there, NOW) == []
    await store.remove_users([3])
    event = EventRow(1, None, "t", "T", "", Audience(roles=("student",)), "", NOW)
    assert await store.audience_page(event.audience, 0, 10, due(event)) == [1]
    assert await store.audience_page(event.audience, 1, 10, due(event)) == []
    assert await store.audience_page(event.audience, 0, 10) == [1, 2, 4]


@pytest.mark.row("001.18")
async def test_a_code_is_good_once_for_a_while_and_not_for_guessing(store: Store) -> None:
    codes = Codes(store.database)
    await codes.issue("Ada@x.example", "register", "123456", at=NOW)
    assert "123456" not in str(await store.database.read(lambda c: c.execute(text("SELECT * FROM codes")).all()))
    redeem = codes.redeem
    assert not await redeem("ada@x.example", "reset", "123456", at=NOW)
    assert not await redeem("ada@x.example", "register", "123457", at=NOW)
    assert not await redeem("ada@x.example", "register", "123456", at=NOW + 600)
    assert sorted(
        await asyncio.gather(*(redeem("ada@x.example", "register", "123456", at=NOW + 599) for _ in range(4)))
    ) == [False, False, False, True]
    await codes.issue("ada@x.example", "register", "654321", at=NOW)
    for _ in range(MOST_TRIES):
        assert not await redeem("ada@x.example", "register", "000000", at=NOW)
    assert not await redeem("ada@x.example", "register", "654321", at=NOW)


@pytest.mark.row("001.18")
async def test_expired_codes_are_deleted_some_at_a_time_and_no_others(store: Store) -> None:
    codes = Codes(store.database)
    for n in range(7):
        await codes.issue(f"{n}@x.example", "register", "1", at=NOW, life_s=10 + n)
    assert [await codes.clean(NOW + 14, limit=3) for _ in range(3)] == [3, 2, 0]
    assert [await codes.redeem(f"{n}@x.example", "register", "1", at=NOW) for n in range(7)] == [False] * 5 + [True] * 2


@pytest.mark.row("001.17")
async def test_pages_of_courses_move_the_cursor_and_are_upserts(store: Store, kept: Synchronised) -> None:
    assert await kept.begin("", "courses", 1) is None, "the pass of event 1 is over"
    assert await kept.begin("", "courses", 2) == ""
    await kept.store_courses(
        "", 2, "", [CourseRow("py", "Python 2", None), CourseRow("py", "Python 3", None)], "p2", NOW
    )
    assert await kept.begin("", "courses", 2) == "p2", "whoever comes back goes on"
    assert await kept.begin("", "courses", 3) == "p2", "so does the next one, if nobody came back"
    with pytest.raises(TemporaryFailure, match="by another job"):
        await kept.store_courses("", 2, "", [CourseRow("no", "No", None)], "p2", NOW)
    await kept.store_courses("", 2, "p2", [CourseRow("new", "New", 5.0)], None, NOW)
    assert await kept.begin("", "courses", 3) == ""
    assert await kept.begin("north", "courses", 2) == "", "each tenant has a pass of its own"
    found = await kept.courses()
    assert [found["py"][:2], found["new"][1:], sorted(found)] == [
        (3, "Python 3"),
        ("New", 5.0),
        ["c", "go", "new", "py"],
    ]


@pytest.mark.row("001.17")
async def test_places_of_the_source_come_and_go_and_ours_stay(store: Store, kept: Synchronised) -> None:
    order, _ = await Orders(store.database).add(order_of(1, 3), NOW)
    places = Enrolments(store.database)
    for _ in range(2):
        assert await kept.store_enrolments(1, ["py", "c", "moon"], NOW) == ["moon"]
    assert [(place.course, place.origin, place.state) for place in await places.of_user(1)] == [
        (3, "here", "pending"), (1, "source", "completed"),
    ]  # fmt: skip
    await kept.store_enrolments(1, ["go"], NOW)
    assert [(place.course, place.origin) for place in await places.of_user(1)] == [(3, "here"), (2, "source")]
    await kept.store_enrolments(1, [], NOW)
    assert [place.order for place in await places.of_user(1)] == [order.id]
    assert await kept.store_enrolments(4, ["py"], NOW) == ["py"], "a course of another tenant"


@pytest.mark.row("001.17")
async def test_a_profile_is_what_the_source_said_last(kept: Synchronised) -> None:
    for profile in ({"stage": "seed"}, {"stage": "seed"}, {"stage": "series A"}):
        await kept.store_profile(1, profile, NOW)
        assert await kept.profile(1) == profile
    await kept.store_profile(1, None, NOW)
    assert await kept.profile(1) is None


@pytest.mark.row("001.18")
async def test_the_rows_of_a_report(store: Store, kept: Synchronised) -> None:
    await Orders(store.database).add(order_of(1, 3), NOW)
    await kept.store_enrolments(2, ["py"], NOW - 8 * 86_400)
    await kept.store_enrolments(3, ["py", "go"], NOW - 86_400)
    event = EventRow(1, None, "t", "T", "", Audience(nobody=True), "", NOW)
    assert await week_of(store.database, event) == [(1, "C", 0, 0, 0), (2, "=Go", 1, 1, 0), (3, "Python", 2, 1, 1)]
