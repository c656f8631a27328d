"""What `saqkit.record` costs: CPU per job of stock SAQ with and without it, at concurrency 10.

`python benchmarks/recording.py [--same] [--wait MS] [--compute MS] [ROUNDS [JOBS]]`: jobs that do nothing, or wait, or
compute, or both. It starts a private broker. In one process two applications take turns of a few jobs, which differ in
nothing but the recording: each enqueues jobs that nobody takes (the producer's cost), then its worker drains a queue
that was filled at once (the worker's). So both see the same host in the same seconds. Told are the lower quartiles over
rounds (what else runs on the host only ever adds), and the median ratio within a round with its 90 % interval (of the
sign test).
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from typing import Any

from saq.job import Job, Status
from saq.worker import Worker

TURNS = 20
"""Of each application in a round, so that a host whose speed changes from second to second changes it for both."""


async def noop(ctx: dict[str, Any]) -> None: ...


async def work(ctx: dict[str, Any], wait_s: float, compute_s: float) -> None:
    """Compute, and wait for somebody."""
    until = time.thread_time() + compute_s
    while time.thread_time() < until:
        pass
    if wait_s:
        await asyncio.sleep(wait_s)


class Application:
    """A queue and a worker of stock SAQ; recorded if there is a folder."""

    def __init__(self, url: str, name: str, folder: str) -> None:
        from redis import asyncio as aioredis
        from saq.queue.redis import RedisQueue

        import saqkit

        self.queue, self.idle = (RedisQueue(aioredis.from_url(url), name=name + end) for end in ("", "-idle"))
        # No sweep: stock SAQ's takes a job that is just being taken for a stuck one.
        settings: dict[str, Any] = {"queue": self.queue, "functions": [noop, work], "concurrency": 10,
                                    "timers": {"sweep": 36_000}}  # fmt: skip
        if folder:
            settings = saqkit.record(settings, folder)
            saqkit.record({**settings, "queue": self.idle}, folder)
        self.worker: Worker[Any] = Worker(**settings)
        self.drained, self.left = asyncio.Event(), 0
        finish = self.queue.finish

        async def finish_and_count(*args: Any, **kwargs: Any) -> None:
            await finish(*args, **kwargs)
            self.left -= 1
            if not self.left:
                self.drained.set()

        self.queue.finish = finish_and_count  # type: ignore[method-assign]  # in both applications alike

    async def turn(self, jobs: int, asked: dict[str, float]) -> tuple[float, float, float]:
        """Microseconds per job: CPU of enqueueing, CPU of draining a queue that was full, and the time that took."""
        what: dict[str, Any] = {"function": "work", "kwargs": asked} if any(asked.values()) else {"function": "noop"}
        since = time.process_time()
        for n in range(jobs):
            await self.idle.enqueue("noop", key=f"job-{n}")
        enqueued = time.process_time()
        await self.idle.redis.delete(*await self.idle.redis.keys(f"saq*{self.idle.name}*"))
        given: dict[str, Any] = {"queue": self.queue, "status": Status.QUEUED, "queued": 1, "ttl": -1}
        made = [Job(key=f"job-{n}", **what, **given) for n in range(jobs)]
        self.left = jobs
        self.drained.clear()
        async with self.queue.redis.pipeline(transaction=True) as pipe:  # all at once, so that no slot ever waits
            for job in made:
                pipe.set(job.id, self.queue.serialize(job))
                pipe.zadd(self.queue.namespace("incomplete"), {job.id: 0})
            pipe.rpush(self.queue.namespace("queued"), *(job.id for job in made))
            await pipe.execute()
        before, began = time.process_time(), time.perf_counter()
        await self.drained.wait()
        spent = (enqueued - since, time.process_time() - before, time.perf_counter() - began)
        return spent[0] / jobs * 1e6, spent[1] / jobs * 1e6, spent[2] / jobs * 1e6


async def compare(url: str, folder: str, rounds: int, jobs: int, asked: dict[str, float]) -> None:
    """Take turns, and print what was found."""
    plain, recorded = Application(url, "plain", ""), Application(url, "recorded", folder)
    tasks = [asyncio.create_task(application.worker.start()) for application in (plain, recorded)]
    await asyncio.sleep(1)
    found: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    for _ in range(rounds + 1):
        costs: dict[Application, list[tuple[float, ...]]] = {plain: [], recorded: []}
        for number in range(TURNS):
            for application in (plain, recorded) if number % 2 else (recorded, plain):
                costs[application].append(await application.turn(jobs // TURNS, asked))
        mean = {one: tuple(sum(part) / TURNS for part in zip(*spent, strict=True)) for one, spent in costs.items()}
        found.append((mean[plain], mean[recorded]))
    found = found[1:]  # the first round warms up
    for application in (plain, recorded):
        await application.worker.stop()
    await asyncio.wait(tasks)
    for of, part in enumerate(("producer, CPU", "worker, CPU", "worker, time")):
        pairs = [(a[of], b[of]) for a, b in found]
        ratios = sorted(b / a - 1 for a, b in pairs)
        half = round(1.645 * rounds**0.5 / 2)
        low, high = ratios[max(0, rounds // 2 - half)], ratios[min(rounds - 1, rounds // 2 + half)]
        without, recording = (sorted(pair[n] for pair in pairs)[rounds // 4] for n in (0, 1))
        more = recording / without - 1
        print(f"{part}: {without:.0f} µs per job without, {recording:.0f} with recording, {more:+.1%}; "
              f"median ratio {ratios[rounds // 2]:+.1%} [{low:+.1%}, {high:+.1%}] of {rounds} rounds")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--same", action="store_true", help="record neither: how much of what is told is noise")
    parser.add_argument("--wait", type=float, default=0.0, metavar="MS")
    parser.add_argument("--compute", type=float, default=0.0, metavar="MS")
    parser.add_argument("rounds", type=int, nargs="?", default=40)
    parser.add_argument("jobs", type=int, nargs="?", default=500)
    given = parser.parse_args()
    asked = {"wait_s": given.wait / 1e3, "compute_s": given.compute / 1e3}
    from saqkit import broker

    with tempfile.TemporaryDirectory() as folder, broker.private() as server:
        asyncio.run(compare(server.url, "" if given.same else folder, given.rounds, given.jobs, asked))


if __name__ == "__main__":
    main()
