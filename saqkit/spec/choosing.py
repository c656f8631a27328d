"""Which waiting job is taken next, in plain Python: the rules that the queue's `scripts/choosing.lua` follows too.

1. **Level.** Strict: the lowest number that has a job which may go. Weighted (stride scheduling; Waldspurger and
   Weihl, 1995): every level has a pass; of the levels that have such a job the one with the lowest pass is next, the
   lower number first where they are equal, and its pass rises by 1 ÷ weight. A level that has none at that moment is
   lifted to the pass of the one that was next, so that nobody saves up a claim while there is nothing to take.
2. **Inside a level.** First in, first out, by place. With fairness the owners (tenants) that wait take turns (see
   `Turns`): the lowest is next; inside an owner by place.
3. **May go.** A job is held back while its tenant is closed, or as many run as one of its running limits says, or its
   tenant's window has no room for it: that closes the tenant, with all that it has in the queue, until something leaves
   its window. Of jobs that are held back by the same (a group) only the first is looked at; jobs of others pass them,
   and nobody loses a place or a turn. The queue's own rate limit is asked last, and where it refuses nobody goes.

To take several jobs is to take one several times. Nothing here knows a clock: `now_s` is given.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import floor

from saqkit.spec.topology import Priority, RateLimit, Taking

LEVELS = tuple(int(level) for level in Priority)
TURN, FIRST = 1000, 10**9
"""How long a turn is, and where the first begins. Who comes new is 1 behind who came before, which makes it first in,
first out; 1,000 of them are a turn, so that nobody waits for ever while more and more come."""
Group = tuple[str, str, tuple[str | None, ...]]
"""Owner, tenant, and the values of the keys with a running limit."""


@dataclass(frozen=True)
class Waiting:
    """A job that waits: its place in line, and what limits look at. `values`: of keys that may have a running limit."""

    key: str
    place: int
    level: int = int(Priority.NORMAL)
    tenant: str = ""
    users: int = 1
    values: Mapping[str, str] = field(default_factory=dict)

    def weight(self, limit: RateLimit) -> int:
        """What it uses of a rate limit."""
        return max(1, self.users) if limit.unit == "users" else 1


class Window:
    """A sliding log of what a rate limit has admitted, on a clock of whole microseconds."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int]] = []

    def refused_until(self, limit: RateLimit, weight: int, now_s: float) -> float | None:
        """None if there is room, else when something leaves the window. In an empty one there is room for any job."""
        self._entries = [entry for entry in self._entries if entry[0] > now_s]
        used = sum(counted for _, counted in self._entries)
        full = used + min(weight, limit.limit) > limit.limit
        return self._entries[0][0] if full and self._entries else None

    def enter(self, limit: RateLimit, weight: int, now_s: float) -> None:
        """Admit a job: it stays for a period, or, if it is heavier than the limit, for weight ÷ limit periods."""
        leaves_s = now_s + limit.period_s * max(1.0, weight / limit.limit)
        insort(self._entries, (float(f"{leaves_s:.6f}"), min(weight, limit.limit)))


class Turns:
    """Whose turn it is among the owners of a level (start-time fair queueing; Goyal, Vin and Cheng, 1996).

    Each has a number; the lowest is next, and rises by one turn. Who comes new begins at the number of those who are
    next, less one turn for each further job that runs: what others have begun cannot be taken back, so they are as many
    turns ahead. Nobody is further behind, however long a limit has held it back. Who has no more jobs keeps its number
    for as long as it matters, so that nobody has more of letting its line run empty again and again. When nothing
    waits or runs, all begin anew.
    """

    def __init__(self) -> None:
        self.of: dict[str, int] = {}
        """Of the owners that wait."""
        self._left: dict[str, int] = {}
        self._now, self._claims = FIRST, 1

    def come(self, owner: str, running: int) -> None:
        """It has a job that waits, while `running` jobs of the queue run."""
        if owner in self.of:
            return
        if not self.of and not running:
            self._left, self._claims = {}, 1
        self._now, self._claims = self._now + 1, max(self._claims, running)
        self._left = {name: number for name, number in self._left.items() if number > self._lowest}
        self.of[owner] = self._left.pop(owner, self._lowest)

    def had(self, owner: str) -> None:
        """One of its jobs is taken."""
        number = self.of[owner]
        self._now = max(self._now, number)
        self.of[owner] = (number if number > self._lowest - TURN else self._lowest) + TURN

    def leave(self, owner: str) -> None:
        """It has no job that waits any more."""
        self._left[owner] = self.of.pop(owner)

    @property
    def _lowest(self) -> int:
        return self._now - TURN * (self._claims - 1)


class Chooser:
    """The lines of a queue; see this module's docstring."""

    def __init__(self, taking: Taking) -> None:
        self.taking = taking
        self.passes = dict.fromkeys(LEVELS, 0.0)
        self.running: Counter[tuple[str, str]] = Counter()
        self.opens_s: float | None = None
        """When a rate limit that has held something back in the last `next` may admit more; None: none has."""
        self._jobs: dict[str, Waiting] = {}
        self._lines: dict[int, dict[Group, list[tuple[int, str]]]] = {level: {} for level in LEVELS}
        self._turns = {level: Turns() for level in LEVELS}
        self._window = Window()
        self._windows: dict[str, Window] = {}
        self._closed: dict[str, float] = {}
        self._active: dict[str, Waiting] = {}

    # --- what waits ------------------------------------------------------------------------------------------------

    def join(self, job: Waiting) -> None:
        """A job waits, at its place."""
        self._jobs[job.key] = job
        group = self._group(job)
        self._turns[job.level].come(group[0], len(self._active))
        insort(self._lines[job.level].setdefault(group, []), (job.place, job.key))

    def leave(self, key: str) -> Waiting | None:
        """A job waits no longer; returns it, None if it did not."""
        job = self._jobs.pop(key, None)
        if job is not None:
            lines, group = self._lines[job.level], self._group(job)
            lines[group].remove((job.place, key))
            if not lines[group]:
                del lines[group]
                if all(other[0] != group[0] for other in lines):
                    self._turns[job.level].leave(group[0])
        return job

    def waiting(self) -> Iterator[Waiting]:
        """What waits, by level and place."""
        return iter(sorted(self._jobs.values(), key=lambda job: (job.level, job.place)))

    # --- what is next ----------------------------------------------------------------------------------------------

    def next(self, now_s: float) -> str | None:
        """Take the job that is next: it waits no longer, and runs. None if none may go now."""
        self.opens_s = None
        self._closed = {tenant: opens_s for tenant, opens_s in self._closed.items() if opens_s > now_s}
        found: dict[int, Waiting] = {}
        weights = self.taking.weights
        for level in LEVELS:
            if (job := self._first_of(level, now_s)) is not None:
                found[level] = job
                if weights is None:
                    break
        if not found:
            self.opens_s = min(self._closed.values(), default=None)
            return None
        level = min(found, key=lambda number: (self.passes[number] if weights else 0.0, number))
        job = found[level]
        if limit := self.taking.rate_limit:
            self.opens_s = self._window.refused_until(limit, job.weight(limit), now_s)
            if self.opens_s is not None:
                return None
            self._window.enter(limit, job.weight(limit), now_s)
        self._take(job, now_s)
        if weights is not None:
            for other in LEVELS:
                if other not in found:
                    self.passes[other] = max(self.passes[other], self.passes[level])
            self.passes[level] += 1 / weights[Priority(level).name.lower()]
        return job.key

    def begun(self, job: Waiting) -> None:
        """A job runs, whoever has taken it."""
        self._active[job.key] = job
        self.running.update(self._counted_as(job.key))

    def ended(self, key: str) -> None:
        """A job runs no longer, however its attempt has ended."""
        self.running.subtract(self._counted_as(key))
        self._active.pop(key, None)

    def change(self, taking: Taking) -> None:
        """Go by other rules from now on; what runs is counted by them too. Who takes turns may begin anew."""
        before, self.taking = self.taking, taking
        if (before.tenant_rate_limit, before.running_limits) != (taking.tenant_rate_limit, taking.running_limits):
            self._closed = {}
        self.running.clear()
        for key in self._active:
            self.running.update(self._counted_as(key))
        if _grouped(before) != _grouped(taking):
            jobs, self._jobs = list(self.waiting()), {}
            self._lines, self._turns = {level: {} for level in LEVELS}, {level: Turns() for level in LEVELS}
            for job in jobs:
                self.join(job)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _first_of(self, level: int, now_s: float) -> Waiting | None:
        turns = self._turns[level].of
        heads = [(turns[group[0]], group[0], *line[0], group) for group, line in self._lines[level].items()]
        for *_, key, group in sorted(heads, key=lambda head: head[:3]):
            if not self._held_back(self._jobs[key], group, now_s):
                return self._jobs[key]
        return None

    def _held_back(self, job: Waiting, group: Group, now_s: float) -> bool:
        _, tenant, values = group
        if tenant in self._closed:
            return True
        for limit, value in zip(self.taking.running_limits, values, strict=True):
            if value is not None and self.running[limit.key, value] >= limit.limit:
                return True
        rate = self.taking.tenant_rate_limit
        if rate is None:
            return False
        window = self._windows.setdefault(tenant, Window())
        opens_s = window.refused_until(rate, job.weight(rate), now_s)
        if opens_s is not None:
            self._closed[tenant] = opens_s
        return opens_s is not None

    def _take(self, job: Waiting, now_s: float) -> None:
        owner, tenant, _ = self._group(job)
        self._turns[job.level].had(owner)
        self.leave(job.key)
        if rate := self.taking.tenant_rate_limit:
            self._windows[tenant].enter(rate, job.weight(rate), now_s)
        self.begun(job)

    def _counted_as(self, key: str) -> list[tuple[str, str]]:
        if key not in self._active:
            return []
        values = self._group(self._active[key])[2]
        limits = self.taking.running_limits
        return [(limit.key, value) for limit, value in zip(limits, values, strict=True) if value is not None]

    def _group(self, job: Waiting) -> Group:
        fair, tenants, keys = _grouped(self.taking)
        known = {**job.values, "tenant": job.tenant}
        return job.tenant if fair else "", job.tenant if tenants else "", tuple(known.get(key) for key in keys)


def longest_wait(weights: Mapping[str, float], level: Priority) -> int:
    """How many jobs of other levels are taken at most while the first job of `level` waits and may go.

    A level of weight w is at most 1/w ahead of the lowest pass, and each other level of weight v passes that distance
    in ⌊v/w⌋ + 1 steps at most. The bound is reached where all others come anew while `level` has just had its turn.
    """
    own = weights[level.name.lower()]
    return sum(floor(weight / own * (1 + 1e-12)) + 1 for name, weight in weights.items() if name != level.name.lower())


def _grouped(taking: Taking) -> tuple[bool, bool, tuple[str, ...]]:
    """Whether tenants take turns, whether tenants count at all, and the keys with a running limit."""
    fair = taking.fairness == "tenants"
    return fair, fair or taking.tenant_rate_limit is not None, tuple(limit.key for limit in taking.running_limits)
