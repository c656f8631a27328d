"""A worker process for the tests of the contract: contract_worker.py URL OPTIONS, OPTIONS being JSON.

`worker`: "saq" (SAQ's own) or "saqkit"; `slots`; `skew_s`: how wrong this process's clock is; `before_s`: how long
it pauses between taking jobs and running them; everything else goes to the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from typing import Any

URL, OPTIONS = sys.argv[1], json.loads(sys.argv[2])
if skew_s := OPTIONS.pop("skew_s", 0.0):
    right = time.time
    time.time = lambda: right() + skew_s  # before anybody has imported it

from saq.worker import Worker as SaqWorker  # noqa: E402

from saqkit.queue.queue import Queue  # noqa: E402
from saqkit.worker.worker import Worker  # noqa: E402

QUEUE: Queue


async def begun(ctx: dict[str, Any]) -> None:
    await QUEUE.redis.hincrby("runs", ctx["job"].key, 1)  # type: ignore[misc]


async def quick(ctx: dict[str, Any]) -> None:
    """Nothing, and it is not counted."""


async def sleeping(ctx: dict[str, Any]) -> None:
    """Half a second without a word to the server."""
    await asyncio.sleep(0.5)


async def brief(ctx: dict[str, Any], *, seconds: float) -> str:
    await begun(ctx)
    await asyncio.sleep(seconds)
    return f"by {os.getpid()}"


async def block(ctx: dict[str, Any], *, seconds: float) -> str:
    """Hold up the event loop."""
    await begun(ctx)
    time.sleep(seconds)
    return f"by {os.getpid()}"


async def unserialisable(ctx: dict[str, Any]) -> object:
    await begun(ctx)
    return {1, object()}


async def stubborn(ctx: dict[str, Any], *, seconds: float) -> None:
    """Swallow every cancellation."""
    await begun(ctx)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.1)


async def staged(ctx: dict[str, Any]) -> None:
    """Do what the server says is this execution's part: crash, hold, fail, or end well."""
    stage = await QUEUE.redis.lpop("stages")  # type: ignore[misc]
    await begun(ctx)
    if stage == b"crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if stage == b"hold":
        await asyncio.sleep(60)
    if stage == b"fail":
        raise ValueError("this execution fails")


FUNCTIONS = [quick, sleeping, brief, block, unserialisable, stubborn, staged]


async def main() -> None:
    global QUEUE
    kind, slots, before_s = OPTIONS.pop("worker", "saq"), OPTIONS.pop("slots", 10), OPTIONS.pop("before_s", 0.0)
    QUEUE = Queue.from_url(URL, name="q", **OPTIONS)
    if kind == "saq":

        async def pause(ctx: dict[str, Any]) -> None:
            await asyncio.sleep(before_s)

        await SaqWorker(QUEUE, FUNCTIONS, concurrency=slots, before_process=pause if before_s else None).start()
    else:
        take = QUEUE.dequeue_many

        async def pausing(*told: Any) -> Any:
            jobs = await take(*told)
            await asyncio.sleep(before_s)
            return jobs

        if before_s:
            QUEUE.dequeue_many = pausing  # type: ignore[method-assign]
        functions = {function.__name__: function for function in FUNCTIONS}
        worker = Worker({"q": QUEUE}, functions, {"q": slots}, name="w", grace_s=0.5)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, worker.stop)
        await worker.run()
    await QUEUE.disconnect()


asyncio.run(main())
