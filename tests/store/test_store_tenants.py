"""Tenants and institutions: who has people is known, and each tenant has its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from saqkit.app.audience import Audience
from saqkit.app.store import Store, UserRow
from saqkit.errors import UsageError


async def test_who_has_people_is_a_tenant(store: Store) -> None:
    people = [UserRow("ada@x.example", tenant="north"), UserRow("ben@x.example"), UserRow("c@x.example", tenant="a b")]
    await store.add_users(people)
    await store.add_users(people)
    assert [tenant.name for tenant in await store.tenants.all()] == ["a b", "north"]
    await store.add_numbered_users(1)
    assert [tenant.name for tenant in await store.tenants.all()] == ["a b", "harbour", "north", "south"]


async def test_a_tenant_is_added_once_and_gets_another_title(store: Store) -> None:
    first = await store.tenants.add("north", "North School")
    again = await store.tenants.add("north", "Northern School")
    assert (again.name, again.title, again.created_at) == ("north", "Northern School", first.created_at)
    assert await store.tenants.get("north") == again
    assert await store.tenants.get("south") is None


async def test_institutions_belong_to_one_tenant(store: Store) -> None:
    await store.tenants.add("north")
    await store.tenants.add("south")
    await store.tenants.add_institution("north", "main", "Main campus")
    await store.tenants.add_institution("north", "annexe")
    await store.tenants.add_institution("south", "main")
    assert [(i.name, i.title) for i in await store.tenants.institutions("north")] == [
        ("annexe", ""),
        ("main", "Main campus"),
    ]
    assert [i.name for i in await store.tenants.institutions("south")] == ["main"]
    with pytest.raises(UsageError, match='there is no tenant "west"; add it first'):
        await store.tenants.add_institution("west", "main")


@pytest.mark.parametrize("name", ["", " ", "two\nlines"])
async def test_a_name_is_one_line(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a tenant: one line"):
        await store.tenants.add(name)
    with pytest.raises(UsageError, match="is no name of an institution: one line"):
        await store.tenants.add_institution("north", name)


@pytest.mark.row("003.8")
async def test_a_page_of_a_tenant_is_one_stretch_of_an_index(tmp_path: Path) -> None:
    async with await Store.open(f"sqlite:///{tmp_path}/store.db") as store:  # PostgreSQL plans by its statistics
        await store.add_numbered_users(3_000)
        page = "SELECT id FROM users WHERE id > 5 AND active AND tenant = 'north' ORDER BY id LIMIT 100"
        plan = f"EXPLAIN QUERY PLAN {page}"
        steps = await store._database.read(lambda connection: [row[3] for row in connection.exec_driver_sql(plan)])
        assert len(steps) == 1  # no sorting
        assert "users_by_tenant" in steps[0]
        assert len(await store.audience_page(Audience(tenant="north"), 5, 100)) == 100
