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
from saqkit.spec.topology import RunningLimit, Taking

MakeQueue = Callable[..., Queue]


def jobs(tenant: str, many: int, **properties: object) -> list[Job]:
    return [Job("f", key=f"{tenant}{n}", meta={"tenant": tenant}, **properties) for n in range(many)]  # type: ignore[arg-type]


async def taken(queue: Queue, free: int, request: int) -> list[str]:
    return [key for key, _ in await claims(queue, free, request)]


async def claims(queue: Queue, free: int, request: int) -> list[tuple[str, bytes]]:
    """Keys and tokens of the jobs that are next."""
    words = (free, "w", queue.lease_s, 0, 1, "jobs", "me", request, "", queue.tick_s, queue.rules)
    _, _, _, *rows = await queue.run_script("take", *words)
    return [(row[0].decode(), row[1]) for row in rows]


@pytest.mark.row("004.15")
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
    assert order.index("b99") + 1 == 2 * 100 - 10, "ten were running when they came"
    found = await audit(queue)
    assert found.problems == ()
    assert found.queued + found.active == 10_100
    assert await queue.count("queued") == found.queued


@pytest.mark.parametrize("slots", [1, 2, 7, 10, 50, 100])
async def test_it_is_delayed_to_less_than_twice_its_time_alone(make_queue: MakeQueue, slots: int) -> None:
    """Every job takes one round of all slots; the round that runs when they come is not over yet, but has begun."""
    queue = make_queue(fairness="tenants")
    await queue.redis.ping()
    await queue.enqueue_many(jobs("a", 2 * 100 + slots))
    running = await claims(queue, slots, 0)
    await queue.enqueue_many(jobs("b", 100))
    rounds = 0
    left = {f"b{n}" for n in range(100)}
    while left:
        await queue.run_script("finish", *(word for key, token in running for word in (key, token, "{}", 600, "")))
        rounds += 1
        running = await claims(queue, slots, rounds)
        left -= {key for key, _ in running}
    alone = -(-100 // slots)
    assert rounds + 1 <= 2 * alone, "of the first round they missed less than the whole"
    assert (await audit(queue)).problems == ()


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


some_lives = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.integers(0, 3), st.integers(1, 12)),
        st.tuples(st.sampled_from(["take", "end"]), st.integers(1, 9)),
    ),
    min_size=5,
    max_size=60,
)


@given(some_lives)
def test_while_one_waits_another_gets_no_more_than_it_but_for_what_ran(steps: list[tuple[str, int, int]]) -> None:
    chooser, place, running, most = Chooser(Taking(fairness="tenants")), 0, list[str](), 1
    ahead: dict[tuple[str, str], int] = {}  # (one, other): how many jobs more the other has had while the one waited
    for name, *numbers in [*steps, ("take", 1_000)]:
        for _ in range(numbers[-1]):
            if name == "come":
                place += 1
                chooser.join(Waiting(f"{numbers[0]}:{place}", place, tenant=str(numbers[0])))
            elif name == "end" and running:
                chooser.ended(running.pop(0))
            elif name == "take" and (waiting := {job.tenant for job in chooser.waiting()}):
                key = chooser.next(0.0)
                assert key is not None
                running.append(key)
                had = key.partition(":")[0]
                ahead = {pair: n for pair, n in ahead.items() if pair[0] in waiting}
                for other in waiting - {had}:
                    ahead[other, had] = ahead.get((other, had), 0) + 1
                    assert ahead[other, had] <= most
                for other in waiting - {had}:
                    ahead[had, other] = max(0, ahead.get((had, other), 0) - 1)
        most = max(most, len(running))


def test_who_lets_its_line_run_empty_again_and_again_has_no_more_of_it() -> None:
    chooser = Chooser(Taking(fairness="tenants"))
    for place in range(2_000):
        chooser.join(Waiting(f"a{place}", place, tenant="a"))
    running = [chooser.next(0.0) for _ in range(10)]
    had = {"a": 0, "b": 0, "c": 0}
    for place in range(2_000, 3_000):
        for tenant in "bc":  # one job at a time: it comes when the one before it has been taken
            if not any(job.tenant == tenant for job in chooser.waiting()):
                chooser.join(Waiting(f"{tenant}{place}", place, tenant=tenant))
        chooser.ended(str(running.pop(0)))
        running.append(chooser.next(0.0))
        had[str(running[-1])[0]] += 1
    assert had["a"] >= 1_000 / 3 - 10
    assert abs(had["b"] - had["c"]) <= 1


def test_who_was_held_back_for_long_has_no_more_than_its_turn() -> None:
    chooser = Chooser(Taking(fairness="tenants", running_limits=(RunningLimit(key="provider", limit=1),)))
    for place in range(600):
        tenant = "abc"[place % 3]
        values = {"provider": "slow"} if tenant == "c" else {}
        chooser.join(Waiting(f"{tenant}{place}", place, tenant=tenant, values=values))

    def picks(many: int) -> str:
        taken = ""
        for _ in range(many):
            key = str(chooser.next(0.0))
            taken += key[0]
            if key != "c2":
                chooser.ended(key)
        return taken

    assert picks(203) == "abc" + 100 * "ab", "the first job of c hangs"
    chooser.ended("c2")
    assert picks(9) == "cabcabcab"


def test_newcomers_without_end_keep_nobody_waiting_for_ever() -> None:
    chooser = Chooser(Taking(fairness="tenants"))
    for place in range(2):
        chooser.join(Waiting(f"a{place}", place, tenant="a"))
    assert chooser.next(0.0) == "a0"
    for place in range(2, 5_000):
        for twin in range(2):  # twice as many come as are taken
            chooser.join(Waiting(f"{place}.{twin}", 2 * place + twin, tenant=f"t{place}.{twin}"))
        if (key := chooser.next(0.0)) == "a1":
            return
        chooser.ended(str(key))
    pytest.fail("it was never its turn")


def test_another_word_for_fairness_is_refused() -> None:
    with pytest.raises(DescriptionError, match=r'there is no fairness "tenant".*did you mean "tenants"'):
        QueueSpec.parse({"fairness": "tenant"}, "file.toml")
