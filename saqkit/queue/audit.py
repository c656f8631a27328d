"""Is every job in exactly one place?"""

from __future__ import annotations

from dataclasses import dataclass

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
    """Check the invariants of a queue's keys in one script call; it reads every waiting job, so mind the size."""
    queued, scheduled, active, dead, outgoing, *problems = await queue.run_script("audit")
    return Audit(queued, scheduled, active, dead, tuple(problem.decode() for problem in problems), outgoing)
