"""The scripts: one transition a file, known to the life-cycle, loaded again when the server has forgotten them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

import pytest
from saq.job import Job
from saq.worker import Worker

from saqkit.broker import PrivateBroker
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import FOLDER, names
from saqkit.spec.lifecycle import TRANSITIONS

READ_ONLY = {"audit", "renew", "update", "promote"}


def test_every_transition_has_its_file_and_every_file_its_transition() -> None:
    assert {t.script.removesuffix(".lua") for t in TRANSITIONS} == set(names()) - READ_ONLY


@pytest.mark.parametrize("name", names())
def test_a_script_says_what_it_does_and_returns(name: str) -> None:
    text = (FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    assert text.startswith(f"-- {name}: ")
    assert "-- Returns" in text


def test_every_key_of_a_script_is_in_the_schema() -> None:
    schema = (FOLDER / "keys.lua").read_text(encoding="utf-8")
    listed = set(re.findall(r"^-- \| Q (\w+)", schema, re.M))
    used = {
        key
        for path in FOLDER.glob("*.lua")
        for key in re.findall(r"Q \.\. '(\w+)", path.read_text(encoding="utf-8"))
    }
    assert used == listed


async def drained(url: str, queue: Queue, disturb: Callable[[], Awaitable[None]]) -> dict[str, int]:
    """How often each of 600 jobs ran, counted in this process, while the server is disturbed."""
    runs: dict[str, int] = {}

    async def work(ctx: dict[str, Job]) -> None:
        runs[ctx["job"].key] = runs.get(ctx["job"].key, 0) + 1
        await asyncio.sleep(0.005)

    await queue.enqueue_many(Job("work", key=str(n)) for n in range(600))
    worker = Worker(queue, [("work", work)], concurrency=10)  # type: ignore[list-item]
    task = asyncio.create_task(worker.start())
    try:
        async with asyncio.timeout(60):
            while len(runs) < 200:
                await asyncio.sleep(0.005)
            await disturb()
            while queue.complete < 600:
                await asyncio.sleep(0.01)
    finally:
        await worker.stop()
        await task
    return runs


async def test_a_forgotten_script_cache_loses_and_doubles_nothing(queue: Queue, redis_url: str) -> None:
    async def flush() -> None:
        for _ in range(10):
            await queue.redis.script_flush()
            await asyncio.sleep(0.01)

    assert await drained(redis_url, queue, flush) == {str(n): 1 for n in range(600)}
    assert await queue.count("incomplete") == 0


async def test_a_restart_of_the_server_loses_and_doubles_nothing(
    make_queue: Callable[..., Queue], sound: Callable[[Queue], Awaitable[None]]
) -> None:
    server = PrivateBroker()
    url = (await asyncio.to_thread(server.start)).url
    try:
        queue = make_queue(url=url)

        async def restart() -> None:
            await asyncio.to_thread(server.restart, 0.3)

        assert await drained(url, queue, restart) == {str(n): 1 for n in range(600)}
        assert await queue.count("incomplete") == 0
        counts = await queue.redis.hgetall(queue.namespace("counts"))  # type: ignore[misc]
        assert counts == {b"complete": b"600"}
        await sound(queue)
        await queue.disconnect()
    finally:
        await asyncio.to_thread(server.stop)
