"""What a worker process and the broker say to each other about one queue.

One round trip at a time tells how attempts ended and asks for as many jobs as slots are free; a slot is free as soon as
its attempt has ended. Whoever got fewer jobs than it asked for waits in a blocking call, behind which its next question
stands already: it is answered as soon as somebody enqueues, or a delayed job is due.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from saqkit.spec.draws import Stream, uniform
from sim.engine.attempt import Attempt
from sim.engine.jobs import Taken

if TYPE_CHECKING:
    from sim.engine.worker import Worker

SHORTEST_S = 0.001
BLOCKING_S = 0.01  # shorter waits are a timer's of the process
EARLY_S = 0.11  # a blocking wait for the rate limit ends so much before, and the rest is a timer's too


class Feed:
    """Keeps the slots of one queue in one process busy."""

    def __init__(self, worker: Worker, queue: str) -> None:
        self.worker, self.queue, self.model, self.loop = worker, queue, worker.model, worker.loop
        self.line = self.model.lines[queue]
        self.ended: list[Attempt] = []
        self._talking = self._asking = False  # a round trip is under way; a question is out
        self._pausing = False  # the last answer brought fewer jobs than there were slots
        self._most = 0
        self._waits = 0  # counts the blocking waits: one that is over is not ended twice
        self._called = False  # told that jobs wait: it counts for the wait that is, or for the next
        self._arrived = False

    def seek(self) -> None:
        """Ask for jobs, if a slot is free and no question is out."""
        if self._may_ask():
            self._talk()

    def said(self, attempt: Attempt) -> None:
        """An attempt ended: its slot is free, and all that end in one turn of the loop share a round trip."""
        self.ended.append(attempt)
        self.worker.free[self.queue] += 1
        self._talk()

    def _may_ask(self) -> bool:
        return not self._asking and not self._pausing and self.worker.free[self.queue] > 0

    def _talk(self) -> None:
        if not self._talking:
            self._talking = True
            self.loop.soon(self.model.costs.client_cpu_s, self._call)

    def _call(self) -> None:
        ended, self.ended, asks = self.ended, [], self._may_ask()
        if asks:
            self._asking, self._most = True, self.worker.free[self.queue]

        def script() -> Taken | None:
            for attempt in ended:
                self.model.settle(attempt)
            return self._take() if asks else None

        def reply(taken: Taken | None) -> None:
            if self.loop.alive:
                self.loop.soon(0.0, lambda: self._replied(taken))

        self.model.broker.call(script, reply, len(ended), self.model.network_s)

    def _replied(self, taken: Taken | None) -> None:
        self._talking = False
        if taken is not None:
            self._taken(taken)
        if self.ended or self._may_ask():
            self._talk()

    def _take(self) -> Taken:
        """The taking script; of a process that has died meanwhile nothing is heard."""
        model, worker = self.model, self.worker
        if not self.loop.alive:
            return Taken([], 0.0, 0.0)
        taken = self.line.take(model.env.now, self._most)
        model.broker.touch(len(taken.jobs))
        for job in taken.jobs:
            worker.held[job] = job.holder = Attempt(worker, job, model.env.now)
        worker.renews_from = min(worker.renews_from, model.env.now)
        if len(taken.jobs) < self._most and not self._deaf(taken):
            model.idle[self.queue][worker] = None
        if self.line.leaves and not taken.opens_at:
            model.wake(self.queue)  # who was woken and leaves something wakes the next
        return taken

    def _taken(self, taken: Taken) -> None:
        self._asking, most = False, self._most
        self.worker.free[self.queue] -= len(taken.jobs)
        for job in taken.jobs:
            self.loop.soon(self.model.costs.queue_cpu_s, self.worker.held[job].begin)
        if len(taken.jobs) < most:
            self._pause(taken)

    def _deaf(self, taken: Taken) -> bool:
        """Whether it need not be told of jobs that come in: none may go, or a timer of its own ends its wait."""
        soon_s = self.model.env.now + BLOCKING_S + EARLY_S
        return taken.opens_at > 0 and not (self.line.heard_while_closed and taken.opens_at >= soon_s)

    # The blocking wait

    def _pause(self, taken: Taken) -> None:
        """Wait for the next job: until one is enqueued, the next delayed one is due, or a rate limit opens."""
        model = self.model
        self._pausing, self._arrived = True, False
        self._most = self.worker.free[self.queue]
        self._waits += 1
        until_s, early_s = taken.opens_at or taken.due_at, EARLY_S if taken.opens_at else 0.0
        delay_s = max(SHORTEST_S, until_s - model.env.now)
        if until_s and delay_s < BLOCKING_S + early_s:
            self.loop.at(model.env.now + delay_s, 0.0, self._pause_is_over)
            return
        blocks = partial(self._blocks, self._waits, until_s - early_s)
        call = partial(model.broker.call, blocks, _nothing, network_s=model.network_s)
        self.loop.soon(model.costs.client_cpu_s, call)

    def _pause_is_over(self) -> None:
        self.model.idle[self.queue].pop(self.worker, None)
        self._pausing = False
        self.seek()

    def _blocks(self, wait: int, until_s: float) -> None:
        """The blocking call has reached the broker, which ends it on its own coarse clock."""
        if not self.loop.alive or wait != self._waits:
            return
        self._arrived = True
        if self._called:
            self._answer(wait)
        elif until_s:
            model = self.model
            delay_s, grid_s = max(0.0, until_s - model.env.now), model.costs.broker_clock_s
            phase_s = uniform(model.seed, Stream.JITTER, 0, 2) * grid_s
            late_s = (phase_s - model.env.now - delay_s) % grid_s if grid_s else 0.0
            model.later(delay_s + late_s, lambda: self._answer(wait))

    def wake(self) -> None:
        """Somebody enqueued, and this process is the one that is told."""
        self._called = True
        if self._arrived:
            self._answer(self._waits)

    def _answer(self, wait: int) -> None:
        """The wait is over: the question behind it is answered."""
        if not self.loop.alive or wait != self._waits or not self._arrived:
            return
        self._waits += 1
        self._called = self._arrived = False  # until the next wait has come there, nothing is asked
        self.model.idle[self.queue].pop(self.worker, None)

        def reply(taken: Taken) -> None:
            if self.loop.alive:
                self.loop.soon(0.0, lambda: self._woken(taken))

        self.model.broker.serve(self._take, reply, network_s=self.model.network_s)

    def _woken(self, taken: Taken) -> None:
        self._pausing = False
        self._taken(taken)
        self.seek()


def _nothing(_: None) -> None:
    """The reply to a blocking call comes with the answer behind it."""
