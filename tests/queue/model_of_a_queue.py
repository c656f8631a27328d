"""A queue in a few lines of Python: what the scripts on the server have to do, without a server and without a clock.

States change only by `Model.step`, along `saqkit.spec.lifecycle`. What the life-cycle does not say is said here: the
order of the lines, who holds what, what is counted, and what a repeated or a late call may do. Time passes only when it
is told to (`come_due`, `expire`, `window_passes`, `key_freed`, `vanish`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from saqkit.spec.lifecycle import NEXT, Action, State, after, crashed

LIVE = (State.QUEUED, State.SCHEDULED, State.ACTIVE)
COUNTED = {
    Action.FINISH: "complete",
    Action.RETRY: "retried",
    Action.RETRY_NOW: "retried",
    Action.RELEASE: "released",
    Action.CANCEL: "aborted",
    Action.BURY: "failed",
    Action.POISON: "failed",
    Action.REPLAY: "dead_replayed",
    Action.DELIVER: "dead_moved",
    Action.REPLAY: "dead_replayed",
}


@dataclass
class Job:
    """What is known of a key. `claim` is the last claim on it (0: none, or it was taken away)."""

    state: State = State.ABSENT
    body: str = ""
    priority: int = 3
    users: int = 0
    keep: bool = False
    made_by: str = ""
    place: int = 0
    due: float = inf
    died: int = 0
    move: str = ""
    attempts: int = 0
    crashes: int = 0
    claim: int = 0
    expired: bool = False
    taken_key: bool = False


@dataclass(frozen=True)
class New:
    """A job as it is enqueued; a delayed one is not due before `come_due`."""

    key: str
    body: str
    priority: int = 3
    users: int = 0
    delayed: bool = False
    keep: bool = False


@dataclass(frozen=True)
class Taken:
    """A job as a worker gets it. Claims are numbered from 1 in the order in which they were given."""

    key: str
    claim: int
    attempt: int
    crashes: int
    priority: int
    body: str


@dataclass
class Model:
    """The queue. `limit` and `unit` are those of its rate limit, `cap` of its dead letters (0: none)."""

    keys: Sequence[str]
    limit: int = 0
    unit: str = "jobs"
    cap: int = 0
    jobs: dict[str, Job] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    steps: Counter[tuple[State, Action]] = field(default_factory=Counter)
    """How often each transition was made."""
    window: list[int] = field(default_factory=list)
    over: int = 0
    """So many of the window's entries, the oldest, have left it; the next `take` sees it."""
    given: dict[str, tuple[int, list[tuple[str, int]]]] = field(default_factory=dict)
    paused: bool = False
    deaths: int = 0
    places: int = 0
    claims: int = 0

    def __post_init__(self) -> None:
        self.jobs = {key: Job() for key in self.keys}

    def where(self, state: State) -> list[str]:
        """The keys of the jobs in a state."""
        return [key for key in self.keys if self.jobs[key].state == state]

    def line(self, priority: int) -> list[str]:
        """The waiting jobs of a level, the next one first."""
        return sorted(
            (key for key in self.where(State.QUEUED) if self.jobs[key].priority == priority),
            key=lambda key: self.jobs[key].place,
        )

    def step(self, key: str, action: Action) -> None:
        """One step of the life-cycle; what ends an attempt is counted."""
        job = self.jobs[key]
        self.steps[job.state, action] += 1
        job.state = after(job.state, action)
        if action in COUNTED:
            self.counts[COUNTED[action]] += 1

    def line_up(self, key: str, *, old_place: bool = False) -> None:
        if not (old_place and self.jobs[key].place):
            self.places += 1
            self.jobs[key].place = self.places

    # --- producer, ticker --------------------------------------------------------------------------------------------

    def enqueue(self, call: str, jobs: Sequence[New]) -> list[int]:
        """A key that lives, or is still kept, is not taken; the same call again reports what it did."""
        return [self._enqueue(f"{call}.{n}", new) for n, new in enumerate(jobs)]

    def _enqueue(self, call: str, new: New) -> int:
        old = self.jobs[new.key]
        if old.made_by == call:
            return 1
        if old.state in LIVE or old.state == State.OUTGOING or old.taken_key:
            return 0
        self.counts["superseded"] += old.state == State.DEAD
        self.jobs[new.key] = Job(old.state, new.body, new.priority, new.users, new.keep, call)
        self.step(new.key, Action.DELAY if new.delayed else Action.ENQUEUE)
        if not new.delayed:
            self.line_up(new.key)
        return 1

    def promote(self) -> list[str]:
        """What is due joins the end of its line, the longest due first."""
        due = [key for key in self.where(State.SCHEDULED) if self.jobs[key].due < inf]
        due.sort(key=lambda key: (self.jobs[key].due, key))
        for key in due:
            self.step(key, Action.PROMOTE)
            self.line_up(key)
        return due

    def hasten(self, keys: Sequence[str]) -> list[int]:
        """Scheduled jobs join the end of their lines now, due or not."""
        scheduled = [self.jobs[key].state == State.SCHEDULED for key in keys]
        for key in (key for key, yes in zip(keys, scheduled, strict=True) if yes):
            self.step(key, Action.HASTEN)
            self.line_up(key)
        return [int(yes) for yes in scheduled]

    def prioritise(self, key: str, level: int) -> int:
        """A job that waits gets another level, at the end of its line."""
        job = self.jobs[key]
        if job.state not in (State.QUEUED, State.SCHEDULED):
            return 0
        if job.priority != level:
            self.step(key, Action.PRIORITISE)
            job.priority = level
            if job.state == State.QUEUED:
                self.line_up(key)
        return 1

    # --- worker ------------------------------------------------------------------------------------------------------

    def take(self, who: str, request: int, free: int) -> list[Taken]:
        """As many as there are free slots and the rate limit admits, from the head, by priority."""
        self.promote()
        if (again := self._again(who, request)) is not None:
            return again
        self._tidy_window()
        taken: list[Taken] = []
        for key in [] if self.paused else [key for priority in range(1, 5) for key in self.line(priority)]:
            if len(taken) == free or not self._admitted(self.jobs[key]):
                break
            taken.append(self._claim(key))
        return self._given(who, request, taken)

    def take_this(self, who: str, key: str) -> list[Taken]:
        """This job alone, wherever it waits; the limit and the pause are for those who take what comes."""
        self.promote()
        if (again := self._again(who, 0)) is not None:
            return again
        self._tidy_window()
        if self.jobs[key].state == State.SCHEDULED:
            self.step(key, Action.PROMOTE)
        taken = [self._claim(key)] if self.jobs[key].state == State.QUEUED else []
        return self._given(who, 0, taken)

    def _again(self, who: str, request: int) -> list[Taken] | None:
        last, pairs = self.given.get(who, (-1, []))
        if last != request:
            return None
        held = [(key, claim) for key, claim in pairs if self.holds(key, claim)]
        for key, _ in held:
            self.jobs[key].expired = False
        return [self._taken(key) for key, _ in held]

    def _given(self, who: str, request: int, taken: list[Taken]) -> list[Taken]:
        if taken:
            self.given[who] = (request, [(job.key, job.claim) for job in taken])
        return taken

    def _claim(self, key: str) -> Taken:
        self.step(key, Action.TAKE)
        self.claims += 1
        job = self.jobs[key]
        job.claim, job.expired, job.attempts = self.claims, False, job.attempts + 1
        return self._taken(key)

    def _taken(self, key: str) -> Taken:
        job = self.jobs[key]
        return Taken(key, job.claim, job.attempts, job.crashes, job.priority, job.body)

    def _tidy_window(self) -> None:
        if self.limit:
            self.window, self.over = self.window[self.over :], 0

    def _admitted(self, job: Job) -> bool:
        if not self.limit:
            return True
        weight = min(self.limit, max(1, job.users) if self.unit == "users" else 1)
        if self.window and sum(self.window) + weight > self.limit:
            return False
        self.window.append(weight)
        return True

    def holds(self, key: str, claim: int) -> bool:
        """Whether this claim is the one that may change the job."""
        return self.jobs[key].state == State.ACTIVE and self.was_last(key, claim)

    def was_last(self, key: str, claim: int | None) -> bool:
        return bool(claim) and self.jobs[key].claim == claim

    def renew(self, claims: Sequence[tuple[str, int]]) -> list[int]:
        """The holder's lease runs anew."""
        held = [self.holds(key, claim) for key, claim in claims]
        for (key, _), yes in zip(claims, held, strict=True):
            if yes:
                self.jobs[key].expired = False
        return [int(yes) for yes in held]

    def end(
        self, action: Action, claims: Sequence[tuple[str, int]], body: str, *, kept: bool = True, again: bool = False
    ) -> list[int]:
        """What workers say of their attempts: 1 done, 0 refused and counted, 2 it is so already.

        Of a job that is gone only who says it `again` may have made it so.
        """
        self.deaths += 1
        return [self._end(action, key, claim, body, kept, again) for key, claim in claims]

    def _end(self, action: Action, key: str, claim: int, body: str, kept: bool, again: bool) -> int:
        job = self.jobs[key]
        if not self.holds(key, claim):
            ends = {State(NEXT[State.ACTIVE][action])}
            if action in (Action.RETRY, Action.RETRY_NOW):
                ends = {State.SCHEDULED, State.QUEUED}  # after its delay it is in line
            if (again and job.state == State.ABSENT) or (self.was_last(key, claim) and job.state in ends):
                return 2
            self.counts["fenced"] += 1
            return 0
        self.step(key, action)
        job.body = body or job.body
        if action == Action.FINISH:
            job.taken_key = job.keep
            if not (kept or job.keep):
                self.vanish(key)
        elif action == Action.RETRY:
            job.due = inf
        elif action == Action.RETRY_NOW:
            self.line_up(key)
        elif action == Action.BURY:
            self.die(key)
        elif action == Action.RELEASE:
            job.attempts -= 1
            self.line_up(key, old_place=True)
        return 1

    def update(self, key: str, claim: int | None, body: str) -> int:
        """A live job's body, by the last who held it, or by somebody who claims nothing (None)."""
        job = self.jobs[key]
        if job.state not in LIVE or not (claim is None or self.was_last(key, claim)):
            return 0
        job.body = body
        return 1

    # --- recoverer, operator, retention ------------------------------------------------------------------------------

    def recover(self) -> list[str]:
        """Expired leases: back to the old place, the attempt not counted; at the third crash a dead letter."""
        self.deaths += 1
        lost = [key for key in self.where(State.ACTIVE) if self.jobs[key].expired]
        for key in lost:
            job = self.jobs[key]
            job.crashes, job.attempts, job.claim = job.crashes + 1, job.attempts - 1, 0
            self.counts["lost"] += 1
            self.step(key, crashed(job.crashes))
            if job.state == State.DEAD:
                self.die(key)
            else:
                self.line_up(key, old_place=True)
        return lost

    def cancel(self, key: str, claim: int | None, *, kept: bool, grace: bool, waiting: bool = False) -> int:
        """By an operator (`claim` None), or by the worker that has stopped it: the state it was in, or 0.

        The key of a job that is cancelled while it runs stays taken for the grace, or until its worker has stopped.
        With `waiting` one that runs is left alone.
        """
        job = self.jobs[key]
        was = job.state
        if waiting and was == State.ACTIVE:
            return 0
        if was in LIVE and (claim is None or self.holds(key, claim)):
            self.step(key, Action.CANCEL)
            job.taken_key = grace and claim is None and was == State.ACTIVE
            if not (kept or job.taken_key):
                self.vanish(key)
        elif was == State.CANCELLED and self.was_last(key, claim):
            job.taken_key = False
            if not kept:
                self.vanish(key)
        else:
            self.counts["fenced"] += claim is not None and was != State.ABSENT
            return 0
        return int(was)

    def die(self, key: str) -> None:
        """A dead letter more; beyond the cap the oldest goes. Those of one call died at one time."""
        self.jobs[key].died = self.deaths
        dead = sorted(self.where(State.DEAD), key=lambda key: (self.jobs[key].died, key))
        for oldest in dead[: len(dead) - self.cap] if self.cap else []:
            self.counts["dead_dropped"] += 1
            self.vanish(oldest)

    def replay(self, keys: Sequence[str], *, same_death: bool, body: str, users: int) -> list[int]:
        """Dead letters again, at the end of the line, with all their attempts; with a body other arguments."""
        return [self._replay(key, same_death, body, users) for key in keys]

    def _replay(self, key: str, same_death: bool, body: str, users: int) -> int:
        job = self.jobs[key]
        if job.state != State.DEAD or not same_death:
            return 0
        self.step(key, Action.REPLAY)
        job.attempts = job.crashes = job.claim = 0
        if body:
            job.body, job.users = body, users
        self.line_up(key)
        return 1

    def forget(self, keys: Sequence[str], *, same_death: bool) -> int:
        """Dead letters for good."""
        dead = [key for key in self.where(State.DEAD) if key in keys and same_death]
        for key in dead:
            self.counts["dead_purged"] += 1
            self.vanish(key)
        return len(dead)

    def move(self, keys: Sequence[str], name: str, *, same_death: bool) -> list[int]:
        """Dead letters leave for another queue; `name` is that of the delivery."""
        return [self._move(key, name, same_death) for key in keys]

    def _move(self, key: str, name: str, same_death: bool) -> int:
        if self.jobs[key].state != State.DEAD or not same_death:
            return 0
        self.step(key, Action.MOVE)
        self.jobs[key].move = name
        return 1

    def deliver(self, key: str, name: str, *, accepted: bool) -> int:
        """The other queue has accepted it or not: 1 gone, 0 a dead letter again, 2 that is settled already."""
        job = self.jobs[key]
        if job.state != State.OUTGOING or job.move != name:
            return 2
        self.step(key, Action.DELIVER if accepted else Action.REFUSE)
        if accepted:
            self.jobs[key] = Job()
        return int(accepted)

    def vanish(self, key: str) -> None:
        """What is kept for no longer is forgotten."""
        self.step(key, Action.FORGET)
        self.jobs[key] = Job()

    def pause(self, paused: bool) -> None:
        """Nothing is taken while it lasts, but by its key."""
        self.paused = paused

    # --- time --------------------------------------------------------------------------------------------------------

    def come_due(self, keys: Sequence[str]) -> None:
        """Scheduled jobs become due, in this order, before all that were due."""
        for rank, key in enumerate(keys):
            self.jobs[key].due = rank

    def expire(self, keys: Sequence[str]) -> None:
        """The leases of these are over, and nobody has seen it yet."""
        for key in keys:
            self.jobs[key].expired = True

    def window_passes(self, entries: int) -> None:
        """The oldest admitted jobs leave the window of the rate limit."""
        self.over = max(self.over, min(entries, len(self.window)))

    def key_freed(self, key: str) -> None:
        """The time is over for which an ended job's key stays taken."""
        self.jobs[key].taken_key = False
