"""A worker process: it takes jobs into its slots, and finishes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from saqkit.spec.draws import Stream, uniform
from sim.engine.attempt import Attempt
from sim.engine.feed import Feed
from sim.engine.jobs import Job
from sim.engine.parts import LedgerWriter, Loop
from sim.engine.providers import build_gates

if TYPE_CHECKING:
    from sim.engine.model import Model


class Worker:
    """A worker process: one event loop, slots for each of its queues, one ledger writer."""

    def __init__(self, model: Model, number: int, host: int, queues: Sequence[str]) -> None:
        self.model, self.number, self.host, self.queues = model, number, host, queues
        self.name = f"w{number}"
        self.busy_s = self.lent_s = 0.0
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
            costs.switch_s,
        )
        self.gates = build_gates(self)
        self.writer = LedgerWriter(model.env, model.database, self.loop, costs.handing_s)
        self.free = {queue: model.slots(queue) for queue in self.queues}
        self.renews_from = float("inf")
        self.held = held = dict[Job, Attempt]()
        self.writer.before = lambda: _mark(held, "committing", lambda attempt: len(attempt.sent))
        self.writer.after = partial(self._durable, held)
        self.events: set[int] = set()
        self.feeds = {queue: Feed(self, queue) for queue in self.queues}
        for queue in self.queues:
            self.take(queue)

    def _durable(self, held: dict[Job, Attempt]) -> None:
        _mark(held, "durable", lambda attempt: attempt.committing)
        if self.model.ledger is not None:
            self.model.ledger.committed(held.values())

    def take(self, queue: str) -> None:
        """Ask for jobs of `queue`, if a slot is free."""
        self.feeds[queue].seek()

    def wake(self, queue: str) -> None:
        """Jobs of `queue` wait, and this process is told."""
        self.feeds[queue].wake()

    def finish(self, attempt: Attempt) -> None:
        """An attempt ended."""
        self.feeds[attempt.job.type.queue].said(attempt)

    def kill(self) -> None:
        """SIGKILL: nothing it holds is told to anybody; its leases run out."""
        self.loop.stop()
        self.writer.stop()
        self.busy_s += self.loop.busy_s
        self.lent_s += self.loop.lent_s
        for waiting in self.model.idle.values():
            waiting.pop(self, None)
        for attempt in self.held.values():
            attempt.over = True


def _mark(held: dict[Job, Attempt], name: str, value: Callable[[Attempt], int]) -> None:
    for attempt in held.values():
        setattr(attempt, name, value(attempt))
