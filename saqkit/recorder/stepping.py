"""The CPU of one task's own steps, as cheaply as Python can take it: this runs in every job that is recorded."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from time import perf_counter, thread_time
from types import coroutine
from typing import Any, Protocol

LONG_S = 1e-4
"""A step up to here is rarely interrupted by another thread or process, so that its time is its CPU."""
ENOUGH = 20
"""So many short steps in a row, and the next ones are taken to be short as well."""


class HasCpu(Protocol):
    """Where the CPU of steps is added up."""

    cpu_s: float


class Pace:
    """How the steps of a function are timed: a thread's CPU clock costs ten times as much as the wall clock.

    So the wall clock times a function whose steps are short, and the CPU clock all others. A step that turns out to be
    long under the wall clock (it was interrupted, or it is a long one at last) counts with all its time, once.
    """

    __slots__ = ("clock", "short")

    def __init__(self) -> None:
        self.clock, self.short = thread_time, 0


@coroutine
def stepwise(account: HasCpu, work: Coroutine[Any, Any, Any], pace: Pace) -> Generator[Any, Any, Any]:
    """Await `work` and add the CPU time of its own steps to `account`, not what ran in between.

    A generator that awaits by itself: half the cost of `saqkit.app.attempt.Stopwatch`, which takes any awaitable.
    """
    resume, value = work.send, None
    while True:
        clock = pace.clock
        since = clock()
        try:
            waits_for = resume(value)
        except StopIteration as end:
            return end.value
        finally:
            took = clock() - since
            account.cpu_s += took
            if took > LONG_S:
                pace.clock, pace.short = thread_time, 0
            elif clock is thread_time:
                pace.short += 1
                if pace.short > ENOUGH:
                    pace.clock = perf_counter
        try:
            resume, value = work.send, (yield waits_for)
        except BaseException as error:
            resume, value = work.throw, error
