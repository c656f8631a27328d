"""Numbers that the model shares with the queue and its database, which it may not import."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from saqkit.app import database
from saqkit.app.audience import Audience
from saqkit.app.store import SendResult, Store
from saqkit.queue import enqueueing, taking
from sim.engine import feed, model, parts
from sim.engine.fast import kernel


def test_both_engines_count_with_the_numbers_of_the_queue() -> None:
    assert model.ENQUEUE_CHUNK == kernel.CHUNK == enqueueing.CHUNK
    assert feed.EARLY_S == kernel.EARLY_S == taking.EARLY_S


def test_both_engines_count_with_the_same_numbers() -> None:
    assert (feed.SHORTEST_S, feed.BLOCKING_S) == (kernel.SHORTEST_S, kernel.BLOCKING_S)
    assert (parts.FLUSH_EVERY_S, parts.COLD_AFTER_S) == (kernel.FLUSH_EVERY_S, kernel.COLD_AFTER_S)
    assert (parts.GATHERING, parts.OPENING, parts.WRITING) == (kernel.GATHERING, kernel.OPENING, kernel.WRITING)
    assert (parts.IN_SQLITE, parts.IN_SQLITE_ROW) == (kernel.IN_SQLITE, kernel.IN_SQLITE_ROW)


async def test_sqlite_does_as_much_of_a_transaction_without_the_interpreter_as_the_model_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By processor time of the thread that writes: within SQLite's calls, and in all."""
    within_s, began, found = 0.0, 0.0, []
    in_thread = database._in_thread

    def timed(*told: Any) -> Any:
        nonlocal within_s
        within_s, since = 0.0, time.thread_time()
        result = in_thread(*told)
        found.append((within_s, time.thread_time() - since))
        return result

    def begins(*_: Any) -> None:
        nonlocal began
        began = time.thread_time()

    def ends(*_: Any) -> None:
        nonlocal within_s
        within_s += time.thread_time() - began

    monkeypatch.setattr(database, "_in_thread", timed)
    sizes = np.tile([5, 60, 150], 10)
    async with await Store.open(f"sqlite:///{tmp_path}/store.db") as store:
        engine: Any = store.database._engine
        commit = engine.dialect.do_commit
        monkeypatch.setattr(engine.dialect, "do_commit", lambda connection: (begins(), commit(connection), ends()))
        event.listen(engine, "before_cursor_execute", begins)
        event.listen(engine, "after_cursor_execute", ends)
        await store.add_numbered_users(int(sizes.sum()))
        await store.announce(title="T", topic="t", audience=Audience(), created_at=1.0)
        found.clear()
        for first, size in zip(np.cumsum(sizes) - sizes + 1, sizes, strict=True):
            users = range(int(first), int(first + size))
            await store.begin_batch(1, users, "email")
            await store.record_results([SendResult(1, user, "email", "sent", "<1>", sent_at=2.0) for user in users])
    both_s = np.array(found).reshape(len(sizes), 2, 2).sum(axis=1)  # of a batch: its opening and its results
    medians_s = [np.median(both_s[sizes == size], axis=0) for size in (5, 60, 150)]
    per_row, fixed = np.polyfit([5, 60, 150], medians_s, 1)
    assert 0.5 * parts.IN_SQLITE < fixed[0] / fixed[1] < 1.7 * parts.IN_SQLITE
    assert 0.7 * parts.IN_SQLITE_ROW < per_row[0] / per_row[1] < 1.3 * parts.IN_SQLITE_ROW
