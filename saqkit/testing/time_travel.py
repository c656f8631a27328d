"""Letting time pass for a queue, without waiting.

The queue's clock is the server's `TIME`, which cannot be set. So the time that is stored is moved instead: everything
that is written down of a queue's past and future moves back, and what would have been due after so many seconds is
due now. `advance.lua` lists what moves and what does not.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

from saqkit.errors import UsageError
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import FOLDER

SCRIPT = Path(__file__).with_name("advance.lua")


async def advance(queue: Queue, seconds: float) -> None:
    """Let `seconds` pass for a queue, in one step on the server; processes that wait for work are woken.

    Due times of scheduled jobs and retries, leases, the rate limit's window, the time that a key stays taken, the age
    of dead letters and of jobs, and every expiry move. Not moved: what was recorded of attempts that ended; times
    inside a job's own body (`job.queued`, `job.started`, `job.scheduled`); clocks of processes (a running function's
    timeout, a cron schedule, `time.time()`); places in the line. The server counts as having been up, and heard of,
    all the while.

    A job that runs meanwhile has its lease shortened as well, until its worker renews it (every third of a lease): so
    advance while nothing runs, or to see a lease expire. Raises `UsageError` for seconds that are not above zero.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"time cannot be moved by {seconds} s: give seconds above 0")
    await queue.redis.eval(_source(), len(queue.keys), *queue.keys, f"{seconds:.6f}")  # type: ignore[misc]  # typed for both clients


@cache
def _source() -> str:
    return (FOLDER / "keys.lua").read_text(encoding="utf-8") + SCRIPT.read_text(encoding="utf-8")
