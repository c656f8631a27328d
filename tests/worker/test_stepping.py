"""CPU of a task's own steps: what runs in between does not count, and long steps are timed by the CPU clock."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from saqkit.recorder.stepping import ENOUGH, Pace, stepwise


def burn(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


async def test_what_runs_in_between_does_not_count() -> None:
    async def work() -> None:
        burn(0.02)
        await asyncio.sleep(0.05)
        burn(0.02)

    account, other, pace = SimpleNamespace(cpu_s=0.0), SimpleNamespace(cpu_s=0.0), Pace()
    await asyncio.gather(stepwise_task(account, work(), pace), stepwise_task(other, work(), pace))
    for one in (account, other):
        assert 0.039 < one.cpu_s < 0.06


async def stepwise_task(account: SimpleNamespace, work: object, pace: Pace) -> object:
    return await stepwise(account, work, pace)  # type: ignore[arg-type]


async def test_short_steps_are_timed_by_the_wall_clock_until_one_is_long() -> None:
    async def sleeps(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    account, pace = SimpleNamespace(cpu_s=0.0), Pace()
    assert await stepwise(account, sleeps(0.05), pace) == 0.05
    assert account.cpu_s < 0.02  # the CPU clock: to be held up costs nothing
    async with asyncio.timeout(20):
        while pace.clock is time.thread_time:
            await stepwise(account, sleeps(0), pace)
    assert pace.short == ENOUGH + 1
    account.cpu_s = 0.0
    await stepwise(account, sleeps(0.05), pace)
    assert account.cpu_s >= 0.05  # the one that the wall clock tells
    assert pace.clock is time.thread_time
    account.cpu_s = 0.0
    await stepwise(account, sleeps(0.05), pace)
    assert account.cpu_s < 0.02


async def test_errors_and_cancellation_pass_through() -> None:
    caught = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError as error:
            caught.append(error)
            raise

    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError("never")

    with pytest.raises(LookupError, match="never"):
        await stepwise(SimpleNamespace(cpu_s=0.0), fails(), Pace())
    task = asyncio.create_task(stepwise_task(SimpleNamespace(cpu_s=0.0), work(), Pace()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(caught) == 1
