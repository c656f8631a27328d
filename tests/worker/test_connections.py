"""A worker process needs a handful of connections whatever its slots; the server must have room for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from saqkit import load
from saqkit.errors import BrokerError
from saqkit.queue.building import build_queues
from saqkit.spec.topology import Topology
from saqkit.worker.connections import check_room, needed
from saqkit.worker.worker import Worker


def with_queues(number: int) -> Topology:
    data = load("school-events").to_dict()
    data["queues"] = {**data["queues"], **{f"more{n}": {} for n in range(number - 1)}}
    return Topology.parse(data)


@contextmanager
def maxclients(url: str, number: int) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        before = client.config_get("maxclients")["maxclients"]
        client.config_set("maxclients", number)
        try:
            yield client
        finally:
            client.config_set("maxclients", before)


@pytest.mark.parametrize("slots", [2, 50])
async def test_they_do_not_depend_on_the_slots(redis_url: str, slots: int) -> None:
    queues = build_queues(with_queues(4), redis_url)
    began, hold = asyncio.Event(), asyncio.Event()

    async def wait(ctx: dict[str, object]) -> None:
        began.set()
        await hold.wait()

    with redis.Redis.from_url(redis_url) as client:
        before = len(client.client_list())
        worker = Worker(queues, {"wait": wait}, dict.fromkeys(queues, slots), name="w")
        running = asyncio.create_task(worker.run())
        for queue in queues.values():
            for _ in range(2 * slots):
                await queue.enqueue("wait", timeout=0)
        async with asyncio.timeout(20):
            await began.wait()
            while [await queue.count("active") for queue in queues.values()] != [slots] * 4:
                await asyncio.sleep(0.02)
            hold.set()
            while [await queue.count("incomplete") for queue in queues.values()] != [0] * 4:
                await asyncio.sleep(0.02)
        assert len(client.client_list()) - before <= needed(queues=4, processes=1)
        worker.stop()
        await running
        for queue in queues.values():
            await queue.disconnect()
        async with asyncio.timeout(10):  # the server hears a moment later; the last queue closes what all shared
            while len(client.client_list()) > before:
                await asyncio.sleep(0.01)


async def test_a_queue_that_disconnects_leaves_the_others_their_connections(redis_url: str) -> None:
    first, *others = build_queues(with_queues(3), redis_url).values()
    waiting = [asyncio.create_task(queue.dequeue()) for queue in others]
    await first.enqueue("f")
    await asyncio.sleep(0.1)
    await first.disconnect()
    for queue, task in zip(others, waiting, strict=True):
        job = await queue.enqueue("f")
        assert job is not None
        taken = await asyncio.wait_for(task, 10)
        assert taken is not None
        assert taken.key == job.key
        await queue.disconnect()


def test_a_server_with_too_few_is_refused_and_one_that_others_fill_is_warned_of(redis_url: str) -> None:
    assert check_room(redis_url, queues=1) == ""
    with maxclients(redis_url, 40):
        with pytest.raises(BrokerError, match=r"8 worker processes of 1 queue need about 48 connections, max"):
            check_room(redis_url, queues=1, processes=8)
        others = [redis.Redis.from_url(redis_url) for _ in range(35)]
        try:
            for one in others:
                one.ping()
            said = check_room(redis_url, queues=1)
            assert "1 worker process of 1 queue need about 6 connections, of maxclients 40 others have 3" in said
        finally:
            for one in others:
                one.close()
