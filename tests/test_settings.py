"""`saq saqkit.settings`: SAQ's own command runs our queue, functions and store, as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import pytest
from saq.job import Job, Status

import saqkit
from saqkit import broker
from saqkit.app.announcing import Announcer
from saqkit.app.audience import Audience
from saqkit.app.location import database_url
from saqkit.app.store import Progress, Store
from saqkit.broker_server import alive
from saqkit.errors import DescriptionError, StoreError, UsageError
from saqkit.queue.audit import audit
from saqkit.queue.building import build_queues
from saqkit.queue.queue import Queue

SAQ = Path(sys.executable).with_name("saq")
TWO_QUEUES = """
name = "two"
entry = [{ job_type = "announce" }]
[queues.first]
[queues.second]
[job_types.announce]
queue = "first"
fan_out = { to = "notify", batch_size = 10 }
[job_types.notify]
queue = "second"
per_user = { database = "ledger", provider = "email" }
[providers.email]
latency = { kind = "constant", mean_s = 0.001 }
"""


@contextmanager
def saq(*arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """`saq saqkit.settings` until the end of the block; then SIGTERM must end it and all its children."""
    process = subprocess.Popen([SAQ, "saqkit.settings", "-v", *arguments], env=os.environ | environ,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        yield process
        family = psutil.Process(process.pid).children(recursive=True)
        for one in [psutil.Process(process.pid), *family]:  # SAQ does not forward it (reliability 8)
            one.send_signal(signal.SIGTERM)
        process.wait(30)
        psutil.wait_procs(family, timeout=20)
        assert not any(alive(one) for one in family)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@asynccontextmanager
async def announcing(topology: str = "school-events", users: int = 60) -> AsyncIterator[Announcer]:
    """What a program has that announces, with nothing but the environment to go by."""
    described = saqkit.load(topology)
    queues = build_queues(described, broker.resolve())
    async with await Store.open(database_url()) as store:
        await store.add_numbered_users(users)
        try:
            yield Announcer(described, store, queues)
        finally:
            for queue in queues.values():
                await queue.disconnect()


async def served(announcer: Announcer) -> Progress:
    """Announce to everybody and wait until all are served."""
    made = await announcer.announce(title="Closed", audience=Audience(), patience_s=5)
    async with asyncio.timeout(60):
        while (progress := await announcer.store.progress(made.event)).percent < 100 or not progress.fan_out_finished:
            await asyncio.sleep(0.05)
        for queue in announcer.queues.values():
            while await queue.count("incomplete"):
                await asyncio.sleep(0.05)
    return progress


async def test_it_needs_no_configuration(tmp_state: Path) -> None:
    try:
        async with announcing() as announcer:
            with saq():
                progress = await served(announcer)
            assert (progress.users, progress.sent + progress.failed) == (60, 60)
            assert await announcer.queues["notifications"].count("active") == 0
        assert list(tmp_state.glob("state/saqkit/saqkit.db")) != []
    finally:
        broker.stop()


async def test_it_serves_one_queue_of_a_topology_on_the_server_that_is_named(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "two.toml"
    path.write_text(TWO_QUEUES)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_TOPOLOGY", str(path))
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path}/data.db")
    async with announcing(str(path)) as announcer:
        with saq("--workers", "2"), saq(SAQKIT_QUEUE="second"):
            progress = await served(announcer)
        assert (progress.users, progress.sent) == (60, 60)
        for queue in announcer.queues.values():
            assert await queue.count("active") == 0
    assert broker.status() is None, "no embedded broker was started"


async def test_it_fires_the_schedules_of_the_topology(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "two.toml"
    each = "name = 'each'\ncron = '* * * * * *'\njob_type = 'announce'\nmissed = 'all'\n"
    path.write_text(f"{TWO_QUEUES}[[schedules]]\n{each}")
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_TOPOLOGY", str(path))
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path}/data.db")
    async with announcing(str(path)) as announcer:
        with saq("--workers", "2"):
            async with asyncio.timeout(60):
                while len(numbers := await announcer.store.delivered_since(0)) < 3:
                    await asyncio.sleep(0.05)
        keys = [event.key for number in numbers if (event := await announcer.store.event(number)) and event.key]
        assert len(set(keys)) == len(keys) >= 3
        assert all(key.startswith("schedule each@") for key in keys)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SAQKIT_TOPOLOGY", "school-event", 'did you mean "school-events"'),
        ("SAQKIT_QUEUE", "notification", 'did you mean "notifications"'),
    ],
)
def test_a_wrong_name_is_told(redis_url: str, name: str, value: str, words: str) -> None:
    given = os.environ | {"REDIS_URL": redis_url, name: value}
    done = subprocess.run([SAQ, "saqkit.settings"], env=given, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert words in done.stderr.strip().splitlines()[-1]


async def ended(queue: Queue, key: str, status: Status) -> Job:
    async with asyncio.timeout(20):
        while (job := await queue.job(key)) is None or job.status != status:
            await asyncio.sleep(0.02)
    return job


async def test_the_web_page_shows_the_queue_and_its_buttons_work(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path}/data.db")
    async with announcing() as announcer:
        with saq("--web", "--port", str(port)):
            await served(announcer)

            def page(path: str) -> str:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                    return str(answer.read().decode())

            assert "<html" in await asyncio.to_thread(page, "/")
            assert "notifications" in await asyncio.to_thread(page, "/api/queues")

            def press(key: str, button: str) -> str:
                address = f"http://127.0.0.1:{port}/api/queues/notifications/jobs/{key}/{button}"
                with urllib.request.urlopen(urllib.request.Request(address, method="POST"), timeout=10) as answer:
                    return str(answer.read().decode())

            queue = announcer.queues["notifications"]
            await queue.enqueue("nobody_has_this", key="dead", ttl=0)
            await queue.enqueue("notify", key="waits", scheduled=int(time.time()) + 3600, ttl=0)
            await ended(queue, "dead", Status.FAILED)
            for _ in range(2):  # retried, it dies again: its function is still unknown
                before = await queue.redis.zscore(queue.namespace("dead"), "dead")
                assert await asyncio.to_thread(press, "dead", "retry") == "{}"
                async with asyncio.timeout(20):
                    while await queue.redis.zscore(queue.namespace("dead"), "dead") in (before, None):
                        await asyncio.sleep(0.02)
            assert await asyncio.to_thread(press, "waits", "abort") == "{}"
            aborted = await ended(queue, "waits", Status.ABORTED)
            assert aborted.error == "aborted from ui"
            assert (await audit(queue)).problems == ()


def test_each_call_makes_fresh_objects(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    one, two = saqkit.settings(), saqkit.settings()
    assert one["queue"] is not two["queue"]
    assert [name for name, _ in one["functions"]] == ["announce", "notify"]
    monkeypatch.setenv("SAQKIT_QUEUE", "nobody")
    with pytest.raises(DescriptionError, match='no queue "nobody"'):
        saqkit.settings()
    monkeypatch.setenv("SAQKIT_LOG", "jsno")
    with pytest.raises(UsageError, match='SAQKIT_LOG: there is no style "jsno"'):
        saqkit.settings()


def test_a_state_folder_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAQKIT_STATE", str(tmp_path / "file" / "below"))
    with pytest.raises(StoreError, match="no folder can be made there") as caught:
        database_url()
    assert "\n" not in str(caught.value)
