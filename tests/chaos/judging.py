"""Judges a run from what the server's own scripts recorded of every attempt, and from what the functions wrote down.

Each judge returns what is wrong, in words. All times but those of spans are of the server's clock, and spans are of the
same machine's.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from math import isnan
from pathlib import Path
from typing import Any

from everything import ALONE, EACH, PLAIN, PROVIDERS, SWEPT, ZONED
from operator_of_chaos import Reign

from saqkit.queue.queue import Queue
from saqkit.queue.unique import Unique
from saqkit.spec.lifecycle import State
from saqkit.spec.topology import RateLimit, RunningLimit

GRACE_S = 5.0
"""For so long a unique id stays taken when a running job is cancelled, unless its worker has stopped it before."""
JUST = 2e-6
"""Times are stored to the microsecond."""


@dataclass(frozen=True)
class Attempt:
    """From when to when a job was active, and how that ended."""

    key: str
    outcome: str
    ready: float
    taken: float
    ended: float


@dataclass
class Known:
    """A job as it is stored in the end, and its attempts."""

    key: str
    state: State
    function: str
    tenant: str
    customer: str
    users: int
    level: int
    queued: float
    ended: float
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def over(self) -> float:
        """When it ended: cancelled as it waited, or with its last attempt."""
        return self.attempts[-1].ended if self.state != State.CANCELLED and self.attempts else self.ended

    def waited(self) -> Iterator[tuple[float, float]]:
        """From when to when it waited, was delayed, or waited between two attempts."""
        since = self.queued
        for attempt in self.attempts:
            yield since, attempt.taken
            since = attempt.ended
        yield since, self.over

    def taken_until(self, unique: Unique) -> float:
        """Until when at most a unique id until its end could be taken by it."""
        stopped = bool(self.attempts) and self.attempts[-1].outcome == "cancelled"
        return max(self.over + GRACE_S * stopped, self.queued + unique.for_s)


@dataclass(frozen=True)
class Asked:
    """Somebody asked for a unique job between two moments, and was told that the job `twin` is in the way ("": yes)."""

    unique: Unique
    key: str
    twin: str
    since: float
    until: float


@dataclass(frozen=True)
class Span:
    """When a function ran; one that was killed has no end."""

    unique: str
    key: str
    began: float
    ended: float


async def known(queue: Queue, swept: Iterable[str] = ()) -> dict[str, Known]:
    """All jobs of a queue, with their attempts in order.

    Those of `swept` that are not there have been done and cleaned, if an attempt says so, else cleared.
    """
    nan = float("nan")
    found = {key: Known(key, State.CANCELLED, "work", SWEPT, "", 1, 0, nan, nan) for key in swept}
    async for name in queue.redis.scan_iter(match=queue.key_of("*"), count=1000):
        # typed for both kinds of client
        body, state, users, level, queued, ended = await queue.redis.hmget(  # type: ignore[misc]
            name, ["body", "state", "users", "prio", "at_q", "at_e"]
        )
        key, job = name.decode().removeprefix(queue.key_of("")), json.loads(body)
        kwargs, meta = job.get("kwargs") or {}, job.get("meta") or {}
        found[key] = Known(key, State(int(state)), job["function"], str(meta.get("tenant", "")),
                           str(kwargs.get("customer", "")), max(1, int(users or 1)), int(level), float(queued),
                           float(ended or "nan"))  # fmt: skip
    for record in await queue.redis.lrange(queue.namespace("trace"), 0, -1):  # type: ignore[misc]
        outcome, key, at, _, _, _, _, ready, taken, _, _ = json.loads(record)
        found[key].attempts.append(Attempt(key, outcome, float(ready), float(taken), float(at)))
    for job in found.values():
        job.attempts.sort(key=lambda attempt: attempt.taken)
        if isnan(job.ended) and job.attempts and job.attempts[-1].outcome == "done":
            job.state = State.DONE
    return found


def attempts_of(jobs: Mapping[str, Known]) -> list[Attempt]:
    """All attempts, in the order in which they were taken."""
    return sorted((one for job in jobs.values() for one in job.attempts), key=lambda one: one.taken)


def in_one_way(jobs: Mapping[str, Known], counts: Mapping[str, int]) -> Iterator[str]:
    """Has every job ended once, and has nothing been forgotten or counted twice?"""
    states = Counter(job.state for job in jobs.values())
    # What died may live again: replayed, or asked for anew, by a producer who did not hear that it was accepted.
    alive = counts.get("dead_replayed", 0) + counts.get("superseded", 0)
    told = {State.DONE: counts.get("complete", 0), State.CANCELLED: counts.get("aborted", 0),
            State.DEAD: counts.get("failed", 0) - alive}  # fmt: skip
    for state, number in told.items():
        if states[state] != number:
            yield f"{states[state]} jobs are {state.name.lower()}, {number} became so: {dict(counts)}"
    for job in jobs.values():
        outcomes = [attempt.outcome for attempt in job.attempts]
        if any(outcome in ("done", "cancelled") for outcome in outcomes[:-1]):
            yield f"{job.key} ended, and went on: {', '.join(outcomes)}"
        for before, after in pairwise(job.attempts):
            if after.taken < before.ended:
                yield f"{job.key} was active twice at once"


def windows(jobs: Mapping[str, Known], reigns: Sequence[Reign]) -> Iterator[str]:
    """Was more taken in a window than the limits of the queue and of its tenants that then held?"""
    taken = attempts_of(jobs)
    for reign in reigns:
        those = [one for one in taken if reign.since <= one.taken < reign.until]
        if rate := reign.settings.rate_limit:
            yield from _window("the queue", rate, those, jobs)
        if rate := reign.settings.tenant_rate_limit:
            for tenant in {job.tenant for job in jobs.values()}:
                yield from _window(f"tenant {tenant}", rate, [a for a in those if jobs[a.key].tenant == tenant], jobs)


def _window(whose: str, rate: RateLimit, taken: Sequence[Attempt], jobs: Mapping[str, Known]) -> Iterator[str]:
    for weight, at in _weights(rate, taken, jobs):
        if weight > rate.limit:
            yield f"{whose}: {weight} {rate.unit} in {rate.period_s} s until {at}, {rate.limit} are allowed"
            return


def _weights(rate: RateLimit, taken: Sequence[Attempt], jobs: Mapping[str, Known]) -> Iterator[tuple[int, float]]:
    """What each window weighs that ends with one that was taken, and when that was."""
    weights = [jobs[one.key].users if rate.unit == "users" else 1 for one in taken]
    first = weight = 0
    for n, one in enumerate(taken):
        weight += weights[n]
        while taken[first].taken <= one.taken - rate.period_s + JUST:
            weight -= weights[first]
            first += 1
        yield weight, one.taken


def running(jobs: Mapping[str, Known], reigns: Sequence[Reign]) -> Iterator[str]:
    """Was a job taken while as many of its kind ran as may?"""
    for limit, value, number, at in _running(jobs, reigns):
        if number > limit.limit:
            yield f"{number} of {limit.key} {value} run at {at}, {limit.limit} are allowed"


def _running(jobs: Mapping[str, Known], reigns: Sequence[Reign]) -> Iterator[tuple[RunningLimit, str, int, float]]:
    """When a job was taken, each limit that then held: for which value, and how many of that ran."""
    changes = [(one.ended, 0, one.key) for one in attempts_of(jobs)]
    changes += [(one.taken, 1, one.key) for one in attempts_of(jobs)]
    run: Counter[tuple[str, str]] = Counter()
    for at, begins, key in sorted(changes):
        job = jobs[key]
        names = {"tenant": job.tenant, "job_type": job.function, "customer": job.customer,
                 "provider": PROVIDERS.get(job.function, "")}  # fmt: skip
        run.update(dict.fromkeys(names.items(), 1 if begins else -1))
        settings = next((reign.settings for reign in reigns if reign.since <= at < reign.until), None)
        for limit in settings.running_limits if settings and begins else ():
            value = names[limit.key]
            if value or limit.key == "tenant":
                yield limit, value, run[limit.key, value], at


def acted(jobs: Mapping[str, Known], reigns: Sequence[Reign]) -> Iterator[str]:
    """What decided who was next, wherever it shows: a limit that was full, a job that passed another."""
    taken = attempts_of(jobs)
    for reign in reigns:
        settings, those = reign.settings, [one for one in taken if reign.since <= one.taken < reign.until]
        if (rate := settings.rate_limit) and any(weight == rate.limit for weight, _ in _weights(rate, those, jobs)):
            yield "rate_limit"
        if rate := settings.tenant_rate_limit:
            for tenant in {job.tenant for job in jobs.values()}:
                of_tenant = [one for one in those if jobs[one.key].tenant == tenant]
                if any(weight == rate.limit for weight, _ in _weights(rate, of_tenant, jobs)):
                    yield "tenant_rate_limit"
        passed = [(jobs[one.key], jobs[other.key]) for n, other in enumerate(those) for one in those[n + 1 : n + 200]
                  if one.ready < other.taken and one.ready < other.ready]  # fmt: skip
        alike = [(one, other) for one, other in passed
                 if one.function == other.function and not one.customer]  # fmt: skip
        if settings.weights and any(one.level < other.level and one.tenant == other.tenant for one, other in alike):
            yield "weights"
        if settings.fairness == "tenants" and any(
            one.level == other.level and one.tenant != other.tenant for one, other in alike
        ):
            yield "fairness"
    for limit, _, number, _ in _running(jobs, reigns):
        if number == limit.limit:
            yield f"running limit of a {limit.key}"


def paused(jobs: Mapping[str, Known], pauses: Iterable[tuple[float, float]]) -> Iterator[str]:
    """Was anything taken during a pause?"""
    taken = attempts_of(jobs)
    for since, until in pauses:
        yield from (f"{one.key} was taken in a pause" for one in taken if since < one.taken < until)


def early(jobs: Mapping[str, Known], due: Mapping[str, float], promoted: Iterable[str]) -> Iterator[str]:
    """Was anything taken before it was ready, or a delayed job that nobody has promoted before its time?"""
    for one in attempts_of(jobs):
        if one.taken < one.ready - JUST:
            yield f"{one.key} was taken {one.ready - one.taken} s before it was ready"
    for key in due.keys() - set(promoted):
        if key in jobs and jobs[key].attempts and jobs[key].attempts[0].taken < due[key] - 1e-3:
            yield f"{key} was taken {due[key] - jobs[key].attempts[0].taken} s too early"


def spans(file: Path) -> list[Span]:
    """What the functions of unique jobs wrote down."""
    began: dict[tuple[str, str, str], float] = {}
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        what, unique, key, pid, at = line.split()
        if what == "begins":
            began[unique, key, pid] = float(at)
        else:
            found.append(Span(unique, key, began.pop((unique, key, pid)), float(at)))
    return found


def unique(jobs: Mapping[str, Known], asked: Sequence[Asked], ran: Sequence[Span]) -> Iterator[str]:
    """Was a second job accepted while the first was in its way, or refused for one that was not?"""
    by_id: dict[str, list[tuple[Unique, Known]]] = defaultdict(list)
    for one in asked:
        if not one.twin:
            by_id[one.unique.id].append((one.unique, jobs[one.key]))
    by_id[ALONE] = [(Unique(ALONE), job) for key, job in jobs.items() if key.startswith(f"{ALONE}@")]
    for accepted in by_id.values():
        accepted.sort(key=lambda pair: pair[1].queued)
        for (rule, before), (_, after) in pairwise(accepted):
            at, pair = after.queued, f"{after.key} beside {before.key} ({rule.id})"
            if at < before.queued + rule.for_s - JUST:
                yield f"{pair}: {before.queued + rule.for_s - at} s too early"
            if rule.until == "end" and at < before.over:
                yield f"{pair}: which ended {before.over - at} s later"
            if rule.until == "end" and before.attempts and before.attempts[-1].outcome == "cancelled":
                last = before.attempts[-1]
                stopped = [span.ended for span in ran if span.key == before.key and span.began >= last.taken - JUST]
                if stopped and at < min(stopped[-1], last.ended + GRACE_S) - JUST:
                    yield f"{pair}: which was cancelled, and ran {stopped[-1] - at} s longer"
            if rule.until == "start" and any(since < at < until for since, until in before.waited()):
                yield f"{pair}: which waited"
    for one in asked:
        if one.twin:
            rule, twin = one.unique, jobs[one.twin]
            times = [(twin.queued, twin.queued + rule.for_s)]
            if rule.until:
                times += twin.waited() if rule.until == "start" else [(twin.queued, twin.taken_until(rule))]
            if not any(since - JUST <= one.until and until + JUST >= one.since for since, until in times):
                yield f"{one.key} was refused because of {one.twin}, which was not in its way"


def at_once(jobs: Mapping[str, Known], ran: Iterable[Span], ids: Iterable[str]) -> Iterator[str]:
    """Did functions of one unique id run at once? Whoever lost its lease, or was cancelled long ago, does not count."""
    by_id: dict[str, list[Span]] = defaultdict(list)
    for span in ran:
        ends = [one.ended + GRACE_S * (one.outcome == "cancelled") for one in jobs[span.key].attempts
                if one.outcome in ("lost", "cancelled") and one.ended > span.began]  # fmt: skip
        by_id[span.unique].append(Span(span.unique, span.key, span.began, min([span.ended, *ends])))
    for id in ids:
        for one, other in pairwise(sorted(by_id[id], key=lambda span: span.began)):
            if other.began < one.ended:
                yield f"{one.key} and {other.key} of {id} ran at once, for {one.ended - other.began} s"


def firings(jobs: Mapping[str, Known], until: float) -> Iterator[str]:
    """Has each second between the first firing and the last one job, and did they go on until the end?"""
    for schedule in (EACH, ZONED):
        names = [key.removeprefix(f"{schedule}@") for key in jobs if key.startswith(f"{schedule}@")]
        times = sorted(datetime.fromisoformat(name).timestamp() for name in names)
        if not times or times != [times[0] + n for n in range(len(times))]:
            yield f"firings of {schedule} at {times} are not those of each second"
        elif times[-1] < until - 5:
            yield f"the last firing of {schedule} was {until - times[-1]} s before the end"


def followers(jobs: Mapping[str, Known], there: Mapping[str, Known]) -> Iterator[str]:
    """Does a job follow each parent that is done, here and there, and none another?"""
    done = {f"work:{job.key}" for job in jobs.values() if job.function == "parent" and job.state == State.DONE}
    for name, place in (("here", jobs), ("there", there)):
        found = {key for key in place if key.startswith("work:")}
        yield from (f"{key} is not {name}" for key in done - found)
        yield from (f"{key} is {name}, and its parent is not done" for key in found - done)


async def batches(queue: Queue, members: Mapping[str, Sequence[str]], jobs: Mapping[str, Known],
                  there: Mapping[str, Known]) -> AsyncIterator[str]:  # fmt: skip
    """Does each batch know what became of its members, and has it called back what it should?"""
    for id, keys in members.items():
        batch = await queue.get_batch(id)
        if batch is None or (batch.jobs, batch.pending, batch.complete) != (len(keys), 0, True):
            yield f"{batch} has {len(keys)} members, and all have ended"
            continue
        states = Counter(jobs[key].state for key in keys)
        if (batch.done, batch.dead, batch.cancelled) != tuple(
            states[state] for state in (State.DONE, State.DEAD, State.CANCELLED)
        ):
            yield f"{batch} has members that are {dict(states)}"
        died = bool(states[State.DEAD]) or any(a.outcome == "dead" for key in keys for a in jobs[key].attempts)
        called = {"complete": f"complete:{id}" in jobs, "success": f"success:{id}" in jobs,
                  "death": f"death:{id}" in there}  # fmt: skip
        wanted = {"complete": True, "success": states[State.DONE] == len(keys), "death": batch.death_at > 0}
        if called != wanted or (died and not called["death"]):
            yield f"batch {id}: called back {called}, it should be {wanted}"


async def seen(queue: Queue, *files: Path) -> AsyncIterator[str]:
    """Is what was sealed to be read in the broker or in any of some files?"""
    client = queue.redis
    read: dict[bytes, Any] = {
        b"hash": client.hgetall, b"set": client.smembers, b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1), b"zset": lambda key: client.zrange(key, 0, -1),
        b"none": client.exists,  # it has just expired
    }  # fmt: skip
    async for key in client.scan_iter(count=1000):
        if PLAIN in repr((key, await read[await client.type(key)](key))):
            yield f"what was sealed is in {key.decode()}"
    for file in files:
        if PLAIN.encode() in file.read_bytes():
            yield f"what was sealed is in {file.name}"
