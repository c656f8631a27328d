"""The store, the same on SQLite and PostgreSQL: what it keeps, once, in which order, and how it refuses."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from saqkit.app.audience import Audience
from saqkit.app.store import GONE, Progress, Recipient, SendResult, Store, UserRow
from saqkit.errors import StoreError, UsageError


async def announce(store: Store, audience: Audience | None = None, **given: str) -> int:
    made = await store.announce(
        title="School closed", topic="event.created", audience=audience or Audience(), created_at=7.5, **given
    )
    return made.event_id


def sent(event: int, user: int, at: float = 9.0) -> SendResult:
    return SendResult(event, user, "email", "sent", message_id=f"<{event}.{user}@saqkit.example>", sent_at=at)


def refused(event: int, user: int, error: str = "550 no such user") -> SendResult:
    return SendResult(event, user, "email", "failed", error=error, sent_at=9.0)


# -- opening


async def test_reopening_finds_what_was_stored(store_url: str) -> None:
    async with await Store.open(store_url) as first:
        await first.add_users([UserRow("ada@school.example")])
    async with await Store.open(store_url) as second:
        assert await second.count_users() == 1


async def test_a_database_of_a_newer_saqkit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    await (await Store.open(f"sqlite:///{path}")).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE saqkit_schema SET version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"newer\.db: was made by a newer saqkit \(schema 99"):
        await Store.open(f"sqlite:///{path}")


async def test_somebody_elses_tables_are_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (login TEXT)")
    connection.close()
    with pytest.raises(StoreError, match='has a table "users" that saqkit did not make'):
        await Store.open(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("users",)]
    connection.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite", "is not the address of a database"),
        ("sqlite://", "in memory cannot be shared"),
        ("sqlite:///:memory:", "in memory cannot be shared"),
        ("mysql://localhost/school", 'kind "mysql" are not supported'),
        ("sqlite:///{folder}/none/store.db", "none does not exist; make it first"),
        ("sqlite:///{folder}", "is a folder"),
        ("sqlite:///{folder}/text.db", "is not an SQLite database"),
        ("postgresql://nobody:geheim@127.0.0.1:1/none", "is not reachable"),
    ],
)
async def test_a_wrong_address_is_refused_in_one_line(url: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("This is no database at all. " * 100)
    with pytest.raises(StoreError, match=message) as caught:
        await Store.open(url.format(folder=tmp_path))
    assert "\n" not in str(caught.value)
    assert "geheim" not in str(caught.value)


async def test_postgresql_without_its_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(StoreError, match=r"saqkit\[postgresql\]"):
        await Store.open("postgresql://localhost/school")


async def test_sqlite_is_opened_for_several_processes(tmp_path: Path) -> None:
    names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
    async with await Store.open(f"sqlite:///{tmp_path}/store.db") as store:
        found = await store._database.read(
            lambda connection: [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
        )
    assert found == ["wal", 1, 1, 10_000]


# -- users and audiences


async def test_people_are_unique_by_tenant_and_email(store: Store) -> None:
    ada = UserRow("ada@school.example", "Ada", "student", "north")
    assert await store.add_users([ada, UserRow("ada@school.example", "Ada", "teacher", "south")]) == 2
    assert await store.add_users([UserRow(ada.email, "Ada Lovelace", "teacher", "north"), UserRow("b@x.example")]) == 1
    assert await store.count_users() == 3
    assert await store.count_users(Audience(roles=("teacher",))) == 2
    event = await announce(store)
    batch = await store.begin_batch(event, [1], "email")
    assert batch.pending == [Recipient(1, "ada@school.example", "Ada Lovelace")]


async def test_none_of_the_numbered_users_is_added_where_none_is_wanted(store: Store) -> None:
    assert await store.add_numbered_users(0) == 0
    assert await store.count_users() == 0
    assert (await store.add_numbered_users(1), await store.add_numbered_users(0)) == (1, 0)
    assert await store.add_users([UserRow("late@school.example")]) == 1
    assert await store.audience_page(Audience(), 0, 10) == [1, 2]


async def test_numbered_users_are_quick_and_only_the_missing_ones_are_added(store: Store) -> None:
    started = time.perf_counter()
    assert await store.add_numbered_users(100_000) == 100_000
    assert time.perf_counter() - started < 10
    assert await store.remove_users([5, 99_999]) == 2
    assert await store.add_numbered_users(100_010) == 12
    assert await store.count_users(Audience(first_n=100_000)) == 100_000
    assert [await store.count_users(Audience(roles=(role,), first_n=1000)) for role in ("student", "parent")] == [
        600,
        300,
    ]
    # Somebody who comes later gets an id of their own.
    await store.add_users([UserRow("late@school.example")])
    assert await store.count_users() == 100_011


async def test_an_audience_is_paged_in_order_and_once(store: Store) -> None:
    await store.add_numbered_users(500)
    audience = Audience(roles=("parent", "teacher"), tenant="north")
    seen: list[int] = []
    while page := await store.audience_page(audience, seen[-1] if seen else 0, 17):
        assert len(page) <= 17
        seen += page
    assert seen == [n for n in range(1, 501) if n % 10 >= 6 and n % 3 == 1]
    assert len(seen) == await store.count_users(audience)


async def test_who_comes_and_goes_during_the_fan_out_neither_skips_nor_doubles_the_others(store: Store) -> None:
    await store.add_numbered_users(30)
    first = await store.audience_page(Audience(), 0, 10)
    await store.remove_users([3, 15])
    await store.add_users([UserRow("new@school.example")])
    second = await store.audience_page(Audience(), first[-1], 100)
    assert first == list(range(1, 11))
    assert second == [n for n in range(11, 32) if n != 15]


@pytest.mark.parametrize("audience", [Audience(), Audience(("student",), "north", 5)])
def test_an_audience_survives_json(audience: Audience) -> None:
    assert Audience.from_json(audience.to_json()) == audience


def test_an_audience_is_read_as_people_type_it() -> None:
    assert Audience.of("students, Parents,student") == Audience(("student", "parent"))
    assert Audience.of("all", "north") == Audience((), "north")
    with pytest.raises(UsageError, match='"studnet" is no role: did you mean "student"'):
        Audience.of("studnets")
    with pytest.raises(UsageError, match="the audience is empty"):
        Audience.of(" , ")
    with pytest.raises(UsageError, match="at least 1"):
        Audience(first_n=0)


# -- events and outbox


async def test_an_event_is_stored_with_its_outbox_row(store: Store) -> None:
    audience = Audience(("student",))
    made = await store.announce(title="T", body="B", topic="t", audience=audience, tenant="north", created_at=1.5)
    row = await store.event(made.event_id)
    assert row is not None
    assert (row.title, row.body, row.topic, row.tenant, row.created_at) == ("T", "B", "t", "north", 1.5)
    assert row.audience == Audience(("student",), "north")
    assert await store.undelivered() == [made.event_id]
    assert await store.event(made.event_id + 1) is None


async def test_delivered_events_leave_the_outbox(store: Store) -> None:
    made = [await announce(store) for _ in range(5)]
    assert await store.undelivered(limit=2) == made[:2]
    await store.mark_delivered([made[0], made[3]])
    assert await store.undelivered() == [made[1], made[2], made[4]]


async def test_a_known_key_returns_the_first_event(store: Store) -> None:
    async def once(tenant: str) -> tuple[int, bool]:
        made = await store.announce(
            title="T", topic="t", audience=Audience(), created_at=1.0, key="order-1", tenant=tenant
        )
        return made.event_id, made.new

    found = await asyncio.gather(*(once("north") for _ in range(8)))
    assert sorted(new for _, new in found) == [False] * 7 + [True]
    assert len({event for event, _ in found}) == 1
    assert (await once("south"))[1]  # a tenant's keys are its own
    assert len(await store.undelivered()) == 2


async def test_an_event_of_a_tenant_stays_in_the_tenant(store: Store) -> None:
    await store.add_numbered_users(9)
    event = await store.event(await announce(store, tenant="north"))
    assert event is not None
    assert await store.audience_page(event.audience, 0, 100) == [1, 4, 7]
    with pytest.raises(UsageError, match='"north" cannot reach people of tenant "south"'):
        await announce(store, Audience(tenant="south"), tenant="north")


async def test_a_title_with_a_line_break_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="line break"):
        await store.announce(title="Hi\r\nBcc: x@y.example", topic="t", audience=Audience(), created_at=1.0)
    assert await store.undelivered() == []


async def test_announcing_takes_the_same_for_any_audience(store: Store) -> None:
    await store.add_numbered_users(100_000)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        await announce(store)
        times.append(time.perf_counter() - started)
    assert statistics.median(times) < 0.05


# -- fan-out


async def test_a_fan_out_resumes_from_its_cursor_and_counts_a_repeated_page_once(store: Store) -> None:
    event = await announce(store)
    assert await store.fan_out_cursor(event, "announce") == 0
    await store.advance_fan_out(event, "announce", 1000, 10, 1000, False)
    await store.advance_fan_out(event, "announce", 1000, 10, 1000, False)
    await store.advance_fan_out(event, "announce", 500, 5, 500, False)
    assert await store.fan_out_cursor(event, "announce") == 1000
    assert await store.progress(event) == Progress(1000, 1000, 0, 0, 0.0, fan_out_finished=False)
    await store.advance_fan_out(event, "announce", 1000, 0, 0, True)
    await store.advance_fan_out(event, "announce", 1000, 0, 0, False)
    assert await store.progress(event) == Progress(1000, 1000, 0, 0, 0.0, fan_out_finished=True)
    await store.advance_fan_out(event, "texts", 10, 1, 10, False)
    assert not (await store.progress(event)).fan_out_finished


async def test_a_fan_out_of_an_unknown_event_is_refused(store: Store) -> None:
    with pytest.raises(StoreError) as caught:
        await store.advance_fan_out(404, "announce", 1, 1, 1, False)
    assert "\n" not in str(caught.value)


# -- ledger


async def test_a_batch_returns_those_who_are_still_pending(store: Store) -> None:
    await store.add_numbered_users(10)
    event = await announce(store)
    batch = [4, 2, 3, 2, 9]
    recipients = (await store.begin_batch(event, batch, "email")).pending
    assert [r.user for r in recipients] == [2, 3, 4, 9]
    assert recipients[0] == Recipient(2, "user2@users.example", "User 2")
    await store.record_results([refused(event, 9), sent(event, 2)])
    assert [r.user for r in (await store.begin_batch(event, batch, "email")).pending] == [3, 4]
    assert [r.user for r in (await store.begin_batch(event, batch, "sms")).pending] == [2, 3, 4, 9]
    assert await store.progress(event) == Progress(8, 6, 1, 1, 25.0, fan_out_finished=False)
    assert await store.begin_batch(event, [], "email") == ([], 0)


async def test_a_batch_may_be_larger_than_a_statement_has_parameters(store: Store) -> None:
    await store.add_numbered_users(40_000)
    event = await announce(store)
    assert len((await store.begin_batch(event, range(1, 40_001), "email")).pending) == 40_000


async def test_who_is_deleted_between_page_and_batch_is_left_out_and_accounted_for(store: Store) -> None:
    await store.add_numbered_users(5)
    event = await announce(store)
    await store.remove_users([2])
    batch = await store.begin_batch(event, [1, 2, 3], "email")
    assert ([r.user for r in batch.pending], batch.gone) == ([1, 3], 1)
    await store.remove_users([3])  # after the row was made
    await store.record_results([sent(event, 1)])
    assert await store.begin_batch(event, [1, 2, 3], "email") == ([], 1)
    assert [(f.user, f.email, f.error) for f in await store.failures(event)] == [(2, "", GONE), (3, "", GONE)]
    assert (await store.progress(event)).percent == 100.0


async def test_what_is_sent_stays_sent(store: Store) -> None:
    await store.add_numbered_users(3)
    event = await announce(store)
    await store.begin_batch(event, [1, 2, 3], "email")
    await store.record_results([sent(event, 1), refused(event, 2)])
    await store.record_results([refused(event, 1), refused(event, 2, "another reason")])
    assert await store.abandon(event, [1, 2], "email", "dead") == 0
    assert [(f.user, f.error) for f in await store.failures(event)] == [(2, "550 no such user")]
    await store.record_results([sent(event, 2)])  # a worker that was thought dead had sent it
    assert await store.progress(event) == Progress(3, 1, 2, 0, 200 / 3, fan_out_finished=False)


async def test_of_two_results_written_together_a_success_counts_else_the_first(store: Store) -> None:
    await store.add_numbered_users(3)
    event = await announce(store)
    await store.begin_batch(event, [1, 2, 3], "email")
    await store.record_results([refused(event, 3), sent(event, 3), refused(event, 1, "first"), refused(event, 1, "b")])
    assert [(f.user, f.error) for f in await store.failures(event)] == [(1, "first")]
    assert await store.progress(event) == Progress(3, 1, 1, 1, 200 / 3, fan_out_finished=False)


async def test_a_dead_job_is_abandoned_and_replayed(store: Store) -> None:
    await store.add_numbered_users(5)
    event = await announce(store)
    await store.begin_batch(event, [1, 2, 3], "email")
    await store.record_results([sent(event, 1)])
    # 4 and 5: the job died before it had begun them.
    assert await store.abandon(event, [1, 2, 3, 4, 5], "email", "worker lost three times") == 4
    failures = await store.failures(event)
    assert [(f.user, f.error) for f in failures] == [(n, "worker lost three times") for n in (2, 3, 4, 5)]
    assert await store.failures(event, limit=1) == failures[:1]
    assert await store.reopen(event, [1, 2, 3, 5], "email") == 3
    assert [r.user for r in (await store.begin_batch(event, [1, 2, 3, 4, 5], "email")).pending] == [2, 3, 5]


async def test_a_servers_odd_words_are_stored(store: Store) -> None:
    await store.add_numbered_users(1)
    event = await announce(store)
    await store.begin_batch(event, [1], "email")
    await store.record_results([refused(event, 1, "5\x0050 \udcff" + "x" * 10_000)])
    assert (await store.failures(event))[0].error == ("550 ?" + "x" * 10_000)[:500]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["begin", "sent", "failed", "abandon", "reopen"]), st.sets(st.integers(1, 6), min_size=1)
        ),
        max_size=12,
    )
)
async def test_any_order_of_steps_keeps_the_rules_of_the_ledger(
    store: Store, steps: list[tuple[str, set[int]]]
) -> None:
    await store.add_numbered_users(6)
    event = await announce(store)
    status: dict[int, str] = {}
    for step, users in steps:
        match step:
            case "begin":
                found = (await store.begin_batch(event, sorted(users), "email")).pending
                status = dict.fromkeys(users, "pending") | status
                assert [r.user for r in found] == [user for user in sorted(users) if status[user] == "pending"]
            case "sent":
                await store.record_results([sent(event, user) for user in users])
                status |= dict.fromkeys(users & status.keys(), "sent")
            case "failed":
                await store.record_results([refused(event, user) for user in users])
                status |= {user: "failed" for user in users if status.get(user) == "pending"}
            case "abandon":
                await store.abandon(event, sorted(users), "email", "dead")
                status |= {user: "failed" for user in users if status.get(user, "pending") == "pending"}
            case _:
                await store.reopen(event, sorted(users), "email")
                status |= {user: "pending" for user in users if status.get(user) == "failed"}
    progress = await store.progress(event)
    counts = [sum(value == kind for value in status.values()) for kind in ("pending", "sent", "failed")]
    assert [progress.pending, progress.sent, progress.failed] == counts


# -- concurrency


async def test_a_transaction_that_reads_before_it_writes_waits_for_its_turn(store_url: str) -> None:
    def school(name: str) -> list[UserRow]:
        return [UserRow(f"{n}@{name}.example") for n in range(200)]

    async with await Store.open(store_url) as one, await Store.open(store_url) as other:
        rounds = [(store, school(f"{n}-{who}")) for n in range(10) for who, store in (("one", one), ("other", other))]
        added = await asyncio.gather(*(store.add_users(rows) for store, rows in rounds))
        assert added == [200] * 20
        assert await one.count_users() == 4_000


async def test_tasks_of_one_process_share_the_pool(store: Store) -> None:
    await store.add_numbered_users(2_000)
    event = await announce(store)

    async def batch(first: int) -> None:
        users = range(first, first + 100)
        recipients = (await store.begin_batch(event, users, "email")).pending
        await store.record_results([sent(event, r.user) for r in recipients])

    # Every batch twice, at the same time: rows once.
    await asyncio.gather(*(batch(first) for first in range(1, 2_000, 100) for _ in range(2)))
    assert await store.progress(event) == Progress(2_000, 0, 2_000, 0, 100.0, fan_out_finished=False)


async def test_a_cancelled_transaction_leaves_nothing_and_blocks_nobody(store: Store) -> None:
    await store.add_numbered_users(100)
    event = await announce(store)
    for n in range(30):
        task = asyncio.create_task(store.begin_batch(event, range(1, 101), "email"))
        for _ in range(n):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len((await asyncio.wait_for(store.begin_batch(event, range(1, 101), "email"), 20)).pending) == 100


async def test_closing_waits_for_a_transaction_whose_caller_was_cancelled(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/store.db"  # the address of former days
    begun, go_on = threading.Event(), threading.Event()

    def slowly(connection: Connection) -> None:
        connection.execute(
            text("INSERT INTO users (email, name, role, tenant, active) VALUES ('a@x', '', '', '', TRUE)")
        )
        begun.set()
        assert go_on.wait(20)

    store = await Store.open(url)
    task = asyncio.create_task(store._database.write(slowly))
    assert await asyncio.to_thread(begun.wait, 20)
    waiting = asyncio.create_task(store.add_users([UserRow("b@x.example")]))
    await asyncio.sleep(0)
    for cancelled in (task, waiting):
        cancelled.cancel()
    await asyncio.wait([task, waiting], timeout=5)
    assert task.cancelled()
    assert waiting.cancelled()
    closing = asyncio.create_task(store.close())
    assert await store_is_locked(tmp_path / "store.db")
    assert not closing.done()
    go_on.set()
    await asyncio.wait_for(closing, 20)
    async with await Store.open(url) as reopened:
        assert await reopened.count_users() == 1  # what had begun is committed, what only waited is not


async def store_is_locked(path: Path) -> bool:
    """Whether a transaction is open that another connection would have to wait for."""

    def refused() -> bool:
        connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        finally:
            connection.close()
        return False

    return await asyncio.to_thread(refused)


async def test_a_lock_held_by_somebody_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saqkit.app.database.BUSY_TIMEOUT_S", 0.1)
    async with await Store.open(f"sqlite:///{tmp_path}/store.db") as store:
        holder = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"store\.db: locked by another process for more than 0\.1 s"):
            await announce(store)
        assert await store.undelivered() == []  # readers do not wait
        holder.execute("ROLLBACK")
        holder.close()
        await announce(store)
        assert len(await store.undelivered()) == 1
