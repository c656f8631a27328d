"""A queue of a test's own."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from saqkit.broker import PrivateBroker
from saqkit.queue.queue import Queue

QUICK: dict[str, Any] = {"lease_s": 1.0, "sweep_s": 0.5, "tick_s": 0.05}
"""What a test does not wait long for: recovery of a killed worker's jobs within lease + sweep + 1 s, retries within a
tick."""


@asynccontextmanager
async def fresh_queue(url: str | None = None, *, name: str = "test", **options: Any) -> AsyncIterator[Queue]:
    """A queue for the length of an `async with` block; at the end it is disconnected and its keys are removed.

    `url`: the broker's address; none starts a private server for the block (some 50 ms). The queue's name is `name` and
    a random ending, so that tests on one server do not meet. `options` are `Queue`'s; leases, sweep and tick are short
    (1 s, 0.5 s, 0.05 s) unless given. Raises `BrokerError` if no server can be found.
    """
    async with AsyncExitStack() as stack:
        if url is None:
            server = PrivateBroker(aof=False)
            stack.push_async_callback(asyncio.to_thread, server.stop)
            url = (await asyncio.to_thread(server.start)).url
        queue = new_queue(url, name=name, **options)
        stack.push_async_callback(remove, queue)
        yield queue


def new_queue(url: str, *, name: str = "test", **options: Any) -> Queue:
    """A queue as `fresh_queue` gives it; whoever makes it removes it."""
    return Queue.from_url(url, name=f"{name}-{secrets.token_hex(4)}", **{**QUICK, **options})


async def remove(queue: Queue) -> None:
    """Disconnect a queue and delete every key of it; what a worker still holds of it ends without effect."""
    await queue.disconnect()  # first: what it does beside would write again
    async with queue.redis as client:
        for prefix in queue.keys:
            pattern = re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
            keys = [key async for key in client.scan_iter(match=pattern, count=1000)]
            for start in range(0, len(keys), 1000):
                await client.unlink(*keys[start : start + 1000])
