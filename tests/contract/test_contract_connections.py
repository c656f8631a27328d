"""C14: a process needs a handful of connections however many slots it has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cut_broker import CutBroker
from saq.job import Job

from saqkit.queue.queue import Queue

Counts = Callable[[Queue], Awaitable[dict[str, int]]]
Eventually = Callable[..., Awaitable[float]]
Sound = Callable[[Queue], Awaitable[None]]
HANDFUL = 8


@pytest.mark.parametrize("kind", ["saq", "saqkit"])
async def test_fifty_slots_serve_two_hundred_jobs_on_a_server_with_thirty_connections(
    own_broker: CutBroker, make_queue: Callable[..., Queue], workers: Any, counts: Counts, until: Eventually,
    sound: Sound, kind: str,
) -> None:  # fmt: skip
    queue = make_queue(url=own_broker.url)
    await queue.redis.config_set("maxclients", 30)
    await queue.enqueue_many(Job("sleeping", key=str(n)) for n in range(200))
    process = workers.start(own_broker.url, worker=kind, slots=50)
    most = 0

    async def done() -> bool:
        nonlocal most
        mine = len([client for client in await queue.redis.client_list() if client["name"] != "test"])
        most = max(most, mine)
        return (await counts(queue)).get("complete", 0) == 200

    await queue.redis.client_setname("test")
    own = len(await queue.redis.client_list())
    await until(done, 30)
    assert 2 <= most <= own + HANDFUL
    assert await counts(queue) == {"complete": 200}
    stats: Any = await queue.redis.info("stats")
    assert stats["rejected_connections"] == 0
    await sound(queue)
    assert await workers.end(process) == 0
