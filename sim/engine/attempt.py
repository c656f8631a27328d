"""One execution of a job: a fan-out, page by page, or a batch, user by user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from saqkit.spec.lifecycle import Action, failed
from sim.engine.draws import SENT, TEMPORARY
from sim.engine.jobs import Job
from sim.engine.parts import OPENING, WRITING, Call
from sim.engine.providers import Gate, Send

if TYPE_CHECKING:
    from sim.engine.worker import Worker

Step = Callable[[Call], None]
"""What calls back once it is done."""


class Attempt:
    """One execution of a job by a worker."""

    def __init__(self, worker: Worker, job: Job, taken_at: float) -> None:
        self.worker, self.job, self.model, self.taken_at = worker, job, worker.model, taken_at
        self.costs = worker.model.types[job.type_name]
        self.started_at = float("nan")
        self.over = False
        self.action = Action.FINISH
        self.error = ""
        self.users = job.left
        self.cpu_s = self.provider_s = self.database_s = 0.0
        self.sent: list[int] = []
        self.refused: list[int] = []
        self.again: list[int] = []
        self.committing = self.durable = 0
        self.gate: Gate | None = None

    def begin(self) -> None:
        """The function begins: it looks its event up, if this process has not done so yet, then does its work."""
        loop, env = self.worker.loop, self.model.env
        self.started_at = env.now
        loop.at(env.now + self.job.type.timeout_s, 0.0, self._timed_out, self)
        if self.job.event in self.worker.events:
            self._work()
        else:
            self._read(self.costs.page_s)(lambda: self._resume(self._work, self.model.costs.handing_s))

    def _work(self) -> None:
        """Its own CPU first, then what its type does."""
        job = self.job
        self.worker.events.add(job.event)
        cpu_s = self.costs.job_cpu_s + job.type.cpu_us * 1e-6 * self.model.costs.cpu_scale
        self.cpu_s += cpu_s
        self.worker.loop.soon(cpu_s, self._find if job.type.fan_out else self._open)

    def _resume(self, call: Call, cpu_s: float = 0.0) -> None:
        """A reply for this attempt has come: the loop goes on with it, unless it is over."""
        if not self.over:
            self.worker.loop.soon(cpu_s, lambda: None if self.over else call())

    def _timed_out(self) -> None:
        if self.over:
            return  # it ended in the very turn in which its time was up
        self.error = "TimeoutError"
        served = {*self.sent, *self.refused}
        self.again = [user for user in self.users if user not in served]
        self._end()
        if self.gate is not None:
            self.gate.withdraw(self)

    def _end(self) -> None:
        self.over = True
        self.worker.loop.withdraw()
        if self.error:
            self.action = failed(self.job.attempt, self.job.type.retry.max_attempts)
        if self.model.ledger is not None:
            self.model.ledger.ended(self)
        self.worker.finish(self)

    # A fan-out: page by page of whole batches, each page enqueued in one round trip, then its cursor is stored.

    def _find(self) -> None:
        self._database(self._read(self.costs.page_s), self._next_page)

    def _next_page(self) -> None:
        job, fan_out = self.job, self.job.type.fan_out
        assert fan_out is not None
        size = max(1, fan_out.page_size // fan_out.batch_size) * fan_out.batch_size
        page = job.users[job.cursor : job.cursor + size]
        batches = -(-len(page) // fan_out.batch_size)
        cpu_s = self.costs.page_cpu_s + self.costs.batch_cpu_s * batches + self.costs.user_cpu_s * len(page)
        self.cpu_s += cpu_s
        self._database(
            self._read(self.costs.page_s + self.costs.page_user_s * len(page)),
            lambda: self.worker.loop.soon(cpu_s, partial(self._enqueue, page, len(page) < size)),
        )

    def _enqueue(self, page: Sequence[int], last: bool) -> None:
        job, fan_out = self.job, self.job.type.fan_out
        if self.over:
            return
        assert fan_out is not None
        # A batch's key is its place in the audience: a page that is repeated after a crash is enqueued once.
        new = page if job.enqueued <= job.cursor else page[:0]
        batches = [new[n : n + fan_out.batch_size] for n in range(0, len(new), fan_out.batch_size)]
        job.enqueued = max(job.enqueued, job.cursor + len(page))

        def advance() -> None:
            self._database(self._write(WRITING, self.costs.flush_s, 0.0), partial(self._advanced, len(page), last))

        if page:
            self.send_page(fan_out.to, batches, advance)
        else:
            advance()

    def send_page(self, to: str, batches: Sequence[Sequence[int]], then: Call) -> None:
        """A page's batches are enqueued in one round trip."""
        script = partial(self.model.enqueue_children, self.job, to, batches)
        self.model.broker.call(script, lambda _: self._resume(then), len(batches), self.model.network_s)

    def _advanced(self, users: int, last: bool) -> None:
        self.job.cursor += users
        if last:
            self._end()
        else:
            self._next_page()

    def _read(self, took_s: float) -> Step:
        return partial(self.model.database.read, took_s, self.worker.loop)

    def _write(self, statements: int, fixed_s: float, rows_s: float) -> Step:
        return partial(self.model.database.write, fixed_s, rows_s, statements, self.worker.loop)

    def _database(self, step: Step, then: Call, cpu_s: float | None = None) -> None:
        """A database step of the whole job: `then` is called on the loop once it is done, and costs `cpu_s` there;
        by default what handing over a transaction does.
        """
        asked_at = self.model.env.now
        cpu_s = self.model.costs.handing_s if cpu_s is None else cpu_s

        def done() -> None:
            self.database_s += self.model.env.now - asked_at
            then()

        step(lambda: self._resume(done, cpu_s))

    # A batch: its rows, then user by user (`send_concurrency` at a time), then its results.

    def _open(self) -> None:
        if self.job.type.per_user.database == "none":
            self._serve()
            return
        self._database(self._write_rows, self._serve)

    def _write_rows(self, then: Call) -> None:
        """The rows of the batch; whom another job of the event has served meanwhile is not served again."""
        ledger = self.model.ledger

        def written() -> None:
            if ledger is not None and not self.over:
                self.users = ledger.pending(self)
            then()

        write = self._write(OPENING, self.costs.open_s, self.costs.open_user_s * len(self.users))
        write(then if ledger is None else written)

    def _serve(self) -> None:
        job, per_user, model = self.job, self.job.type.per_user, self.model
        self.user_cpu_s = self.costs.user_cpu_s + per_user.cpu_us * 1e-6 * model.costs.cpu_scale
        self.next, self.count = 0, len(self.users)
        self.ledger = per_user.database == "ledger"
        self.waits = per_user.provider is not None
        self.outages: list[tuple[float, float]] = []
        self.latency, self.fate = [0.0] * self.count, [SENT] * self.count
        if per_user.provider is not None and self.count:
            self.outages = model.outages.get(per_user.provider, [])
            self.gate = self.worker.gates.get(per_user.provider)
            self.latency, self.fate = model.draws.sends(
                per_user.provider,
                model.providers[per_user.provider],
                model.topology.providers[per_user.provider].timeout_s,
                job.event,
                self.users,
                job.attempt,
                job.type.work == "payment",
            )
        self._lanes = max(1, min(job.type.send_concurrency, self.count))
        for _ in range(self._lanes):
            lane = Lane(self)
            self.worker.loop.soon(lane.claim, lane.go_on)

    def leave_lane(self) -> None:
        """One of the users served at once has no successor; after the last the results are written."""
        self._lanes -= 1
        if self._lanes:
            return
        if self.again:
            self.error = "TemporaryFailure"
        if self.ledger:
            self._database(self.worker.writer.flush, self._end, 0.0)
        else:
            self._end()


class Lane:
    """One of the `send_concurrency` users of a batch that are served at once: CPU, the provider, the next user."""

    __slots__ = ("_asked_at", "_attempt", "_coming", "_user", "claim", "go_on")

    def __init__(self, attempt: Attempt) -> None:
        self._attempt, self._user, self._coming, self._asked_at = attempt, -1, -1, 0.0
        self.claim, self.go_on = self._claim, self._go_on  # bound once: they are handed to the loop for every user

    def _claim(self) -> float:
        """The loop comes to this lane: take the next user, and return the CPU that they cost."""
        attempt = self._attempt
        if attempt.over or attempt.next == attempt.count:
            self._coming = -1
            return 0.0
        self._coming, attempt.next = attempt.next, attempt.next + 1
        attempt.cpu_s += attempt.user_cpu_s
        return attempt.user_cpu_s

    def _go_on(self) -> None:
        """That CPU is spent: record who came back from the provider, and hand over the next user."""
        attempt = self._attempt
        if attempt.over:
            return
        loop, now = attempt.worker.loop, attempt.model.env.now
        if (n := self._user) >= 0:
            user, fate = attempt.users[n], attempt.fate[n]
            if attempt.waits:
                attempt.provider_s += now - loop.burst_s - self._asked_at
            if fate == TEMPORARY:
                attempt.again.append(user)
            else:
                (attempt.sent if fate == SENT else attempt.refused).append(user)
                if attempt.ledger:
                    attempt.worker.writer.record(attempt.costs.flush_s, attempt.costs.flush_user_s)
        self._user, self._asked_at = (n := self._coming), now
        if n < 0:
            attempt.leave_lane()
            return
        if attempt.gate is not None:
            attempt.gate.arrive(Send(attempt, n, self.claim, self.go_on))
            return
        latency_s = attempt.latency[n]
        for from_s, to_s in attempt.outages:
            if from_s <= now < to_s:  # refused at once
                latency_s, attempt.fate[n] = 0.0, TEMPORARY
        if latency_s > 0:
            loop.at(now + latency_s, self.claim, self.go_on, attempt)
        else:
            loop.soon(self.claim, self.go_on)
