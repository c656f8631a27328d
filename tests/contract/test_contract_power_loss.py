"""C2: what a power cut can take from the broker, and that with the outbox in front of it no event is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cut_broker import CutBroker
from saq.job import Job, Status

from saqkit import Queue, Topology
from saqkit.app.announcing import Announcer, Relay
from saqkit.app.handlers import Application, after_process
from saqkit.app.mail import build_providers
from saqkit.app.store import Store
from saqkit.queue.building import build_queues
from saqkit.worker.worker import Worker

Sound = Callable[[Queue], Awaitable[None]]
Eventually = Callable[..., Awaitable[float]]
USERS = 300


async def taken(queue: Queue) -> Job:
    job = await queue.dequeue(timeout=5)
    assert job is not None
    job.attempts += 1
    return job


async def work(queue: Queue, start: int, steps: int) -> None:
    """Enqueue a job in each step; of those before it one is finished, buried, retried or left active in turn."""
    for n in range(start, start + steps):
        await queue.enqueue("f", key=f"job {n}", retries=5, timeout=0, meta={"keep_key_s": 3600})
        job = await taken(queue)
        if n % 4 == 0:
            await queue.finish(job, Status.COMPLETE, result=n)
        elif n % 4 == 1:
            await queue.finish(job, Status.FAILED, error="ValueError: no")
        elif n % 4 == 2:
            job.retry_delay = 3600
            await queue.retry(job, "ValueError: no")


async def states(queue: Queue, numbers: range) -> list[str]:
    async with queue.redis.pipeline(transaction=False) as pipe:
        for n in numbers:
            pipe.hget(queue.key_of(f"job {n}"), "state")
        return [(state or b"0").decode() for state in await pipe.execute()]


@pytest.mark.parametrize("cut", range(5))
async def test_a_power_cut_takes_the_end_of_the_history_and_leaves_a_sound_queue(
    own_broker: CutBroker, make_queue: Callable[..., Queue], sound: Sound, cut: int
) -> None:
    queue = make_queue(url=own_broker.url)
    await work(queue, 0, 60)
    safe = await asyncio.to_thread(own_broker.written)  # what is older than a second
    before = await states(queue, range(60))
    assert before == ["4", "5", "2", "3"] * 15
    await work(queue, 60, 60)
    whole = await asyncio.to_thread(own_broker.written)
    keeps = random.Random(cut).randrange(safe, whole)  # most often in the middle of a transition
    assert await asyncio.to_thread(own_broker.lose_power, keeps) == whole - keeps > 0

    assert await states(queue, range(60)) == before
    later = await states(queue, range(60, 120))
    known = later.index("0") if "0" in later else 60
    assert known < 60, "the cut was to lose something"
    assert set(later[known:]) == {"0"}  # the end of the history and nothing else: no holes
    assert later[: max(0, known - 1)] == (["4", "5", "2", "3"] * 15)[: max(0, known - 1)]
    await sound(queue)

    # Nobody is alive who holds a lease of before; the queue drains, and each of its jobs ends once.
    fresh = make_queue(url=own_broker.url)
    active = await fresh.count("active")
    for key, _ in await fresh.redis.zrange(fresh.namespace("leases"), 0, -1, withscores=True):
        await fresh.redis.zadd(fresh.namespace("leases"), {key: 1})
    await fresh.sweep()
    assert (await fresh.count("active"), await fresh.count("queued")) == (0, active + later[:known].count("1"))
    for _ in range(await fresh.count("queued")):
        await fresh.finish(await taken(fresh), Status.COMPLETE)
    await sound(fresh)
    assert (await fresh.count("queued"), await fresh.count("active")) == (0, 0)


def topology() -> Topology:
    """An announcement that fans out in small pages, quick enough to be cut in the middle."""
    return Topology.parse(
        {
            "name": "power",
            "entry": [{"topic": "event.created"}],
            "topics": {"event.created": {"starts": ["announce"]}},
            "queues": {"notifications": {"lease_s": 1.0, "sweep_s": 0.3, "concurrency": 4}},
            "job_types": {
                "announce": {
                    "queue": "notifications",
                    "fan_out": {"to": "notify", "batch_size": 10, "page_size": 30},
                    "retry": {"max_attempts": 3, "delay_s": 0.2},
                },
                "notify": {
                    "queue": "notifications",
                    "retry": {"max_attempts": 3, "delay_s": 0.2},
                    "per_user": {"database": "ledger", "provider": "email"},
                },
            },
            "providers": {"email": {"kind": "simulated", "latency": {"kind": "constant", "mean_s": 0.0005}}},
        }
    )


@pytest.mark.parametrize("cuts", [2, pytest.param(5, marks=[pytest.mark.chaos, pytest.mark.timeout(300)])])
async def test_no_announced_event_is_lost_when_the_brokers_power_fails(
    own_broker: CutBroker, tmp_path: Path, until: Eventually, cuts: int
) -> None:
    """Announce without pause while power fails `cuts` times; every event that was taken in reaches everybody, once."""
    plan = topology()
    database = f"sqlite:///{tmp_path}/power.db"
    sent: list[tuple[int, int]] = []
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(await Store.open(database))
        await store.add_numbered_users(USERS)
        ours, theirs = build_queues(plan, own_broker.url), build_queues(plan, own_broker.url)
        for queue in (*ours.values(), *theirs.values()):
            stack.push_async_callback(queue.disconnect)
        announcer = Announcer(plan, store, ours)
        providers = build_providers(plan, 0)
        send = providers["email"].send

        async def counted(email: Any) -> None:
            await send(email)
            sent.append((email.event, email.user))

        providers["email"].send = counted  # type: ignore[method-assign]
        application = Application(plan, await Store.open(database), theirs, providers)
        stack.push_async_callback(application.close)
        relay = Relay(announcer)
        relay.LOOK_EVERY_S = 0.3
        worker = Worker(theirs, dict(application.functions()), {"notifications": 4}, name="w",
                        context={"application": application}, after_process=after_process)  # fmt: skip
        tasks = [asyncio.create_task(worker.run()), asyncio.create_task(relay.run())]

        async def looked() -> bool:
            queue = ours["notifications"]
            run: bytes | None = await queue.redis.hget(queue.namespace("relayed"), "run")  # type: ignore[misc,assignment]
            return run == (await queue.redis.info("server"))["run_id"].encode()

        events: list[int] = []
        lost = 0
        try:
            for cut in range(cuts):
                await until(looked, 20)
                keeps = await asyncio.to_thread(own_broker.written)
                # The last second: events are taken in, fanned out and served, all of which the broker will forget.
                for n in range(6):
                    made = await announcer.announce(title=f"Event {cut}.{n}", patience_s=5)
                    assert made.enqueued
                    events.append(made.event)
                    await asyncio.sleep(0.05)
                if cut:  # the first cut takes all of it; the others half-way through a fan-out
                    keeps = random.Random(cut).randrange(keeps, await asyncio.to_thread(own_broker.written))
                lost += await asyncio.to_thread(own_broker.lose_power, keeps)
            assert lost > 0
            assert await store.undelivered() == []  # the outbox alone knows of nothing to do

            async def served() -> bool:
                found = [await store.progress(event) for event in events]
                return all(p.users == USERS and p.pending == 0 and p.fan_out_finished for p in found)

            await until(served, 30)
            await until(lambda: drained(theirs["notifications"]), 20)
        finally:
            worker.stop()
            tasks[1].cancel()
            await asyncio.wait(tasks, timeout=20)
        for event in events:
            progress = await store.progress(event)
            assert (progress.users, progress.sent, progress.failed) == (USERS, USERS, 0)
        assert len(set(sent)) == len(events) * USERS
        # An email is repeated only where its batch ran on both sides of a cut and the ledger was not yet written.
        assert len(sent) - len(set(sent)) <= cuts * 4 * 10


async def drained(queue: Queue) -> bool:
    return await queue.count("incomplete") == 0
