"""What became of every job, judged after a full drain as Jepsen's total-queue checker does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from a_worker_of_chaos import insist
from saq.job import Status

from saqkit.queue.audit import audit
from saqkit.queue.dead_letters import dead_letters
from saqkit.queue.fault_sites import tally
from saqkit.queue.queue import Queue

Tell = Callable[..., None]
"""The fixture `tell`: adds a row to the audit table."""


@dataclass
class Promise:
    """What was enqueued: whether it is meant to die, may be cancelled, was replayed so that it does not die, or may be
    forgotten by an operator, because it waits or is done.
    """

    dies: bool = False
    cancelled: bool = False
    cured: bool = False
    swept: bool = False


@dataclass
class Account:
    """Counts of jobs, but `doubled`: executions with an effect beyond the first of their job.

    `recovered`: jobs whose enqueueing was not answered at first, and which are there. `unexpected`: jobs that ended in
    a way that nobody asked for, or effects without a job, in words.
    """

    accepted: int = 0
    done: int = 0
    dead: int = 0
    poison: int = 0
    cancelled: int = 0
    forgotten: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: int = 0
    recovered: int = 0
    unexpected: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: Account) -> Account:
        ours, theirs = vars(self), vars(other)
        counts = Counter(self.counts) + Counter(other.counts)
        return Account(**{name: ours[name] + theirs[name] for name in ours if name != "counts"}, counts=dict(counts))

    def row(self, **more: Any) -> dict[str, Any]:
        """A row of the audit table."""
        return {
            "accepted": self.accepted,
            "done": self.done,
            "dead": self.dead,
            "cancelled": self.cancelled,
            "lost": len(self.lost),
            "doubled": self.doubled,
            "unexpected": len(self.unexpected),
            "recovered": self.recovered,
            "leases lost": self.counts.get("lost", 0),
            "fenced": self.counts.get("fenced", 0),
            **more,
        }


async def account(queue: Queue, promises: dict[str, Promise], effects: Path, recovered: int = 0) -> Account:
    """Judge a queue that is drained. `promises` by key: all that was accepted, each with `ttl=0`."""
    found = Account(accepted=len(promises), recovered=recovered)
    ran = Counter(effects.read_text(encoding="utf-8").split() if effects.exists() else ())
    found.doubled = sum(times - 1 for times in ran.values())
    found.unexpected += [f"{key}: an effect, but no job" for key in ran if key not in promises]
    crashed = {letter.key async for letter in dead_letters(queue, limit=100_000) if letter.crashes >= 3}
    async for key, status in _endings(queue, promises):
        promise, times = promises[key], ran[key]
        if status == Status.COMPLETE:
            found.done += 1
            if (promise.dies and not promise.cured) or not times:
                found.unexpected.append(f"{key}: done, with {times} effects")
        elif status == Status.FAILED:
            found.dead += 1
            found.poison += key in crashed
            if key not in crashed and (not promise.dies or times):
                found.unexpected.append(f"{key}: dead, with {times} effects")
        elif status == Status.ABORTED:
            found.cancelled += 1
            if not promise.cancelled:
                found.unexpected.append(f"{key}: cancelled")
        elif status is None and promise.swept:
            found.forgotten += 1
        else:
            found.lost.append(f"{key}: {status}")
    raw: Any = await queue.redis.hgetall(queue.namespace("counts"))  # type: ignore[misc]
    found.counts = {name.decode(): int(value) for name, value in raw.items()}
    return found


async def _endings(queue: Queue, keys: Iterable[str]) -> Any:
    listed = list(keys)
    for start in range(0, len(listed), 1000):
        part = listed[start : start + 1000]
        for key, job in zip(part, await queue.jobs(part), strict=True):
            yield key, job.status if job else None


async def sound(queue: Queue) -> None:
    """Assert that every job is in exactly one place."""
    problems = (await insist(audit, queue)).problems
    assert problems == ()


def hits(log: Path) -> dict[str, int]:
    """How many faults happened at each site."""
    found = {site: sum(counts.values()) - counts["visits"] for site, counts in tally(log).items()}
    return {site: number for site, number in sorted(found.items()) if number}


def actions(log: Path) -> Counter[str]:
    """How often each action happened."""
    total: Counter[str] = Counter()
    for counts in tally(log).values():
        total.update(counts)
    del total["visits"]
    return total
