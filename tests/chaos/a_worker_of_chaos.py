"""Worker processes for the chaos tests: `a_worker_of_chaos.py` reads lines of JSON and forks a worker for each.

A worker that is forked from a process that has imported everything starts in milliseconds, so hundreds can be killed.
When the standard input of the first one ends, all of them end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import saq.worker
from everything import KEPT, options, secret_of
from saq.job import Job, Status

from saqkit.queue import fault_sites
from saqkit.queue.audit import audit
from saqkit.queue.counting import statistics
from saqkit.queue.dead_letters import purge, relay, replay
from saqkit.queue.fault_sites import sites
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY, names, source
from saqkit.worker.worker import Worker


@dataclass(frozen=True)
class Order:
    """What a worker is told: `kind` is saqkit, saq (SAQ's own worker on our queue) or tour (see `tour`).

    `everything`: all features are on (see `everything.py`); ours then serves the queue that is called there as well.
    """

    kind: str
    url: str
    effects: str
    queue: str = "q"
    slots: int = 10
    lease_s: float = 1.0
    sweep_s: float = 0.5
    faults: str = ""
    grace_s: float = 30.0
    everything: bool = False
    fires: bool = False

    def connect(self) -> Queue:
        more = options(self.fires) if self.everything else {}
        return Queue.from_url(self.url, name=self.queue, lease_s=self.lease_s, sweep_s=self.sweep_s, **more)

    def of(self, kind: str) -> Order:
        """The same for another kind of worker; "saq there" is SAQ's for the queue into which some jobs are followed."""
        name, _, there = kind.partition(" ")
        return replace(self.there() if there else self, kind=name)

    def there(self) -> Order:
        """The same for the queue into which some jobs are followed."""
        return replace(self, queue=f"{self.queue}.there", effects=f"{self.effects}.there", fires=False)


_effects: dict[str, int] = {}
_spans = -1


def leave(job: Job) -> None:
    """Leave a line with the job's key: its effect."""
    assert job.queue is not None
    os.write(_effects[job.queue.name], f"{job.key}\n".encode())


@contextmanager
def span(job: Job, unique: str) -> Iterator[None]:
    """Tell when a job of a unique id begins to run here, and when it is over."""

    def tell(what: str) -> None:
        if unique:
            os.write(_spans, f"{what} {unique} {job.key} {os.getpid()} {time.time():.6f}\n".encode())

    tell("begins")
    try:
        yield
    finally:
        tell("ends")


async def insist(what: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Say it again until it is answered."""
    while True:
        try:
            return await what(*args)
        except AWAY:
            await asyncio.sleep(0.01)


async def work(
    ctx: dict[str, Any], ms: float = 0, fails: int = 0, touch: bool = False, secret: str = "", unique: str = "",
    **_: Any,
) -> str:  # fmt: skip
    """Take `ms`, then leave an effect. The first `fails` attempts fail instead; they say aloud what was sealed."""
    job: Job = ctx["job"]
    if secret and secret != secret_of(job.key):
        raise ValueError(f"what was sealed has come as {secret}")
    with span(job, unique):
        await asyncio.sleep(ms / 1000)
        if job.attempts <= fails:
            raise RuntimeError(f"as it was told {secret}")
        if touch:
            await insist(lambda: job.update(meta={**job.meta, "touched": True}))
        leave(job)
    return secret


async def parent(ctx: dict[str, Any], fails: int = 0, **_: Any) -> None:
    """Have a job follow here and one in the queue there, then fail or not."""
    job: Job = ctx["job"]
    queues: list[Any] = [job.queue, ctx["there"]]
    for queue in queues:
        await queue.follow_up(job, "work", ttl=0, retries=2, meta={"tenant": job.meta.get("tenant", ""), **KEPT})
    if job.attempts <= fails:
        raise RuntimeError("as it was told")
    leave(job)


async def hold(ctx: dict[str, Any], **_: Any) -> None:
    """Run until it is cancelled."""
    await asyncio.Event().wait()


async def serve(order: Order) -> None:
    """Work until SIGTERM."""
    queue, there = order.connect(), order.there().connect()
    try:
        if order.kind == "saq":

            async def startup(ctx: Any) -> None:
                ctx["there"] = there

            await saq.worker.Worker(queue, [work, hold, parent], concurrency=order.slots, startup=startup).start()
        else:
            functions: dict[str, Any] = {"work": work, "hold": hold, "parent": parent}
            queues = {"q": queue, "there": there} if order.everything else {"q": queue}
            worker = Worker(queues, functions, dict.fromkeys(queues, order.slots), name=str(os.getpid()),
                            context={"there": there}, grace_s=order.grace_s)  # fmt: skip
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
            await asyncio.gather(worker.run(), *([tour(order, worker)] if order.kind == "tour" else []))
    finally:
        await asyncio.gather(queue.disconnect(), there.disconnect())
    if order.kind == "tour":
        Path(f"{order.effects}.over").touch()


TOUR = {
    **{f"plain-{n}": {} for n in range(3)},
    "once": {"fails": 1},
    "always": {"fails": 9},
    "late": {},
    "touch": {"touch": True},
}


async def tour(order: Order, worker: Worker) -> None:
    """Do everything that can be done to a queue, then stop the worker while it holds a job.

    Whatever is lost is said again; whoever dies on the way is followed by another who begins anew.
    """
    queue = order.connect()
    there = order.there().connect()

    async def until(key: str, *statuses: Status) -> None:
        while (job := await insist(queue.job, key)) is None or job.status not in statuses:
            await asyncio.sleep(0.02)

    def job_of(key: str) -> Job:
        job = Job("work", key=key, kwargs=TOUR[key], retries=2, retry_delay=0.05, ttl=0, meta={"keep_key_s": 600})
        job.scheduled = job.scheduled or (time.time() + 0.3 if key == "late" else 0)
        return job

    async def listen() -> None:
        heard = asyncio.Event()

        async def once() -> None:
            await queue.listen(["told"], lambda key, status: heard.set() or True, timeout=5)

        task = asyncio.create_task(once())
        while not heard.is_set() and not task.done():
            await asyncio.sleep(0.05)
            await queue.redis.publish(queue.key_of("told"), "complete")
        await task

    try:
        await insist(queue.pause)
        await insist(queue.resume)
        await insist(queue.enqueue_many, [job_of(key) for key in TOUR])
        await insist(lambda: queue.run_script("prioritise", "late", 2))
        await insist(queue.settings)
        await insist(lambda: queue.run_script("batch", "open", "tour", 60, 60))
        await insist(lambda: queue.run_script("hasten", "late"))
        await insist(statistics, queue)
        await insist(queue.enqueue_many, [Job("nobody_has_this", key="unknown", ttl=0)])
        await insist(queue.enqueue_many, [Job("hold", key="cancelled", timeout=0, ttl=0)])
        await insist(listen)
        await until("cancelled", Status.ACTIVE, Status.ABORTED)
        await asyncio.sleep(0.5)  # a renewal of its lease
        await insist(lambda: queue.abort(Job("hold", key="cancelled", ttl=0, queue=queue), "not wanted"))
        await insist(queue.schedule)
        await insist(queue.worker_info, worker.name, queue.name)
        await insist(queue.sweep)
        await until("always", Status.FAILED)
        await insist(replay, queue, ["always"])
        await until("always", Status.FAILED)
        await until("unknown", Status.FAILED)
        for key in TOUR:
            await until(key, Status.COMPLETE, Status.FAILED)
        await insist(purge, queue, ["unknown"])
        while await insist(there.job, "moved") is None:
            await insist(queue.enqueue_many, [Job("nobody_has_this", key="moved", ttl=0)])
            await asyncio.sleep(0.05)
            await insist(lambda: replay(queue, ["moved"], to=there))
            await insist(relay, queue)
        assert (await insist(audit, queue)).problems == ()
        await insist(queue.count, "incomplete")
        await insist(queue.enqueue_many, [Job("hold", key="held", timeout=0, ttl=0)])
        while (held := await insist(queue.job, "held")) is None or held.worker_id != worker.name:
            await asyncio.sleep(0.02)  # it may still be held by one that has died
        worker.grace_s = 0.1
        worker.stop()
    finally:
        await queue.disconnect()
        await there.disconnect()


def nursery() -> None:
    """Fork a worker for every line of JSON on standard input, and say its process id."""
    for name in names():
        source(name)
    sites()
    options(fires=True)  # whatever that imports
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead: their process ids are free at once
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _live(Order(**json.loads(line)))
        print(pid, flush=True)
    os.killpg(0, signal.SIGKILL)


def _live(order: Order) -> None:
    global _spans
    code = 1
    try:
        for one in (order, order.there()):
            _effects[one.queue] = os.open(one.effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        _spans = os.open(f"{order.effects}.spans", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        fault_sites.armed = fault_sites.parse(order.faults)
        asyncio.run(serve(order))
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    nursery()
