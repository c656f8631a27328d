"""Running what is queued, in the test's own process, until nothing is left; and what happened."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from saqkit.errors import RunError, UsageError
from saqkit.queue.queue import Queue
from saqkit.queue.stored import LEVELS
from saqkit.testing.time_travel import advance
from saqkit.worker.worker import Worker

Function = Callable[..., Awaitable[Any]]
Functions = Mapping[str, Function] | Iterable[Function | tuple[str, Function]]

LOOK_EVERY_S = 0.01
STUCK_LOOKS = 5
"""So often nothing ran although something is queued: then the rate limit, if there is one, holds it back."""


@dataclass(frozen=True)
class Attempt:
    """One execution of one job.

    `number` counts from 1; `outcome` is that of the attempts table: done, retry, dead, cancelled, released, lost.
    `result` is what the function returned, `exception` what it raised, `error` the name of the error, empty if none.
    An attempt that was cut short by its timeout, or that no function was given for, has an `error` and no `exception`.
    """

    job: str
    function: str
    queue: str
    number: int
    outcome: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    exception: BaseException | None = None
    error: str = ""

    def __str__(self) -> str:
        return " ".join(word for word in (self.function, str(self.number), self.outcome, self.error) if word)


@dataclass(frozen=True, repr=False)
class Drained:
    """What happened: the `attempts` in the order in which they ended, and by how many seconds time was moved."""

    attempts: tuple[Attempt, ...] = ()
    travelled_s: float = 0.0

    @property
    def done(self) -> tuple[Attempt, ...]:
        """The attempts that succeeded."""
        return self._of("done")

    @property
    def retried(self) -> tuple[Attempt, ...]:
        """The attempts that failed and were followed, or are to be followed, by another one."""
        return self._of("retry")

    @property
    def dead(self) -> tuple[Attempt, ...]:
        """The attempts that failed and made a dead letter of their job."""
        return self._of("dead")

    @property
    def failed(self) -> tuple[Attempt, ...]:
        """The attempts that failed, retried or dead."""
        return self._of("retry", "dead")

    def raise_first(self) -> None:
        """Raise what the first failed attempt raised; `RunError` if it was cut short or had no function."""
        for attempt in self.failed:
            if attempt.exception is not None:
                raise attempt.exception
            raise RunError(f"{attempt.function}, attempt {attempt.number} of job {attempt.job}: {attempt.error}")

    def _of(self, *outcomes: str) -> tuple[Attempt, ...]:
        return tuple(attempt for attempt in self.attempts if attempt.outcome in outcomes)

    def __repr__(self) -> str:
        """The counts and the attempts, without what differs from run to run (generated keys, times, addresses)."""
        counts = [f"{len(found)} {name}" for name in ("done", "retried", "dead") if (found := getattr(self, name))]
        others = len(self.attempts) - len(self.done) - len(self.failed)
        counts += [f"{others} other"] if others else []
        attempts = ", ".join(str(attempt) for attempt in self.attempts)
        return f"<Drained: {', '.join(counts) or 'nothing ran'}{f': {attempts}' if attempts else ''}>"


async def drain(
    queues: Queue | Iterable[Queue],
    functions: Functions,
    *,
    until: Callable[[Drained], bool] | None = None,
    timeout_s: float = 30.0,
    follow_time: bool = True,
    raise_errors: bool = False,
    slots: int = 1,
    context: Mapping[str, Any] | None = None,
    after_process: Function | None = None,
) -> Drained:
    """Run jobs in this process, as a worker does, until nothing is left; returns what happened.

    `functions`: by name, or a list as SAQ's settings have it. `queues`: all those whose jobs cause each other.

    `follow_time`: where nothing can be run now, time is moved to the next delayed job, retry, or room in the rate
    limit (see `advance`), so that retries take no time; without it, delayed jobs and retries are left where they are.
    `until`: called after each look with what has happened so far; true ends the drain.
    `raise_errors`: raise what the first failing attempt raises, and leave the rest.
    `slots`: jobs of each queue at once; 1 runs them strictly one after the other, so that their order is certain.
    `context` and `after_process` are the worker's. Jobs that other processes run are waited for and reported too.

    Raises `RunError` if the queues are not drained after `timeout_s` seconds of real time; what has not begun stays.
    """
    served = [queues] if isinstance(queues, Queue) else list(queues)
    drainer = _Drainer(served, _by_name(functions), slots, context or {}, after_process)

    def enough(so_far: Drained) -> bool:
        return (raise_errors and bool(so_far.failed)) or (until is not None and until(so_far))

    deadline = time.monotonic() + timeout_s
    async with drainer.recording():
        while True:
            async with drainer.working():
                ended = await drainer.serve(deadline, enough, follow_time)
                state = "" if ended else await drainer.state()
            drained = await drainer.drained()
            if raise_errors:
                drained.raise_first()
            if not ended:
                raise RunError(f"not drained within {timeout_s:g} s: {state}")
            # `after_process` may have enqueued something when its job was done already: then it goes on.
            if enough(drained) or not await drainer.left(follow_time):
                return drained


def _by_name(functions: Functions) -> dict[str, Function]:
    if isinstance(functions, Mapping):
        return dict(functions)
    named: dict[str, Function] = {}
    for given in functions:
        name, function = given if isinstance(given, tuple) else (getattr(given, "__qualname__", ""), given)
        if not name or not callable(function):
            raise UsageError(f"{given!r} is no function with a name: give functions, or pairs of name and function")
        named[name] = function
    return named


@dataclass(frozen=True)
class _Look:
    """What is where on a queue at one moment.

    `due`: a delayed job's time has come, it only waits for its tick. `wakes_s`: seconds until the next delayed job has
    had its tick; `room_s`: until the rate limit's window gets emptier; None: never. `outgoing`: on their way into
    another queue; who has sent them delivers them.
    """

    queue: str
    queued: int
    active: int
    scheduled: int
    outgoing: int
    paused: bool
    due: bool
    wakes_s: float | None
    room_s: float | None

    def __str__(self) -> str:
        counts = f"{self.queued} queued, {self.active} active, {self.scheduled} delayed"
        counts += f", {self.outgoing} on their way into another queue" if self.outgoing else ""
        return f"queue {self.queue} has {counts}{', and is paused' if self.paused else ''}"


class _Drainer:
    """A worker in this process, and the books of what ended."""

    def __init__(
        self,
        queues: list[Queue],
        functions: dict[str, Function],
        slots: int,
        context: Mapping[str, Any],
        after_process: Function | None,
    ) -> None:
        self._queues, self._slots, self._context, self._after = queues, slots, context, after_process
        self._functions = {name: self._noted(function) for name, function in functions.items()}
        self._known: dict[tuple[str, str, int], dict[str, Any]] = {}
        self._attempts: list[tuple[float, Attempt]] = []
        self._read: dict[str, int] = {}
        self._running: list[str] = []
        self._began, self._quiet_looks, self._travelled_s = 0, 0, 0.0
        self._stirred = asyncio.Event()

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """The queues' own scripts write down every attempt that ends; the record is left as it was found."""
        found: dict[str, tuple[bytes | None, int]] = {}
        for queue in self._queues:
            flag, trace = queue.namespace("recording"), queue.namespace("trace")
            length = self._read[queue.name] = int(await queue.redis.llen(trace))  # type: ignore[misc]  # typed for both clients
            found[queue.name] = await queue.redis.get(flag), length
            await queue.redis.set(flag, 1)
        try:
            yield
        finally:
            for queue in self._queues:
                recorded, length = found[queue.name]
                if recorded is not None:
                    await queue.redis.set(queue.namespace("recording"), recorded)
                else:
                    await queue.redis.delete(queue.namespace("recording"))
                    trace = queue.namespace("trace")
                    await (queue.redis.ltrim(trace, 0, length - 1) if length else queue.redis.delete(trace))  # type: ignore[misc]  # typed for both clients

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """A worker, told to stop at the end; what it runs then has a second to end, and is given back."""
        named = {queue.name: queue for queue in self._queues}
        worker = Worker(named, self._functions, dict.fromkeys(named, self._slots), context=self._context,
                        after_process=self._after_process, name="drain", grace_s=1.0)  # fmt: skip
        task = asyncio.create_task(worker.run(), name="drain")
        try:
            yield
        finally:
            worker.stop()
            await task

    async def serve(self, deadline: float, enough: Callable[[Drained], bool], follow_time: bool) -> bool:
        """Wait until nothing is left, or enough has happened; false if it is past the deadline before."""
        while True:
            began, idle = self._began, not self._running
            looks = await self.look()
            if enough(await self.drained()):
                return True
            for queue, look in zip(self._queues, looks, strict=True):
                if look.outgoing:
                    queue.courier.go()  # whoever was to deliver it may be gone
            # Queues are looked at one after the other: together the looks are true if nothing ran meanwhile, and what
            # went from one that was looked at later into one that was looked at before is seen by the next look.
            idle = idle and began == self._began and not any(look.active or look.outgoing for look in looks)
            self._quiet_looks = self._quiet_looks + 1 if idle else 0
            waits = [look.wakes_s for look in looks if look.wakes_s is not None]
            if self._quiet_looks >= min(2, len(looks)) and not any(look.queued for look in looks):
                if follow_time and waits:
                    await self._travel(min(waits))
                elif not any(look.due for look in looks):
                    return True
            elif follow_time and self._quiet_looks >= STUCK_LOOKS:
                waits += [look.room_s for look in looks if look.room_s is not None]
                await self._travel(min(waits, default=0.0))
            if time.monotonic() > deadline:
                return False
            self._stirred.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._stirred.wait()

    async def look(self) -> list[_Look]:
        """What is where."""
        return [await self._look_at(queue) for queue in self._queues]

    async def left(self, follow_time: bool) -> bool:
        """Whether something waits that this drain is to run."""
        looks = await self.look()
        return any(look.queued or look.outgoing or look.due or (follow_time and look.wakes_s is not None)
                   for look in looks)  # fmt: skip

    async def state(self) -> str:
        """What is left, what runs here, and what has happened, on one line."""
        left = [str(look) for look in await self.look() if any((look.queued, look.active, look.scheduled,
                                                                look.outgoing))]  # fmt: skip
        running = [f"running: {', '.join(self._running)}"] if self._running else []
        return "; ".join([*left, *running, f"so far {await self.drained()!r}"])

    async def drained(self) -> Drained:
        """What has happened so far."""
        from saqkit.worker.recording import read  # it loads pandas

        for queue in self._queues:
            trace, start = queue.namespace("trace"), self._read[queue.name]
            records = await queue.redis.lrange(trace, start, -1)  # type: ignore[misc]  # typed for both clients
            self._read[queue.name] = start + len(records)
            for row in (read(record, queue.name, "drain") for record in records):
                known = self._known.pop((queue.name, row["job"], row["attempt"]), {})
                attempt = Attempt(row["job"], row["job_type"], queue.name, row["attempt"], row["outcome"],
                                  error=row["error"].rpartition(".")[2], **known)  # fmt: skip
                self._attempts.append((row["finished_at"], attempt))
        self._attempts.sort(key=lambda ended: ended[0])
        return Drained(tuple(attempt for _, attempt in self._attempts), self._travelled_s)

    async def _look_at(self, queue: Queue) -> _Look:
        async with queue.redis.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.exists(queue.namespace("paused"))
            for name in ("incomplete", "window", "closed"):
                pipe.zrange(queue.namespace(name), 0, 0, withscores=True)
            for name in ("outgoing", "leases", "incomplete", *(f"queued:{level}" for level in LEVELS)):
                pipe.zcard(queue.namespace(name))
            (seconds, micros), paused, due, room, opens, outgoing, active, scheduled, *queued = await pipe.execute()
        now = seconds + micros / 1e6
        due_s, room_s = (first[0][1] - now if first and not paused else None for first in (due, opens or room))
        wakes_s = None if due_s is None else due_s + queue.tick_s
        is_due = due_s is not None and due_s <= 0
        return _Look(queue.name, sum(queued), active, scheduled, outgoing, bool(paused), is_due, wakes_s, room_s)

    async def _travel(self, seconds: float) -> None:
        """Let time pass for all queues, unless its moment has come already."""
        if seconds > 0:
            self._travelled_s += seconds
            self._quiet_looks = 0
            for queue in self._queues:
                await advance(queue, seconds)

    def _noted(self, function: Function) -> Function:
        @functools.wraps(function)
        async def noted(context: Mapping[str, Any], **kwargs: Any) -> Any:
            job, queue = context["job"], context["queue"]
            name = f"{job.function} {job.attempts}"
            known: dict[str, Any] = {"kwargs": kwargs}
            self._known[queue.name, job.key, job.attempts] = known
            self._began += 1
            self._running.append(name)
            try:
                result = known["result"] = await function(context, **kwargs)
                return result
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                known["exception"] = error
                raise
            finally:
                self._running.remove(name)
                self._stirred.set()

        return noted

    async def _after_process(self, context: Mapping[str, Any]) -> None:
        if self._after is not None:
            await self._after(context)
        self._stirred.set()
