"""From records to tables: whom a dead worker had served, and who is left when a job dies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saqkit.app.audience import Audience
from saqkit.app.store import SendResult, Store
from saqkit.worker.recording import Row, attempts_of, credit_lost, read, steps_of

META = {"event": 1, "event_at": 100.0, "parent": "announce:1", "tenant": "north"}


def record(outcome: str, taken_at: float, finished_at: float, attempt: int = 1, crashes: int = 0, **row: Any) -> Row:
    if outcome == "lost":  # the script has nothing but the job's body
        known: dict[str, Any] = {"function": "notify", "kwargs": {"event": 1, "users": [1, 2, 3, 4]}, "meta": META}
    else:
        known = {"function": "notify", "meta": META, "users": 4, "started_at": taken_at, "host": "h", **row}
    raw = [outcome, "job", f"{finished_at}", str(attempt), str(crashes), "3", "100.5", "100.6", f"{taken_at}", "w",
           json.dumps(known)]  # fmt: skip
    return read(json.dumps(raw).encode(), "notifications", "run-1")


async def ledger(folder: Path, **sent_at: tuple[str, float]) -> Store:
    store = await Store.open(f"sqlite:///{folder}/data.db")
    await store.add_numbered_users(4)
    await store.announce(title="x", topic="t", audience=Audience(), created_at=100.0)
    await store.begin_batch(1, [1, 2, 3, 4], "email")
    await store.record_results(
        [SendResult(1, int(u[1:]), "email", status, sent_at=at) for u, (status, at) in sent_at.items()]  # type: ignore[arg-type]
    )
    return store


def books(rows: list[Row]) -> list[tuple[int, int, int]]:
    return [(row["users"], row["users_done"], row["users_failed"]) for row in rows]


async def test_a_lost_attempt_is_credited_with_what_the_ledger_has_beyond_the_others(tmp_path: Path) -> None:
    rows = [record("lost", 101, 104, crashes=1), record("done", 105, 106, crashes=1, users=2, users_done=2)]
    # User 2's result was written by a worker that had lost its lease already: it belongs to the lost attempt too.
    async with await ledger(
        tmp_path, u1=("sent", 102), u2=("failed", 104.5), u3=("sent", 105), u4=("sent", 106)
    ) as store:
        await credit_lost(rows, store, lambda name: "email")
    assert books(rows) == [(4, 1, 1), (2, 2, 0)]


async def test_two_lost_attempts_share_by_time_and_nobody_counts_twice(tmp_path: Path) -> None:
    rows = [record("lost", 101, 104, crashes=1), record("lost", 105, 108, crashes=2),
            record("done", 109, 110, crashes=2, users=1, users_done=1)]  # fmt: skip
    async with await ledger(tmp_path, u1=("sent", 102), u2=("sent", 105), u3=("sent", 106), u4=("sent", 109)) as store:
        await credit_lost(rows, store, lambda name: "email")
    assert books(rows) == [(4, 1, 0), (3, 2, 0), (1, 1, 0)]


async def test_the_users_that_poison_leaves_have_failed(tmp_path: Path) -> None:
    rows = [record("lost", 101 + 4 * n, 104 + 4 * n, crashes=n + 1) for n in range(3)]
    async with await ledger(tmp_path, u1=("sent", 102)) as store:
        await credit_lost(rows, store, lambda name: "email")
    assert books(rows) == [(4, 1, 0), (3, 0, 0), (3, 0, 3)]


async def test_without_a_ledger_a_lost_attempt_has_served_nobody_who_counts(tmp_path: Path) -> None:
    rows = [record("retry", 101, 102, users_done=1), record("lost", 103, 104, attempt=2, crashes=1),
            record("done", 105, 106, attempt=2, crashes=1, users=3, users_done=3)]  # fmt: skip
    async with await ledger(tmp_path) as store:
        await credit_lost(rows, store, lambda name: "none")
    assert books(rows) == [(4, 1, 0), (3, 0, 0), (3, 3, 0)]


def test_who_is_left_when_a_job_dies_has_failed() -> None:
    assert books([record("dead", 101, 102, users_done=1, users_failed=1)]) == [(4, 1, 3)]


def test_times_are_seconds_since_the_first_event_and_in_order_whatever_the_clocks_say() -> None:
    table = attempts_of([record("done", 101, 102, started_at=102.0004), record("retry", 101, 101.5, started_at=100.9)])
    assert list(table["finished_at"]) == [1.5, 2.0]
    assert list(table["started_at"]) == [1.0, 2.0]
    assert (table["event_at"].iloc[0], table["queued_at"].iloc[0], table["tenant"].iloc[0]) == (0.0, 0.5, "north")
    assert "whom" not in table


def test_steps_are_thinned_evenly_and_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    lines = [
        json.dumps(["job", 1, [[user, "cpu", 0.0, 0.001], [user + 1, "cpu", 0.0, 0.001]]]) for user in range(0, 100, 2)
    ]
    (tmp_path / "w.1.steps").write_text("\n".join(lines) + '\n["job", 1, [[1')
    assert len(steps_of(tmp_path)) == 100
    assert list(steps_of(tmp_path, most=4)["user"]) == [0, 25, 50, 75]
