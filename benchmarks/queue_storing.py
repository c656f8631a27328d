"""What enqueueing costs, in time and in the server's memory."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from saq.job import Job

from benchmarks.queue_findings import Target
from benchmarks.queue_rounds import Bench, at_once, enqueue_all, fill
from benchmarks.queue_worker import queue_of

NAME = "speed"


async def enqueue(bench: Bench) -> None:
    """No-op jobs per second, and CPU of the producer per job: the quickest way of each (stock: 100 producers at once;
    ours: `enqueue_each`), `enqueue_many`, and calls of `enqueue`, one awaited after another and 100 at once."""
    for number in range(bench.rounds):
        for what, producers, target in (
            ("in bulk", 0, Target(least=8)),
            ("in bulk, a Job each", -1, None),
            ("enqueue(), 1 at once", 1, None),
            ("enqueue(), 100 at once", 100, None),
        ):
            (stock, stock_us), (ours, ours_us) = [
                await _rate_and_cpu(bench, who, producers) for who in ("stock saq", "plain saq")
            ]
            bench.say(f"enqueue {number + 1}: {what}: stock {stock:,.0f}/s, saqkit {ours:,.0f}/s")
            bench.findings.add("enqueue", what, "saqkit queue", "jobs/s", ours, stock, target)
            bench.findings.add("enqueue, CPU", what, "saqkit queue", "µs", ours_us, stock_us)


async def _rate_and_cpu(bench: Bench, who: str, producers: int) -> tuple[float, float]:
    """Jobs per second and CPU (µs) per job of so many producers; 0: the quickest way, -1: with a `Job` for each."""
    await bench.flush()
    queue = queue_of(who, bench.url, NAME)
    await queue.connect()
    jobs = bench.jobs // 5 if producers > 0 else bench.jobs
    await _produce(queue, 200, producers)  # both come with open connections
    began, cpu_s = time.perf_counter(), time.process_time()
    await _produce(queue, jobs, producers)
    elapsed_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    await queue.disconnect()
    return jobs / elapsed_s, cpu_s / jobs * 1e6


async def _produce(queue: Any, jobs: int, producers: int) -> None:
    if producers > 0:
        await at_once(lambda: queue.enqueue("noop"), jobs, producers)
    elif producers == 0 and hasattr(queue, "enqueue_each"):
        await queue.enqueue_each("noop", ({} for _ in range(jobs)))
    else:
        await enqueue_all(queue, jobs)


async def memory(bench: Bench) -> None:
    """The server's memory per waiting job of 100 user ids: six digits each, consecutive, as a fan-out cuts them."""
    used: dict[str, float] = {}
    jobs = min(bench.jobs, 20_000)
    for who in ("stock saq", "plain saq"):
        await bench.flush()
        queue = queue_of(who, bench.url, NAME)
        await queue.connect()
        await queue.enqueue("warm_up")
        before = (await bench.redis.info("memory"))["used_memory"]
        first = range(100_000, 100_000 + jobs * 100, 100)
        made = [
            Job("notify", kwargs={"event": 1, "users": [100_000 + (user + n) % 900_000 for n in range(100)]})
            for user in first
        ]
        for start in range(0, jobs, 500):
            if who == "stock saq":
                await asyncio.gather(*(queue.enqueue(job) for job in made[start : start + 500]))
            else:
                await queue.enqueue_many(made[start : start + 500])
        await queue.disconnect()
        used[who] = ((await bench.redis.info("memory"))["used_memory"] - before) / jobs / 1e3
    bench.say(f"memory: stock {used['stock saq']:.2f} KB, saqkit {used['plain saq']:.2f} KB per job")
    what, target = "per waiting job of 100 ids", Target(most=1.7, of_value=True)
    bench.findings.add("memory", what, "saqkit queue", "KB", used["plain saq"], used["stock saq"], target)


async def insert(bench: Bench) -> None:
    """The cost of inserting jobs of mixed priorities into an empty queue and beside 400,000 that wait."""
    waiting = 40_000 if bench.quick else 400_000
    await bench.flush()
    await fill("plain saq", bench.url, "full", waiting, mixed=True)
    for number in range(bench.rounds):
        cost_us = {}
        for name in (f"empty{number}", "full"):
            began = time.perf_counter()
            await fill("plain saq", bench.url, name, bench.jobs, mixed=True)
            cost_us[name] = (time.perf_counter() - began) / bench.jobs * 1e6
        empty, full = cost_us.values()
        bench.say(f"insert {number + 1}: {empty:.1f} µs per job into an empty queue, {full:.1f} µs beside {waiting:,}")
        bench.findings.add("insert", f"beside {waiting:,}, priorities mixed", "saqkit queue", "µs", full, empty,
                           Target(most=1.15), note="beside an empty queue")  # fmt: skip
