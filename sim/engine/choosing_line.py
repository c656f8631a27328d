"""A queue whose waiting jobs are chosen among: by weights, turns of tenants, limits of tenants and of what runs.

The rules are those of `saqkit.spec.choosing`, which the real queue's are tested against: the model asks the same
`Chooser`. A queue without any of this is a `WaitingLine`, which gives the same jobs in the same order, but faster.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from saqkit.spec.choosing import Chooser, Waiting
from saqkit.spec.lifecycle import Action
from saqkit.spec.topology import Queue, RateLimit
from sim.engine.jobs import Job, Taken, WaitingLine

CHOOSING = ("weights", "fairness", "tenant_rate_limit", "running_limits")
"""The fields of a queue that make it choose."""
KEYS = ("tenant", "job_type", "provider", "event")
"""What a running limit can go by in the model: its jobs have no other arguments, and no `meta`."""


def choosing_field(queue: Queue) -> str:
    """The first field of a queue that makes it choose; empty if it goes strictly by priority, first in first out."""
    return next((name for name in CHOOSING if getattr(queue, name) != Queue.model_fields[name].default), "")


def line_of(queue: Queue, tick_phase_s: float = 0.0, relieved: bool = False) -> WaitingLine:
    """The line of a queue; `relieved`: with all its limits twice as high."""
    if relieved:
        twice = {name: _twice(getattr(queue, name)) for name in ("rate_limit", "tenant_rate_limit")}
        running = tuple(limit.model_copy(update={"limit": 2 * limit.limit}) for limit in queue.running_limits)
        queue = queue.model_copy(update={**twice, "running_limits": running})
    return (ChoosingLine if choosing_field(queue) else WaitingLine)(queue, tick_phase_s)


def _twice(limit: RateLimit | None) -> RateLimit | None:
    return limit and limit.model_copy(update={"limit": 2 * limit.limit})


class ChoosingLine(WaitingLine):
    """A queue on the broker, of which `Chooser` says who is next."""

    heard_while_closed = True

    def __init__(self, spec: Queue, tick_phase_s: float = 0.0) -> None:
        super().__init__(spec, tick_phase_s)
        self._chooser = Chooser(spec)
        self._jobs: dict[str, Job] = {}  # those that wait or run
        self._known: dict[Job, Waiting] = {}
        self._places = 0
        self._taken_full = False
        self._since: dict[Job, float] = {}
        self._ran_s: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._admitted: Counter[str] = Counter()  # of each tenant

    @property
    def leaves(self) -> bool:
        """Whether the last call may have left something that may go; where it may not, who is woken finds out."""
        return self._taken_full and self.ready > 0

    def ended(self, job: Job, now_s: float) -> bool:
        """A job runs no longer; whether somebody may have waited for its place."""
        full = self._over(job, now_s)
        del self._jobs[self._known.pop(job).key]
        return full and self.ready > 0

    def take(self, now_s: float, most: int) -> Taken:
        """Up to `most` jobs, one by one as the rules say; delayed jobs that are due join their levels first."""
        self._promote(now_s)
        jobs: list[Job] = []
        while len(jobs) < most and (key := self._chooser.next(now_s)) is not None:
            job = self._jobs[key]
            job.step(Action.TAKE)
            self.ready -= 1
            jobs.append(job)
            self._count(job)
            self._since[job] = now_s
        self._taken_full = len(jobs) == most
        due_at = self._delayed[0][0] if self._delayed else 0.0
        opens_at = 0.0 if self._taken_full else self._chooser.opens_s or 0.0
        return Taken(jobs, due_at, 0.0 if 0 < due_at < opens_at else opens_at)

    def limits(self) -> list[tuple[float, int, float]]:
        """Of the queue's rate limit, and of each tenant's: the weight admitted, the limit and its period."""
        found = super().limits()
        if rate := self.spec.tenant_rate_limit:
            found += [(admitted, rate.limit, rate.period_s) for admitted in self._admitted.values()]
        return found

    def places_used(self, span_s: float) -> float:
        """The greatest share of the places of one value of a key that was used in `span_s`."""
        most = {limit.key: limit.limit for limit in self.spec.running_limits}
        return max((ran_s / (most[key] * span_s) for (key, _), ran_s in self._ran_s.items()), default=0.0)

    def _count(self, job: Job) -> None:
        known = self._known[job]
        if self.window:
            self.window.admitted += known.weight(self.window.limit)
        if rate := self.spec.tenant_rate_limit:
            self._admitted[job.tenant] += known.weight(rate)

    def _over(self, job: Job, now_s: float) -> bool:
        """It has run: its places are free again; whether there was no other for one of them."""
        known, chooser = self._known[job], self._chooser
        took_s, full = now_s - self._since.pop(job), False
        for limit in self.spec.running_limits:
            if (value := known.values.get(limit.key)) is not None:
                self._ran_s[limit.key, value] += took_s
                full |= chooser.running[limit.key, value] >= limit.limit
        chooser.ended(known.key)
        return full

    def _line_up(self, job: Job, back: bool = False) -> None:
        if back:  # it has run until now
            known = self._known[job]
            self._over(job, job.ready_at)
        else:
            self._places += 1
            values = {"tenant": job.tenant, "job_type": job.type_name, "event": str(job.event)}
            if job.type.per_user.provider is not None:
                values["provider"] = job.type.per_user.provider
            # As on the broker a job weighs its users, however many of them earlier attempts have served.
            users = 0 if job.type.fan_out else len(job.users)
            known = Waiting(str(self._places), self._places, job.priority, job.tenant, users, values)
            self._jobs[known.key], self._known[job] = job, known
        self._chooser.join(known)
