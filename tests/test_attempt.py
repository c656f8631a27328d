"""The stopwatch counts the CPU of its own work: not what ran in between, and nothing is lost when it ends badly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

import pytest

from saqkit.app.attempt import Attempt, Stopwatch


def spin(seconds: float) -> None:
    """Use the thread's CPU for `seconds`, however long that takes on a busy machine."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def busy(seconds: float, rounds: int = 4) -> str:
    for _ in range(rounds):
        spin(seconds / rounds)
        await asyncio.sleep(0)
    return "done"


async def on(attempt: Attempt, work: Awaitable[str]) -> str:
    return await Stopwatch(attempt, work)


async def test_it_counts_its_own_work_and_returns_what_that_returns() -> None:
    attempt = Attempt({})
    assert await on(attempt, busy(0.04)) == "done"
    assert 0.04 <= attempt.cpu_s < 0.06


async def test_what_others_do_in_between_is_not_counted() -> None:
    mine, others = Attempt({}), Attempt({})
    await asyncio.gather(on(mine, busy(0.02)), on(others, busy(0.2)), busy(0.1))
    assert 0.02 <= mine.cpu_s < 0.04
    assert 0.2 <= others.cpu_s < 0.23


async def test_waiting_is_no_work() -> None:
    attempt = Attempt({})
    await Stopwatch(attempt, asyncio.sleep(0.1))
    assert attempt.cpu_s < 0.02


async def test_an_exception_passes_through_and_the_work_before_it_is_counted() -> None:
    attempt = Attempt({})

    async def fails() -> str:
        spin(0.01)
        await asyncio.sleep(0)
        spin(0.01)
        raise KeyError("no")

    with pytest.raises(KeyError, match="no"):
        await on(attempt, fails())
    assert 0.02 <= attempt.cpu_s < 0.04


async def test_an_exception_of_what_is_awaited_reaches_the_work() -> None:
    attempt, future = Attempt({}), asyncio.get_running_loop().create_future()

    async def handles() -> str:
        try:
            await future
        except ValueError:
            spin(0.01)
        return "handled"

    task = asyncio.create_task(on(attempt, handles()))
    await asyncio.sleep(0)
    future.set_exception(ValueError)
    assert await task == "handled"
    assert 0.01 <= attempt.cpu_s < 0.03


async def test_a_cancellation_reaches_the_work_and_its_last_words_are_counted() -> None:
    attempt, cleaned = Attempt({}), False

    async def cleans() -> str:
        nonlocal cleaned
        try:
            await asyncio.sleep(60)
        finally:
            spin(0.01)
            await asyncio.sleep(0)
            cleaned = True
        return ""

    task = asyncio.create_task(on(attempt, cleans()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned
    assert 0.01 <= attempt.cpu_s < 0.03


async def test_tasks_within_count_with_stopwatches_of_their_own() -> None:
    attempt = Attempt({})

    async def parent() -> str:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(on(attempt, busy(0.02)))
        spin(0.01)
        return "all"

    assert await on(attempt, parent()) == "all"
    assert 0.07 <= attempt.cpu_s < 0.1, "nothing is counted twice"


def test_closing_it_early_closes_the_work() -> None:
    attempt, closed = Attempt({}), []

    async def work() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            closed.append(True)
        return ""

    steps = Stopwatch(attempt, work()).__await__()
    loop = asyncio.new_event_loop()
    loop.call_soon(lambda: (next(steps), steps.close(), loop.stop()))
    loop.run_forever()
    loop.close()
    assert closed == [True]


def test_the_books_are_kept_in_the_claims_facts() -> None:
    facts: dict[str, object] = {}
    attempt = Attempt(facts, sample_every=10)
    attempt.begin(5, started_at=7.0)
    attempt.served(done=3)
    attempt.served(failed=1)
    with pytest.raises(OSError, match="gone"), attempt.database():
        raise OSError("gone")
    attempt.close()
    assert [facts[name] for name in ("users", "users_done", "users_failed", "started_at")] == [5, 3, 1, 7.0]
    assert [(user, kind) for user, kind, *_ in attempt.steps] == [(0, "database")]
    assert [user for user in range(30) if attempt.samples(user)] == [0, 10, 20]
