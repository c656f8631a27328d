"""A queue behind sentinels: it lives on the primary that they name, and goes on with the next one."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from failing_over import Sound, failed_over
from real_servers import Watched, ended, free_port
from whole_life import OPTIONS, live

from saqkit import broker
from saqkit.errors import BrokerError
from saqkit.queue.queue import Queue

MakeQueue = Callable[..., Queue]


async def test_a_whole_life_on_the_primary_that_one_sentinel_names(tmp_path: Path, make_queue: MakeQueue) -> None:
    dead = free_port()
    with ended():
        watched = Watched(tmp_path, sentinels=1)
        watched.primary.ask("SET", "written", "here")
        watched.primary.ask("ACL", "SETUSER", "me", "on", ">ours", "allkeys", "allchannels", "allcommands")
        watched.sentinels[0].ask("ACL", "SETUSER", "asker", "on", ">theirs", "+sentinel|get-master-addr-by-name")
        watched.sentinels[0].ask("ACL", "SETUSER", "default", "off")
        asked = f"127.0.0.1:{dead},127.0.0.1:{watched.sentinels[0].port}"
        url = f"redis+sentinel://me:ours@{asked}/jobs/0?sentinel_username=asker&sentinel_password=theirs"
        queue = make_queue("q", url=url, **OPTIONS)
        await live(queue, make_queue("other", url=url))
        assert await queue.redis.get("written") == b"here"
        found = await asyncio.to_thread(broker.check, url)
        assert found["appendonly"] is True
        for wrong, why in (
            (url.replace("/jobs/", "/nobody/"), "does not know the primary of service 'nobody'"),
            (url.replace("=theirs", "=wrong"), "refuses the user name or password of redis.*password=..."),
            (url.replace(":ours", ":wrong"), f"^127.0.0.1:{watched.primary.port} refuses the user name or password"),
            (f"redis+sentinel://127.0.0.1:{dead}/jobs", f"^127.0.0.1:{dead} refuses the connection"),
            (f"redis+sentinel://me:ours@127.0.0.1:{watched.primary.port}/jobs", "unknown command 'SENTINEL'"),
        ):
            with pytest.raises(BrokerError, match=why) as caught:
                await asyncio.to_thread(broker.check, wrong)
            assert "theirs" not in str(caught.value)
            assert "ours" not in str(caught.value)
        with pytest.raises(redis.ConnectionError, match="does not know the primary of service 'nobody'"):
            await make_queue("q", url=url.replace("/jobs/", "/nobody/")).enqueue("f")


# --- long tier


@pytest.mark.chaos
async def test_a_failover_loses_and_doubles_the_unreplicated_tail_at_most(
    tmp_path: Path, make_queue: MakeQueue, sound: Sound, capsys: pytest.CaptureFixture[str]
) -> None:
    with ended():
        watched = Watched(tmp_path)
        producer, queue = make_queue("q", url=watched.url), make_queue("q", url=watched.url, **OPTIONS)
        outcome = await failed_over(producer, queue, watched.primary.kill, sound)
        assert watched.replica.ask("ROLE")[0] == "master"
        assert (await queue.redis.info("server"))["tcp_port"] == watched.replica.port
        with capsys.disabled():
            print(f"\nsentinel: {outcome}")


@pytest.mark.chaos
async def test_a_replica_that_lagged_behind_runs_the_tail_again(
    tmp_path: Path, make_queue: MakeQueue, sound: Sound, capsys: pytest.CaptureFixture[str]
) -> None:
    """The replica hears nothing for the last 0.3 s: what ended then runs again, what was accepted then may be lost."""
    with ended():
        watched = Watched(tmp_path)

        def cut_off_and_kill() -> None:
            watched.replica.process.send_signal(signal.SIGSTOP)
            watched.primary.ask("CLIENT", "KILL", "TYPE", "replica")
            time.sleep(0.3)
            watched.primary.kill()
            watched.replica.process.send_signal(signal.SIGCONT)

        producer, queue = make_queue("q", url=watched.url), make_queue("q", url=watched.url, **OPTIONS)
        outcome = await failed_over(producer, queue, cut_off_and_kill, sound, after_s=1.0)
        assert outcome["doubled"] > 0
        with capsys.disabled():
            print(f"\nsentinel, replica behind: {outcome}")


@pytest.mark.chaos
async def test_a_failover_that_is_asked_for_is_followed_too(
    tmp_path: Path, make_queue: MakeQueue, sound: Sound, capsys: pytest.CaptureFixture[str]
) -> None:
    """The old primary lives on as a replica: connections to it are let go of (READONLY, UNBLOCKED).

    What it accepts until it is demoted is lost too: sentinels do not hold it up meanwhile.
    """
    with ended():
        watched = Watched(tmp_path)
        # The same sentinels, by redis-py's own client, which a user may hand over.
        manager = redis.asyncio.Sentinel([("127.0.0.1", sentinel.port) for sentinel in watched.sentinels])
        queue = Queue(manager.master_for("jobs", socket_timeout=15), name="q", **OPTIONS)
        try:
            outcome = await failed_over(
                make_queue("q", url=watched.url), queue,
                lambda: watched.sentinels[0].ask("SENTINEL", "FAILOVER", "jobs"), sound, after_s=5.0,
            )  # fmt: skip
        finally:
            await queue.disconnect()
        assert watched.replica.ask("ROLE")[0] == "master"
        with capsys.disabled():
            print(f"\nsentinel, asked for: {outcome}")
