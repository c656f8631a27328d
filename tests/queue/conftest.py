"""Queues on the private server, and what is where on it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from saqkit.queue.queue import Queue

PROGRAM = Path(__file__).with_name("a_worker.py")
ZSETS = ("queued:1", "queued:2", "queued:3", "queued:4", "incomplete", "leases", "dead", "outgoing")

MakeQueue = Callable[..., Queue]


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
        found = []
        for name in ZSETS:
            member = queue.job_id(key) if name == "incomplete" else key
            if await queue.redis.zscore(queue.namespace(name), member) is not None:
                found.append(name)
        return found

    return find
