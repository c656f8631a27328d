"""Queues on the private server, and what is where on it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saqkit.queue.audit import audit
from saqkit.queue.queue import Queue

PROGRAM = Path(__file__).with_name("a_worker.py")
ZSETS = ("queued:1", "queued:2", "queued:3", "queued:4", "scheduled", "leases", "dead")

MakeQueue = Callable[..., Queue]


@pytest.fixture
async def make_queue(redis_url: str) -> AsyncIterator[MakeQueue]:
    """Queues that are disconnected at the end."""
    made: list[Queue] = []

    def make(name: str = "q", **options: Any) -> Queue:
        made.append(Queue.from_url(options.pop("url", redis_url), name=name, **options))
        return made[-1]

    yield make
    for queue in made:
        await queue.disconnect()


@pytest.fixture
def queue(make_queue: MakeQueue) -> Queue:
    return make_queue()


@pytest.fixture
def start_worker(redis_url: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Real worker processes (see a_worker.py), ended afterwards."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*words: str, url: str = redis_url) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen([sys.executable, str(PROGRAM), url, *words]))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def places() -> Callable[[Queue, str], Awaitable[list[str]]]:
    """In which of the queue's sorted sets a job's key is."""

    async def find(queue: Queue, key: str) -> list[str]:
        return [name for name in ZSETS if await queue.redis.zscore(queue.namespace(name), key) is not None]

    return find


@pytest.fixture
def counts() -> Callable[[Queue], Awaitable[dict[str, int]]]:
    """The queue's counters."""

    async def read(queue: Queue) -> dict[str, int]:
        found: Any = await queue.redis.hgetall(queue.namespace("counts"))  # type: ignore[misc]
        return {name.decode(): int(value) for name, value in found.items()}

    return read


@pytest.fixture
def until() -> Callable[..., Awaitable[float]]:
    """Wait for a condition, at most so many seconds; returns how long it took."""

    async def wait(condition: Callable[[], Awaitable[bool]], at_most_s: float) -> float:
        began = time.monotonic()
        while True:
            with contextlib.suppress(ConnectionError):
                if await condition():
                    return time.monotonic() - began
            assert time.monotonic() - began < at_most_s, f"not within {at_most_s} s"
            await asyncio.sleep(0.01)

    return wait


@pytest.fixture
def sound() -> Callable[[Queue], Awaitable[None]]:
    """Assert that every job is in exactly one place."""

    async def check(queue: Queue) -> None:
        assert (await audit(queue)).problems == ()

    return check
