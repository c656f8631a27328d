"""One worker process of a contender: `python -m benchmarks.queue_worker JSON`, the JSON of an `Assignment`.

It prints "ready" once it is set up, begins at a line on its standard input, and then prints a line of JSON whenever it
has run more jobs: see `Tally`. It ends at SIGTERM, with a last line that also has the samples, or when its input ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

CONTENDERS = {
    "stock saq": ("stock", "saq", ""),
    "plain saq": ("saqkit", "saq", ""),
    "saqkit worker": ("saqkit", "saqkit", ""),
    "saqkit worker, uvloop": ("saqkit", "saqkit", "uvloop"),
    "taskiq streams": ("taskiq", "taskiq", ""),
    "bullmq for Python": ("bullmq", "bullmq", ""),
}
"""Who can be measured: whose queue, whose worker, which event loop."""


FEATURES = ("weights", "fairness", "limit per tenant", "running limit", "all of these", "sealed argument", "unique ids",
            "batch")  # fmt: skip
"""What a queue of ours can be made with, to see what it costs."""


def options(feature: str) -> dict[str, Any]:
    """How our queue is made for a feature; limits are so wide that nothing is held back."""
    from saqkit.queue.payload import Payload, PayloadKeys
    from saqkit.spec.topology import RateLimit, RunningLimit

    taking: dict[str, dict[str, Any]] = {
        "weights": {"weights": {"critical": 8, "high": 4, "normal": 2, "low": 1}},
        "fairness": {"fairness": "tenants"},
        "limit per tenant": {"tenant_rate_limit": RateLimit(limit=10**6)},
        "running limit": {"running_limits": (RunningLimit(key="tenant", limit=1000),)},
    }
    if feature == "all of these":
        return {name: value for part in taking.values() for name, value in part.items()}
    if feature == "sealed argument":
        return {"payload": Payload(encrypt={"noop": ["secret"]}, keys=PayloadKeys({"k": bytes(32)}))}
    return taking.get(feature, {})


@dataclass(frozen=True)
class Assignment:
    """What a worker process is told. `lot`: how many jobs are timed together (see `Tally`)."""

    contender: str
    url: str
    queue: str
    concurrency: int
    lot: int
    report_every_s: float = 0.02
    feature: str = ""


@dataclass
class Tally:
    """What the process has done: how many jobs; of each lot of them when the first began, when the last began, on the
    monotonic clock that all processes share, and the CPU seconds between; the samples that functions took."""

    lot: int
    jobs: int = 0
    lots: list[tuple[float, float, float]] = field(default_factory=list)
    latest: float = 0.0
    samples: list[float] = field(default_factory=list)
    _first: float = 0.0
    _cpu_s: float = 0.0
    _failed_at: dict[str, float] = field(default_factory=dict)

    def count(self) -> None:
        """A job has begun."""
        place = self.jobs % self.lot
        self.jobs += 1
        self.latest = time.monotonic()
        if place == 0:
            self._first, self._cpu_s = self.latest, cpu_s()
        if place == self.lot - 1:
            self.lots.append((self._first, self.latest, cpu_s() - self._cpu_s))

    async def noop(self, *_: Any, **__: Any) -> None:
        """The job that does nothing."""
        self.count()

    async def stamped(self, _: Any, *, sent: float) -> None:
        """Sample how long ago the job was enqueued."""
        self.samples.append(time.monotonic() - sent)
        self.count()

    async def fails_once(self, _: Any, *, name: str, delay_s: float) -> None:
        """Fail; the second time, sample how much later than `delay_s` after the failure that is."""
        if name in self._failed_at:
            self.samples.append(time.monotonic() - self._failed_at[name] - delay_s)
            self.count()
            return
        self._failed_at[name] = time.monotonic()
        raise RuntimeError("fails the first time")

    def line(self, *, final: bool = False) -> str:
        """The tally as JSON."""
        samples = self.samples if final else []
        return json.dumps({"jobs": self.jobs, "lots": self.lots, "first": self._first, "latest": self.latest,
                           "samples": samples})  # fmt: skip

    async def report(self, every_s: float) -> None:
        """Print a line when there is something new."""
        said = 0
        while True:
            await asyncio.sleep(every_s)
            if self.jobs != said:
                said = self.jobs
                print(self.line(), flush=True)


def cpu_s() -> float:
    """CPU seconds of this process, all threads, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def queue_of(contender: str, url: str, name: str, feature: str = "") -> Any:
    """The contender's queue object as its users make it; the SAQ ones."""
    if CONTENDERS[contender][0] == "stock":
        from redis import asyncio as aioredis
        from saq.queue.redis import RedisQueue

        return RedisQueue(aioredis.from_url(url), name=name)  # what its from_url does, which refuses unix://
    from saqkit.queue.queue import Queue

    return Queue.from_url(url, name=name, **options(feature)) if feature else Queue.from_url(url, name=name)


async def serve(told: Assignment, tally: Tally) -> None:
    """Run the contender's worker until SIGTERM."""
    worker = CONTENDERS[told.contender][1]
    functions = {"noop": tally.noop, "stamped": tally.stamped, "fails_once": tally.fails_once}
    if worker == "saq":
        from saq.worker import Worker as SaqWorker

        queue = queue_of(told.contender, told.url, told.queue, told.feature)
        await queue.connect()
        await SaqWorker(queue, list(functions.items()), concurrency=told.concurrency).start()
        await queue.disconnect()
        return
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if worker == "saqkit":
        from saqkit.worker.worker import Worker

        queue = queue_of(told.contender, told.url, told.queue, told.feature)
        own = Worker({told.queue: queue}, functions, {told.queue: told.concurrency}, name=f"w{os.getpid()}")
        running = asyncio.create_task(own.run())
        await stop.wait()
        own.stop()
        await running
        await queue.disconnect()
    elif worker == "taskiq":
        from taskiq.api import run_receiver_task

        broker = taskiq_broker(told.url, told.queue)

        async def noop() -> None:
            tally.count()

        broker.register_task(noop, "noop")
        running = asyncio.create_task(run_receiver_task(broker, max_async_tasks=told.concurrency, run_startup=True))
        await stop.wait()
        running.cancel()
        await asyncio.wait([running], timeout=2)
    else:
        from bullmq import Worker as BullWorker

        async def process(_job: Any, _token: str) -> None:
            tally.count()

        bull = BullWorker(told.queue, process, {"connection": told.url, "concurrency": told.concurrency})
        await stop.wait()
        await bull.close(True)


def taskiq_broker(url: str, queue: str) -> Any:
    """taskiq's broker on a Redis stream."""
    from taskiq_redis import RedisStreamBroker

    return RedisStreamBroker(url=url, queue_name=queue)


def main() -> None:
    """Serve as the command line says."""
    told = Assignment(**json.loads(sys.argv[1]))
    tally = Tally(told.lot)
    logging.basicConfig(level=logging.WARNING)

    async def run() -> None:
        report = asyncio.create_task(tally.report(told.report_every_s))
        await serve(told, tally)
        report.cancel()

    def end_with_parent() -> None:
        sys.stdin.read()
        os._exit(1)

    loop: Any = None
    if CONTENDERS[told.contender][2]:
        import uvloop

        loop = uvloop.new_event_loop
    if CONTENDERS[told.contender][0] in ("stock", "saqkit"):  # imported before the clock runs
        queue_of(told.contender, told.url, told.queue, told.feature)
    print("ready", flush=True)
    sys.stdin.readline()
    threading.Thread(target=end_with_parent, daemon=True).start()
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())
    print(tally.line(final=True), flush=True)
    os._exit(0)  # the thread waits for the parent


def command(told: Assignment) -> list[str]:
    """The command line that starts this module's `main` with an assignment."""
    return [sys.executable, "-m", "benchmarks.queue_worker", json.dumps(asdict(told))]


if __name__ == "__main__":
    main()
