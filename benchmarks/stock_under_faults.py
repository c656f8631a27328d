"""What do kills do to stock SAQ, and what to ours? `python benchmarks/stock_under_faults.py [--faults 30] [--wait 150]`

Four systems go through the same at the same time, each on a private server of its own: stock SAQ with `retries=1` (its
default) and with `retries=3`, our queue under SAQ's own worker and under ours, both with `retries=1`; everything else
at its default. A system has 4 worker processes of 10 slots. For `--faults` seconds jobs of 0.1 s come evenly, 20 a
second, and every 2 s one worker is killed (SIGKILL) and replaced at once. Then all four are killed and replaced, which
is the last fault, and the system has `--wait` seconds to recover. There is no other fault: no lost reply, no restart.
About three minutes.

Stock SAQ looks for stranded jobs once a minute, of those that have run for longer than their timeout (10 s), and spends
5 s on each whose worker is dead. So a shorter `--wait` (or more jobs a second, which strand more of them) shows more
of its jobs as lost which it would still get to: they are among those not ended. With `retries=1` getting to them means
that they are aborted.

Columns: `accepted`, jobs enqueued; `done`, those with an effect and the status "complete"; `lost`, those without an
effect at the end; `not ended`, those that still wait or run, as far as the queue knows, at the end; `doubled`,
executions with an effect beyond the first of their job; `wrong status`, jobs whose status contradicts their effect (an
effect, but ended as failed or aborted; complete, but no effect); `drained`, seconds from the last fault until nothing
waited or ran any more, or "no".
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import saq.worker
from redis.asyncio import Redis
from saq.job import Job, Status
from saq.queue.redis import RedisQueue

from saqkit.broker import private
from saqkit.queue.queue import Queue
from saqkit.worker.worker import Worker

WORKERS, SLOTS, KILL_EVERY_S, JOBS_PER_S, JOB_S = 4, 10, 2.0, 20, 0.1
ENDED = (Status.COMPLETE, Status.FAILED, Status.ABORTED)


@dataclass(frozen=True)
class System:
    """What is tried: whose queue, whose worker, how many attempts."""

    name: str
    stock: bool
    own_worker: bool
    retries: int

    def connect(self, url: str) -> RedisQueue:
        """The queue, with every default."""
        return RedisQueue(Redis.from_url(url), name="q") if self.stock else Queue.from_url(url, name="q")


SYSTEMS = [
    System("stock SAQ, retries=1", True, False, 1),
    System("stock SAQ, retries=3", True, False, 3),
    System("our queue, SAQ's worker, retries=1", False, False, 1),
    System("our queue, our worker, retries=1", False, True, 1),
]


async def work(ctx: dict[str, Any], *, effects: str) -> None:
    """Take a while, then leave a line with the job's key: its effect."""
    await asyncio.sleep(JOB_S)
    file = os.open(effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{ctx['job'].key}\n".encode())
    os.close(file)


def serve(system: System, url: str) -> None:
    """One worker process."""

    async def run() -> None:
        queue = system.connect(url)
        if system.own_worker:
            assert isinstance(queue, Queue)
            await Worker({"q": queue}, {"work": work}, {"q": SLOTS}).run()
        else:
            await saq.worker.Worker(queue, [work], concurrency=SLOTS).start()

    asyncio.run(run())


async def incomplete(queue: RedisQueue) -> int:
    """How many jobs have not ended, as far as the queue knows."""
    kinds = ("incomplete",) if isinstance(queue, Queue) else ("queued", "active", "incomplete")
    return sum([await queue.count(kind) for kind in kinds])  # type: ignore[arg-type]  # names of counts


async def trial(system: System, faults_s: float, wait_s: float, seed: int) -> dict[str, object]:
    """A row of the table."""
    processes = multiprocessing.get_context("forkserver")
    random, jobs = Random(seed), int(faults_s * JOBS_PER_S)
    with private() as server, tempfile.TemporaryDirectory() as folder:
        effects = Path(folder, "effects")
        effects.touch()
        queue = system.connect(server.url)
        await queue.connect()
        start = partial(processes.Process, target=serve, args=(system, server.url), daemon=True)
        workers = [start() for _ in range(WORKERS)]
        for worker in workers:
            worker.start()

        def replace(number: int) -> None:
            workers[number].kill()
            workers[number] = start()
            workers[number].start()

        began = killed = time.monotonic()
        for n in range(jobs):
            kwargs = {"effects": str(effects)}
            assert await queue.enqueue(Job("work", key=str(n), kwargs=kwargs, retries=system.retries, ttl=0))
            await asyncio.sleep(max(0.0, began + (n + 1) / JOBS_PER_S - time.monotonic()))
            if time.monotonic() - killed >= KILL_EVERY_S:
                killed = time.monotonic()
                replace(random.randrange(WORKERS))
        for number in range(WORKERS):
            replace(number)
        last_fault, drained = time.monotonic(), "no"
        while time.monotonic() - last_fault < wait_s:
            if not await incomplete(queue):
                drained = f"{time.monotonic() - last_fault:.1f} s"
                break
            await asyncio.sleep(0.1)
        for worker in workers:
            worker.kill()
        ran = Counter(effects.read_text(encoding="utf-8").split())
        statuses = {str(n): job.status if (job := await queue.job(str(n))) else None for n in range(jobs)}
        await queue.disconnect()
    lost = [key for key in statuses if not ran[key]]
    return {
        "system": system.name,
        "accepted": jobs,
        "done": sum(status == Status.COMPLETE and ran[key] > 0 for key, status in statuses.items()),
        "lost": len(lost),
        "not ended": sum(status not in (*ENDED, None) for status in statuses.values()),
        "doubled": sum(times - 1 for times in ran.values()),
        "wrong status": sum(
            status in ENDED and (status == Status.COMPLETE) != (ran[key] > 0) for key, status in statuses.items()
        ),
        "drained": drained,
    }


async def measure(faults_s: float, wait_s: float, seed: int) -> list[dict[str, object]]:
    """All systems at once."""
    return list(await asyncio.gather(*(trial(system, faults_s, wait_s, seed) for system in SYSTEMS)))


def main() -> None:
    """Print the table."""
    import pandas as pd

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=float, default=30.0, help="how many seconds workers are killed (default: 30)")
    parser.add_argument(
        "--wait", type=float, default=150.0, help="how many seconds to wait for recovery (default: 150)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of which worker is killed (default: 1)")
    given = parser.parse_args()
    multiprocessing.set_forkserver_preload(["saq.worker", "saqkit.queue.queue", "saqkit.worker.worker"])
    rows = asyncio.run(measure(given.faults, given.wait, given.seed))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
