"""The server, the worker processes, and filling a contender's queue: what every part of the benchmark uses."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import random
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from redis import asyncio as aioredis
from saq.job import Job

from benchmarks.queue_findings import Findings
from benchmarks.queue_worker import CONTENDERS, Assignment, command, queue_of, taskiq_broker

SAQS = ("stock saq", "plain saq", "saqkit worker")
ROOT = Path(__file__).resolve().parents[1]


class ContenderError(Exception):
    """A worker process died or did not do its jobs."""


@dataclass
class Bench:
    """What a part is given: the server's address and a client, how many rounds of how many jobs, where results go."""

    url: str
    redis: aioredis.Redis
    rounds: int
    jobs: int
    quick: bool
    findings: Findings = field(default_factory=Findings)
    failures: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    async def flush(self) -> None:
        """Empty the server."""
        await self.redis.flushall()

    async def server_cpu_s(self) -> float:
        """CPU seconds that the server has used."""
        used = await self.redis.info("cpu")
        return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])

    def failed(self, who: str, what: str, error: Exception) -> None:
        """Note that a contender failed in a round, which then does not count for it."""
        first, *_, last = [*str(error).splitlines(), ""][:1] + str(error).splitlines()[-1:]
        self.failures.append(f"{who}, {what}: {first}" + (f" … {last}" if last != first else ""))
        print(f"  FAILED {who}, {what}: {error}", file=sys.stderr, flush=True)

    def remark(self, text: str) -> None:
        """Note something that does not spoil a round."""
        self.remarks.append(text)
        self.say(f"NOTE {text}")

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"  {text}", file=sys.stderr, flush=True)


def missing(who: str) -> str:
    """Why a contender cannot be measured here; empty if it can."""
    needs = {"taskiq streams": ("taskiq", "taskiq_redis"), "bullmq for Python": ("bullmq",)}.get(who, ())
    needs += (CONTENDERS[who][2],) if CONTENDERS[who][2] else ()
    return "" if all(importlib.util.find_spec(name) for name in needs) else "not installed"


async def fill(who: str, url: str, queue: str, jobs: int, mixed: bool = False) -> None:
    """Enqueue no-op jobs the quickest way that the contender has; `mixed`: with priorities 1 to 4 (ours)."""
    kind = CONTENDERS[who][0]
    if kind == "taskiq":
        broker = taskiq_broker(url, queue)
        broker.is_worker_process = False
        await broker.startup()
        task = broker.register_task(_nothing, "noop")
        await at_once(lambda: task.kiq(), jobs)
        await broker.shutdown()
    elif kind == "bullmq":
        from bullmq import Queue as BullQueue

        bull = BullQueue(queue, {"connection": url})
        for start in range(0, jobs, 500):
            await bull.addBulk([{"name": "noop", "data": {}, "opts": {}} for _ in range(min(500, jobs - start))])
        await bull.close()
    else:
        saq = queue_of(who, url, queue)
        await saq.connect()
        await enqueue_all(saq, jobs, mixed)
        await saq.disconnect()


async def enqueue_all(queue: Any, jobs: int, mixed: bool = False) -> None:
    """Enqueue no-op jobs the quickest way of an open queue: ours or stock SAQ's."""
    if hasattr(queue, "enqueue_many"):
        await queue.enqueue_many(Job("noop", priority=random.randint(1, 4) if mixed else 0) for _ in range(jobs))
    else:
        await at_once(lambda: queue.enqueue("noop"), jobs)


async def at_once(call: Any, times: int, producers: int = 100) -> None:
    """Await `call()` so many times, from so many producers at once."""

    async def produce(share: int) -> None:
        for _ in range(share):
            await call()

    await asyncio.gather(*(produce(len(range(n, times, producers))) for n in range(producers)))


async def _nothing() -> None: ...


class Crew:
    """Worker processes of one contender."""

    def __init__(self, processes: list[asyncio.subprocess.Process], errors: IO[bytes]) -> None:
        self._processes, self._errors = processes, errors
        self.tallies: list[dict[str, Any]] = [{"jobs": 0, "lots": []} for _ in processes]
        self._news = asyncio.Event()
        self._ended = 0
        self._readers: list[asyncio.Task[None]] = []

    async def ready(self) -> None:
        """Wait until all are set up."""
        for process in self._processes:
            assert process.stdout is not None
            if (await asyncio.wait_for(process.stdout.readline(), 60)).strip() != b"ready":
                raise ContenderError(f"a worker process did not start: {self._last_words()}")

    def go(self) -> None:
        """Let them begin."""
        for number, process in enumerate(self._processes):
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            self._readers.append(asyncio.create_task(self._read(number)))

    async def _read(self, number: int) -> None:
        stream = self._processes[number].stdout
        assert stream is not None
        while line := await stream.readline():
            self.tallies[number] = json.loads(line)
            self._news.set()
        self._ended += 1
        self._news.set()

    @property
    def jobs(self) -> int:
        """How many jobs they have begun."""
        return sum(int(tally["jobs"]) for tally in self.tallies)

    async def done(self, jobs: int, stalled_s: float = 20.0) -> None:
        """Wait until they have begun so many jobs; it is an error if none begins any for `stalled_s` seconds."""
        while self.jobs < jobs:
            if self._ended:
                raise ContenderError(f"a worker process died after {self.jobs} jobs: {self._last_words()}")
            try:
                await asyncio.wait_for(self._news.wait(), stalled_s)
            except TimeoutError:
                raise ContenderError(f"stuck at {self.jobs} of {jobs} jobs: {self._last_words()}") from None
            self._news.clear()

    async def end(self) -> list[dict[str, Any]]:
        """Stop them all and return their last tallies."""
        for process in self._processes:
            if process.returncode is None:
                process.terminate()
        try:
            async with asyncio.timeout(15):
                await asyncio.gather(*self._readers)
                await asyncio.gather(*(process.wait() for process in self._processes))
        except TimeoutError:
            raise ContenderError("a worker process did not end within 15 s of SIGTERM") from None
        return self.tallies

    def kill(self) -> None:
        """End what is left, whatever happened."""
        for reader in self._readers:
            reader.cancel()
        for process in self._processes:
            if process.returncode is None:
                process.kill()

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-2000:].decode(errors="replace").strip() or "it said nothing"


@contextlib.asynccontextmanager
async def crew(told: Assignment, processes: int = 1) -> AsyncIterator[Crew]:
    """Worker processes that are set up and wait for `go`; they are ended with the block."""
    with tempfile.TemporaryFile() as errors:
        started: list[asyncio.subprocess.Process] = []
        group = Crew(started, errors)
        try:
            for _ in range(processes):
                started.append(
                    await asyncio.create_subprocess_exec(
                        *command(told),
                        stdin=asyncio.subprocess.PIPE,
                        stdout=asyncio.subprocess.PIPE,
                        stderr=errors,
                        cwd=ROOT,
                        limit=2**24,
                    )
                )
            group.tallies = [{"jobs": 0, "lots": []} for _ in started]
            await group.ready()
            yield group
        finally:
            group.kill()
            for process in started:
                await process.wait()
