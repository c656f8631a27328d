"""A bus on a queue of the private server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from saqkit.bus.bus import Bus
from saqkit.queue.queue import Queue
from saqkit.testing.queues import QUICK


@pytest.fixture
def queue(make_queue: Callable[..., Queue]) -> Queue:
    return make_queue("school", **QUICK)


@pytest.fixture
async def bus(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bus]:
    monkeypatch.setattr("saqkit.bus.deaths.LOOK_EVERY_S", 0.02)
    bus = Bus(queue)
    yield bus
    await bus.stop()
