"""Operating all queues of a topology in Python: `saqkit.operate`, `saqkit.health`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from saq.job import Job, Status

import saqkit
from saqkit.app.audience import Audience
from saqkit.app.store import Store
from saqkit.errors import BrokerError, SaqkitError, UsageError
from saqkit.operators import Retried
from saqkit.queue.letter import Filter
from saqkit.queue.live_jobs import Which
from saqkit.queue.queue import Queue


@pytest.fixture
def shop() -> saqkit.Topology:
    """A topology of several queues."""
    data = saqkit.load("school-events").to_dict()
    data["name"] = "shop"
    data["queues"] |= {"reports": {}, "sync": {}}
    data["job_types"] |= {"report": {"queue": "reports"}, "sync": {"queue": "sync"}}
    return saqkit.Topology.parse(data, "shop")


async def test_an_operator_reaches_all_queues_or_those_it_names(
    shop: saqkit.Topology, redis_url: str, make_queue: Callable[..., Queue]
) -> None:
    names = list(shop.queues)
    assert len(names) > 1
    for name in names:
        await make_queue(name).enqueue_many(Job("f", key=f"{name}-{n}") for n in range(2))
    async with saqkit.operate(shop, redis_url) as operator:
        assert await operator.pause(by="ada") == dict.fromkeys(names, False)
        assert await operator.resume(names[0]) == {names[0]: True}
        found = await operator.statistics()
        assert [one.paused is None for one in found.values()] == [name == names[0] for name in names]
        assert [one.waiting for one in found.values()] == [2] * len(names)
        cancelled = await operator.cancel_keys([f"{names[0]}-0", f"{names[1]}-1"])
        assert {name: one.done for name, one in cancelled.items()} == {names[0]: 1, names[1]: 1}
        with pytest.raises(UsageError, match=f'there is no job "none" in queues {", ".join(names)}'):
            await operator.cancel_keys([f"{names[0]}-1", "none"])
        with pytest.raises(UsageError, match=f'topology {shop.name} has no queue "{names[0]}x"'):
            await operator.clear(f"{names[0]}x")
        assert len(await operator.jobs_frame()) == 2 * len(names) - 2
        said = await operator.clear(which=Which(function="f"))
        assert sum(one.done for one in said.values()) == 2 * len(names) - 2
        assert len(await operator.statistics_frame()) == 5 * len(names)
        assert (await operator.workers_frame()).empty


async def test_a_key_that_several_queues_have_has_to_be_chosen(
    shop: saqkit.Topology, redis_url: str, make_queue: Callable[..., Queue]
) -> None:
    first, second, *_ = shop.queues
    for name in (first, second):
        await make_queue(name).enqueue("f", key="twin")
    async with saqkit.operate(shop, redis_url) as operator:
        with pytest.raises(UsageError, match=f'"twin" is a job of several queues: {first}, {second}'):
            await operator.cancel_keys(["twin"])
        assert (await operator.cancel_keys(["twin"], second))[second].done == 1


async def test_an_operator_sets_slots_and_records_attempts_of_all_queues_or_some(
    shop: saqkit.Topology, redis_url: str
) -> None:
    names = list(shop.queues)
    async with saqkit.operate(shop, redis_url) as operator:
        assert await operator.set_slots(7) == dict.fromkeys(names)
        assert await operator.set_slots(3, names[1]) == {names[1]: 7}
        assert await operator.slots() == {**dict.fromkeys(names, 7), names[1]: 3}
        with pytest.raises(UsageError, match="0 slots would take nothing"):
            await operator.set_slots(0)
        with pytest.raises(UsageError, match='has no queue "nowhere"'):
            await operator.set_slots(9, names[0], "nowhere")
        assert await operator.set_slots(None) == {**dict.fromkeys(names, 7), names[1]: 3}
        assert await operator.slots() == dict.fromkeys(names)
        await operator.record_attempts()
        await operator.record_attempts(names[0], keep=50)
        found = await operator.statistics()
        assert [one.recording for one in found.values()] == [50, *[10_000] * (len(names) - 1)]
        await operator.record_attempts(keep=None)
        assert {one.recording for one in (await operator.statistics()).values()} == {0}


async def test_an_operator_changes_limits_of_all_queues_or_of_none(shop: saqkit.Topology, redis_url: str) -> None:
    names = list(shop.queues)
    first = names[0]
    async with saqkit.operate(shop, redis_url) as operator:
        before = await operator.settings()
        assert before[first].rate_limit == shop.queues[first].rate_limit
        said = await operator.configure({"rate_limit": {"limit": 5}, "fairness": "tenants"})
        assert said == await operator.settings()
        assert {(one.rate_limit.limit if one.rate_limit else 0, one.fairness) for one in said.values()} == {
            (5, "tenants")
        }
        one = await operator.configure({"rate_limit": None}, first)
        assert (list(one), one[first].rate_limit) == ([first], None)
        held = await operator.settings()
        by_provider = {"running_limits": [{"key": "provider", "limit": 5}]}  # the first queue has one, the others none
        for wrong in ({"rate_limit": {"limit": 0}}, {"rate_limt": None}, by_provider):
            with pytest.raises(SaqkitError):
                await operator.configure(wrong)
        assert await operator.settings() == held
        assert await operator.configure(None) == before


async def test_an_operator_lists_retries_and_removes_dead_letters_of_all_queues_together(
    shop: saqkit.Topology, redis_url: str, make_queue: Callable[..., Queue]
) -> None:
    names = list(shop.queues)
    queues = [make_queue(name) for name in names]
    for n in range(6):  # they die in turn, one of each queue, in the order opposite to the topology's
        queue = queues[::-1][n % 3]
        await queue.enqueue("sync", key=f"{n}", meta={"tenant": "north" if n % 2 else "south"})
        job = await queue.dequeue(timeout=5)
        assert job is not None
        await queue.finish(job, Status.FAILED, error=f"ValueError: {n}")
    async with saqkit.operate(shop, redis_url) as operator:
        assert [one.key for one in await operator.dead_letters()] == list("012345")
        assert [one.key for one in await operator.dead_letters(names[2], limit=1)] == ["0"]
        assert list((await operator.dead_letters_frame(limit=2))["key"]) == ["0", "1"]
        assert [one.count for one in await operator.dead_letter_groups(by=["tenant"])] == [3, 3]
        assert await operator.retry_failed(limit=4, dry_run=True) == Retried(4, 0)
        assert await operator.retry_failed(limit=4) == Retried(4, 4)
        assert [one.key for one in await operator.dead_letters()] == ["4", "5"]
        assert await operator.retry_failed(where=Filter(tenant="north")) == Retried(1, 1)
        said = await operator.purge_dead_letters(dry_run=True)
        assert [one.found for one in said.values()] == [0, 1, 0]
        await operator.purge_dead_letters()
        assert await operator.dead_letters() == []
        assert {name: one.waiting for name, one in (await operator.statistics()).items()} == {
            names[0]: 2, names[1]: 1, names[2]: 2
        }  # fmt: skip


async def test_users_of_dead_letters_that_an_operator_retries_are_pending_again(
    shop: saqkit.Topology, redis_url: str, make_queue: Callable[..., Queue], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    url = f"sqlite:///{tmp_path / 'people.db'}"
    monkeypatch.setenv("SAQKIT_DATABASE_URL", url)
    queue = make_queue(shop.job_types["notify"].queue)
    async with await Store.open(url) as store:
        await store.add_numbered_users(3)
        made = await store.announce(title="Sports day", topic="event.created", audience=Audience(), created_at=1.0)
        event = made.event_id
        await queue.enqueue("notify", key="n", event=event, users=[1, 2, 3])
        job = await queue.dequeue(timeout=5)
        assert job is not None
        await queue.finish(job, Status.FAILED, error="ValueError: no")
        assert await store.abandon(event, [1, 2, 3], "email", "no") == 3
        async with saqkit.operate(shop, redis_url) as operator:
            assert await operator.retry_failed(dry_run=True) == Retried(1, 0, 0)
            assert await operator.retry_failed() == Retried(1, 1, 3)
        assert [one.user for one in (await store.begin_batch(event, [1, 2, 3], "email")).pending] == [1, 2, 3]


async def test_an_operator_lists_batches_by_queue(
    shop: saqkit.Topology, redis_url: str, make_queue: Callable[..., Queue]
) -> None:
    names = list(shop.queues)
    for name in names[:2]:
        await make_queue(name).submit_batch([Job("f", key=f"{name} 1"), Job("f", key=f"{name} 2")], id=f"of-{name}")
    async with saqkit.operate(shop, redis_url) as operator:
        found = await operator.batches()
        assert {name: [(one.id, one.jobs) for one in those] for name, those in found.items()} == {
            names[0]: [(f"of-{names[0]}", 2)], names[1]: [(f"of-{names[1]}", 2)], names[2]: [],
        }  # fmt: skip
        assert list(await operator.batches(names[1])) == [names[1]]


async def test_health_of_a_broker_that_is_not_there(shop: saqkit.Topology, tmp_path: Path) -> None:
    found = await saqkit.health(shop, "redis://127.0.0.1:1")
    assert found.status == "unhealthy"
    assert [problem.what for problem in found.problems] == ["broker"]
    with pytest.raises(BrokerError, match="refuses the connection"):
        async with saqkit.operate(shop, "redis://127.0.0.1:1"):
            pass
