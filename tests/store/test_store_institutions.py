"""Audiences of an institution: its own people, in pages, whoever comes and goes; of another tenant's or none nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from school_system import Schools, open_schools, school_erp, until

from saqkit.app.announcing import Announcer
from saqkit.app.audience import Audience
from saqkit.app.publishing import Publisher
from saqkit.app.store import Store, UserRow
from saqkit.app.subscribers.subscribing import KNOWN
from saqkit.app.tables import events
from saqkit.bus.envelope import Event
from saqkit.errors import UsageError
from saqkit.queue.building import build_queues
from saqkit.spec.overriding import override
from saqkit.spec.topology import Entry, load

PLACES = [("north", "main"), ("north", "annexe"), ("north", ""), ("south", "main"), ("", "")]


async def fill(store: Store, each: int = 40) -> None:
    """Person n is p<n>@x.example: 1, 6, 11, … of the first of `PLACES`, 2, 7, 12, … of the second."""
    people = [
        UserRow(f"p{n * 5 + place}@x.example", role="teacher" if n % 2 else "parent", tenant=tenant, institution=name)
        for n in range(each)
        for place, (tenant, name) in enumerate(PLACES, 1)
    ]
    assert await store.add_users(people) == each * len(PLACES)


async def paged(store: Store, audience: Audience, size: int = 7) -> list[int]:
    seen: list[int] = []
    while page := await store.audience_page(audience, seen[-1] if seen else 0, size):
        assert len(page) <= size
        seen += page
    return seen


async def test_an_audience_of_an_institution_is_paged_in_order_and_once(store: Store) -> None:
    await fill(store)
    main = Audience(tenant="north", institution="main")
    assert await paged(store, main) == list(range(1, 201, 5))
    assert await paged(store, Audience.of("teachers", "north", "annexe")) == list(range(7, 201, 10))
    assert await paged(store, Audience(tenant="south", institution="main")) == list(range(4, 201, 5))
    assert await paged(store, Audience(tenant="north")) == [n for n in range(1, 201) if n % 5 in (1, 2, 3)]
    assert await store.count_users(main) == 40


async def test_who_comes_goes_or_changes_school_neither_skips_nor_doubles_the_others(store: Store) -> None:
    await fill(store)
    audience = Audience(tenant="north", institution="main")
    first = await store.audience_page(audience, 0, 10)
    await store.remove_users([6, 56])
    moved = UserRow("p61@x.example", tenant="north", institution="annexe")
    again = UserRow("p6@x.example", tenant="north", institution="main")  # somebody new to the database
    await store.add_users([again, UserRow("new@x.example", tenant="north", institution="main"), moved])
    rest = await store.audience_page(audience, first[-1], 100)
    assert first == list(range(1, 50, 5))
    assert rest == [*(n for n in range(51, 201, 5) if n not in (56, 61)), 201, 202]


@pytest.mark.parametrize("one", [Audience(tenant="north", institution="main"), Audience(("parent",), "n", None)])
def test_an_audience_survives_json_and_those_of_before_are_read(one: Audience) -> None:
    assert Audience.from_json(one.to_json()) == one
    assert Audience.from_json('{"roles": [], "tenant": "n", "first_n": null}') == Audience(tenant="n")


async def test_a_page_of_an_institution_is_one_stretch_of_an_index(store_url: str) -> None:
    async with await Store.open(store_url) as store:
        people = (UserRow(f"p{n}@x.example", tenant="north", institution=f"s{n % 50}") for n in range(5_000))
        await store.add_users(people)
        page = ("SELECT id FROM users WHERE id > 5 AND active AND tenant = 'north' AND institution = 's7'"
                " AND institution <> '' ORDER BY id LIMIT 100")  # fmt: skip
        if store._database.dialect == "sqlite":
            plan = f"EXPLAIN QUERY PLAN {page}"
            steps = await store._database.read(lambda c: [row[3] for row in c.exec_driver_sql(plan)])
            assert len(steps) == 1, "no sorting"
        else:
            await store._database.write(lambda c: c.exec_driver_sql("ANALYZE users"))
            steps = await store._database.read(lambda c: [row[0] for row in c.exec_driver_sql(f"EXPLAIN {page}")])
        assert any("users_by_institution" in step for step in steps), steps


async def test_an_institution_is_one_of_a_tenants(store: Store) -> None:
    await fill(store, 1)
    for refused in (lambda: Audience(institution="main"), lambda: UserRow("x@x.example", institution="main")):
        with pytest.raises(UsageError, match='institution "main" is one of a tenant: name the tenant too'):
            refused()
    for tenant, institution, why in (
        ("north", "mian", 'tenant "north" has no institution "mian" in this database \\(did you mean "main"\\?\\)'),
        ("south", "annexe", 'tenant "south" has no institution "annexe" in this database \\(there is only "main"|main'),
        ("nort", "main", 'tenant "nort" has no institution "main" .* \\(saqkit users import makes institutions known'),
    ):
        with pytest.raises(UsageError, match=why):
            await store.announce(title="T", topic="t", audience=Audience(institution=institution, tenant=tenant),
                                 tenant=tenant, created_at=1.0)  # fmt: skip
    counted = events.select()
    assert await store._database.read(lambda c: c.execute(counted).all()) == []
    assert await store.undelivered() == []


@pytest.mark.row("004.15")
async def test_announcing_to_an_institution_that_there_is_not_saves_nothing(store_url: str, redis_url: str) -> None:
    topology = load("school-events")
    queues = build_queues(topology, redis_url)
    async with await Store.open(store_url) as store:
        await fill(store, 4)
        announcer = Announcer(topology, store, queues)
        with pytest.raises(UsageError, match='tenant "south" has no institution "annexe"'):
            await announcer.announce(title="T", tenant="south", institution="annexe", key="k")
        assert [await queue.count("queued") for queue in queues.values()] == [0] * len(queues)
        made = await announcer.announce(title="T", tenant="south", institution="main", key="k", patience_s=5)
        assert made.new, "the key is free: nothing was saved with it"
        row = await store.event(made.event)
        assert row
        assert row.audience == Audience(tenant="south", institution="main")
        one_each = await announcer.announce(title="T", tenant="north", institution="annexe", patience_s=5,
                                            entry=Entry(job_type="notify"))  # fmt: skip
        jobs = [job.kwargs["users"] async for job in queues["notifications"].iter_jobs() if job.function == "notify"]
        assert (one_each.new, sorted(jobs)) == (True, [[2], [7], [12], [17]])
    for queue in queues.values():
        await queue.disconnect()


@pytest.fixture
async def schools(store_url: str, redis_url: str) -> AsyncIterator[Schools]:
    async with await Store.open(store_url) as store:
        for tenant in ("north", "south"):
            await store.tenants.add(tenant)
    async with open_schools(school_erp(), redis_url, store_url, north=0, south=0) as made:
        yield made


@pytest.mark.row("004.8", "004.15")
async def test_an_event_of_an_institution_is_told_there_only(schools: Schools) -> None:
    await fill(schools.store)
    announcer = Announcer(schools.topology, schools.store, schools.queues)
    schools.announcer = announcer  # type: ignore[attr-defined]  # what a subscriber finds as its application
    told = {"exam": "Maths", "day": "2040-02-03"}
    event = Event(type="exam:created", data=told, tenant="north", institution="annexe")
    await KNOWN["tell-parents"].handle(schools, event)
    jobs = [job.kwargs or {} async for job in schools.queues["notifications"].iter_jobs()]
    assert sorted(one["to"] for one in jobs) == list(range(2, 201, 10))
    publisher = Publisher(announcer)
    for tenant, institution, why in (
        ("north", "mian", 'tenant "north" has no institution "mian"'),
        ("south", "annexe", 'tenant "south" has no institution "annexe"'),
        ("", "main", 'tenant "" has no institution "main"'),
    ):
        with pytest.raises(UsageError, match=why):
            await publisher.publish("exam:created", told, tenant=tenant, institution=institution)
    assert await schools.store.undelivered() == []


async def test_a_fan_out_to_an_institution_whose_worker_is_killed_serves_its_people_once(
    schools: Schools, tmp_path: Path
) -> None:
    """Whoever is there throughout; meanwhile others come and go."""
    store, people = schools.store, 3_000
    await store.add_users(
        UserRow(f"p{n}@x.example", role="parent", tenant="north", institution=("annexe", "main")[n % 2])
        for n in range(1, 2 * people + 1)
    )
    topology = override(schools.topology, {
        "job_types.announce-results.fan_out.batch_size": 10, "job_types.announce-results.fan_out.page_size": 20,
        "job_types.tell-parents.per_user.provider": "none", "queues.notifications.fairness": "none",
    })  # fmt: skip
    schools.topology = topology
    announcer = Announcer(topology, store, schools.queues)
    async with schools.processes(1, tmp_path) as launcher:
        made = await announcer.announce(title="Results", tenant="north", institution="main", patience_s=5,
                                        entry=Entry(job_type="announce-results"))  # fmt: skip

        async def under_way() -> bool:
            return await store.fan_out_cursor(made.event, "announce-results") > 100

        await until(under_way)
        launcher.kill(0)
        reached = await store.fan_out_cursor(made.event, "announce-results")
        assert reached < people, "killed in the middle"
        gone, moved = 2 * people - 1, 2 * people - 3
        await store.remove_users([gone])
        await store.add_users([
            UserRow("new@x.example", role="parent", tenant="north", institution="main"),
            UserRow(f"p{moved}@x.example", role="parent", tenant="north", institution="annexe"),
        ])  # fmt: skip
        await schools.drained()
        assert launcher.restarts == 1
    jobs = [job async for job in schools.queues["notifications"].iter_jobs() if job.function == "tell-parents"]
    served = Counter(user for job in jobs for user in (job.kwargs or {})["users"])
    assert served == Counter([*(n for n in range(1, 2 * people, 2) if n not in (gone, moved)), 2 * people + 1])
    progress = await store.progress(made.event)
    assert (progress.sent, progress.failed, progress.pending) == (people - 1, 0, 0)
