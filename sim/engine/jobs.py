"""Jobs, and the queue in which they wait: priorities, delays, the rate limit, and every transition of a job's life."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from saqkit.spec.lifecycle import NEXT, Action, State, on_tick, retried
from saqkit.spec.topology import JobType, Queue
from sim.engine.parts import Window

if TYPE_CHECKING:
    from sim.engine.attempt import Attempt


class Job:
    """One job; `left` are the users whom its next attempt has to serve."""

    __slots__ = (
        "attempt",
        "crashes",
        "cursor",
        "declined",
        "enqueued",
        "event",
        "event_at",
        "first",
        "holder",
        "key",
        "left",
        "parent",
        "priority",
        "queued_at",
        "ready_at",
        "state",
        "tenant",
        "type",
        "type_name",
        "users",
    )

    def __init__(
        self,
        key: str,
        type_name: str,
        job_type: JobType,
        event: int,
        event_at: float,
        users: Sequence[int],
        priority: int,
        tenant: str,
        parent: str,
    ) -> None:
        self.key, self.type_name, self.type = key, type_name, job_type
        self.event, self.event_at, self.priority, self.tenant, self.parent = event, event_at, priority, tenant, parent
        self.users = self.left = users
        self.declined: list[int] = []
        self.first = 0 if job_type.fan_out or not len(users) else users[0]
        self.cursor = self.enqueued = self.crashes = 0
        self.holder: Attempt | None = None
        self.attempt = 1
        self.queued_at = self.ready_at = float("nan")
        self.state = State.ABSENT

    def step(self, action: Action) -> None:
        """Take the transition that the life-cycle allows, or fail: the model can do nothing that the queue cannot."""
        target = NEXT[self.state][action]
        if target < 0:
            raise AssertionError(f"{self.key} is {self.state.name.lower()} and cannot {action.name.lower()}")
        self.state = State(target)

    def ended(self, attempt: Attempt) -> None:
        """One of its attempts has ended: whom a payment declined stays declined."""
        if self.type.work == "payment":
            self.declined += attempt.refused

    def followed(self) -> list[Sequence[int]]:
        """For whom jobs follow when it is done, a part for each job: all of its users, or those who have paid."""
        if not self.declined:
            return [self.users]
        declined = {*self.declined}
        paid = [user for user in self.users if user not in declined]
        return [paid] if paid else []

    @property
    def weight(self) -> int:
        """Users that a rate limit counts: all of the job's, also of a retry (the queue does not know who is left); none
        of a fan-out.
        """
        return 0 if self.type.fan_out else len(self.users)


class Taken(NamedTuple):
    """What a call brought, when the next delayed job is due, and when the rate limit admits more (0: no matter)."""

    jobs: list[Job]
    due_at: float
    opens_at: float


class WaitingLine:
    """A queue on the broker: four levels, the delayed jobs, the rate window, and who waits to be woken."""

    heard_while_closed = False
    """Whether what comes in while a limit is closed may go all the same."""

    def __init__(self, spec: Queue, tick_phase_s: float = 0.0) -> None:
        self.spec, self._tick_phase_s = spec, tick_phase_s
        self.window = Window(spec.rate_limit) if spec.rate_limit else None
        self._levels: tuple[deque[Job], ...] = tuple(deque() for _ in range(5))
        self._delayed: list[tuple[float, int, Job]] = []
        self._numbers = 0
        self.ready = 0

    def put(self, job: Job, now_s: float, action: Action = Action.ENQUEUE) -> None:
        """A job comes in, or comes back: it joins the end of its level."""
        job.step(action)
        job.ready_at = now_s
        if action == Action.ENQUEUE:
            job.queued_at = now_s
        self._line_up(job)
        self.ready += 1

    def retry(self, job: Job, now_s: float, delay_s: float) -> None:
        """A failed job waits until the tick after its delay; without one it joins the line at once."""
        action = retried(delay_s)
        if action == Action.RETRY_NOW:
            self.put(job, now_s, action)
            return
        job.step(action)
        self._numbers += 1
        wakes_at = on_tick(now_s + delay_s - self._tick_phase_s, self.spec.tick_s) + self._tick_phase_s
        heapq.heappush(self._delayed, (wakes_at, self._numbers, job))

    def put_back(self, job: Job, now_s: float) -> None:
        """A job whose worker died returns to its old place, before all that came after it."""
        job.step(Action.RECOVER)
        job.ready_at = now_s
        self._line_up(job, back=True)
        self.ready += 1

    def ended(self, job: Job, now_s: float) -> bool:
        """A job runs no longer; whether somebody may have waited for its place: here nobody does."""
        return False

    @property
    def leaves(self) -> bool:
        """Whether the last call may have left something that may go."""
        return self.ready > 0

    def limits(self) -> list[tuple[float, int, float]]:
        """Of each rate limit: the weight admitted, the limit and its period."""
        window = self.window
        return [(window.admitted, window.limit.limit, window.limit.period_s)] if window else []

    def places_used(self, span_s: float) -> float:
        """The share of the places of jobs of one kind that was used in `span_s`: here there is no limit to them."""
        return 0.0

    def take(self, now_s: float, most: int) -> Taken:
        """Up to `most` jobs, strictly by priority; delayed jobs that are due join their levels first.

        Nobody overtakes a job that the rate limit holds back: the limit is the queue's, not the job's.
        """
        self._promote(now_s)
        jobs: list[Job] = []
        due_at = self._delayed[0][0] if self._delayed else 0.0
        for level in self._levels:
            while level and len(jobs) < most:
                if self.window and (opens_at := self.window.admit(now_s, level[0].weight)):
                    return Taken(jobs, due_at, opens_at)
                job = level.popleft()
                job.step(Action.TAKE)
                self.ready -= 1
                jobs.append(job)
        return Taken(jobs, due_at, 0.0)

    def _promote(self, now_s: float) -> None:
        while self._delayed and self._delayed[0][0] <= now_s:
            ready_at, _, job = heapq.heappop(self._delayed)
            self.put(job, ready_at, Action.PROMOTE)

    def _line_up(self, job: Job, back: bool = False) -> None:
        """Join the line at the end of its level, or where it comes `back` at its beginning."""
        level = self._levels[job.priority]
        if back:
            level.appendleft(job)
        else:
            level.append(job)
