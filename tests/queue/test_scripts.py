"""The scripts: one transition a file, known to the life-cycle, loaded again when the server has forgotten them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

import pytest
from redis.exceptions import ResponseError
from saq.job import Job, Status
from saq.worker import Worker

from saqkit.broker import PrivateBroker
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import FOLDER, Refused, names, refusals, source
from saqkit.spec.lifecycle import TRANSITIONS

MakeQueue = Callable[..., Queue]
READ_ONLY = {"audit", "batch", "configure", "overview", "promote", "renew", "steer", "update"}


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
        key for path in FOLDER.glob("*.lua") for key in re.findall(r"Q \.\. '(\w+)", path.read_text(encoding="utf-8"))
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


async def test_a_server_that_refuses_to_write_is_waited_for(
    queue: Queue, counts: Callable[[Queue], Awaitable[dict[str, int]]], caplog: pytest.LogCaptureFixture
) -> None:
    await queue.enqueue("f", key="k")
    job = await queue.dequeue()
    assert job is not None
    await queue.redis.config_set("min-replicas-to-write", 1)
    try:
        finishing = asyncio.create_task(queue.finish(job, Status.COMPLETE, result=1))
        async with asyncio.timeout(10):
            while "NOREPLICAS" not in caplog.text:
                await asyncio.sleep(0.01)
        with pytest.raises(Refused, match="NOREPLICAS"):
            await queue.enqueue("f")
        assert not finishing.done()
    finally:
        await queue.redis.config_set("min-replicas-to-write", 0)
    await finishing
    assert await counts(queue) == {"complete": 1}
    assert "broker is back" in caplog.text


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("MISCONF Errors writing to the AOF file: No space left on device", Refused),
        ("BUSY Redis is busy running a script.", Refused),
        ("Error running script (call to f_1): @user_script:9: -OOM command not allowed", Refused),
        ("BUSYKEY Target key name already exists.", ResponseError),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", ResponseError),
    ],
)
def test_only_what_may_pass_by_itself_is_waited_for(reply: str, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught, refusals():
        raise ResponseError(reply)
    assert type(caught.value) is expected
    assert str(caught.value) == reply


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


async def test_what_is_said_together_runs_in_its_order_on_a_server_that_knows_only_some_of_it(
    make_queue: MakeQueue,
) -> None:
    queue = make_queue()
    for n in range(2):
        await queue.enqueue("f", key=str(n), retries=1)
    await queue.redis.script_flush()
    await queue.redis.script_load(source("take"))  # type: ignore[no-untyped-call]  # as redis-py is
    (job,) = await queue.dequeue_many(lambda: 1)
    said = queue.conclude(job, Status.FAILED, error="no")
    (second,) = await queue.dequeue_many(lambda: 1)
    assert (second.key, await said) == ("1", 1)
    died, taken = await queue.redis.zscore(queue.namespace("dead"), "0"), queue.claim_of(second)
    assert taken is not None
    assert float(died) <= taken.taken_at
    await queue.finish(second, Status.COMPLETE)


def test_only_scripts_write() -> None:
    """So a state changes nowhere but between the fault sites of a script (docs/contract.md)."""
    writes = "set|setex|delete|unlink|zadd|zrem|hset|hdel|hincrby|rpush|lpush|lpop|expire|pexpire|persist|incr|rename"
    called = re.compile(rf"(?:redis|pipe|client)\.({writes}|sadd|srem|zpop\w+|zrem\w+|ltrim|execute_command)\(")
    sources = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.parent.glob("*.py")}
    assert len(sources) > 20
    assert {name: found for name, text in sources.items() if (found := called.findall(text))} == {}
    assert called.findall("await self.redis.zadd(name, {key: 1})") == ["zadd"]
