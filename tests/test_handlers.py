"""The fan-out on real parts: real workers, a real broker, SQLite and SMTP; who is served, how often, and who is not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from measured import lab
from saq.job import Status

from saqkit import Queue, Topology
from saqkit.app.announcing import Announcer, new_job
from saqkit.app.audience import Audience
from saqkit.app.handlers import Application, after_process
from saqkit.app.mail import Email, build_providers
from saqkit.app.store import GONE, Store
from saqkit.errors import StoreError
from saqkit.queue.building import build_queues
from saqkit.testing import RecordingProvider, SmtpSink
from saqkit.testing.smtp_sink import Received
from saqkit.worker.launcher import Launcher
from saqkit.worker.process import Configuration
from saqkit.worker.recording import Row, read
from saqkit.worker.worker import Worker


class System:
    """A topology's store, queues and announcer, as a program that announces has them."""

    def __init__(self, topology: Topology, url: str, folder: Path, store: Store, queues: dict[str, Queue]) -> None:
        self.topology, self.url, self.folder, self.store, self.queues = topology, url, folder, store, queues
        self.queue = queues[topology.entry_queue]
        self.announcer = Announcer(topology, store, queues)

    async def drained(self, timeout_s: float = 60.0) -> None:
        async with asyncio.timeout(timeout_s):
            while await self.queue.count("incomplete"):
                await asyncio.sleep(0.02)

    async def rows(self) -> list[Row]:
        found = await self.queue.redis.lrange(self.queue.namespace("trace"), 0, -1)  # type: ignore[misc]
        return [read(record, self.queue.name, "run") for record in found]

    @asynccontextmanager
    async def processes(self, count: int, slots: int, **environ: str) -> AsyncIterator[Launcher]:
        """Worker processes of their own."""
        launcher = Launcher(
            [
                Configuration(
                    topology=self.topology.to_dict(), broker=self.url, database=f"sqlite:///{self.folder}/data.db",
                    slots={self.queue.name: slots}, name=f"worker-{n}", folder=str(self.folder), environ=environ,
                    grace_s=5.0,
                )
                for n in range(count)
            ],
            self.folder,
        )  # fmt: skip
        await launcher.start()
        try:
            await launcher.ready()
            yield launcher
        finally:
            await launcher.stop(10)

    @asynccontextmanager
    async def worker(self, **providers: Any) -> AsyncIterator[Worker]:
        """A worker in this process."""
        store = await Store.open(f"sqlite:///{self.folder}/data.db")
        application = Application(self.topology, store, self.queues, build_providers(self.topology, 0) | providers)
        worker = Worker(self.queues, dict(application.functions()), {self.queue.name: 2}, name="w",
                        context={"application": application}, after_process=after_process)  # fmt: skip
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await asyncio.wait_for(task, 20)
            await application.close()


@asynccontextmanager
async def system(topology: Topology, url: str, folder: Path, users: int) -> AsyncIterator[System]:
    queues = build_queues(topology, url)
    async with await Store.open(f"sqlite:///{folder}/data.db") as store:
        await store.add_numbered_users(users)
        made = System(topology, url, folder, store, queues)
        await made.queue.redis.set(made.queue.namespace("recording"), 1)
        try:
            yield made
        finally:
            for queue in queues.values():
                await queue.disconnect()


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await holds():
            await asyncio.sleep(0.005)


async def test_a_fan_out_that_is_killed_resumes_and_nobody_is_skipped_or_doubled(
    redis_url: str, tmp_path: Path
) -> None:
    users = 20_000
    topology = lab(
        job_types__announce__fan_out={"to": "notify", "batch_size": 20, "page_size": 100},
        job_types__notify__per_user={"database": "none"},
    )
    async with system(topology, redis_url, tmp_path, users) as made, made.processes(1, 2) as launcher:
        event = (await made.announcer.announce(title="Closed", patience_s=5)).event

        async def under_way() -> bool:
            return await made.store.fan_out_cursor(event, "announce") > 500

        await until(under_way)
        launcher.kill(0)
        assert await made.store.fan_out_cursor(event, "announce") < users, "it was to be killed in the middle"

        async def finished() -> bool:
            return (await made.store.progress(event)).fan_out_finished

        await until(finished)
        await made.drained()
        jobs = [job async for job in made.queue.iter_jobs() if job.function == "notify"]
        served = Counter(user for job in jobs for user in job.kwargs["users"])
        assert served == Counter(range(1, users + 1))
        assert {job.status for job in jobs} == {Status.COMPLETE}
        assert (await made.store.progress(event)).users == users
        fan_out = [row for row in await made.rows() if row["job_type"] == "announce"]
        assert [row["outcome"] for row in fan_out] == ["lost", "done"]


async def test_a_fan_out_that_resumes_doubles_nobody_although_the_audience_has_changed(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = lab(
        job_types__announce__fan_out={"to": "notify", "batch_size": 10, "page_size": 30},
        job_types__announce__retry={"max_attempts": 2, "backoff": "fixed", "delay_s": 0},
        providers__email__latency={"kind": "constant", "mean_s": 0.001},
    )
    advance, failures = Store.advance_fan_out, []

    async def fail_once(store: Store, event: int, job_type: str, cursor: int, *more: Any) -> None:
        if cursor == 60 and not failures:  # the second page is enqueued, and then the database is gone for a moment
            failures.append(cursor)
            await store.remove_users([35, 36])
            raise StoreError("gone")
        await advance(store, event, job_type, cursor, *more)

    monkeypatch.setattr(Store, "advance_fan_out", fail_once)
    async with system(topology, redis_url, tmp_path, 100) as made, made.worker():
        event = (await made.announcer.announce(title="Closed", patience_s=5)).event
        await made.drained()
        jobs = [job async for job in made.queue.iter_jobs() if job.function == "notify"]
        assert failures == [60]
        assert Counter(user for job in jobs for user in job.kwargs["users"]) == Counter(range(1, 101))
        progress = await made.store.progress(event)
        assert (progress.users, progress.sent, progress.failed, progress.fan_out_finished) == (100, 98, 2, True)


def over_smtp() -> Topology:
    return lab(
        job_types__announce__fan_out={"to": "notify", "batch_size": 25},
        job_types__notify__retry={"max_attempts": 20, "backoff": "fixed", "delay_s": 0.4},
    )


def message_ids(sink: SmtpSink) -> Counter[str]:
    return Counter(message.message_id for message in sink.messages)


@pytest.mark.row("000.20")
async def test_a_thousand_users_over_smtp_of_whom_some_are_refused_for_ever_and_some_for_a_while(
    redis_url: str, tmp_path: Path
) -> None:
    refused = {f"user{n}@users.example" for n in (7, 500, 1000)}
    put_off = {f"user{n}@users.example" for n in range(100, 140)}
    with SmtpSink(refuse=refused, defer_once=put_off, rate_per_s=600) as sink:
        async with (
            system(over_smtp(), redis_url, tmp_path, 1000) as made,
            made.processes(2, 4, SAQKIT_SMTP_URL=sink.url),
        ):
            event = (await made.announcer.announce(title="Closed", patience_s=5)).event

            async def ended() -> bool:
                return (await made.store.progress(event)).percent == 100

            await until(ended, 60)
            await made.drained()
            progress = await made.store.progress(event)
            assert (progress.users, progress.sent, progress.failed) == (1000, 997, 3)
            failures = await made.store.failures(event)
            assert {failure.email for failure in failures} == refused
            assert all("550 5.1.1 no such mailbox here" in failure.error for failure in failures)
            assert len(message_ids(sink)) == len(sink.messages) == 997
            assert {message.recipients[0] for message in sink.messages}.isdisjoint(refused)
            rows = await made.rows()
            assert sum(row["users_done"] for row in rows) == 997
            assert sum(row["users_failed"] for row in rows) == 3


@pytest.mark.row("003.11", "004.16")
async def test_a_worker_killed_amid_its_emails_repeats_few_and_skips_nobody(redis_url: str, tmp_path: Path) -> None:
    hurry = threading.Event()  # until the kill the server accepts 40 a second: a batch of each slot takes 2.5 s

    def accepted(_: Received) -> None:
        if not hurry.is_set():
            time.sleep(0.025)

    with SmtpSink(on_message=accepted) as sink:
        async with (
            system(over_smtp(), redis_url, tmp_path, 1000) as made,
            made.processes(1, 4, SAQKIT_SMTP_URL=sink.url) as launcher,
        ):
            event = (await made.announcer.announce(title="Closed", patience_s=5)).event

            async def under_way() -> bool:
                return len(sink.messages) >= 150

            await until(under_way)  # each slot is in the middle of its second batch
            launcher.kill(0)
            killed = time.time()
            hurry.set()

            async def ended() -> bool:
                return (await made.store.progress(event)).percent == 100

            await until(ended, 60)
            await made.drained()
            progress = await made.store.progress(event)
            assert (progress.users, progress.sent, progress.failed) == (1000, 1000, 0)
            ids = message_ids(sink)
            assert len(ids) == 1000
            # At most what the 4 slots sent in the last 100 ms (and 0.4 s for a busy machine to write it in), and what
            # each had under way; what they had sent of their batches is more than twice that.
            lately = sum(killed - 0.5 < message.at_unix < killed for message in sink.messages)
            assert len(sink.messages) - 1000 <= lately + 4 <= 4 * 12 / 1.5
            assert max(ids.values()) <= 2


async def attempts_on(made: System, users: Sequence[int], **providers: Any) -> list[Row]:
    """The attempts of one job for `users` on a worker in this process."""
    event = await made.store.announce(title="x", topic="job:notify", audience=Audience(), created_at=1.0)
    await made.store.mark_delivered([event.event_id])
    row = await made.store.event(event.event_id)
    assert row is not None
    async with made.worker(**providers):
        await made.queue.enqueue_many([new_job(made.topology, "notify", "job", row, list(users))])
        await made.drained()
    return await made.rows()


QUICK = {"providers__email__latency": {"kind": "constant", "mean_s": 0.001}}


async def test_who_is_gone_by_now_counts_as_failed(redis_url: str, tmp_path: Path) -> None:
    async with system(lab(**QUICK), redis_url, tmp_path, 10) as made:
        await made.store.remove_users([3])
        (row,) = await attempts_on(made, range(1, 13))
        assert (row["users"], row["users_done"], row["users_failed"]) == (12, 9, 3)
        assert [(f.user, f.error) for f in await made.store.failures(1)] == [(3, GONE), (11, GONE), (12, GONE)]


async def test_the_ledger_says_why_a_dead_jobs_users_were_not_served(redis_url: str, tmp_path: Path) -> None:
    topology = lab(
        **QUICK, providers__email__temporary_share=1.0,
        job_types__notify__retry={"max_attempts": 2, "backoff": "fixed", "delay_s": 0},
    )  # fmt: skip
    async with system(topology, redis_url, tmp_path, 5) as made:
        rows = await attempts_on(made, range(1, 6))
        assert [(row["outcome"], row["users_done"], row["users_failed"]) for row in rows] == [
            ("retry", 0, 0),
            ("dead", 0, 5),
        ]
        failures = await made.store.failures(1)
        assert [failure.user for failure in failures] == [1, 2, 3, 4, 5]
        assert all("try again later" in failure.error for failure in failures)


class Odd(RecordingProvider):
    """A provider that raises what no provider should, for one user, the first time."""

    async def send(self, email: Email) -> None:
        if email.user == 2 and email.attempt == 1:
            raise KeyError("surprise")
        await super().send(email)


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.row("000.19")
async def test_one_failing_user_never_stops_the_others(redis_url: str, tmp_path: Path, lanes: int) -> None:
    topology = lab(
        job_types__notify__send_concurrency=lanes,
        job_types__notify__retry={"max_attempts": 2, "backoff": "fixed", "delay_s": 0},
    )
    odd = Odd()
    async with system(topology, redis_url, tmp_path, 4) as made:
        rows = await attempts_on(made, [1, 2, 3, 4], email=odd)
    assert sorted(email.user for email in odd.sent) == [1, 2, 3, 4]
    assert [(row["outcome"], row["users"], row["users_done"]) for row in rows] == [("retry", 4, 3), ("done", 1, 1)]


async def test_a_message_is_named_after_its_channel(redis_url: str, tmp_path: Path) -> None:
    provider = RecordingProvider(sender="Odd <odd@sender.example>")
    async with system(lab(providers__email__channel="sms"), redis_url, tmp_path, 1) as made:
        await attempts_on(made, [1], email=provider)
        assert [email.message_id for email in provider.sent] == ["<e1.u1.sms@sender.example>"]
        assert await made.store.ended(1, [1], "email") == []
        assert [status for status, _ in await made.store.ended(1, [1], "sms")] == ["sent"]


async def test_a_timed_out_attempt_leaves_its_results_in_the_ledger_for_the_next(
    redis_url: str, tmp_path: Path
) -> None:
    class Slow(RecordingProvider):
        async def send(self, email: Email) -> None:
            if email.attempt == 1 and email.user == 4:
                await asyncio.sleep(30)
            await super().send(email)

    slow = Slow()
    topology = lab(
        job_types__notify__timeout_s=0.3,
        job_types__notify__retry={"max_attempts": 2, "backoff": "fixed", "delay_s": 0},
    )
    async with system(topology, redis_url, tmp_path, 5) as made:
        rows = await attempts_on(made, range(1, 6), email=slow)
    assert [email.user for email in slow.sent] == [1, 2, 3, 4, 5], "each once"
    assert [(row["users"], row["users_done"]) for row in rows] == [(5, 3), (2, 2)]
