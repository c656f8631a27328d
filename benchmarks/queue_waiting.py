"""What an idle worker does: how soon it starts a job, how late it retries one, what it costs the server."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from statistics import quantiles
from typing import Any

from benchmarks.queue_findings import Target
from benchmarks.queue_rounds import SAQS, Bench, ContenderError, crew, fill
from benchmarks.queue_worker import Assignment, queue_of

NAME = "speed"
RETRY_DELAY_S = 1.0
HANDFUL = 6
"""The promise is "a handful of connections per process"; this is how many that is here."""


async def latency(bench: Bench) -> None:
    """From enqueue to the start of the function, one job about every 20 ms, the worker idle between."""
    for number in range(bench.rounds):
        stock: tuple[float, float] | None = None
        for who in SAQS:
            try:
                found = await _sampled(bench, who, "stamped", 50 if bench.quick else 300, 0.02)
            except ContenderError as error:
                bench.failed(who, "latency", error)
                continue
            p50, p95 = (value * 1e3 for value in _p50_p95(found))
            bench.say(f"latency {number + 1}: {who}: p50 {p50:.2f} ms, p95 {p95:.2f} ms")
            if who == "stock saq":
                stock = p50, p95
            elif stock:
                bench.findings.add("latency", "idle, p50", who, "ms", p50, stock[0], Target(most=0.75))
                bench.findings.add("latency", "idle, p95", who, "ms", p95, stock[1])


async def retry(bench: Bench) -> None:
    """Jobs that fail once: how much later than their delay after the failure they start again."""
    for number in range(bench.rounds):
        stock: tuple[float, float] | None = None
        for who in SAQS:
            try:
                found = await _sampled(bench, who, "fails_once", 50 if bench.quick else 150, 0.02)
            except ContenderError as error:
                bench.failed(who, "retry", error)
                continue
            p50, p95 = _p50_p95(found)
            bench.say(f"retry {number + 1}: {who}: late by p50 {p50:.3f} s, p95 {p95:.3f} s")
            if who == "stock saq":
                stock = p50, p95
            elif stock:
                bench.findings.add("retry", "late by, p50", who, "s", p50, stock[0])
                bench.findings.add("retry", "late by, p95", who, "s", p95, stock[1], Target(most=0.25, of_value=True))


async def _sampled(bench: Bench, who: str, function: str, jobs: int, every_s: float) -> list[float]:
    """What the samples of a worker are that is sent jobs one by one."""
    await bench.flush()
    async with crew(Assignment(who, bench.url, NAME, 10, lot=jobs, report_every_s=0.25)) as workers:
        workers.go()
        queue = queue_of(who, bench.url, NAME)
        await queue.connect()
        await asyncio.sleep(0.5)  # the worker connects and falls idle
        for number in range(jobs):
            if function == "stamped":
                await queue.enqueue(function, sent=time.monotonic())
            else:
                await queue.enqueue(function, name=f"{number}", delay_s=RETRY_DELAY_S, retries=2,
                                    retry_delay=RETRY_DELAY_S)  # fmt: skip
            await asyncio.sleep(every_s * random.uniform(0.5, 1.5))  # in step with no timer
        await workers.done(jobs)
        await queue.disconnect()
        (tally,) = await workers.end()
    samples: list[float] = tally["samples"]
    if len(samples) != jobs:
        raise ContenderError(f"{len(samples)} samples of {jobs} jobs")
    return samples


def _p50_p95(samples: list[float]) -> tuple[float, float]:
    cuts = quantiles(samples, n=20, method="inclusive")
    return cuts[9], cuts[18]


async def connections(bench: Bench) -> None:
    """The most connections that a worker process has while it drains."""
    for _ in range(min(bench.rounds, 2)):
        for concurrency in (10, 100):
            stock: float | None = None
            for who in SAQS:
                await bench.flush()
                try:
                    async with crew(Assignment(who, bench.url, NAME, concurrency, lot=bench.jobs)) as workers:
                        await fill(who, bench.url, NAME, bench.jobs)
                        workers.go()
                        most, draining = 0, asyncio.create_task(workers.done(bench.jobs))
                        while not draining.done():
                            clients = await bench.redis.client_list()
                            most = max(most, sum(client["name"] != "benchmark" for client in clients))
                            await asyncio.sleep(0.01)
                        await draining
                        await workers.end()
                except ContenderError as error:
                    bench.failed(who, "connections", error)
                    continue
                bench.say(f"connections: {who} at {concurrency}: {most}")
                if who == "stock saq":
                    stock = most
                elif stock is not None:
                    what, target = f"per process at {concurrency}", Target(most=HANDFUL, of_value=True)
                    bench.findings.add("connections", what, who, "open", most, stock, target)


async def idle(bench: Bench) -> None:
    """Commands per second of a worker that has done a few jobs and waits; what scripts call is not counted."""
    seconds = 4 if bench.quick else 10
    for _ in range(min(bench.rounds, 2)):
        stock: float | None = None
        for who in SAQS:
            await bench.flush()
            try:
                async with crew(Assignment(who, bench.url, NAME, 10, lot=100)) as workers:
                    await fill(who, bench.url, NAME, 100)
                    workers.go()
                    await workers.done(100)
                    await asyncio.sleep(1)
                    commands = await _overheard(bench, seconds)
                    await workers.end()
            except ContenderError as error:
                bench.failed(who, "idle", error)
                continue
            rate = commands.total() / seconds
            bench.say(f"idle: {who}: {rate:.2f} commands/s: {dict(commands.most_common())}")
            if who == "stock saq":
                stock = rate
            elif stock is not None:
                bench.findings.add("idle", "commands at concurrency 10", who, "/s", rate, stock,
                                   Target(most=2, of_value=True))  # fmt: skip


async def _overheard(bench: Bench, seconds: float) -> Counter[str]:
    """The commands that clients send within some seconds, by name."""
    heard: Counter[str] = Counter()

    async def listen() -> None:
        async with bench.redis.monitor() as monitor:
            while True:
                told: dict[str, Any] = await monitor.next_command()
                if told["client_type"] != "lua":
                    heard[told["command"].split(" ")[0].upper()] += 1

    listening = asyncio.create_task(listen())
    await asyncio.wait([listening], timeout=seconds)
    if listening.done():
        listening.result()
    listening.cancel()
    await asyncio.wait([listening])
    return heard
