"""A queue in a Redis Cluster: it lives on the node that owns its slot, and follows it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from failing_over import Sound, failed_over
from real_servers import Cluster, ended, free_port
from redis.crc import key_slot
from saq.job import Job, Status
from test_connecting import CHANNELS, COMMANDS, KEYS
from whole_life import OPTIONS, keys_of, live, working

from saqkit import broker
from saqkit.queue.connecting import blocking_twin
from saqkit.queue.queue import Queue

MakeQueue = Callable[..., Queue]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes that share the slots; no replicas."""
    with ended():
        yield Cluster(tmp_path_factory.mktemp("cluster"))


@pytest.mark.row("000.18")
async def test_queues_live_whole_lives_on_different_nodes(cluster: Cluster, make_queue: MakeQueue) -> None:
    named = [cluster.name_on(node) for node in cluster.nodes]
    queues = [make_queue(name, url=cluster.url, **OPTIONS) for name in named]
    others = [make_queue(cluster.name_on(node, "other"), url=cluster.url) for node in cluster.nodes]
    # What each replays elsewhere goes to a queue of another node.
    await asyncio.gather(*(live(queue, others[n - 1]) for n, queue in enumerate(queues)))
    for node, queue, other in zip(cluster.nodes, queues, others, strict=True):
        names = (queue.name, other.name)
        found = {bytes(key) for key in node.client().scan_iter(count=1000)}
        assert found
        assert {key.split(b"{")[1].split(b"}")[0].decode() for key in found} == set(names)
        assert {key_slot(key) for key in found} == {key_slot(f"saq:{{{name}}}:".encode()) for name in names}
        assert await keys_of(queue.redis) == found
    assert broker.check(cluster.url)["maxmemory_policy"] == "noeviction"


async def test_a_worker_follows_a_slot_that_is_moved_under_it(
    cluster: Cluster, make_queue: MakeQueue, sound: Sound, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = cluster.nodes[0], cluster.nodes[1]
    name = cluster.name_on(source, "moved")
    producer, queue = make_queue(name, url=cluster.url), make_queue(name, url=cluster.url, **OPTIONS)
    runs: Counter[str] = Counter()
    seen_half_way: list[int] = []

    async def work(ctx: dict[str, Any]) -> None:
        runs[ctx["job"].key] += 1
        await asyncio.sleep(0.005)

    def half_way() -> None:  # nothing is taken or ended while the queue lies in two halves
        time.sleep(0.1)
        seen_half_way.append(len(runs))
        time.sleep(1.0)
        seen_half_way.append(len(runs))

    await producer.enqueue_many(Job("work", key=str(n)) for n in range(600))
    last = await producer.enqueue("work", key="heard", priority=4)
    assert last is not None
    heard = asyncio.create_task(last.refresh(until_complete=30))
    async with working(queue, work):
        async with asyncio.timeout(60):
            while len(runs) < 150:
                await asyncio.sleep(0.005)
            moved = await asyncio.to_thread(cluster.move, name, target, half_way)
            assert len(runs) < 600
            await heard
            while queue.complete < 601:
                await asyncio.sleep(0.01)
        assert cluster.owner(name) is target
        assert moved > 100
        assert seen_half_way[1] - seen_half_way[0] <= 0
        # And back again: by now every connection of both clients has moved once.
        await asyncio.to_thread(cluster.move, name, source)
        assert await producer.apply("work", key="back", timeout=30) is None
    assert runs == Counter({**{str(n): 1 for n in range(600)}, "heard": 1, "back": 1})
    assert await queue.count("incomplete") == 0
    assert await queue.redis.hget(queue.namespace("counts"), "fenced") is None  # type: ignore[misc]
    assert await queue.redis.hget(queue.namespace("counts"), "lost") is None  # type: ignore[misc]
    await sound(queue)
    assert [record for record in caplog.records if record.name == "saqkit" and record.exc_info] == []


async def test_leases_are_renewed_on_the_new_owner(cluster: Cluster, make_queue: MakeQueue) -> None:
    source, target = cluster.nodes[1], cluster.nodes[2]
    name = cluster.name_on(source, "held")
    queue = make_queue(name, url=cluster.url, **OPTIONS)
    await queue.enqueue("f", key="k")
    job = await queue.dequeue(timeout=5)
    assert job is not None
    await asyncio.to_thread(cluster.move, name, target)
    began = await queue.redis.zscore(queue.namespace("leases"), "k")
    async with asyncio.timeout(20):  # by the thread alone: nobody else speaks for this job
        while await queue.redis.zscore(queue.namespace("leases"), "k") < began + 2000 * OPTIONS["lease_s"]:
            await asyncio.sleep(0.05)
    await queue.finish(job, Status.COMPLETE)
    assert await queue.redis.hgetall(queue.namespace("counts")) == {b"complete": b"1"}  # type: ignore[misc]


async def test_any_node_that_answers_is_enough_to_find_the_queue(cluster: Cluster, make_queue: MakeQueue) -> None:
    dead = free_port()
    last = cluster.nodes[2]
    name = cluster.name_on(cluster.nodes[0], "found")
    queue = make_queue(name, url=f"redis+cluster://127.0.0.1:{dead},127.0.0.1:{last.port}")
    for _ in range(3):
        assert await queue.enqueue("f") is not None
        await queue.redis.connection_pool.disconnect()
    assert cluster.nodes[0].client().zcard(queue.namespace("queued:3")) == 3
    with pytest.raises(redis.ConnectionError, match="refused"):
        await make_queue(name, url=f"redis+cluster://127.0.0.1:{dead}").enqueue("f")


async def test_a_user_with_limited_rights_finds_and_serves_a_queue(cluster: Cluster, make_queue: MakeQueue) -> None:
    name = cluster.name_on(cluster.nodes[1], "limited")
    rule = f"{KEYS} {CHANNELS} {COMMANDS} +cluster|slots".replace("{q}", f"{{{name}}}").split()
    for node in cluster.nodes:
        node.ask("ACL", "SETUSER", "worker", "on", ">secret", "resetchannels", *rule)
    queue = make_queue(name, url=cluster.url.replace("://", "://worker:secret@"))
    assert await queue.enqueue("f", key="k")
    job = await queue.dequeue(timeout=5)
    assert job is not None
    await queue.finish(job, Status.COMPLETE)
    twin = blocking_twin(queue.redis)
    assert await asyncio.to_thread(twin.ping)
    twin.close()


# --- long tier


@pytest.mark.chaos
async def test_a_primary_that_is_killed_is_replaced_and_loses_its_unreplicated_tail_at_most(
    tmp_path: Path, make_queue: MakeQueue, sound: Sound, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accounting: what was accepted and never ran, and what ran twice, is of the last moments before the kill."""
    with ended():
        cluster = Cluster(tmp_path, replicas=1)
        victim = cluster.nodes[0]
        name = cluster.name_on(victim)
        outcome = await failed_over(
            make_queue(name, url=cluster.url), make_queue(name, url=cluster.url, **OPTIONS), victim.kill, sound
        )
        assert cluster.owner(name, asked=1) in cluster.nodes[3:]
        assert cluster.owner(name, asked=1) is not victim
        with capsys.disabled():
            print(f"\ncluster: {outcome}")


@pytest.mark.chaos
async def test_a_failover_that_is_asked_for_loses_and_doubles_nothing(
    tmp_path: Path, make_queue: MakeQueue, sound: Sound, capsys: pytest.CaptureFixture[str]
) -> None:
    with ended():
        cluster = Cluster(tmp_path, replicas=1)
        name = cluster.name_on(cluster.nodes[0])
        outcome = await failed_over(
            make_queue(name, url=cluster.url), make_queue(name, url=cluster.url, **OPTIONS),
            lambda: cluster.nodes[3].ask("CLUSTER", "FAILOVER"), sound,
        )  # fmt: skip
        assert cluster.owner(name, asked=1) is cluster.nodes[3]
        assert (outcome["lost of the tail"], outcome["doubled"]) == (0, 0)
        with capsys.disabled():
            print(f"\ncluster, asked for: {outcome}")
