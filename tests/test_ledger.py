"""The ledger writer: few transactions, nothing lost, nothing doubled, whatever the database does."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from saqkit.app.audience import Audience
from saqkit.app.ledger import Ledger
from saqkit.app.store import Progress, SendResult, Store
from saqkit.errors import StoreError

USERS = 200


class Counting(Store):
    """A real store that notes the size of every transaction of results."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.sizes: list[int] = []
        self.tries = 0

    async def record_results(self, results: Sequence[SendResult]) -> None:
        self.tries += 1
        await super().record_results(results)
        if results:
            self.sizes.append(len(results))


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Counting]:
    monkeypatch.setattr("saqkit.app.database.BUSY_TIMEOUT_S", 0.05)
    async with await Counting.open(f"sqlite:///{tmp_path}/store.db") as opened:
        await opened.add_numbered_users(USERS)
        made = await opened.announce(title="T", topic="t", audience=Audience(), created_at=1.0)
        assert made.event_id == 1
        await opened.begin_batch(1, range(1, USERS + 1), "email")
        yield opened


@pytest.fixture
def holder(tmp_path: Path) -> sqlite3.Connection:
    """Somebody else who takes the only writer's place."""
    return sqlite3.connect(tmp_path / "store.db", isolation_level=None)


def sent(user: int) -> SendResult:
    return SendResult(1, user, "email", "sent", f"<1.{user}@saqkit.example>", sent_at=2.0)


async def count(store: Store) -> int:
    return (await store.progress(1)).sent


async def until_written(store: Store, users: int) -> None:
    async with asyncio.timeout(20):
        while await count(store) < users:
            await asyncio.sleep(0.01)


async def test_flush_returns_when_everything_added_is_committed(store: Counting) -> None:
    ledger = Ledger(store, flush_every_s=60)
    await ledger.flush()  # nothing to do
    for user in range(1, 11):
        ledger.add(sent(user))
    assert ledger.unwritten == 10
    await ledger.flush()
    assert (await count(store), ledger.unwritten, store.sizes) == (10, 0, [10])
    await ledger.close()


@pytest.mark.row("004.13")
async def test_those_who_wait_share_a_transaction(store: Counting) -> None:
    ledger = Ledger(store, flush_every_s=60)

    async def slot(first: int) -> None:
        for user in range(first, first + 10):
            ledger.add(sent(user))
        await ledger.flush()

    await asyncio.gather(*(slot(first) for first in range(1, USERS, 10)))
    assert await count(store) == USERS
    assert len(store.sizes) <= 3
    await ledger.close()


async def test_results_are_written_without_a_flush(store: Counting) -> None:
    ledger = Ledger(store)
    started = time.perf_counter()
    for user in range(1, 6):
        ledger.add(sent(user))
    await until_written(store, 5)
    assert time.perf_counter() - started < 5
    assert store.sizes == [5]
    await ledger.close()


async def test_an_idle_ledger_does_nothing(store: Counting) -> None:
    ledger = Ledger(store, flush_every_s=0.01)
    ledger.add(sent(1))
    await ledger.flush()
    tries = store.tries
    await asyncio.sleep(0.2)
    assert store.tries == tries
    await ledger.close()


async def test_a_flush_waits_for_what_is_being_written(store: Counting, holder: sqlite3.Connection) -> None:
    holder.execute("BEGIN IMMEDIATE")
    ledger = Ledger(store, flush_every_s=0.01)
    ledger.add(sent(1))
    async with asyncio.timeout(20):
        while not store.tries:
            await asyncio.sleep(0.01)
    ledger.add(sent(2))
    flush = asyncio.create_task(ledger.flush())
    await asyncio.sleep(0.05)
    assert not flush.done()
    holder.execute("ROLLBACK")
    await asyncio.wait_for(flush, 20)
    assert await count(store) == 2
    await ledger.close()


@pytest.mark.row("004.13")
async def test_a_locked_database_is_tried_again_and_nothing_is_lost_or_doubled(
    store: Counting, holder: sqlite3.Connection
) -> None:
    ledger = Ledger(store, give_up_s=0.3)
    holder.execute("BEGIN IMMEDIATE")
    for user in range(1, 31):
        ledger.add(sent(user))
    with pytest.raises(StoreError, match=r"^30 results could not be written for 0\.3 s: .*locked by another process"):
        await ledger.flush()
    for user in range(31, 41):
        ledger.add(sent(user))
    assert ledger.unwritten == 40
    holder.execute("ROLLBACK")
    await until_written(store, 40)
    await ledger.flush()
    assert sum(store.sizes) == 40
    assert await store.progress(1) == Progress(USERS, USERS - 40, 40, 0, 20.0, fan_out_finished=False)
    await ledger.close()


@pytest.mark.row("003.8")
async def test_a_server_that_drops_its_connections_loses_nothing(postgres_url: str) -> None:
    async with await Store.open(postgres_url) as store:
        await store.add_numbered_users(USERS)
        await store.announce(title="T", topic="t", audience=Audience(), created_at=1.0)
        await store.begin_batch(1, range(1, USERS + 1), "email")
        ledger = Ledger(store, flush_every_s=60)
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        drop = f"SELECT pg_terminate_backend(pid) {others}"
        async with await Store.open(postgres_url) as other:
            dropped = await other._database.write(lambda connection: connection.exec_driver_sql(drop).scalars().all())
            assert dropped == [True]
        for user in range(1, 51):
            ledger.add(sent(user))
        await ledger.flush()
        assert await count(store) == 50
        await ledger.close()


async def test_a_cancelled_flush_harms_nobody(store: Counting) -> None:
    ledger = Ledger(store, flush_every_s=60)
    ledger.add(sent(1))
    cancelled = asyncio.create_task(ledger.flush())
    other = asyncio.create_task(ledger.flush())
    await asyncio.sleep(0)
    cancelled.cancel()
    await other
    assert cancelled.cancelled()
    assert await count(store) == 1
    await ledger.close()


async def test_close_writes_what_is_left(store: Counting) -> None:
    ledger = Ledger(store, flush_every_s=60)
    ledger.add(sent(7))
    await ledger.close()
    assert await count(store) == 1
    await Ledger(store).close()  # never used


async def test_close_says_what_it_could_not_write(store: Counting, holder: sqlite3.Connection) -> None:
    ledger = Ledger(store, give_up_s=0.2)
    holder.execute("BEGIN IMMEDIATE")
    ledger.add(sent(7))
    with pytest.raises(StoreError, match="1 results could not be written"):
        await ledger.close()
    holder.execute("ROLLBACK")
    await store.record_results([sent(8)])  # the connection is free again
    assert await count(store) == 1


async def test_a_result_of_another_kind_is_told_to_those_who_wait(store: Counting) -> None:
    ledger = Ledger(store, give_up_s=0.2)
    ledger.add("not a result")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="AttributeError"):
        await ledger.flush()
    with pytest.raises(StoreError):
        await ledger.close()


async def test_it_is_behind_while_the_database_takes_no_results(store: Counting, holder: sqlite3.Connection) -> None:
    ledger = Ledger(store, patience_s=0.3)
    holder.execute("BEGIN IMMEDIATE")
    ledger.add(sent(1))
    assert not ledger.behind
    async with asyncio.timeout(20):
        while not ledger.behind:
            ledger.add(sent(2))  # what comes later makes the first no younger
            await asyncio.sleep(0.01)
    holder.execute("ROLLBACK")
    await ledger.flush()
    assert not ledger.behind
    ledger.add(sent(3))
    assert not ledger.behind
    await ledger.close()
