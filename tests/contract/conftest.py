"""Servers that can be cut short, queues, and real worker processes for the tests of the contract."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cut_broker import CutBroker

from saqkit.queue.queue import Queue

PROGRAM = Path(__file__).with_name("contract_worker.py")

MakeQueue = Callable[..., Queue]


@pytest.fixture
async def own_broker() -> AsyncIterator[CutBroker]:
    """A server of the test's own, started, which may be stopped and cut."""
    server = CutBroker()
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


@dataclass
class Workers:
    """Real worker processes (see contract_worker.py)."""

    url: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, url: str = "", **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, str(PROGRAM), url or self.url, json.dumps(options)])
        self.processes.append(process)
        return process

    async def end(self, process: subprocess.Popen[bytes]) -> int:
        """Ask a process to stop and wait until it has."""
        process.terminate()
        return await asyncio.to_thread(process.wait, 30)


@pytest.fixture
def workers(redis_url: str) -> Iterator[Workers]:
    """Starts worker processes; what still runs at the end is killed."""
    made = Workers(redis_url)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def runs() -> Callable[[Queue], Awaitable[dict[str, int]]]:
    """How often each job was begun, as the worker processes counted it on the server."""

    async def read(queue: Queue) -> dict[str, int]:
        found: Any = await queue.redis.hgetall("runs")  # type: ignore[misc]
        return {name.decode(): int(value) for name, value in found.items()}

    return read
