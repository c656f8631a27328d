"""What every test stands on: a broker of its own, a state folder of its own, nothing of the user's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from audit_table import pytest_terminal_summary  # noqa: F401  # a hook: pytest looks for it here

if TYPE_CHECKING:
    from saqkit.broker import Broker
    from saqkit.queue.queue import Queue

os.environ.setdefault("MPLBACKEND", "Agg")

pytest_plugins = ["saqkit.testing.plugin"]


def pytest_configure() -> None:
    """Ctrl-C and hang-ups reach the processes of the tests, also under nohup or a script's `&`, which ignore them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def tmp_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh state folder, and none of the settings that point at the user's own servers.

    It lies directly in /tmp because the path of a unix socket may have 107 bytes at most.
    """
    for name in list(os.environ):
        ours = name.startswith(("SAQKIT_", "REDIS_", "UPSTASH_", "JOB_", "FRONTEND_URL"))
        ours = ours or name.endswith("_QUEUE_CONCURRENCY")
        if ours and not name.startswith("SAQKIT_TEST_"):
            monkeypatch.delenv(name)
    with tempfile.TemporaryDirectory(prefix="sk", dir="/tmp", ignore_cleanup_errors=True) as folder:
        for name in ("XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
            place = Path(folder, name.split("_")[1].lower())
            place.mkdir(mode=0o700)
            monkeypatch.setenv(name, str(place))
        yield Path(folder)


@pytest.fixture(scope="session")
def broker(saqkit_broker: Broker) -> Broker:
    """A private server for the whole session; its address is `broker.url`."""
    return saqkit_broker


@pytest.fixture
def redis_url(broker: Broker) -> str:
    """The address of the private server, emptied."""
    import redis

    with redis.Redis.from_url(broker.url) as client:
        client.flushall()
    return broker.url


@pytest.fixture
async def postgres_url() -> AsyncIterator[str]:
    """A fresh PostgreSQL database on the server that SAQKIT_TEST_POSTGRES names."""
    from sqlalchemy import NullPool, make_url, text
    from sqlalchemy.ext.asyncio import create_async_engine

    given = os.environ.get("SAQKIT_TEST_POSTGRES")
    if not given:
        reason = "SAQKIT_TEST_POSTGRES names no server, e.g. postgresql+asyncpg://user@127.0.0.1:5432/postgres"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    server, name = make_url(given), f"saqkit_{secrets.token_hex(6)}"
    engine = create_async_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        async with engine.connect() as connection:
            await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        await engine.dispose()


@pytest.fixture
async def make_queue(redis_url: str) -> AsyncIterator[Callable[..., Queue]]:
    """Queues on the private server (or at `url`), disconnected at the end."""
    from saqkit.queue.queue import Queue

    made: list[Queue] = []

    def make(name: str = "q", **options: Any) -> Queue:
        made.append(Queue.from_url(options.pop("url", redis_url), name=name, **options))
        return made[-1]

    yield make
    for queue in made:
        await queue.disconnect()


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

    async def wait(condition: Callable[[], Awaitable[object]], at_most_s: float) -> float:
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

    from saqkit.queue.audit import audit

    async def check(queue: Queue) -> None:
        assert (await audit(queue)).problems == ()

    return check
