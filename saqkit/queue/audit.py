"""Is every job in exactly one place?"""

from __future__ import annotations

from dataclasses import dataclass

from saqkit.queue.live_jobs import stored_keys
from saqkit.queue.queue import Queue


@dataclass(frozen=True)
class Audit:
    """How many jobs are where, and what is wrong (empty: nothing)."""

    queued: int
    scheduled: int
    active: int
    dead: int
    problems: tuple[str, ...]
    outgoing: int = 0


async def audit(queue: Queue) -> Audit:
    """Check the invariants of a queue's keys, also while it works.

    First, in one script call, from the lines: is each job that one names there, in that state, and in no other (this
    reads every waiting job, so mind the size)? Then, in pages, from the jobs: is each that has not ended named by the
    line of its state, or is it lost? The jobs of a page and their lines are read in one step, so that no job in motion
    is taken for a lost one.
    """
    queued, scheduled, active, dead, outgoing, *problems = await queue.run_script("audit")
    async for names in stored_keys(queue):
        problems += await queue.run_script("audit", *names)
    found = tuple(dict.fromkeys(problem.decode(errors="replace") for problem in problems))
    return Audit(queued, scheduled, active, dead, found, outgoing)
