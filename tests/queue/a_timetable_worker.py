"""A worker process with a schedule: a_timetable_worker.py URL saq|saqkit SKEW_S, whose clock is wrong by SKEW_S."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from typing import Any

right = time.time
time.time = lambda: right() + float(sys.argv[3])  # before anybody has imported it

from saq.worker import Worker as SaqWorker  # noqa: E402

from saqkit.queue.queue import Queue  # noqa: E402
from saqkit.queue.timetable import Schedule  # noqa: E402
from saqkit.worker.worker import Worker  # noqa: E402

QUEUE: Queue


async def tell(ctx: dict[str, Any]) -> None:
    await QUEUE.redis.rpush("told", ctx["job"].key)  # type: ignore[misc]


async def main() -> None:
    global QUEUE
    QUEUE = Queue.from_url(sys.argv[1], name="q", schedules=[Schedule("each", "tell", "* * * * * *", missed="all")])
    if sys.argv[2] == "saq":
        await SaqWorker(QUEUE, [tell], concurrency=2).start()
    else:
        worker = Worker({"q": QUEUE}, {"tell": tell}, {"q": 2}, name="w", grace_s=1)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        await worker.run()
    await QUEUE.disconnect()


asyncio.run(main())
