"""The parts that jobs compete for, each under the name of the real one.

A server that takes its callers in order of arrival needs no queue of its own: what arrives at t starts at max(t, when
the server is free). Only the event loop, which also holds timers, keeps a list of what is ready.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any, Protocol, TypeVar

from simpy import Environment
from simpy.events import Event, Timeout

from saqkit.spec.topology import RateLimit

T = TypeVar("T")
Call = Callable[[], None]
Cost = float | Callable[[], float]
FLUSH_EVERY_S = 0.1  # the ledger writer commits at least this often
GATHERING = 3  # turns of the loop from a batch's asking for a commit until asyncio.wait_for has told the ledger writer
# In each of its statements SQLite works without the interpreter: so often a transaction lets others have it.
OPENING, WRITING, READING = 4, 3, 1
# So much of a writing transaction's processor time is SQLite's own: of its fixed part, and of what each row adds.
IN_SQLITE, IN_SQLITE_ROW = 0.33, 0.73
COLD_AFTER_S = 0.001  # after so long a sleep, waking up costs half of what it costs after a long one


class Owner(Protocol):
    """Whoever set a timer; a timer whose owner is over does not wake the loop."""

    over: bool


class Always:
    """The owner of timers that are never withdrawn."""

    over = False


ALWAYS = Always()


class Host:
    """The cores that the worker processes of one host share.

    A burst takes longer the more processes run when it begins: cores may share their speed, and more runnable
    processes than cores share the cores. Bursts are short against the scheduler's slices, so that fixing the factor
    at the beginning of each comes to processor sharing.
    """

    def __init__(self, cores: int, crowded: float, processes: int) -> None:
        self.cores, self.running, self.core_s = cores, 0, 0.0
        per_core = (crowded - 1) / (cores - 1) if cores > 1 else 0.0
        self.stretch = [1.0] + [
            (1 + per_core * (min(n, cores) - 1)) * max(1.0, n / cores) for n in range(1, 2 * processes + 3)
        ]

    def begin(self, cpu_s: float) -> float:
        """A process begins a burst; returns how long it will take."""
        self.running += 1
        wall_s = cpu_s * self.stretch[self.running]
        self.core_s += wall_s if self.running <= self.cores else wall_s * self.cores / self.running
        return wall_s

    def end(self) -> None:
        """The burst is over."""
        self.running -= 1


class Loop:
    """A worker process' event loop: one CPU server with timers, turn by turn as asyncio's.

    A turn collects the timers that are due, then runs what is ready, in order. With nothing ready the loop sleeps until
    its next timer, rounded up to whole `resolution_s` from the moment it falls asleep, plus `overshoot_s`; every timer
    due by then fires at that wake. A reply from outside wakes it at once. What runs first after a sleep takes up to
    `cold_s` longer, the longer the sleep: a core that was idle for a few milliseconds is slow to come back, and its
    caches are cold. After s seconds it is the share s / (s + 1 ms) of it.

    The loop and the threads of its process share one interpreter (`lend`), unless `switch_s` is 0.
    """

    def __init__(
        self,
        env: Environment,
        host: Host,
        resolution_s: float,
        overshoot_s: float,
        cold_s: float = 0.0,
        servers: int = 1,
        switch_s: float = 0.0,
    ) -> None:
        self._env, self._host, self._servers = env, host, servers
        self.switch_s = switch_s
        self._resolution_s, self._overshoot_s, self._cold_s = resolution_s, overshoot_s, cold_s
        self._ready: deque[tuple[Cost, Call]] = deque()
        self._timers: list[tuple[float, int, Cost, Call, Owner]] = []
        self._numbers = self._todo = self._running = self._sleep = self._withdrawn = 0
        self._inside, self._asleep = False, True
        self.alive = True
        self.wakes = 0.0
        self._slept_at = env.now
        self.busy_s = 0.0
        self.burst_s = 0.0
        """How long the burst took that ended last."""
        self._asked: deque[tuple[float, float, Call]] = deque()
        self._lent = self._missed = False  # to a thread since the last turn began; a wake while a thread computed
        self._back_at = env.now
        self.lent_s = 0.0

    def soon(self, cpu_s: Cost, call: Call) -> None:
        """Spend `cpu_s` of CPU when it is its turn (a function is asked then), and `call`."""
        self._ready.append((cpu_s, call))
        if self._running < self._servers and not self._inside:
            self._sleep += 1
            self._turn()

    def at(self, due_s: float, cpu_s: Cost, call: Call, owner: Owner = ALWAYS) -> None:
        """The same once the time is `due_s`, unless `owner` is over by then."""
        self._numbers += 1
        heapq.heappush(self._timers, (due_s, self._numbers, cpu_s, call, owner))
        if (not self._running or self._asleep) and not self._inside and self._timers[0][1] == self._numbers:
            self._select()

    def lend(self, cpu_s: float, call: Call, beside_s: float = 0.0) -> None:
        """A thread of this process computes for `cpu_s` as soon as it gets the interpreter, then for `beside_s` without
        it, on a core beside the loop's; then `call`.

        It gets it while the loop sleeps or is between two turns, and takes it after `switch_s`; the loop that wakes up
        meanwhile, or has more to do, waits for it, and has a turn before the thread goes on. A thread that slept is
        slow to come back as the loop is. Without a lock (`switch_s` 0) thread and loop compute side by side.
        """
        if not self.alive:
            call()
        elif not self.switch_s:
            self._beside(cpu_s + beside_s, call)
        else:
            self._asked.append((self._env.now, cpu_s, partial(self._beside, beside_s, call) if beside_s else call))
            if not self._inside:
                self._lend_on()

    def withdraw(self) -> None:
        """Some owner is over: if most timers may be such, drop them (asyncio does the same with cancelled ones)."""
        self._withdrawn += 1
        if self._withdrawn > 100 and self._withdrawn > len(self._timers) / 2:
            self._timers = [timer for timer in self._timers if not timer[4].over]
            heapq.heapify(self._timers)
            self._withdrawn = 0

    def stop(self) -> None:
        """The process is dead: nothing runs any more."""
        self.alive = False
        self._ready.clear()
        self._timers.clear()
        while self._asked:
            self._asked.popleft()[2]()

    def _turn(self) -> None:
        self._inside, self._missed = True, False
        env, ready = self._env, self._ready
        while self._running < self._servers and self.alive:
            if not self._todo:
                now, timers = env.now, self._timers
                while timers and timers[0][0] <= now:
                    timer = heapq.heappop(timers)
                    if not timer[4].over:
                        ready.append((timer[2], timer[3]))
                if not ready:
                    break
                if self._asked and not self._lent:
                    self._lend()
                    continue
                self._todo, self._lent = len(ready), False
            elif self._asked and env.now - self._asked[0][0] >= self.switch_s:
                self._lend()
                self._lent = False
                continue
            self._todo -= 1
            cost, call = ready.popleft()
            cpu_s = cost() if callable(cost) else cost
            if self._asleep:
                self._asleep = False
                slept_s = env.now - self._slept_at
                coldness = slept_s / (slept_s + COLD_AFTER_S)
                self.wakes += coldness
                cpu_s += self._cold_s * coldness
            if cpu_s > 0:
                self._running += 1
                wall_s = self._host.begin(cpu_s)
                self.busy_s += wall_s
                Timeout(env, wall_s, (wall_s, call)).callbacks.append(self._ran)
            else:
                self.burst_s = 0.0
                call()
        self._inside = False
        if not self._running:
            self._select()
        self._lend_on()

    def _lend_on(self) -> None:
        while self._asked and self._running < self._servers:
            self._lend()

    def _lend(self) -> None:
        asked_at, cpu_s, call = self._asked.popleft()
        self._running, self._lent = self._running + 1, True
        slept_s = max(0.0, asked_at - self._back_at)
        wall_s = self._host.begin(cpu_s + self._cold_s * (slept_s / (slept_s + COLD_AFTER_S)))
        self.lent_s += wall_s
        Timeout(self._env, wall_s, call).callbacks.append(self._given_back)

    def _given_back(self, event: Event) -> None:
        self._host.end()
        self._running -= 1
        self._back_at = self._env.now
        call: Call = event.value  # type: ignore[assignment]  # what the Timeout was given
        self._inside = True
        call()
        self._inside = False
        if self._ready or self._missed:
            self._sleep += 1
            self._turn()
        else:
            self._lend_on()

    def _beside(self, cpu_s: float, call: Call) -> None:
        if not self.alive:
            call()
            return
        wall_s = self._host.begin(cpu_s)
        self.lent_s += wall_s
        Timeout(self._env, wall_s, call).callbacks.append(self._computed)

    def _computed(self, event: Event) -> None:
        self._host.end()
        self._back_at = self._env.now
        call: Call = event.value  # type: ignore[assignment]  # what the Timeout was given
        call()

    def _ran(self, event: Event) -> None:
        self._host.end()
        self._running -= 1
        if self.alive:
            self._inside = True
            burst: tuple[float, Call] = event.value  # type: ignore[assignment]  # what the Timeout was given
            self.burst_s, call = burst
            call()
            self._turn()

    def _select(self) -> None:
        timers = self._timers
        if not timers or timers[0][0] > self._env.now:
            if not self._asleep:
                self._asleep, self._slept_at = True, self._env.now
        else:
            self._asleep = False
        while timers and timers[0][4].over:
            heapq.heappop(timers)
        if timers:
            wait_s = max(0.0, timers[0][0] - self._env.now)
            if wait_s > 0:
                if self._resolution_s:
                    wait_s = max(1, ceil(wait_s / self._resolution_s - 1e-6)) * self._resolution_s
                wait_s += self._overshoot_s
            self._sleep += 1
            Timeout(self._env, wait_s, self._sleep).callbacks.append(self._woken)

    def _woken(self, event: Event) -> None:
        if event.value == self._sleep and self.alive:
            if self._running:
                self._missed = True
            else:
                self._turn()


class Broker:
    """The shared server that carries out one script after another; `down` are (from, to) in which it is away."""

    def __init__(self, env: Environment, wire_s: float, cpu_s: float, job_cpu_s: float) -> None:
        self._env, self._wire_s, self._cpu_s, self._job_cpu_s = env, wire_s, cpu_s, job_cpu_s
        self._free_s = 0.0
        self.busy_s = 0.0
        self.down: list[tuple[float, float]] = []

    def call(self, script: Callable[[], T], then: Callable[[T], None], jobs: int = 0, network_s: float = 0.0) -> None:
        """Carry out `script` in its turn; its result reaches `then` with the reply. `jobs` it touches cost extra."""
        self._serve(script, then, jobs, network_s, (self._wire_s + network_s) / 2)

    def serve(self, script: Callable[[], T], then: Callable[[T], None], jobs: int = 0, network_s: float = 0.0) -> None:
        """The same for a script that is at the broker already."""
        self._serve(script, then, jobs, network_s, 0.0)

    def _serve(
        self, script: Callable[[], T], then: Callable[[T], None], jobs: int, network_s: float, arrives_s: float
    ) -> None:
        start_s = max(self._env.now + arrives_s, self._free_s)
        for from_s, to_s in self.down:
            if from_s <= start_s < to_s:
                start_s = to_s
        self._free_s = start_s + self._cpu_s
        self.touch(jobs)

        def served(_: Event) -> None:
            result = script()
            _after(self._env, (self._wire_s + network_s) / 2, lambda _: then(result))

        _after(self._env, self._free_s - self._env.now, served)

    def touch(self, jobs: int) -> None:
        """Account for `jobs` that a script finds and moves while it runs."""
        self._free_s += jobs * self._job_cpu_s
        self.busy_s += jobs * self._job_cpu_s + self._cpu_s


class Database:
    """One writer at a time, in order of arrival; readers are never kept waiting.

    A transaction is computed by a thread of the process that asks for it, statement by statement: see `Loop.lend`.
    Python prepares each statement and reads its result; in between SQLite works without the interpreter.
    """

    def __init__(self, env: Environment, slowness: float = 1.0) -> None:
        self._env, self._slowness = env, slowness
        self._waiting: deque[tuple[float, float, int, Loop, Call]] = deque()
        self._busy, self._began_at = False, 0.0
        self.busy_s = 0.0

    def write(self, fixed_s: float, rows_s: float, statements: int, loop: Loop, then: Call) -> None:
        """A writing transaction by the process of `loop`, then `then`; its rows take `rows_s` of its time."""
        each = self._slowness / statements
        beside_s = (IN_SQLITE * fixed_s + IN_SQLITE_ROW * rows_s) * each
        self._waiting.append(((fixed_s + rows_s) * each - beside_s, beside_s, statements, loop, then))
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        held_s, beside_s, statements, loop, then = self._waiting.popleft()
        self._busy, self._began_at = True, self._env.now

        def go_on(left: int) -> None:
            if left:
                loop.lend(held_s, partial(go_on, left - 1), beside_s)
                return
            self._busy = False
            self.busy_s += self._env.now - self._began_at
            if self._waiting:
                self._begin()
            then()

        go_on(statements)

    def read(self, took_s: float, loop: Loop, then: Call) -> None:
        """A reading transaction of `took_s` by the process of `loop`, then `then`."""
        if loop.switch_s:
            loop.lend(took_s * self._slowness, then)
        else:
            _after(self._env, took_s * self._slowness, lambda _: then())


class LedgerWriter:
    """Commits the results of one process' users in groups: at least every 100 ms, and when the end of a batch asks.

    All who ask before it hears of it share a commit. It is a task of the event loop, and spends `handing_s` there on
    each commit.
    """

    def __init__(self, env: Environment, database: Database, loop: Loop, handing_s: float) -> None:
        self._env, self._database, self._loop, self._handing_s = env, database, loop, handing_s
        self._rows, self._busy, self._armed = 0, False, False
        self._waiting: list[Call] = []
        self._costs = (0.0, 0.0)
        self.before: Call = lambda: None
        self.after: Call = lambda: None

    def record(self, flush_s: float, flush_user_s: float) -> None:
        """One more result to be written, at the given costs of a flush and of each row."""
        self._rows += 1
        if not self._armed:
            self._costs, self._armed = (flush_s, flush_user_s), True
            _after(self._env, FLUSH_EVERY_S, self._due)

    def flush(self, then: Call) -> None:
        """Write what there is; `then` once it is durable."""
        if not self._rows and not self._busy:
            _after(self._env, 0.0, lambda _: then())
            return
        self._waiting.append(then)
        if not self._busy:
            self._gather(GATHERING)

    def stop(self) -> None:
        """The process is dead: what was not written is lost."""
        self._rows, self._waiting = 0, []

    def _due(self, _: Event) -> None:
        self._armed = False
        if self._rows and not self._busy:
            self._commit()

    def _gather(self, turns: int) -> None:
        self._busy = True
        if turns:
            self._loop.soon(0.0, lambda: self._gather(turns - 1))
        else:
            self._commit()

    def _commit(self) -> None:
        rows, waiting, self._rows, self._waiting, self._busy = self._rows, self._waiting, 0, [], True
        self.before()

        def durable() -> None:
            self.after()
            self._loop.soon(self._handing_s, told)

        def told() -> None:
            self._busy = False
            for then in waiting:
                then()
            if self._waiting:
                self._gather(GATHERING)

        self._database.write(self._costs[0], rows * self._costs[1], WRITING, self._loop, durable)


class Window:
    """A sliding log of what was admitted: in any window of the period at most the limit."""

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self._log: deque[tuple[float, int]] = deque()  # (when it leaves the window, weight), in order of leaving
        self._weight = 0
        self.admitted = 0

    def weight(self, users: int) -> int:
        """What a job of `users` users weighs."""
        return max(1, users) if self.limit.unit == "users" else 1

    def admit(self, now_s: float, users: int) -> float:
        """Admit a job of `users` users: 0, or if it must wait, the time from which on it may be asked again."""
        log, limit, weight = self._log, self.limit, self.weight(users)
        while log and log[0][0] <= now_s:
            self._weight -= log.popleft()[1]
        if self._weight and self._weight + weight > limit.limit:
            left = self._weight
            for leaves_s, weighs in log:
                left -= weighs
                if not left or left + weight <= limit.limit:
                    return leaves_s
        # Heavier than the limit: it blocks weight ÷ limit periods.
        log.append((now_s + limit.period_s * max(1.0, weight / limit.limit), weight))
        self._weight += weight
        self.admitted += weight
        return 0.0


def _after(env: Environment, delay_s: float, call: Callable[[Event], Any]) -> None:
    Timeout(env, delay_s).callbacks.append(call)
