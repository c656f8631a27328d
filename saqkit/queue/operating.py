"""What operators do to a queue: pause it, clear it, cancel, hasten and forget jobs, retry dead letters, set its slots.

Each call is a script call, or, where it means many jobs, one for each chunk of them: a chunk is one atomic step, and
after an interruption the call can be repeated for the rest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from saqkit.errors import UsageError
from saqkit.queue.live_jobs import ALL, LIVE, PAGE, LiveJob, Which, ended_jobs, live_jobs, stored
from saqkit.queue.stored import StoredJobs
from saqkit.spec.base import did_you_mean

if TYPE_CHECKING:
    from saqkit.queue.dead_letters import Chosen
    from saqkit.queue.following import Courier
    from saqkit.queue.letter import Filter
    from saqkit.queue.queue import Queue

T = TypeVar("T")

CLEANED = ("done", "cancelled", "dead")
MOST_RECORDED = 100_000
CHUNK = 250
"""So many jobs are changed by one script: a thousand would hold a small server up for tens of milliseconds."""


@dataclass(frozen=True)
class Pause:
    """A queue is paused: since when (epoch seconds of the broker's clock, NaN: unknown), by whom and why."""

    since: float
    by: str = ""
    reason: str = ""

    @classmethod
    def of(cls, stored: bytes | None) -> Pause | None:
        """What is stored of a pause."""
        if not stored:
            return None
        since, blank, facts = stored.decode().partition(" ")
        return cls(float(since), **json.loads(facts)) if blank else cls(float("nan"))


@dataclass(frozen=True)
class Picked:
    """What an operation did to the jobs that were meant: how many were `found`, and to how many it is `done`.

    `counts`: of those it was done to (in a dry run: of those found), by (state, function, priority).
    """

    found: int
    done: int
    counts: Counter[tuple[str, str, int]] = field(default_factory=Counter)

    @classmethod
    def of(cls, found: Sequence[LiveJob], done: Sequence[LiveJob] | None = None) -> Picked:
        """Of jobs that were found, and (not in a dry run) those to which it is done."""
        counted = found if done is None else done
        counts = Counter((job.state, job.function, job.priority) for job in counted)
        return cls(len(found), len(done or ()), counts)

    def __add__(self, other: Picked) -> Picked:
        return Picked(self.found + other.found, self.done + other.done, self.counts + other.counts)

    def rows(self) -> list[dict[str, Any]]:
        """The counts as records: `state function priority jobs`."""
        names = ("state", "function", "priority")
        return [dict(zip(names, by, strict=True)) | {"jobs": n} for by, n in sorted(self.counts.items())]


class OperatedJobs(StoredJobs):
    """The operators' half of a queue; see `Queue`."""

    courier: Courier

    # --- the queue as a whole ----------------------------------------------------------------------------------------

    async def pause(self, reason: str = "", by: str = "") -> bool:
        """Let nothing be taken until `resume`; returns whether it was paused before.

        What runs ends as usual, and jobs can be enqueued. `reason` and `by` are shown by statistics and health.
        """
        facts = json.dumps({"by": by, "reason": reason}, ensure_ascii=False)
        return bool(await self.run_script("steer", "paused", facts))

    async def resume(self) -> bool:
        """Let jobs be taken again, at once. Whether it was paused."""
        return bool(await self.run_script("steer", "paused", ""))

    async def pause_of(self) -> Pause | None:
        """Since when the queue is paused, by whom and why; None if it is not."""
        return Pause.of(await self.redis.get(self.namespace("paused")))

    async def set_slots(self, slots: int | None) -> int | None:
        """Let every process of `saqkit worker` have so many slots for this queue, from now on and when it is restarted.

        None: as many as it was started with. Running processes follow within five seconds; where there are fewer
        slots than jobs run, those end first. Returns what was set before. `UsageError` for less than 1.
        """
        if slots is not None and (type(slots) is not int or slots < 1):
            raise UsageError(f"queue {self.name}: {slots} slots would take nothing (give 1 or more, or pause it)")
        before = await self.run_script("steer", "slots", "" if slots is None else slots)
        return int(before) if before else None

    async def slots(self) -> int | None:
        """What `set_slots` has set, None if nothing."""
        found = await self.line.call("GET", self.namespace("slots"))  # each worker asks: over what it has open anyway
        return int(found) if found else None

    async def record_attempts(self, keep: int | None = 10_000) -> None:
        """Record every attempt that ends, and keep the last `keep` of them, for the percentiles of `statistics`.

        None: record no longer, and forget those recorded. `UsageError` unless 2 <= keep <= 100,000, or where a measured
        run records all of its attempts.
        """
        if keep is not None and (type(keep) is not int or not 2 <= keep <= MOST_RECORDED):
            raise UsageError(f"queue {self.name}: {keep} attempts cannot be kept (2 to {MOST_RECORDED:,})")
        if await self.run_script("steer", "recording", "" if keep is None else keep) == b"1":
            raise UsageError(f"queue {self.name}: a measured run records all its attempts (wait until it is over)")

    # --- chosen jobs -------------------------------------------------------------------------------------------------

    async def clear(self, which: Which = ALL, *, dry_run: bool = False) -> Picked:
        """Cancel the waiting and delayed jobs that `which` means, and forget them; those that run are left alone.

        Jobs that are enqueued after this began stay. They count as aborted. With `dry_run` they are only counted.
        """
        which = replace(which, states=[state for state in which.states if state != "active"])
        return await self._cancel_chosen(which, "cleared", None, dry_run)

    async def cancel_jobs(
        self, which: Which = ALL, *, reason: str = "cancelled", grace_s: float = 5.0, dry_run: bool = False
    ) -> Picked:
        """Cancel the jobs that `which` means, also those that run: their worker stops them when it next renews.

        `grace_s`: for at most so long the key of a job that was running stays taken, until its worker has stopped it.
        """
        return await self._cancel_chosen(which, reason, grace_s, dry_run)

    async def cancel_keys(self, keys: Iterable[str], *, reason: str = "cancelled", grace_s: float = 5.0) -> Picked:
        """Cancel the jobs of keys, waiting, delayed or running.

        `UsageError`, and nothing is cancelled, if there is no job of a key, or it has ended. One that ends in this very
        moment is found but not done.
        """
        return await self.cancel_these(await self._held(keys, LIVE, "cancelled"), reason, grace_s)

    async def _cancel_chosen(self, which: Which, reason: str, grace_s: float | None, dry_run: bool) -> Picked:
        said = Picked(0, 0)
        async for page in _in_pages(live_jobs(self, which)):
            said += Picked.of(page) if dry_run else await self.cancel_these(page, reason, grace_s)
        return said

    async def cancel_these(self, jobs: Sequence[LiveJob], reason: str, grace_s: float | None) -> Picked:
        """Cancel jobs that were found, and none enqueued later with the key of one.

        Without a grace: only those that wait, and nothing is kept of them.
        """
        done: list[LiveJob] = []
        for page in _chunks(jobs):
            ends = [(job.ttl, grace_s) if grace_s is not None else (-1, -1) for job in page]
            facts = [(job.key, reason, ttl, "", "", grace, job.call)
                     for job, (ttl, grace) in zip(page, ends, strict=True)]  # fmt: skip
            said = await self.run_script("cancel", *(part for job in facts for part in job))
            done += [job for job, was in zip(page, said, strict=True) if was]
        if done:
            self.courier.go()  # their batches may have called back into another queue
        return Picked.of(jobs, done)

    async def hasten_keys(self, keys: Iterable[str]) -> Picked:
        """Promote delayed jobs, and retries that wait for their delay, now: they join the end of their lines.

        `UsageError`, and nothing is done, if a job is not delayed.
        """
        return await self.hasten_these(await self._held(keys, ("delayed",), "promoted"))

    async def hasten_jobs(self, which: Which = ALL, *, dry_run: bool = False) -> Picked:
        """Promote the delayed jobs that `which` means now: they join the end of their lines, the next due first."""
        said = Picked(0, 0)
        async for page in _in_pages(live_jobs(self, replace(which, states=("delayed",)))):
            said += Picked.of(page) if dry_run else await self.hasten_these(page)
        return said

    async def hasten_these(self, jobs: Sequence[LiveJob]) -> Picked:
        """Promote jobs that were found, if they are still delayed, and none enqueued later with the key of one."""
        done: list[LiveJob] = []
        for page in _chunks(jobs):
            said = await self.run_script("hasten", *(part for job in page for part in (job.key, job.call)))
            done += [job for job, yes in zip(page, said, strict=True) if yes]
        return Picked.of(jobs, done)

    async def _held(self, keys: Iterable[str], states: Sequence[str], what: str) -> list[LiveJob]:
        return (await jobs_of_keys([self], keys, states, what)).get(self.name, [])

    # --- jobs that have ended ----------------------------------------------------------------------------------------

    async def clean(self, state: str, older_than_s: float = 0.0, *, dry_run: bool = False) -> Picked:
        """Forget the jobs that are "done", "cancelled" or "dead" and ended longer ago than `older_than_s`.

        A job whose key stays taken for a time is kept until then, and one of which nobody knows when it ended. Done and
        cancelled jobs stand in no list: this looks through all jobs of the queue, in pages.
        """
        from saqkit.queue.dead_letters import Filter, dead_letters, purge

        if state not in CLEANED:
            raise UsageError(f'there is no state "{state}" to clean ({did_you_mean(state, CLEANED)})')
        if not older_than_s >= 0:
            raise UsageError(f"an age of {older_than_s:g} s is no age (0 or more)")
        seconds, micros = await self.redis.time()
        until = seconds + micros / 1e6 - older_than_s
        said = Picked(0, 0)
        if state == "dead":
            letters = dead_letters(cast("Queue", self), None, where=Filter(until=until))
            async for chunk in _in_pages(letters):
                done = 0 if dry_run else await purge(cast("Queue", self), chunk)
                said += Picked(len(chunk), done, Counter((state, one.function, one.priority) for one in chunk))
            return said
        async for page in ended_jobs(self, state):
            old = [job for job, ended_at in page if ended_at <= until]
            done = 0
            if old and not dry_run:
                done = await self.run_script("forget", -2, *(part for job in old for part in (job.key, job.call)))
            said += Picked(len(old), done, Counter((state, job.function, job.priority) for job in old))
        return said

    async def retry_failed(
        self, limit: int | None = None, where: Filter | None = None, *, dry_run: bool = False
    ) -> Chosen:
        """Queue dead letters again with all their attempts before them, the oldest first, at most `limit` (None: all).

        `where` chooses among them; see `saqkit.queue.dead_letters`, which can do more.
        """
        from saqkit.queue.dead_letters import Filter, replay_all

        return await replay_all(cast("Queue", self), where or Filter(), dry_run=dry_run, limit=limit)


async def jobs_of_keys(
    queues: Sequence[StoredJobs], keys: Iterable[str], states: Sequence[str], what: str
) -> dict[str, list[LiveJob]]:
    """The jobs of keys in some queues, by queue. `UsageError` if one cannot be `what`: "cancelled", "promoted".

    So if there is none, if it is in none of `states`, or if several queues have one of that key.
    """
    names = list(dict.fromkeys(keys))
    found = {queue.name: {job.key: job for job in await stored(queue, names)} for queue in queues}
    chosen: dict[str, list[LiveJob]] = {}
    for key in names:
        of_key = [jobs[key] for jobs in found.values() if key in jobs]
        fit = [job for job in of_key if job.state in states]
        if not of_key:
            raise UsageError(f'there is no job "{key}" in {_listed(found)} (ended jobs are forgotten after a while)')
        if not fit:
            raise UsageError(f'job "{key}" of queue {of_key[0].queue} is {of_key[0].state}, it cannot be {what} '
                             f"(only one that is {' or '.join(states)})")  # fmt: skip
        if len(fit) > 1:
            raise UsageError(f'"{key}" is a job of several queues: {", ".join(job.queue for job in fit)} (choose one)')
        chosen.setdefault(fit[0].queue, []).append(fit[0])
    return chosen


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    return f"queue{'s' if len(known) > 1 else ''} {', '.join(known)}"


def _chunks(jobs: Sequence[LiveJob]) -> Iterator[Sequence[LiveJob]]:
    return (jobs[first : first + CHUNK] for first in range(0, len(jobs), CHUNK))


async def _in_pages(found: AsyncIterator[T]) -> AsyncIterator[list[T]]:
    page: list[T] = []
    async for one in found:
        page.append(one)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page
