"""A worker process: it takes jobs into its slots, and finishes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from saqkit.spec.draws import Stream, uniform
from sim.engine.attempt import Attempt
from sim.engine.jobs import Job, Taken
from sim.engine.parts import LedgerWriter, Loop

if TYPE_CHECKING:
    from sim.engine.model import Model


class Worker:
    """A worker process: one event loop, slots for each of its queues, one ledger writer."""

    def __init__(self, model: Model, number: int, host: int, queues: Sequence[str]) -> None:
        self.model, self.number, self.host, self.queues = model, number, host, queues
        self.name = f"w{number}"
        self.busy_s = 0.0
        self.start()
        longest_s = max(model.topology.queues[queue].sweep_s for queue in queues)
        self.sweeps_from = -uniform(model.seed, Stream.JITTER, 0, 3 + number) * longest_s

    def start(self) -> None:
        """The process is up, with every slot free."""
        model, costs = self.model, self.model.costs
        self.sweeps_from = model.env.now
        self.loop = Loop(
            model.env,
            model.hosts[self.host],
            costs.timer_resolution_s,
            costs.timer_overshoot_s,
            costs.cold_s,
            2 if model.relieved == "loop" else 1,
        )
        self.writer = LedgerWriter(model.env, model.database)
        self.free = {queue: model.slots(queue) for queue in self.queues}
        self.busy_taking = dict.fromkeys(self.queues, False)
        self.alarms = dict.fromkeys(self.queues, 0)
        self.renews_from = float("inf")
        self.held = held = dict[Job, Attempt]()
        self.writer.before = lambda: _mark(held, "committing", lambda attempt: len(attempt.sent))
        self.writer.after = lambda: _mark(held, "durable", lambda attempt: attempt.committing)
        self.ended: list[Attempt] = []
        self.events: set[int] = set()
        for queue in self.queues:
            self.take(queue)

    def take(self, queue: str) -> None:
        """Ask for as many jobs as slots are free, in one call; one call or one wait at a time."""
        if self.free[queue] and not self.busy_taking[queue]:
            self.busy_taking[queue] = True
            self.loop.soon(self.model.costs.client_cpu_s, partial(self._call_take, queue))

    def wake(self, queue: str) -> None:
        """The wait for jobs is over: ask again."""
        if self.loop.alive:
            self.busy_taking[queue] = False
            self.take(queue)

    def _call_take(self, queue: str) -> None:
        model, line, most, loop = self.model, self.model.lines[queue], self.free[queue], self.loop

        def script() -> Taken:
            if not loop.alive:
                return Taken([], 0.0, 0.0)
            taken = line.take(model.env.now, most)
            model.broker.touch(len(taken.jobs))
            for job in taken.jobs:
                self.held[job] = job.holder = Attempt(self, job, model.env.now)
            self.renews_from = min(self.renews_from, model.env.now)
            if len(taken.jobs) < most and not taken.opens_at:
                model.idle[queue][self] = None
            if line.ready and not taken.opens_at:
                model.wake(queue)  # who was woken and leaves something wakes the next
            return taken

        def reply(taken: Taken) -> None:
            if loop.alive:
                loop.soon(0.0, partial(self._taken, queue, most, taken))

        model.broker.call(script, reply, network_s=model.network_s)

    def _taken(self, queue: str, most: int, taken: Taken) -> None:
        model, now = self.model, self.model.env.now
        self.free[queue] -= len(taken.jobs)
        for job in taken.jobs:
            self.loop.soon(model.costs.queue_cpu_s, self.held[job].begin)
        if len(taken.jobs) == most:
            self.wake(queue)
        elif taken.opens_at:  # the rate limit alone says when more may be taken
            self.loop.at(max(taken.opens_at, now + 0.001), 0.0, partial(self.wake, queue))
        elif taken.due_at and self in model.idle[queue]:
            self._wait_until(queue, taken.due_at)

    def _wait_until(self, queue: str, due_at: float) -> None:
        """A blocking call with a timeout: short ones are a timer's, long ones end on the broker's own coarse clock."""
        model, loop = self.model, self.loop
        self.alarms[queue] = alarm = self.alarms[queue] + 1

        def ring() -> None:
            if loop.alive and alarm == self.alarms[queue] and self in model.idle[queue]:
                del model.idle[queue][self]
                loop.soon(0.0, partial(self.wake, queue))

        delay_s = max(0.001, due_at - model.env.now)
        if delay_s < 0.01:
            loop.at(model.env.now + delay_s, 0.0, ring)
        else:
            grid_s = model.costs.broker_clock_s
            phase_s = uniform(model.seed, Stream.JITTER, 0, 2) * grid_s
            late_s = (phase_s - model.env.now - delay_s) % grid_s if grid_s else 0.0
            model.later(delay_s + late_s, ring)

    def finish(self, attempt: Attempt) -> None:
        """An attempt ended; all that end in one turn of the loop share a call."""
        self.ended.append(attempt)
        if len(self.ended) == 1:
            self.loop.soon(self.model.costs.client_cpu_s, self._call_finish)

    def _call_finish(self) -> None:
        ended, self.ended, loop = self.ended, [], self.loop

        def reply(_: None) -> None:
            if loop.alive:
                loop.soon(0.0, partial(self._freed, ended))

        def script() -> None:
            for attempt in ended:
                self.model.settle(attempt)

        self.model.broker.call(script, reply, len(ended), self.model.network_s)

    def _freed(self, ended: list[Attempt]) -> None:
        for attempt in ended:
            self.free[attempt.job.type.queue] += 1
        for queue in dict.fromkeys(attempt.job.type.queue for attempt in ended):
            self.take(queue)

    def kill(self) -> None:
        """SIGKILL: nothing it holds is told to anybody; its leases run out."""
        self.loop.stop()
        self.writer.stop()
        self.busy_s += self.loop.busy_s
        for waiting in self.model.idle.values():
            waiting.pop(self, None)
        for attempt in self.held.values():
            attempt.over = True


def _mark(held: dict[Job, Attempt], name: str, value: Callable[[Attempt], int]) -> None:
    for attempt in held.values():
        setattr(attempt, name, value(attempt))
