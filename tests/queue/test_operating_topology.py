"""Operating all queues of a topology in Python: `saqkit.operate`, `saqkit.health`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from saq.job import Job

import saqkit
from saqkit.errors import BrokerError, UsageError
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


async def test_health_of_a_broker_that_is_not_there(shop: saqkit.Topology, tmp_path: Path) -> None:
    found = await saqkit.health(shop, "redis://127.0.0.1:1")
    assert found.status == "unhealthy"
    assert [problem.what for problem in found.problems] == ["broker"]
    with pytest.raises(BrokerError, match="refuses the connection"):
        async with saqkit.operate(shop, "redis://127.0.0.1:1"):
            pass
