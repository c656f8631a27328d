"""Records what notebook 06 judges the makers' claims by: `runs/claims/*.parquet` and the tables of `claims`.

`python data/claims.py` does all of it (half an hour, nearly all of it the run of 100,000 users, whose emails take their
time; leave the machine alone meanwhile); with `ladder`, `responses`, `commands` or `orders` behind it a part of it:

- ladder: school-events as its makers set it up, one worker of 5 slots, for 100 to 100,000 users;
- responses: how long a request takes that sends its email itself, and one that queues it; and announcing an event;
- commands: how many commands a job costs the server, and a worker that waits;
- orders: 5,000,000 orders of the shop, simulated order by order.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import redis.asyncio as aioredis
import saq
from saq.queue.redis import RedisQueue

import saqkit
import sim
from saqkit.app.announcing import Announcer, topic_of
from saqkit.app.audience import Audience
from saqkit.app.store import Store
from saqkit.broker import private
from saqkit.queue.building import build_queues
from saqkit.worker.worker import Worker

DATA = Path(__file__).parent
RUNS, TABLES = DATA / "runs" / "claims", DATA / "claims"
USERS = (100, 1_000, 10_000, 100_000)
CHECK_S, CREATE_S = 0.010, 0.050
"""What a request does besides its email, as the makers of course-platform have it (row 001.13)."""
EMAIL_S = (2.0, 3.0, 4.0, 5.0)
REPEATS = 5
JOBS, IDLE_S = 200, 20.0
ORDERS, PROCESSES = 5_000_000, (50, 100)


async def ladder() -> None:
    """Measure school-events, with everything as it ships."""
    RUNS.mkdir(parents=True, exist_ok=True)
    for users in USERS:
        run = await saqkit.measure("school-events", users=users, out=RUNS / f"school-{users}.parquet")
        print(run, flush=True)


async def responses() -> None:
    """Time requests with their email in them and with their email queued, and announcements for 100,000 users."""
    rows: list[tuple[str, str, float]] = []
    with private() as broker, tempfile.TemporaryDirectory() as folder:
        mail = saqkit.Queue.from_url(broker.url, name="email")
        await mail.enqueue("welcome", user=0)  # it connects, and the server learns the script

        async def queue_it() -> None:
            await mail.enqueue("welcome", user=1)

        for repeat in range(REPEATS):
            rows.append(("email in a queue", f"request {repeat + 1}", await _request(queue_it)))
        for email_s in EMAIL_S:
            took_s = await _request(partial(asyncio.sleep, email_s))
            rows.append(("email in the request", f"email of {email_s:g} s", took_s))
        await mail.disconnect()

        topology = saqkit.load("school-events")
        queues = build_queues(topology, broker.url)
        async with await Store.open(f"sqlite:///{folder}/claims.db") as store:
            await store.add_numbered_users(USERS[-1])
            announcer = Announcer(topology, store, queues)
            await announcer.announce(title="first", patience_s=5)
            for n in range(30):
                began = time.perf_counter()
                saved = await store.announce(
                    title=f"event {n}", body="", topic=topic_of(topology.entry[0]), audience=Audience(),
                    created_at=time.time(), tenant="", key=None,
                )  # fmt: skip
                between = time.perf_counter()
                await announcer.deliver(saved.event_id)
                rows.append(("event", "saved", between - began))
                rows.append(("event", "enqueued", time.perf_counter() - between))
                called = await announcer.announce(title=f"whole event {n}", patience_s=5)
                rows.append(("event", "returned", called.elapsed_ms / 1000))
        for queue in queues.values():
            await queue.disconnect()
    _write("responses", pd.DataFrame(rows, columns=["what", "which", "seconds"]))


async def _request(email: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await asyncio.sleep(CHECK_S)
    await asyncio.sleep(CREATE_S)
    await email()
    return time.perf_counter() - began


async def commands() -> None:
    """Count what clients send: for each no-op job from enqueue to its end, and for a worker without work.

    What scripts call on the server is counted apart, as some who sell commands count it too.
    """
    rows: list[dict[str, Any]] = []
    with private() as broker:
        for name, kind, worker in (("SAQ", RedisQueue, _saqs), ("saqkit's queue, SAQ's worker", saqkit.Queue, _saqs),
                                   ("saqkit's queue and worker", saqkit.Queue, _ours)):  # fmt: skip
            async with aioredis.Redis.from_url(broker.url) as redis:
                await redis.flushall()
                queue = kind.from_url(broker.url, name="budget")
                async with worker(queue):
                    await asyncio.sleep(1)  # its first sweep is over
                    await queue.enqueue("noop")
                    await asyncio.sleep(1)
                    heard = await _overheard(redis, _work(queue))
                    idle = await _overheard(redis, asyncio.sleep(IDLE_S))
                await queue.disconnect()
            rows.append({
                "queue": name, "commands per job": heard[0] / JOBS, "with those of scripts": heard[1] / JOBS,
                "idle commands per s": idle[0] / IDLE_S, "idle, with those of scripts": idle[1] / IDLE_S,
            })  # fmt: skip
    _write("commands", pd.DataFrame(rows))


async def _work(queue: Any) -> None:
    """One job after the other, as a day's emails come: no two of them share a call."""
    for _ in range(JOBS):
        await queue.enqueue("noop")
        await asyncio.sleep(0.05)


async def noop(_: Any) -> None:
    """A job that does nothing."""


@contextlib.asynccontextmanager
async def _saqs(queue: Any) -> AsyncIterator[None]:
    worker = saq.Worker(queue, functions=[noop], concurrency=10)
    working = asyncio.create_task(worker.start())
    try:
        yield
    finally:
        await worker.stop()
        await asyncio.wait([working], timeout=10)


@contextlib.asynccontextmanager
async def _ours(queue: Any) -> AsyncIterator[None]:
    worker = Worker({"budget": queue}, {"noop": noop}, {"budget": 10}, name="claims")
    working = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await working


async def _overheard(redis: aioredis.Redis, what: Awaitable[object]) -> tuple[int, int]:
    """The commands that clients send meanwhile, without and with those that scripts call."""
    heard = [0, 0]
    listens = asyncio.Event()

    async def listen() -> None:
        async with redis.monitor() as monitor:
            listens.set()
            while True:
                told: dict[str, Any] = await monitor.next_command()
                heard[0] += told["client_type"] != "lua"
                heard[1] += 1

    listening = asyncio.create_task(listen())
    await listens.wait()
    await what
    await asyncio.sleep(0.2)
    listening.cancel()
    await asyncio.wait([listening])
    return heard[0], heard[1]


def orders() -> None:
    """Simulate the shop's orders, all there at once, on so many processes of ten slots, each with a core of its own."""
    profile = sim.Profile.load(DATA / "profile-quickstart.json")
    rows = []
    for workers in PROCESSES:
        began = time.perf_counter()
        deployment = saqkit.Deployment(workers=workers, cores=workers)
        predicted = sim.predict("shop", users=ORDERS, deployment=deployment, profile=profile, keep="summary",
                                replications=1, progress=False).combinations[0]  # fmt: skip
        busy = {f"{part} busy": share for part, share in predicted.utilisation.items()}
        rows.append({"workers": workers, "orders": ORDERS, "drained_s": predicted.measures["makespan_s"]["mean"],
                     "simulated_in_s": time.perf_counter() - began, **busy})  # fmt: skip
        print(rows[-1], flush=True)
    _write("orders", pd.DataFrame(rows))


def _write(name: str, table: pd.DataFrame) -> None:
    TABLES.mkdir(exist_ok=True)
    table.round(6).to_csv(TABLES / f"{name}.csv", index=False)
    print(table.groupby(["what", "which"])["seconds"].median() if "what" in table else table.to_string(), flush=True)


if __name__ == "__main__":
    parts = {"ladder": ladder, "responses": responses, "commands": commands, "orders": orders}
    for part in sys.argv[1:] or parts:
        done = parts[part]()
        if done is not None:
            asyncio.run(done)
