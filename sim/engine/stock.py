"""Stock SAQ in place of our queue and worker: the same system, as it would run on SAQ 0.26 and its Redis queue.

The application stays: its job types, providers, database and ledger. What the queue and its worker do is SAQ's, call by
call: `StockLine` holds what SAQ keeps on the broker, `StockWorker` is its worker. SAQ's life of a job is not that of
`saqkit.spec.lifecycle`: a job can be in two lists at once or in none, and nobody is fenced; so each job has a `Stored`
record beside it. `docs/stock_mode.md` says what is modelled and what is not.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import floor

from saqkit.spec.backoff import LONGEST_DELAY_S, Retry
from saqkit.spec.deployment import Deployment
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.interpreter import PYTHONS_SWITCH_S
from saqkit.spec.lifecycle import Action
from saqkit.spec.topology import Topology
from saqkit.spec.workload import BrokerRestart, KillWorker, ProviderOutage, Workload
from sim.engine.attempt import Attempt
from sim.engine.choosing_line import choosing_field
from sim.engine.costs import Costs
from sim.engine.jobs import Job
from sim.engine.model import Model
from sim.engine.parts import Call, Loop
from sim.engine.stock_worker import SWEEP_S, StockAttempt, StockWorker

# Measured with SAQ 0.26.4, redis-py 7.4.1, Python 3.11 by `python benchmarks/stock_predicted.py --only costs`: CPU
# times as multiples of the probe's (one round trip of one redis-py client, one small script on the server), because
# SAQ's cost is mostly redis-py's and so grows and shrinks with the host as that does.
TRIP_CPU = 0.85
"""Loop CPU of each of the six round trips of a job, of `client_cpu_s`, everything between them included."""
FAILED_CPU = 6.0
"""The same of a failed attempt beyond a done one: the traceback is formatted twice and logged."""
TRIP_BROKER_CPU = 0.7
"""Server CPU of a round trip, of `broker_cpu_s`."""
SCAN_BROKER_CPU = 1.1e-3
"""Server CPU of a retry for each job that waits: `LREM` looks for it through the whole line."""


class Stored:
    """What SAQ keeps of one job: its record (`status`, `attempts`, `started_at`), and on how many lists it is.

    `places` counts them: the line, the scheduled, the active, a sweep's hands, a live process' hands. At 0 nobody will
    come back to the job. `stranded` are attempts whose process let go of them and that have no row yet, `watched` whom
    the job's end is told.
    """

    __slots__ = ("attempts", "job", "open", "places", "started_at", "status", "stranded", "watched")

    def __init__(self, job: Job) -> None:
        self.job, self.places, self.open = job, 0, True
        self.status, self.attempts, self.started_at = "queued", 0, 0.0
        self.stranded: list[Attempt] = []
        self.watched: list[Call] = []

    def read(self) -> tuple[str, int]:
        """GET."""
        return self.status, self.attempts

    def write(self, status: str, attempts: int, started_at: float) -> None:
        """SET: whatever it was before."""
        self.status, self.attempts, self.started_at = status, attempts, started_at

    def tell(self) -> None:
        """PUBLISH of a status that ends the job."""
        watched, self.watched = self.watched, []
        for call in watched:
            call()


class Lock:
    """A key with a time to live, in whole milliseconds as Redis has it: there until its last one is over."""

    def __init__(self) -> None:
        self._until_ms = float("-inf")

    def take(self, now_s: float, ttl_s: float) -> bool:
        """Whether nobody has it; then it is taken for `ttl_s`."""
        now_ms = floor(now_s * 1e3)
        if now_ms <= self._until_ms:
            return False
        self._until_ms = now_ms + ttl_s * 1e3
        return True


class StockLine:
    """A queue of SAQ's on the broker: one line without priorities or limits, the active, the scheduled, two locks."""

    def __init__(self) -> None:
        self.queued: deque[Stored] = deque()
        self.active: list[Stored] = []
        self.schedule_lock, self.sweep_lock = Lock(), Lock()
        self._scheduled: list[tuple[float, int, Stored]] = []
        self._numbers, self._number_of = 0, dict[Stored, int]()  # entries with another number have been withdrawn
        self._blocked: deque[tuple[Loop, Callable[[Stored], None]]] = deque()

    def push(self, stored: Stored, now_s: float) -> None:
        """RPUSH: the job joins the end of the line, or goes to the slot that has been blocked for longest."""
        stored.job.ready_at = now_s
        self.queued.append(stored)
        stored.places += 1
        while self.queued and self._blocked:
            loop, serve = self._blocked.popleft()
            if loop.alive:
                serve(self._move())

    def pop(self, loop: Loop, serve: Callable[[Stored], None]) -> Stored | None:
        """BLMOVE: the first job of the line, which is active from now on; without one, `serve` is called with the next
        if `loop` is alive by then.
        """
        if not self.queued:
            self._blocked.append((loop, serve))
            return None
        return self._move()

    def _move(self) -> Stored:
        stored = self.queued.popleft()
        self.active.append(stored)
        return stored

    def remove(self, stored: Stored, line: deque[Stored] | list[Stored]) -> bool:
        """LREM from the line or from the active; whether it was there."""
        if stored not in line:
            return False
        line.remove(stored)
        stored.places -= 1
        return True

    def schedule(self, stored: Stored, due_s: float) -> None:
        """ZADD: the job waits until the first poll after `due_s`; it has one such time."""
        self.unschedule(stored)
        self._numbers += 1
        self._number_of[stored] = self._numbers
        heapq.heappush(self._scheduled, (due_s, self._numbers, stored))
        stored.places += 1

    def unschedule(self, stored: Stored) -> None:
        """ZREM."""
        if self._number_of.pop(stored, 0):
            stored.places -= 1

    def promote(self, due_s: float, now_s: float) -> None:
        """What is due joins the line, in order of its time."""
        while self._scheduled and self._scheduled[0][0] <= due_s:
            _, number, stored = heapq.heappop(self._scheduled)
            if self._number_of.get(stored) == number:
                self.unschedule(stored)
                self.push(stored, now_s)


def delay_after(retry: Retry, failed: int, u: float) -> float:
    """Seconds that SAQ waits after execution number `failed`: it knows one fixed delay, or one that doubles and is
    drawn from 0 to that (full jitter). The first delay stands for a list, and a factor is always 2. A week bounds them,
    as it does any policy of a description: SAQ is given `retry_backoff` = the cap, or a week.
    """
    if retry.backoff != "exponential":
        return retry.base_delay_s(1)
    return min(retry.cap_s or LONGEST_DELAY_S, LONGEST_DELAY_S, retry.delay_s * 2.0 ** min(max(failed - 1, 0), 60)) * u


def ignored(topology: Topology) -> tuple[str, ...]:
    """What of a description stock SAQ has nothing of, in words."""
    entries = {entry.priority for entry in topology.entry if entry.priority is not None}
    entries |= {schedule.priority for schedule in topology.schedules if schedule.priority is not None}
    notes = []
    if len(entries | {job.priority for job in topology.job_types.values()}) > 1:
        notes.append("stock SAQ has no priorities: its queues are first in, first out")
    for name, queue in topology.queues.items():
        if queue.rate_limit:
            notes.append(f"stock SAQ has no rate limits: that of queue {name} is not kept")
        if field := choosing_field(queue):
            notes.append(f"stock SAQ has no {field.replace('_', ' ')}: queue {name} is first in, first out")
    for name, job in topology.job_types.items():
        retry = job.retry
        if retry.max_attempts == 1:
            continue
        if retry.backoff == "list":
            notes.append(
                f"stock SAQ has no lists of delays: {name} always waits its first, {retry.base_delay_s(1):g} s"
            )
        elif retry.backoff == "exponential" and (retry.factor, retry.jitter) != (2, "full"):
            notes.append(f"stock SAQ knows one backoff: the delays of {name} double, with full jitter")
        elif retry.backoff == "fixed" and retry.jitter != "none":
            notes.append(f"stock SAQ has no jitter of a fixed delay: {name} waits {retry.base_delay_s(1):g} s")
    return tuple(notes)


class StockModel(Model):
    """One simulated run on stock SAQ; see `Model`.

    SAQ's worker serves one queue, so each process of the deployment becomes one for each of its queues, and a killed
    one takes all of these with it. `up_s`: how long the processes have been up at the first event (drawn from the seed
    by default); it decides when they poll and sweep.
    """

    enqueue_chunk = 20  # `max_concurrent_ops`: so many enqueues are under way at once

    def __init__(
        self,
        topology: Topology,
        deployment: Deployment,
        workload: Workload,
        costs: Costs,
        seed: int,
        relieved: str = "",
        tick_phase_s: float = 0.0,
        up_s: float | None = None,
    ) -> None:
        self.stock = {name: StockLine() for name in topology.queues}
        self.stored: dict[str, Stored] = {}
        self.up_s = uniform(seed, Stream.JITTER, 0, 2) * SWEEP_S if up_s is None else up_s
        self.trip_cpu_s, self.failed_cpu_s = TRIP_CPU * costs.client_cpu_s, FAILED_CPU * costs.client_cpu_s
        trip_s = TRIP_BROKER_CPU * costs.broker_cpu_s
        switch_s = PYTHONS_SWITCH_S if costs.switch_s else 0.0  # ours is shorter, for the sake of leases
        charged = replace(costs, enqueue_s=self.trip_cpu_s, broker_cpu_s=trip_s, broker_job_cpu_s=trip_s,
                          switch_s=switch_s)  # fmt: skip
        super().__init__(topology, deployment, workload, charged, seed, relieved, tick_phase_s)

    def processes(self) -> list[tuple[str, ...]]:
        """A process for each queue of each of the deployment's."""
        return [(queue,) for queues in super().processes() for queue in queues]

    def launch(self, number: int, host: int, queues: Sequence[str]) -> StockWorker:
        """SAQ's worker."""
        return StockWorker(self, number, host, queues)

    def _prepare(self, fault: KillWorker | ProviderOutage | BrokerRestart) -> None:
        if not isinstance(fault, KillWorker):
            super()._prepare(fault)
            return
        queues = [len(queues) for queues in super().processes()] * self.deployment.hosts
        first = sum(queues[: fault.worker])
        for worker in self.workers[first : first + queues[fault.worker]]:
            self.later(fault.at_s, partial(self._kill, worker))

    def _put(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.key in self.stored:  # enqueued by an earlier execution of its parent
                self._opened(job.event, -1)
                continue
            self.stored[job.key] = stored = Stored(job)
            job.queued_at = self.env.now
            self.stock[job.type.queue].push(stored, self.env.now)

    # What SAQ's scripts and pipelines do, and what is counted on the way

    def settle_stock(self, attempt: StockAttempt, due_s: float) -> None:
        """`finish` or `retry` of an attempt: whoever comes last wins. `due_s`: when a retry is due, 0 for at once."""
        stored = attempt.stored
        if attempt in stored.stranded:  # this was sent before its process died
            stored.stranded.remove(attempt)
        else:
            attempt.worker.held.pop(attempt.job, None)
            stored.places -= 1
        self._serve(stored.job, attempt)
        refused = len(attempt.refused)
        if attempt.action == Action.RETRY:
            self.record.add(attempt, self.env.now, "retry", refused)
            self.queue_again(stored, due_s)
        elif attempt.action == Action.BURY:
            self.record.add(attempt, self.env.now, "dead", refused + len(stored.job.left))
            stored.job.left = range(0)
            self.end(stored)
        else:
            self.record.add(attempt, self.env.now, "done", refused)
            self.end(stored)
        self.look(stored)

    def queue_again(self, stored: Stored, due_s: float) -> None:
        """`RedisQueue._retry`."""
        line = self.stock[stored.job.type.queue]
        stored.status = "queued"
        line.remove(stored, line.active)
        if stored.places:
            line.remove(stored, line.queued)
        if due_s:
            line.schedule(stored, due_s)
        else:
            line.unschedule(stored)
            line.push(stored, self.env.now)

    def end(self, stored: Stored) -> None:
        """`RedisQueue._finish`."""
        line = self.stock[stored.job.type.queue]
        stored.status = "ended"
        line.remove(stored, line.active)
        line.unschedule(stored)

    def cancel(self, attempt: StockAttempt) -> bool:
        """A worker ends what a sweep has marked, unless it has ended; whether it did."""
        if attempt.over:
            return False
        attempt.over = True
        attempt.worker.loop.withdraw()
        if attempt.gate is not None:
            attempt.gate.withdraw(attempt)
        self.strand(attempt)
        self.end(attempt.stored)
        self.look(attempt.stored)
        return True

    def strand(self, attempt: StockAttempt) -> None:
        """The process has let go of an attempt without a word; what is in the ledger stays."""
        stored, job = attempt.stored, attempt.stored.job
        attempt.worker.held.pop(attempt.job, None)
        durable = set(attempt.sent[: attempt.durable])
        attempt.sent = [*durable]
        job.ended(attempt)
        self._serve(job, attempt)
        job.crashes += 1
        attempt.job.crashes = job.crashes
        stored.stranded.append(attempt)
        stored.places -= 1
        self.look(stored)

    def report(self, stored: Stored) -> None:
        """The rows of attempts that were let go; with the last, who is left of a job that is given up."""
        stranded, stored.stranded = stored.stranded, []
        for attempt in stranded:
            given_up = not stored.places and attempt is stranded[-1]
            attempt.error = "WorkerLost"
            self.record.add(attempt, self.env.now, "lost", len(attempt.refused) + given_up * len(stored.job.left))
            if given_up:
                stored.job.left = range(0)  # two sweeps at once may bring it back all the same

    def look(self, stored: Stored) -> None:
        """Close a job that nobody will come back to; open one that was brought back after its end."""
        if stored.places and not stored.open:
            stored.open = True
            self._opened(stored.job.event, 1)
        elif not stored.places and stored.open:
            stored.open = False
            self.report(stored)
            self._close(stored.job)

    def due_s(self, job: Job, failed: int) -> float:
        """When the next execution is due of a job whose execution number `failed` has failed now; 0: at once."""
        u = uniform(self.seed, Stream.JITTER, job.event, job.first, failed)
        delay_s = delay_after(job.type.retry, failed, u)
        return self.env.now + delay_s if delay_s else 0.0

    def scanned(self, line: StockLine) -> int:
        """What looking for a job through the whole line costs the broker, in round trips."""
        return round(SCAN_BROKER_CPU * len(line.queued))

    def away_until(self) -> float:
        """When the broker is back; 0 if it is there."""
        return next((to_s for from_s, to_s in self.broker.down if from_s <= self.env.now < to_s), 0.0)

    def _serve(self, job: Job, attempt: StockAttempt) -> None:
        """Take those whom `attempt` served from those left; whom another execution has served is not served anew."""
        if job.type.fan_out:
            return
        if job.left is not attempt.users:
            left = set(job.left)
            attempt.sent = [user for user in attempt.sent if user in left]
            attempt.refused = [user for user in attempt.refused if user in left]
        gone = {*attempt.sent, *attempt.refused}
        job.left = [user for user in job.left if user not in gone] or range(0)
