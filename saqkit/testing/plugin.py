"""Fixtures for pytest: `pytest_plugins = ["saqkit.testing.plugin"]` in the top `conftest.py` of the tests.

| fixture | scope | what it is |
|---|---|---|
| `saqkit_broker` | session | a private server, its address is `saqkit_broker.url` (pytest-xdist: one per process) |
| `saqkit_queue` | function | a queue on it that nobody else uses |
| `saqkit_queue_factory` | function | `saqkit_queue_factory(rate_limit=…, …)` makes one with `Queue`'s options |

Where no server binary is found, a test that needs one is skipped; with `CI` in the environment it fails. The queues are
for coroutines, so those two fixtures need pytest-asyncio (or anyio's plugin); a plain test function uses
`saqkit_broker` and `asyncio.run` with `fresh_queue`. Nothing is registered by itself: installing saqkit adds no fixture
to anybody's tests.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from saqkit.broker import Broker
    from saqkit.queue.queue import Queue

try:  # in its strict mode it serves only the fixtures that it made
    from pytest_asyncio import fixture as async_fixture
except ImportError:
    async_fixture = pytest.fixture  # type: ignore[assignment]  # nearly the same thing

__all__ = ["saqkit_broker", "saqkit_queue", "saqkit_queue_factory"]

QueueFactory = Callable[..., "Queue"]


@pytest.fixture(scope="session")
def saqkit_broker() -> Iterator[Broker]:
    """A private Valkey or Redis server for the session, ended and removed after it."""
    from saqkit.broker import find_binary, private
    from saqkit.errors import BrokerError

    try:
        find_binary()
    except BrokerError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    with private() as broker:
        yield broker


@async_fixture
async def saqkit_queue_factory(saqkit_broker: Broker) -> AsyncIterator[QueueFactory]:
    """Makes queues with names of their own, short leases and ticks; removes and disconnects them after the test."""
    from saqkit.testing.queues import new_queue, remove

    made: list[Queue] = []

    def make(**options: Any) -> Queue:
        made.append(new_queue(saqkit_broker.url, **options))
        return made[-1]

    yield make
    for queue in made:
        await remove(queue)


@async_fixture
async def saqkit_queue(saqkit_queue_factory: QueueFactory) -> Queue:
    """A queue that nobody else uses."""
    return saqkit_queue_factory()
