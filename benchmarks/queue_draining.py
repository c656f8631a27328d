"""How fast waiting jobs are done: by one process, by two, from short and long queues."""

from __future__ import annotations

import asyncio
from statistics import median

from saq.job import Job

from benchmarks.queue_findings import Target
from benchmarks.queue_rounds import SAQS, Bench, ContenderError, crew, fill, missing
from benchmarks.queue_worker import Assignment, queue_of

NAME = "speed"

DRAIN = {("plain saq", 10): 2.5, ("plain saq", 100): 3.0, ("saqkit worker", 10): 4.0, ("saqkit worker", 100): 5.0}
CPU = {"plain saq": 0.35, "saqkit worker": 0.25}


async def drain(bench: Bench) -> None:
    """One process drains no-op jobs; jobs per second, and CPU of the worker process per job, from first to last job."""
    await _drain(bench, (*SAQS, "saqkit worker, uvloop"))


async def peers(bench: Bench) -> None:
    """The same of other libraries, where they are installed: `pip install "taskiq<0.13" taskiq-redis bullmq` fits SAQ's
    bounds of redis-py."""
    await _drain(bench, ("stock saq", "taskiq streams", "bullmq for Python"), "peers")


async def _drain(bench: Bench, contenders: tuple[str, ...], part: str = "drain") -> None:
    for number in range(bench.rounds):
        for concurrency in (10, 100):
            stock: tuple[float, float] | None = None
            for who in contenders:
                rows = (part, f"jobs/s at {concurrency}"), (f"{part}, CPU", f"per job at {concurrency}")
                if why := missing(who):
                    bench.findings.add(*rows[0], who, "", None, note=why)
                    continue
                try:
                    rate, cpu_us = await once(bench, who, concurrency)
                except Exception as error:  # whatever another library's is
                    bench.failed(who, f"drain at {concurrency}", error)
                    continue
                bench.say(f"{part} {number + 1}: {who} at {concurrency}: {rate:,.0f} jobs/s, {cpu_us:.0f} µs CPU")
                if who == "stock saq":
                    stock = rate, cpu_us
                elif stock:
                    ours = who.partition(",")[0]
                    least, most = DRAIN.get((ours, concurrency)), CPU.get(ours)
                    bench.findings.add(*rows[0], who, "jobs/s", rate, stock[0], Target(least=least) if least else None)
                    bench.findings.add(*rows[1], who, "µs", cpu_us, stock[1], Target(most=most) if most else None)


async def once(bench: Bench, who: str, concurrency: int) -> tuple[float, float]:
    """Jobs per second and CPU (µs) per job of one drain."""
    await bench.flush()
    jobs = bench.jobs
    async with crew(Assignment(who, bench.url, NAME, concurrency, lot=jobs)) as workers:
        await fill(who, bench.url, NAME, jobs)
        workers.go()
        await workers.done(jobs)
        if who in SAQS:
            await _all_ended(bench, who)
        (tally,) = await workers.end()
    if tally["jobs"] != jobs:
        bench.remark(f"{who} at {concurrency}: {tally['jobs']} runs of {jobs} jobs")
    ((first, last, cpu),) = tally["lots"]
    return (jobs - 1) / (last - first), cpu / jobs * 1e6


async def _all_ended(bench: Bench, who: str) -> None:
    queue = queue_of(who, bench.url, NAME)
    for _ in range(100):
        if not (left := await queue.count("incomplete")):
            break
        await asyncio.sleep(0.05)
    await queue.disconnect()
    if left:
        bench.remark(f"{who}: {left} jobs are left although all functions have run")


async def two(bench: Bench) -> None:
    """Two processes beside one, on the same cores as the server."""
    who, jobs = "saqkit worker", bench.jobs * 2
    for number in range(bench.rounds):
        for concurrency in (10, 100):
            rates = []
            for processes in (1, 2):
                await bench.flush()
                try:
                    async with crew(Assignment(who, bench.url, NAME, concurrency, lot=10**12), processes) as workers:
                        await fill(who, bench.url, NAME, jobs)
                        workers.go()
                        await workers.done(jobs)
                        tallies = [tally for tally in await workers.end() if tally["jobs"]]
                except ContenderError as error:
                    bench.failed(who, f"{processes} processes", error)
                    break
                elapsed_s = max(tally["latest"] for tally in tallies) - min(tally["first"] for tally in tallies)
                rates.append((jobs - 1) / elapsed_s)
                bench.say(f"two {number + 1}: {processes} at {concurrency}: {rates[-1]:,.0f} jobs/s")
            if len(rates) == 2:
                bench.findings.add("two", f"processes / one at {concurrency}", who, "jobs/s", rates[1], rates[0],
                                   Target(least=1.5))  # fmt: skip


async def flat(bench: Bench) -> None:
    """The rate from short and long queues: a slice of each is drained, its ratio is to the median of the round.

    A queue shorter than the slice is filled again as often as needed, in one call each time. The server's own CPU time
    per job, from the queues that are longer, tells even on a busy machine.
    """
    who, concurrency, slice_ = "saqkit worker", 10, bench.jobs
    backlogs = (1_000, 10_000, 100_000) if bench.quick else (1_000, 10_000, 100_000, 1_000_000)
    await bench.flush()
    for number in range(bench.rounds):
        rates: dict[int, float] = {}
        server_us: dict[int, float] = {}
        for backlog in backlogs:
            lot = min(backlog, slice_)
            queue = queue_of(who, bench.url, f"backlog{backlog}")
            try:
                async with crew(Assignment(who, bench.url, queue.name, concurrency, lot)) as workers:
                    waiting = await queue.count("queued")
                    if backlog > lot:
                        await fill(who, bench.url, queue.name, backlog - waiting)
                    workers.go()
                    if backlog > lot:
                        before_s = await bench.server_cpu_s()
                        await workers.done(lot)
                        server_us[backlog] = (await bench.server_cpu_s() - before_s) / workers.jobs * 1e6
                    else:
                        for again in range(slice_ // lot + 1):  # the first is to warm up
                            await _fill_in_one_call(bench, queue.name, lot)
                            await workers.done((again + 1) * lot)
                    (tally,) = await workers.end()
            except ContenderError as error:
                bench.failed(who, f"backlog of {backlog}", error)
                continue
            finally:
                await queue.disconnect()
            lots = tally["lots"][1:] if backlog <= lot else tally["lots"][:1]
            rates[backlog] = len(lots) * (lot - concurrency) / sum(last - first for first, last, _ in lots)
            bench.say(f"flat {number + 1}: from {backlog:,} waiting: {rates[backlog]:,.0f} jobs/s")
        for backlog, rate in rates.items():
            bench.findings.add("flat", f"jobs/s from {backlog:,}", who, "jobs/s", rate, median(rates.values()),
                               Target(0.85, 1.15), note="beside the round's median")  # fmt: skip
        first, *longer = server_us or (0,)
        for backlog in longer:
            bench.findings.add("flat, server CPU", f"per job from {backlog:,}", who, "µs", server_us[backlog],
                               server_us[first], Target(most=1.15), note=f"beside that from {first:,}")  # fmt: skip


async def _fill_in_one_call(bench: Bench, name: str, jobs: int) -> None:
    queue = queue_of("saqkit worker", bench.url, name)
    await queue.enqueue_many([Job("noop") for _ in range(jobs)], chunk=jobs)
    await queue.disconnect()
