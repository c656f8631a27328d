"""Tenants take turns inside a level: who comes with many jobs hardly delays who comes with few."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from saq.job import Job, Status

from saqkit.errors import DescriptionError
from saqkit.queue.audit import audit
from saqkit.queue.queue import Queue
from saqkit.spec.choosing import Chooser, Waiting
from saqkit.spec.topology import Queue as QueueSpec
from saqkit.spec.topology import Taking

MakeQueue = Callable[..., Queue]


def jobs(tenant: str, many: int, **properties: object) -> list[Job]:
    return [Job("f", key=f"{tenant}{n}", meta={"tenant": tenant}, **properties) for n in range(many)]  # type: ignore[arg-type]


async def taken(queue: Queue, free: int, request: int) -> list[str]:
    words = (free, "w", queue.lease_s, 0, 1, "jobs", "me", request, "", queue.tick_s, queue.rules)
    _, _, _, *rows = await queue.run_script("take", *words)
    return [row[0].decode() for row in rows]


async def test_a_tenant_with_ten_thousand_jobs_hardly_delays_another(make_queue: MakeQueue) -> None:
    queue = make_queue(fairness="tenants")
    await queue.redis.ping()
    await queue.enqueue_many(jobs("a", 10_000))
    assert all(key.startswith("a") for key in await taken(queue, 10, 0))  # the groups begin with the first take
    await queue.enqueue_many(jobs("b", 100))
    order: list[str] = []
    for request in range(1, 100):
        order += await taken(queue, 10, request)
        if "b99" in order:
            break
    assert [key for key in order if key.startswith("b")] == [f"b{n}" for n in range(100)]
    assert order.index("b99") + 1 <= 2 * 100 + 1
    found = await audit(queue)
    assert found.problems == ()
    assert found.queued + found.active == 10_100
    assert await queue.count("queued") == found.queued


async def test_jobs_that_waited_before_fairness_began_take_turns_too(make_queue: MakeQueue) -> None:
    before, queue = make_queue(), make_queue(fairness="tenants")
    await before.enqueue_many([*jobs("a", 1_500), *jobs("b", 20)])
    order = [key for request in range(30) for key in await taken(queue, 10, request)]
    assert "b19" in order
    assert (await audit(queue)).problems == ()


async def test_fairness_is_inside_a_level_and_within_a_tenant_it_is_first_in_first_out(make_queue: MakeQueue) -> None:
    queue = make_queue(fairness="tenants")
    await queue.enqueue_many([*jobs("a", 4), *jobs("b", 2), *jobs("c", 1, priority=1), Job("f", key="nobody")])
    assert await taken(queue, 8, 0) == ["c0", "a0", "b0", "nobody", "a1", "b1", "a2", "a3"]


async def test_a_retried_job_goes_behind_its_own_tenant_and_a_released_one_keeps_its_place(
    make_queue: MakeQueue,
) -> None:
    queue = make_queue(fairness="tenants")
    await queue.enqueue_many([*jobs("a", 3, retries=3), *jobs("b", 3)])
    first, second = await queue.dequeue(timeout=5), await queue.dequeue(timeout=5)
    assert first is not None
    assert second is not None
    assert (first.key, second.key) == ("a0", "b0")
    await queue.retry(first, "ValueError: no")
    await queue.release(second)
    assert await taken(queue, 6, 0) == ["a1", "b0", "a2", "b1", "a0", "b2"]
    assert (await audit(queue)).problems == ()


async def test_saqs_own_calls_see_what_waits(make_queue: MakeQueue) -> None:
    queue = make_queue(fairness="tenants")
    await queue.enqueue_many([*jobs("a", 5), *jobs("b", 5)])
    await taken(queue, 2, 0)
    info = await queue.info(jobs=True, limit=20)
    assert (info["queued"], info["active"], len(info["jobs"])) == (8, 2, 10)
    assert len([job async for job in queue.iter_jobs([Status.QUEUED])]) == 8
    for key in ("a3", "b4"):
        job = await queue.job(key)
        assert job is not None
        await queue.abort(job, "not wanted")
    assert await queue.count("queued") == 6
    await queue.redis.set(queue.namespace("paused"), 1)
    assert await taken(queue, 10, 1) == []
    await queue.redis.delete(queue.namespace("paused"))
    assert await taken(queue, 10, 2) == ["a1", "b1", "a2", "b2", "a4", "b3"]
    assert (await audit(queue)).problems == ()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 30)), min_size=1, max_size=12))
def test_nobody_is_passed_twice_by_the_same_tenant(arrivals: list[tuple[int, int]]) -> None:
    chooser, place = Chooser(Taking(fairness="tenants")), 0
    for tenant, many in arrivals:
        for _ in range(many):
            place += 1
            chooser.join(Waiting(f"{tenant}:{place}", place, tenant=str(tenant)))
    waiting = {job.key.partition(":")[0] for job in chooser.waiting()}
    since: dict[str, list[str]] = {tenant: [] for tenant in waiting}
    while (key := chooser.next(0.0)) is not None:
        tenant = key.partition(":")[0]
        assert len(set(since[tenant])) == len(since[tenant])
        since[tenant] = []
        for other in since:
            if other != tenant and any(job.tenant == other for job in chooser.waiting()):
                since[other].append(tenant)


def test_another_word_for_fairness_is_refused() -> None:
    with pytest.raises(DescriptionError, match=r'there is no fairness "tenant".*did you mean "tenants"'):
        QueueSpec.parse({"fairness": "tenant"}, "file.toml")
