"""Random operations of several workers on a real server and on the pure model, compared after each step.

`make test` runs a fixed choice of examples. `make chaos` runs many new ones: its seed is printed, and SAQKIT_TEST_SEED
repeats it.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from model_of_a_queue import Model, New, Taken
from queue_on_a_server import OnServer, shown

from saqkit.spec.lifecycle import TRANSITIONS, Action, State

KEYS = "abcdef"
ENDS = (Action.FINISH, Action.RETRY, Action.RETRY_NOW, Action.BURY, Action.RELEASE)
ENDED = (State.DONE, State.CANCELLED)

yes_or_no, seldom = st.booleans(), st.sampled_from((False, False, False, True))
a_worker, an_end = st.integers(0, 2), st.sampled_from((*ENDS, Action.BURY))
# The first keys of a step are those it is meant for, if there are any; others, that it must not touch, come after them.
one = st.sampled_from((0, 0, 0, 0, 1, 2, 3, 4, 5))
some = st.lists(one, min_size=1, max_size=4, unique=True)
new_job = st.builds(
    New,
    key=st.sampled_from(KEYS),
    body=st.just(""),
    priority=st.sampled_from((3, 1, 2, 4)),
    users=st.integers(0, 5),
    delayed=st.sampled_from((False, False, True)),
    keep=seldom,
)


STEPS: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "nothing": (),
    "enqueue": (a_worker, st.lists(new_job, min_size=1, max_size=4)),
    "take": (a_worker, st.integers(1, 4), seldom, st.sampled_from((*[False] * 9, True))),
    "take_this": (a_worker, one),
    "end": (an_end, some, yes_or_no),
    "end_what_another_holds": (an_end, one, one),
    "say_it_again": (a_worker,),
    "renew_or_update": (some, yes_or_no, seldom),
    "stopped": (one, yes_or_no),
    "recover": (some, seldom),
    "cancel": (one, yes_or_no, yes_or_no, seldom),
    "hasten": (some,),
    "prioritise": (one, yes_or_no, st.integers(1, 4)),
    "replay": (some, seldom, yes_or_no, st.integers(0, 5)),
    "purge": (some, seldom),
    "move": (some, seldom, seldom),
    "deliver": (one, seldom, yes_or_no),
    "come_due": (some, yes_or_no),
    "the_window_passes": (st.integers(1, 9),),
    "an_ended_job_expires": (one,),
}
OFTEN = {"enqueue": 3, "take": 8, "end": 6, "recover": 3, "move": 2, "deliver": 5, "the_window_passes": 3}
a_step = st.sampled_from([name for name in STEPS for _ in range(OFTEN.get(name, 1))]).flatmap(
    lambda name: st.tuples(st.just(name), *STEPS[name])
)
a_limit, a_cap = st.sampled_from((0, 0, 0, 0, 3, 6)), st.sampled_from((0, 0, 2))


class Worker:
    """What one process knows: the number of its next request, and its last call, which it may repeat."""

    def __init__(self, name: str) -> None:
        self.name, self.request = name, 1
        self.last: tuple[str, tuple[Any, ...], dict[str, Any]] = ("promote", (), {})


class SeveralWorkers:
    """Every step does the same to the model and to the server; what they answer and what they hold must be equal."""

    def __init__(self, client: redis.Redis, limit: int, unit: str, cap: int) -> None:
        self.model, self.server = Model(KEYS, limit, unit, cap), OnServer(client, KEYS, limit, unit, cap)
        self.workers = [Worker(f"w{n}") for n in range(3)]
        self.claims: list[tuple[str, int, Worker]] = []
        self.said: list[str] = []
        self.names = 0

    def both(self, name: str, *args: Any, by: Worker | None = None, **options: Any) -> Any:
        if by is not None:
            by.last = (name, args, options)
        self.said.append(f"{name} {args} {options or ''}")
        expected, said = (getattr(side, name)(*args, **options) for side in (self.model, self.server))
        assert said == expected, f"{name}: the server says {said}, the model {expected}"
        stored, known = self.server.shown(), shown(self.model)
        assert stored == known, {part: (stored[part], known[part]) for part in known if stored[part] != known[part]}
        return said

    def fresh(self) -> str:
        """A text that nothing else has: the name of a call, the body of a job."""
        self.names += 1
        return f"n{self.names}"

    def keys_in(self, states: Sequence[State], numbers: Sequence[int]) -> list[str]:
        """Keys by their numbers, counted from those in these states."""
        order = sorted(KEYS, key=lambda key: self.model.jobs[key].state not in states)
        return [order[number] for number in numbers]

    def claim(self, number: int, state: State = State.ACTIVE) -> tuple[str, int, Worker]:
        """One of the claims that workers know of, counted from the last ones of jobs in this state."""
        jobs = self.model.jobs
        order = sorted(self.claims, key=lambda c: jobs[c[0]].state != state or not self.model.was_last(*c[:2]))
        return order[number % len(order)] if order else ("a", 0, self.workers[0])

    # --- producers and workers ---------------------------------------------------------------------------------------

    def enqueue(self, who: int, jobs: list[New]) -> None:
        named = [replace(job, body=self.fresh()) for job in jobs]
        self.both("enqueue", self.fresh(), named, by=self.workers[who])

    def take(self, who: int, free: int, lost: bool, paused: bool) -> None:
        """With a lost reply the worker knows nothing of it, and asks the same again for as many as are free then."""
        worker = self.workers[who]
        if paused != self.model.paused:
            self.both("pause", paused)
        taken: list[Taken] = self.both("take", worker.name, worker.request, free, by=worker)
        if not lost:
            worker.request += 1
            self.claims += [(job.key, job.claim, worker) for job in taken]

    def take_this(self, who: int, number: int) -> None:
        (key,), worker = self.keys_in((State.SCHEDULED, State.QUEUED), [number]), self.workers[who]
        taken: list[Taken] = self.both("take_this", self.fresh(), key, by=worker)
        self.claims += [(job.key, job.claim, worker) for job in taken]

    def end(self, action: Action, numbers: list[int], kept: bool) -> None:
        """A worker says how attempts ended, of those that it holds, or held."""
        _, _, worker = self.claim(numbers[0])
        claims = [(key, claim) for key, claim, theirs in map(self.claim, numbers) if theirs is worker]
        self.both("end", action, claims, self.fresh(), kept=kept, by=worker)

    def end_what_another_holds(self, action: Action, number: int, other: int) -> None:
        """A token of one job said of another."""
        (key,), (_, claim, worker) = self.keys_in((State.ACTIVE,), [other]), self.claim(number)
        self.both("end", action, [(key, claim)], self.fresh(), by=worker)

    def say_it_again(self, who: int) -> None:
        """The reply to its last call was lost."""
        name, args, options = self.workers[who].last
        self.both(name, *args, **options, **({"again": True} if name == "end" else {}))

    def renew_or_update(self, numbers: list[int], renewed: bool, stranger: bool) -> None:
        claims = [self.claim(number)[:2] for number in numbers]
        if renewed:
            self.both("renew", claims)
        else:
            key, claim = claims[0]
            self.both("update", key, None if stranger else claim, self.fresh())

    def stopped(self, number: int, kept: bool) -> None:
        """A worker has stopped a job of its own, cancelled or not."""
        key, claim, worker = self.claim(number, State.CANCELLED)
        self.both("cancel", key, claim, kept=kept, grace=False, by=worker)

    # --- recoverer, operator, retention ------------------------------------------------------------------------------

    def recover(self, numbers: list[int], unseen: bool) -> None:
        """Leases expire, and mostly it is seen."""
        keys = self.keys_in((State.ACTIVE,), numbers)
        self.both("expire", [key for key in keys if self.model.jobs[key].state == State.ACTIVE])
        if not unseen:
            self.both("recover")

    def cancel(self, number: int, kept: bool, grace: bool, waiting: bool) -> None:
        """With `waiting` only what waits: jobs are cleared."""
        self.both("cancel", self.keys_in((State.ACTIVE,), [number])[0], None, kept=kept, grace=grace, waiting=waiting)

    def prioritise(self, number: int, delayed: bool, level: int) -> None:
        """A job that waits gets another level."""
        state = State.SCHEDULED if delayed else State.QUEUED
        self.both("prioritise", self.keys_in((state,), [number])[0], level)

    def hasten(self, numbers: list[int]) -> None:
        self.both("hasten", self.keys_in((State.SCHEDULED,), numbers))

    def replay(self, numbers: list[int], another_death: bool, changed: bool, users: int) -> None:
        keys, body = self.keys_in((State.DEAD,), numbers), self.fresh() if changed else ""
        self.both("replay", keys, same_death=not another_death, body=body, users=users)

    def purge(self, numbers: list[int], another_death: bool) -> None:
        self.both("forget", self.keys_in((State.DEAD,), numbers), same_death=not another_death)

    def move(self, numbers: list[int], other: bool, another_death: bool) -> None:
        """Dead letters are sent to another queue."""
        self.both("move", self.keys_in((State.DEAD,), numbers), f"to-{other}", same_death=not another_death)

    def deliver(self, number: int, other: bool, accepted: bool) -> None:
        """The other queue has answered to a delivery, this one or another."""
        self.both("deliver", self.keys_in((State.OUTGOING,), [number])[0], f"to-{other}", accepted=accepted)

    # --- time --------------------------------------------------------------------------------------------------------

    def come_due(self, numbers: list[int], asked: bool) -> None:
        """Delayed jobs join the line when somebody asks for it, or else with the next `take`."""
        keys = self.keys_in((State.SCHEDULED,), numbers)
        self.both("come_due", [key for key in keys if self.model.jobs[key].state == State.SCHEDULED])
        if asked:
            self.both("promote")

    def the_window_passes(self, entries: int) -> None:
        self.both("window_passes", entries)

    def an_ended_job_expires(self, number: int) -> None:
        (key,) = self.keys_in(ENDED, [number])
        job = self.model.jobs[key]
        if job.taken_key:
            self.both("key_freed", key)
        elif job.state in ENDED:
            self.both("vanish", key)

    def nothing(self) -> None:
        """What a step becomes that a failure does not need."""


def run(url: str, number: int | None, **options: Any) -> None:
    """Run examples (`number`: their seed, none: always the same); they must go through the whole life-cycle."""
    made: Counter[tuple[State, Action]] = Counter()
    with redis.Redis.from_url(url) as client:

        @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), **options)
        @given(a_limit, st.sampled_from(("jobs", "users")), a_cap, st.lists(a_step, min_size=40, max_size=80))
        def follow(limit: int, unit: str, cap: int, steps: list[tuple[Any, ...]]) -> None:
            twins = SeveralWorkers(client, limit, unit, cap)
            try:
                for name, *args in steps:
                    getattr(twins, name)(*args)
            except AssertionError:
                note("\n".join(twins.said))
                raise
            made.update(twins.model.steps)

        (follow if number is None else seed(number)(follow))()
    print(*(f"{t.source.name} {t.action.name} {made[t.source, t.action]}" for t in TRANSITIONS), sep="\n")
    assert {(t.source, t.action) for t in TRANSITIONS} == set(made)


@pytest.mark.timeout(300)
def test_the_server_follows_the_model(redis_url: str) -> None:
    run(redis_url, None, max_examples=300, derandomize=True)


@pytest.fixture
def number() -> int:
    """A seed: SAQKIT_TEST_SEED, or a new one; it is shown when the test fails."""
    chosen = int(os.environ.get("SAQKIT_TEST_SEED") or secrets.randbelow(2**32))
    print(f"SAQKIT_TEST_SEED={chosen}")
    return chosen


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_the_server_follows_the_model_in_ten_thousand_examples(redis_url: str, number: int) -> None:
    run(redis_url, number, max_examples=10_000)
