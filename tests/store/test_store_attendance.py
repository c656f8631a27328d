"""Attendance: marked in one transaction, corrected, reported, and never across tenants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pytest

from saqkit.app.store import Store, UserRow
from saqkit.app.store.attendance import Marked, PupilDays, Status
from saqkit.errors import UsageError

MONDAY = date(2026, 3, 2)


@pytest.fixture
async def school(store: Store) -> Store:
    """Pupils 1 to 3 of tenant north, which has two institutions; pupil 4 of tenant south."""
    people = [UserRow(f"{name}@x.example", name, tenant="north") for name in ("Ada", "Ben", "Cleo")]
    await store.add_users([*people, UserRow("dan@x.example", "Dan", tenant="south")])
    for tenant, name in (("north", "main"), ("north", "annexe"), ("south", "main")):
        await store.tenants.add_institution(tenant, name)
    return store


async def test_marks_are_stored_corrected_and_not_counted_twice(school: Store) -> None:
    mark = school.attendance.mark
    assert await mark("north", "main", MONDAY, {2: "absent", 1: "present"}, by="ms day") == Marked(2, 0)
    assert await mark("north", "main", MONDAY, {2: "absent", 1: "present"}, by="ms day") == Marked(0, 0)
    assert await mark("north", "main", MONDAY, {2: "late", 1: "present", 3: "excused"}) == Marked(1, 1)
    assert await mark("north", "main", MONDAY, {}) == Marked(0, 0)
    assert await school.attendance.of_day("north", "main", MONDAY) == {1: "present", 2: "late", 3: "excused"}


async def test_the_same_marks_at_the_same_time_are_new_once(school: Store) -> None:
    marks: dict[int, Status] = {1: "present", 2: "present", 3: "late"}
    said = await asyncio.gather(*(school.attendance.mark("north", "main", MONDAY, marks) for _ in range(6)))
    assert sorted(said, key=lambda marked: marked.new) == [Marked(0, 0)] * 5 + [Marked(3, 0)]


@pytest.mark.row("004.15")
async def test_tenants_and_institutions_are_apart(school: Store) -> None:
    await school.attendance.mark("north", "main", MONDAY, {1: "present"})
    await school.attendance.mark("south", "main", MONDAY, {4: "absent"})
    assert await school.attendance.of_day("north", "main", MONDAY) == {1: "present"}
    assert await school.attendance.of_day("north", "annexe", MONDAY) == {}
    assert [row.user for row in await school.attendance.report("south", "main", MONDAY, MONDAY)] == [4]
    with pytest.raises(UsageError, match='user 4 is not of tenant "north"'):
        await school.attendance.mark("north", "main", MONDAY, {2: "present", 4: "present"})
    assert await school.attendance.of_day("north", "main", MONDAY) == {1: "present"}


async def test_what_cannot_be_marked_is_refused(school: Store) -> None:
    with pytest.raises(UsageError, match='tenant "north" has no institution "moon"'):
        await school.attendance.mark("north", "moon", MONDAY, {1: "present"})
    with pytest.raises(UsageError, match='user 99 is not of tenant "north"'):
        await school.attendance.mark("north", "main", MONDAY, {99: "present"})
    with pytest.raises(UsageError, match=r'"presnt" \(user 1\) is no mark: did you mean "present"\?'):
        await school.attendance.mark("north", "main", MONDAY, {1: "presnt"})  # type: ignore[dict-item]


async def test_a_report_counts_the_days_of_each_pupil(school: Store) -> None:
    week: list[dict[int, Status]] = [
        {1: "present", 2: "absent"},
        {1: "late", 2: "absent"},
        {1: "present", 2: "excused"},
        {1: "present"},
    ]
    for n, marks in enumerate(week):
        await school.attendance.mark("north", "main", MONDAY + timedelta(days=n), marks)
    await school.remove_users([2])
    report = await school.attendance.report("north", "main", MONDAY, MONDAY + timedelta(days=2))
    assert report == [PupilDays(1, "Ada", 2, 0, 1, 0), PupilDays(2, "", 0, 2, 0, 1)]


async def test_a_thousand_marks_are_one_transaction_of_few_statements(
    store: Store, statements: Callable[[], Any]
) -> None:
    await store.add_numbered_users(3_000)
    await store.tenants.add_institution("north", "main")
    with statements() as seen:
        marked = await store.attendance.mark("north", "main", MONDAY, dict.fromkeys(range(1, 3_000, 3), "present"))
    assert marked == Marked(1_000, 0)
    assert len([statement for statement in seen if not statement.startswith("BEGIN")]) == 4
