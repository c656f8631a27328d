"""The lag of a worker's event loop is measured, and who blocks it is named."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from saqkit import Queue
from saqkit.worker.loop_lag import LoopLag
from saqkit.worker.worker import Worker


def block() -> None:
    time.sleep(1.4)


async def test_code_that_blocks_the_loop_is_measured_and_named(caplog: pytest.LogCaptureFixture) -> None:
    metadata: dict[str, Any] = {}
    with caplog.at_level(logging.WARNING, logger="saqkit"):
        task = asyncio.create_task(LoopLag(lambda: ["notify", "announce", "notify"], metadata).run())
        await asyncio.sleep(0)
        assert metadata == {"loop_lag_s": 0.0}
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().call_later(0.3, block)
        async with asyncio.timeout(20):
            while metadata["loop_lag_s"] < 1.0 or not caplog.messages:
                await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
    (said,) = caplog.messages
    assert said.startswith("the event loop was blocked for 1.")
    assert "running: announce, notify, at " in said
    assert "test_loop_lag.py" in said
    assert " in block" in said


async def test_a_worker_shows_its_lag_where_its_counts_are_shown(redis_url: str) -> None:
    queue = Queue.from_url(redis_url, name="work")
    worker = Worker({"work": queue}, {}, {"work": 1}, name="w")
    lag = asyncio.create_task(LoopLag(worker.running, worker.metadata).run())
    await asyncio.sleep(0)
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(10):
            while not (workers := (await queue.info())["workers"]):
                await asyncio.sleep(0.02)
        assert workers["w"]["metadata"] == {"loop_lag_s": 0.0, "slots": 1, "running": 0}
    finally:
        lag.cancel()
        worker.stop()
        await running
        await queue.disconnect()
