"""A database that is locked or full in the middle of a batch, a mail server that takes an email and then hangs."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from measured import lab
from sqlalchemy import event as sqlalchemy_event

from saqkit import Topology
from saqkit.app.announcing import Announcer, new_job
from saqkit.app.audience import Audience
from saqkit.app.handlers import Application, after_process
from saqkit.app.ledger import Ledger
from saqkit.app.mail import Email, build_providers
from saqkit.app.mail.smtp import Smtp
from saqkit.app.store import Store
from saqkit.errors import StoreError
from saqkit.queue.building import build_queues
from saqkit.spec.overriding import override
from saqkit.testing import RecordingProvider, SmtpSink
from saqkit.testing.smtp_sink import Received
from saqkit.worker.worker import Worker

USERS = 300


def topology(lanes: int = 1) -> Topology:
    """One batch of all users."""
    return lab(
        job_types__announce__fan_out={"to": "notify", "batch_size": USERS},
        job_types__notify__send_concurrency=lanes,
        job_types__notify__retry={"max_attempts": 3, "backoff": "fixed", "delay_s": 0.1},
    )


class Steady(RecordingProvider):
    """Takes 10 ms for an email; calls `at_tenth` with the tenth."""

    def __init__(self, at_tenth: Callable[[], object]) -> None:
        super().__init__()
        self.at_tenth = at_tenth

    async def send(self, email: Email) -> None:
        await asyncio.sleep(0.01)
        await super().send(email)
        if len(self.sent) == 10:
            self.at_tenth()


@asynccontextmanager
async def working(
    plan: Topology, url: str, folder: Path, users: int = USERS, **providers: Any
) -> AsyncIterator[tuple[Announcer, Application]]:
    """A worker in this process, and who announces."""
    queues = build_queues(plan, url)
    store = await Store.open(f"sqlite:///{folder}/data.db")
    await store.add_numbered_users(users)
    application = Application(plan, store, queues, build_providers(plan, 0) | providers)
    worker = Worker(queues, dict(application.functions()), dict.fromkeys(queues, 2), name="w",
                    context={"application": application}, after_process=after_process)  # fmt: skip
    task = asyncio.create_task(worker.run())
    try:
        yield application.announcer, application
    finally:
        worker.stop()
        await asyncio.wait_for(task, 40)
        for queue in queues.values():
            await queue.disconnect()
        await application.close()


async def ended(store: Store, event_id: int) -> None:
    """Wait until everybody was told, or is known not to be."""
    async with asyncio.timeout(40):
        while (await store.progress(event_id)).percent < 100:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("lanes", [1, 4])
async def test_nothing_is_sent_while_the_database_takes_no_results(redis_url: str, tmp_path: Path, lanes: int) -> None:
    held = sqlite3.connect(tmp_path / "data.db", isolation_level=None)
    post = Steady(lambda: held.execute("BEGIN IMMEDIATE"))
    async with working(topology(lanes), redis_url, tmp_path, email=post) as (announcer, application):
        made = await announcer.announce(title="Closed", patience_s=5)
        async with asyncio.timeout(20):
            while not application.ledger.behind:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # what was under way arrives
        then = len(post.sent)
        assert 10 <= then < USERS / 1.5, "within half a second"
        await asyncio.sleep(1.0)
        assert len(post.sent) == then
        assert application.ledger.unwritten >= then - 10, "all that would be repeated if the process died now"
        held.execute("ROLLBACK")
        held.close()
        await ended(application.store, made.event)
        progress = await application.store.progress(made.event)
        assert (progress.sent, progress.failed) == (USERS, 0)
    assert Counter(email.user for email in post.sent) == Counter(range(1, USERS + 1)), "each once"


async def test_a_batch_whose_results_cannot_be_written_fails_in_words_that_say_so(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saqkit.app.database.BUSY_TIMEOUT_S", 0.1)
    held = sqlite3.connect(tmp_path / "data.db", isolation_level=None)
    post = Steady(lambda: held.execute("BEGIN IMMEDIATE"))

    class Impatient(Ledger):
        """Gives up soon; the database is back as soon as it has."""

        async def flush(self) -> None:
            try:
                await super().flush()
            except StoreError:
                if held.in_transaction:
                    held.execute("ROLLBACK")
                raise

    plan = override(topology(lanes=4), {"job_types.notify.retry.max_attempts": 1})
    async with working(plan, redis_url, tmp_path, email=post) as (announcer, application):
        application.ledger = Impatient(application.store, give_up_s=0.3, patience_s=0.1)
        made = await announcer.announce(title="Closed", patience_s=5)
        await ended(application.store, made.event)
        progress = await application.store.progress(made.event)
        assert (progress.sent, progress.sent + progress.failed) == (len(post.sent), USERS)
        reasons = {failure.error for failure in await application.store.failures(made.event, USERS)}
        assert len(reasons) == 1
        assert "results could not be written for 0.3 s" in reasons.pop()
    held.close()


async def test_a_job_that_dies_while_the_database_is_locked_is_in_the_ledger_once_it_is_not(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saqkit.app.database.BUSY_TIMEOUT_S", 0.1)
    plan = lab(job_types__notify__retry={"max_attempts": 1, "backoff": "fixed", "delay_s": 0})
    async with working(plan, redis_url, tmp_path, 10) as (_, application):
        store, queue = application.store, application.queues["notifications"]
        made = await store.announce(title="x", topic="job:notify", audience=Audience(), created_at=1.0)
        await store.mark_delivered([made.event_id])
        event = await store.event(made.event_id)
        assert event is not None
        held = sqlite3.connect(tmp_path / "data.db", isolation_level=None)
        held.execute("BEGIN IMMEDIATE")
        await queue.enqueue_many([new_job(plan, "notify", "job", event, [1, 2, 3])])
        async with asyncio.timeout(20):
            while not await queue.redis.zcard(queue.namespace("dead")):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)  # the ledger is told in vain meanwhile
        held.execute("ROLLBACK")
        held.close()
        await ended(store, made.event_id)
        failures = await store.failures(made.event_id)
        assert [failure.user for failure in failures] == [1, 2, 3]
        assert all("locked by another process" in failure.error for failure in failures)


@contextmanager
def full(store: Store) -> Iterator[Callable[[bool], None]]:
    """Set whether the database is full: SQLite gets no page more than it has."""
    engine: Any = store.database._engine
    is_full = False

    def limit(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {1 if is_full else 1_000_000}")  # never below what is there

    def fill(now: bool) -> None:
        nonlocal is_full
        is_full = now

    sqlalchemy_event.listen(engine, "checkout", limit)
    try:
        yield fill
    finally:
        sqlalchemy_event.remove(engine, "checkout", limit)


async def test_a_full_database_refuses_in_one_line_and_takes_it_once_there_is_room(
    redis_url: str, tmp_path: Path
) -> None:
    post = RecordingProvider()
    async with working(topology(), redis_url, tmp_path, email=post) as (announcer, application):
        with full(application.store) as fill:
            fill(True)
            large: dict[str, Any] = {"title": "Closed", "body": "x" * 100_000, "key": "k", "patience_s": 5}
            with pytest.raises(StoreError, match=r"^[^\n]*data\.db: database or disk is full$"):
                await announcer.announce(**large)
            fill(False)
            made = await announcer.announce(**large)
            assert made.new, "what was refused has left nothing behind"
            await ended(application.store, made.event)
    assert Counter(email.user for email in post.sent) == Counter(range(1, USERS + 1))


async def test_a_database_that_is_full_in_the_middle_of_a_batch_gets_the_rest_once_there_is_room(
    redis_url: str, tmp_path: Path
) -> None:
    post = Steady(lambda: None)
    async with working(topology(), redis_url, tmp_path, email=post) as (announcer, application):
        with full(application.store) as fill:
            post.at_tenth = lambda: fill(True)
            made = await announcer.announce(title="Closed", patience_s=5)
            async with asyncio.timeout(20):
                while not application.ledger.behind:
                    await asyncio.sleep(0.01)
            with pytest.raises(StoreError, match="database or disk is full"):
                await application.store.abandon(made.event, range(1, 2000), "another channel", "x" * 100)
            fill(False)
            await ended(application.store, made.event)
            assert (await application.store.progress(made.event)).sent == USERS
    assert Counter(email.user for email in post.sent) == Counter(range(1, USERS + 1)), "each once"


async def test_an_email_whose_answer_never_comes_is_sent_again_under_its_message_id(
    redis_url: str, tmp_path: Path
) -> None:
    hung: list[str] = []

    def hang(received: Received) -> None:
        if received.recipients[0] == "user2@users.example" and not hung:
            hung.append(received.message_id)
            time.sleep(1.0)  # it has the message, and says so when nobody listens any more

    plan = lab(
        job_types__announce__fan_out={"to": "notify", "batch_size": 5},
        job_types__notify__retry={"max_attempts": 10, "backoff": "fixed", "delay_s": 0.3},
    )
    with SmtpSink(on_message=hang) as sink:
        spec = plan.providers["email"].model_copy(update={"kind": "smtp", "url": sink.url, "timeout_s": 0.4})
        async with working(plan, redis_url, tmp_path, 20, email=Smtp("email", spec)) as (announcer, application):
            made = await announcer.announce(title="Closed", patience_s=5)
            await ended(application.store, made.event)
            progress = await application.store.progress(made.event)
            assert (progress.sent, progress.failed) == (20, 0)
        ids = Counter(message.message_id for message in sink.messages)
        assert len(ids) == 20
        assert hung[0] in {name for name, times in ids.items() if times > 1}, "the one whose answer was not waited for"
