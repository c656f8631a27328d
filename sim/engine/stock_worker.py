"""SAQ's worker as the model plays it: `process`, `abort`, `schedule` and `sweep` are asyncio tasks of SAQ's.

A task is a generator that yields what it waits for: a round trip to the broker, a blocking one, seconds, the end of an
attempt or of somebody else's job. It goes on, on the event loop, with what that brought.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from saqkit.spec.draws import Stream, uniform
from saqkit.spec.lifecycle import Action
from sim.engine.attempt import Attempt
from sim.engine.jobs import Job
from sim.engine.parts import Call
from sim.engine.worker import Worker

if TYPE_CHECKING:
    from sim.engine.stock import StockModel, Stored

POLL_S = 1.0
"""`Worker.timers["schedule"]` and `["abort"]`; a poll locks the schedules of the other processes out for as long."""
SWEEP_S = 60.0
"""`Worker.timers["sweep"]`, and the lock of the sweeps."""
GIVE_UP_S = 5.0
"""How long `RedisQueue.sweep` waits for the worker of each stuck job to end it, whether or not that still lives."""
DRIFT_S = 0.002
"""A poll comes so much later than its period after the one before: the calls between take that long."""


class Trip(NamedTuple):
    """A round trip: `script` is carried out on the broker, where it costs as much as `jobs` more; brings its result."""

    script: Callable[[], Any]
    jobs: int = 0


class Blocking(NamedTuple):
    """A round trip whose script may return `LATER`, and give its answer to the function that it was called with."""

    script: Callable[[Callable[[Any], None]], Any]


class Ending(NamedTuple):
    """Wait until a job ends, at most `GIVE_UP_S`; brings whether it did."""

    stored: Stored


class BrokerAwayError(Exception):
    """Raised in a task whose call finds no broker; it is back at `until_s`."""

    def __init__(self, until_s: float) -> None:
        super().__init__(until_s)
        self.until_s = until_s


LATER = object()
Steps = Generator["Trip | Blocking | Ending | StockAttempt | float", Any, None]


class StockAttempt(Attempt):
    """An execution of the job as its slot has read it, beside the record on the broker, which others may change."""

    worker: StockWorker

    def __init__(self, worker: StockWorker, stored: Stored, taken_at: float) -> None:
        job = stored.job if stored.job.type.fan_out else copy(stored.job)  # a fan-out's cursor is in the database
        job.attempt = stored.attempts + 1
        if not len(job.left) and job.type.per_user.database == "none":
            job.left = job.users  # without a ledger a second execution does it all again
        super().__init__(worker, job, taken_at)
        self.stored = stored
        self.done: Callable[[bool], None] = lambda _: None

    def send_page(self, to: str, batches: Sequence[Sequence[int]], then: Call) -> None:
        """SAQ enqueues job by job, several at once."""
        left = len(batches)

        def enqueued() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                self._resume(then)

        for batch in batches:
            self.worker.run(self.worker.enqueue(self.job, to, batch), enqueued)
        if not batches:
            enqueued()


class StockWorker(Worker):
    """A process of SAQ's for one queue: upkeep, and a task for each slot that takes and finishes its own jobs."""

    model: StockModel

    def take(self, queue: str) -> None:
        """The process is up: upkeep begins, then every slot waits in a call of its own.

        At the first event the processes have been up for `StockModel.up_s`: each stands somewhere in its second, and
        the first of them holds the lock of the sweeps.
        """
        model, self.line = self.model, self.model.stock[queue]
        self.in_hand: Stored | None = None
        poll_s = sweep_s = 0.0
        if not model.env.now:
            first = self.line.sweep_lock.take(-model.up_s, SWEEP_S)
            later_s = 0.0 if first else uniform(model.seed, Stream.JITTER, 0, 3 + self.number) * POLL_S
            poll_s = (later_s - model.up_s) % POLL_S
            sweep_s = (later_s - model.up_s) % SWEEP_S + DRIFT_S
        self.run(self.abort(poll_s))
        self.run(self.schedule(poll_s))
        self.run(self.sweep(sweep_s))
        for _ in range(self.free[queue]):
            self.run(self.process())

    @property
    def attempts(self) -> list[StockAttempt]:
        """What the process holds."""
        return [attempt for attempt in self.held.values() if isinstance(attempt, StockAttempt)]

    # SAQ's tasks

    def process(self) -> Steps:
        """A slot, job after job: four round trips before the function begins, two after it."""
        model, env = self.model, self.model.env
        while True:
            attempt: StockAttempt | None = None
            try:
                attempt = yield Blocking(self._move)
                stored, job = attempt.stored, attempt.job
                _, attempts = yield Trip(stored.read)
                job.attempt = attempts + 1
                yield Trip(partial(stored.write, "active", job.attempt, env.now))
                yield Trip(_publish)
                if not (yield attempt):
                    continue  # aborted
                stored.job.ended(attempt)
                for edge in job.type.follow_up if attempt.action == Action.FINISH else ():
                    for users in stored.job.followed():
                        yield from self.enqueue(job, edge.to, users)
                again = attempt.action == Action.RETRY
                due_s = model.due_s(job, job.attempt) if again else 0.0
                yield Trip(partial(model.settle_stock, attempt, due_s), model.scanned(self.line) if again else 0)
                yield Trip(_publish if again else stored.tell)
            except BrokerAwayError as away:  # its job stays active: nobody looks at it until a sweep does
                if attempt is not None and attempt.job in self.held:
                    model.strand(attempt)
                yield away.until_s - env.now

    def schedule(self, after_s: float) -> Steps:
        """Moves what is due by this process' clock into the line, unless somebody has done so within a second."""
        yield after_s
        while True:
            with suppress(BrokerAwayError):
                yield Trip(partial(self._promote, self.model.env.now))
            yield POLL_S

    def abort(self, after_s: float) -> Steps:
        """Ends what has run for a second and a sweep wants ended."""
        yield after_s
        while True:
            for attempt in self.attempts:
                if attempt.stored.status == "aborting" and self.model.env.now - attempt.started_at >= POLL_S:
                    with suppress(BrokerAwayError):
                        if (yield Trip(partial(self.model.cancel, attempt))):
                            attempt.done(False)
                            yield Trip(attempt.stored.tell)
            yield POLL_S

    def sweep(self, after_s: float) -> Steps:
        """Deals with the stuck among the jobs that were active when it began, one after the other."""
        yield after_s
        while True:
            try:
                for stored, status, attempts, started_at in (yield Trip(self._list_active)):
                    if status != "active" or self.model.env.now - started_at > stored.job.type.timeout_s:
                        yield from self._recover(stored, attempts, started_at)
            except BrokerAwayError:
                self._drop()
            yield SWEEP_S

    def _recover(self, stored: Stored, attempts: int, started_at: float) -> Steps:
        """Mark a job as aborting, wait for its end in vain if its worker is dead, then retry it or give it up."""
        model, line = self.model, self.line
        waited = yield Trip(partial(self._mark, stored, attempts, started_at), model.scanned(line))
        if waited:  # it is taken out of the line
            yield Trip(partial(model.end, stored))
            yield Trip(stored.tell)
        else:
            yield Trip(partial(line.remove, stored, line.active))
        status, attempts = yield Trip(stored.read)
        if status != "ended" and (yield Ending(stored)):
            status, attempts = yield Trip(stored.read)
        if attempts < stored.job.type.retry.max_attempts:
            due_s = model.due_s(stored.job, attempts)
            yield Trip(partial(self._dealt_with, partial(model.queue_again, due_s=due_s)), model.scanned(line))
            yield Trip(_publish)
        else:
            yield Trip(partial(self._dealt_with, model.end))
            yield Trip(stored.tell)

    def enqueue(self, parent: Job, to: str, users: Sequence[int]) -> Steps:
        """`Queue.enqueue` of one job by a function of this process."""
        yield Trip(partial(self.model.enqueue_children, parent, to, [users]))

    # What the scripts of these tasks do on the broker

    def _move(self, answer: Callable[[StockAttempt], None]) -> object:
        """BLMOVE."""
        loop = self.loop

        def claim(stored: Stored) -> StockAttempt:
            attempt = StockAttempt(self, stored, self.model.env.now)
            self.held[attempt.job] = attempt
            stored.places += 1
            return attempt

        stored = self.line.pop(loop, lambda stored: answer(claim(stored)))
        return claim(stored) if stored is not None and loop.alive else LATER

    def _promote(self, now_s: float) -> None:
        if self.line.schedule_lock.take(self.model.env.now, POLL_S):
            self.line.promote(now_s, self.model.env.now)

    def _list_active(self) -> list[tuple[Stored, str, int, float]]:
        if not self.line.sweep_lock.take(self.model.env.now, SWEEP_S):
            return []
        return [(stored, stored.status, stored.attempts, stored.started_at) for stored in self.line.active]

    def _mark(self, stored: Stored, attempts: int, started_at: float) -> bool:
        """`RedisQueue.abort` with the record as the sweep has read it; whether the job waited in the line."""
        self.in_hand, stored.places = stored, stored.places + 1
        stored.write("aborting", attempts, started_at)
        self.model.look(stored)
        self.line.unschedule(stored)
        return self.line.remove(stored, self.line.queued)

    def _dealt_with(self, script: Callable[[Stored], None]) -> None:
        """The job is back, or given up; now it is known that its attempts were lost."""
        if (stored := self.in_hand) is not None:
            script(stored)
            stored.places -= 1
            self.in_hand = None
            if stored.status != "ended":
                self.model.report(stored)
            self.model.look(stored)  # given up: unless another sweep has it in hand as well, that was all

    def _drop(self) -> None:
        """The sweep ends in the midst of a job, which may be on no list any more."""
        if (stored := self.in_hand) is not None:
            stored.places -= 1
            self.in_hand = None
            self.model.look(stored)

    # How a task goes on

    def run(self, steps: Steps, then: Call | None = None) -> None:
        """Start a task of this process; `then` is called at its end."""
        loop, model, trip_cpu_s = self.loop, self.model, self.model.trip_cpu_s

        def resume(value: object) -> None:
            loop.soon(trip_cpu_s, partial(go, value))

        def answer(value: object) -> None:
            model.later((model.costs.broker_wire_s + model.network_s) / 2, partial(reply, value))

        def reply(value: object) -> None:
            if value is not LATER and loop.alive:
                resume(value)

        def go(value: object) -> None:
            try:
                wait(steps.throw(value) if isinstance(value, BrokerAwayError) else steps.send(value))
            except StopIteration:
                if then is not None:
                    then()

        def wait(step: Trip | Blocking | Ending | StockAttempt | float) -> None:
            if isinstance(step, StockAttempt):
                step.done = lambda value: loop.soon(model.failed_cpu_s if step.error else 0.0, partial(go, value))
                step.begin()
            elif isinstance(step, Ending):
                watch(step.stored)
            elif isinstance(step, float):
                loop.at(model.env.now + step, 0.0, partial(go, None))
            elif until_s := model.away_until():
                resume(BrokerAwayError(until_s))
            elif isinstance(step, Blocking):
                model.broker.call(partial(step.script, answer), reply, 0, model.network_s)
            else:
                model.broker.call(step.script, reply, step.jobs, model.network_s)

        def watch(stored: Stored) -> None:
            told = False

            def tell(ended: bool) -> None:
                nonlocal told
                if not told:
                    told = True
                    answer(True) if ended else go(False)

            stored.watched.append(partial(tell, True))
            loop.at(model.env.now + GIVE_UP_S, 0.0, partial(tell, False))

        go(None)

    def finish(self, attempt: Attempt) -> None:
        """The function is over: its slot goes on."""
        assert isinstance(attempt, StockAttempt)
        attempt.done(True)

    def kill(self) -> None:
        """SIGKILL: what it holds stays on the active list; what its sweep was dealing with is on none."""
        super().kill()
        for attempt in self.attempts:
            self.model.strand(attempt)
        self._drop()


def _publish() -> None:
    """PUBLISH of a status that nobody waits for."""
