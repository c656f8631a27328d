"""`saqkit.record`: wraps queue and functions of a SAQ application, whatever its queue, and changes nothing else.

Around the queue: `enqueue` (who enqueues what, and when), `dequeue` (taken), `finish` and `retry` (how an attempt
ended) and `schedule` (which delayed jobs became ready). Around each function: when it began and ended, and the CPU of
its own task. The worker's own hooks run as before.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from saq.job import Job, Status

from saqkit.errors import UsageError
from saqkit.recorder.clocks import clock_offset
from saqkit.recorder.journal import Journal, Row
from saqkit.recorder.stepping import Pace, stepwise
from saqkit.spec.journals import FORMAT, default_folder

logger = logging.getLogger("saqkit")

S = TypeVar("S", bound=Mapping[str, Any] | Callable[[], Mapping[str, Any]])
CLOCK_US = 60_000_000
"""How often the offset to the broker's clock is measured again."""
ASKING_S = 1.0
"""A worker that stops waits at most this long to learn whether the broker heard of an end."""
OURS = "saqkit_execution"
_PARENT: ContextVar[tuple[str, int] | None] = ContextVar("saqkit_parent", default=None)


def record(settings: S, to: str | Path | None = None, *, most_mb: int = 1024) -> S:
    """The same settings of a SAQ worker, with everything that happens written down.

    `settings`: the dict, or the callable, that `saq` is given; any queue, Redis or PostgreSQL, SAQ's or ours. `to`: a
    folder (default: `$SAQKIT_RECORDING`, else `recording` in saqkit's state folder); every process appends to a file of
    its own there, about 200 bytes per attempt, at most `most_mb` megabytes. Read it with `saqkit.read_recording`.

    Rows are written once a second, so a process that is killed loses those of its last second. Where nothing can be
    written, a warning says so and the application goes on.
    """
    if callable(settings):

        @functools.wraps(settings)
        def recorded() -> Mapping[str, Any]:
            return _recorded(settings(), to, most_mb)

        return recorded  # type: ignore[return-value]  # a callable like the one given
    return _recorded(settings, to, most_mb)  # type: ignore[return-value, arg-type]  # a dict like the one given


def _recorded(settings: Mapping[str, Any], to: str | Path | None, most_mb: int) -> dict[str, Any]:
    if not isinstance(settings, Mapping) or "functions" not in settings:
        raise UsageError("record needs settings of a SAQ worker: a dict with functions, or a callable that gives one")
    recorder = Recorder(default_folder() if to is None else Path(to), most_mb << 20)
    if settings.get("queue") is not None:
        recorder.watch(settings["queue"])
    changed = {
        **settings,
        "functions": [recorder.named(function) for function in settings["functions"]],
        "startup": [recorder.startup, *_many(settings.get("startup"))],
        "shutdown": [*_many(settings.get("shutdown")), recorder.shutdown],
    }
    if settings.get("cron_jobs"):
        changed["cron_jobs"] = [
            dataclasses.replace(job, function=recorder.timed(job.function)) for job in settings["cron_jobs"]
        ]
    return changed


def _many(hooks: Any) -> list[Any]:
    return [] if not hooks else [hooks] if callable(hooks) else list(hooks)


class Execution:
    """An attempt that this process took and has not ended yet; times in whole Unix microseconds.

    What is not known yet is said by the class: to make one of these is part of every job.
    """

    taken_at: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    cpu_s = 0.0
    told = False


def now_us() -> int:
    """Unix microseconds: whole numbers are written several times as fast as others."""
    return time.time_ns() // 1000


class Recorder:
    """What one set of settings records in one process."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.journal = Journal(folder, _process_facts, most_bytes)
        self.journal.running, self.journal.lives = self._begun, lambda: bool(self._running)
        self.journal.flushed = self._look_at_clock
        self._running: dict[Execution, Job] = {}
        self._timed: dict[Any, Any] = {}
        self._types: set[str] = set()
        self._queue: Any = None
        self._clock_at = 0
        self._clock_task: asyncio.Task[None] | None = None
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._running, self._types, self._clock_at, self._clock_task = {}, set(), 0, None

    # --- the queue -------------------------------------------------------------------------------------------------

    def watch(self, queue: Any) -> None:
        """Wrap what tells of jobs; a queue is wrapped once, however many settings name it."""
        self._queue = queue
        if "saqkit_recorded" in vars(queue):
            return
        queue.saqkit_recorded = True
        for name in ("enqueue", "enqueue_many", "enqueue_each", "dequeue", "finish", "retry", "schedule"):
            if (original := getattr(queue, name, None)) is not None:
                setattr(queue, name, functools.wraps(original)(getattr(self, f"_{name}")(queue, original)))

    def _enqueue(self, queue: Any, original: Any) -> Any:
        async def enqueue(job_or_func: Any, **kwargs: Any) -> Any:
            at = now_us()
            job = await original(job_or_func, **kwargs)
            if job is not None:
                self.journal.add(("e", queue.name, job.key, job.queued, at, _PARENT.get()), at)
            return job

        return enqueue

    def _enqueue_many(self, queue: Any, original: Any) -> Any:
        async def enqueue_many(jobs: Iterable[Job], *args: Any, **kwargs: Any) -> Any:
            at, listed = now_us(), list(jobs)
            accepted = await original(listed, *args, **kwargs)
            for job, taken in zip(listed, accepted, strict=True):
                if taken:
                    self.journal.add(("e", queue.name, job.key, job.queued, at, _PARENT.get()), at)
            return accepted

        return enqueue_many

    def _enqueue_each(self, queue: Any, original: Any) -> Any:
        async def enqueue_each(function: str, *args: Any, **kwargs: Any) -> Any:
            at = now_us()
            keys = await original(function, *args, **kwargs)
            for key in keys:
                if key is not None:
                    self.journal.add(("e", queue.name, key, 0, at, _PARENT.get()), at)
            return keys

        return enqueue_each

    def _dequeue(self, queue: Any, original: Any) -> Any:
        async def dequeue(*args: Any, **kwargs: Any) -> Any:
            job = await original(*args, **kwargs)
            if job is not None:
                job.__dict__[OURS] = execution = Execution()
                execution.taken_at = time.time_ns() // 1000
                self._running[execution] = job
            return job

        return dequeue

    def _finish(self, queue: Any, original: Any) -> Any:
        usual = _usual_priority(queue)

        async def finish(job: Job, status: Status, **kwargs: Any) -> Any:
            known = self._known(queue.name, job, usual)

            def tell() -> None:
                if known is not None:
                    self._ended(job, known, _OUTCOMES.get(status, "cancelled"), kwargs.get("error"), None)

            return await _said(queue, job, original(job, status, **kwargs), tell)

        return finish

    def _retry(self, queue: Any, original: Any) -> Any:
        usual = _usual_priority(queue)

        async def retry(job: Job, error: str | None) -> Any:
            known, delay_s = self._known(queue.name, job, usual), _delay_s(queue, job)

            def tell() -> None:
                if known is not None:
                    outcome = "released" if error == "cancelled" else "retry" if job.status == Status.QUEUED else "dead"
                    self._ended(job, known, outcome, error, None if outcome == "released" else delay_s)

            return await _said(queue, job, original(job, error), tell)

        return retry

    def _schedule(self, queue: Any, original: Any) -> Any:
        async def schedule(*args: Any, **kwargs: Any) -> Any:
            ids = await original(*args, **kwargs)
            if ids:
                at, prefix = now_us(), queue.job_id("")
                self.journal.add(("p", queue.name, at, [job_id.removeprefix(prefix) for job_id in ids]), at)
            return ids

        return schedule

    # --- attempts --------------------------------------------------------------------------------------------------

    def _known(self, queue: str, job: Job, usual: int) -> Row | None:
        """What is known of an attempt before it is ended, which resets some of it; None if the job does not run.

        A job that another process holds is ended by who sweeps up: then its holder is lost, or has lost it.
        """
        own = job.__dict__
        if OURS not in own and not (job.started and job.attempts):
            return None
        crashes = own["claim"].crashes if "claim" in own and own["claim"] is not None else 0
        return ("a", queue, job.key, job.queued, job.function, job.attempts, crashes, job.priority or usual,
                job.group_key or "", job.scheduled, job.started, job.worker_id or "")  # fmt: skip

    def _ended(self, job: Job, known: Row, outcome: str, error: str | None, delay_s: float | None) -> None:
        at = now_us()
        execution: Execution | None = job.__dict__.pop(OURS, None)
        if execution is None:
            if error != job.get_queue().swept_error_message:
                return  # an operator
            outcome, execution = "lost", Execution()
        self._running.pop(execution, None)
        if job.function not in self._types:
            self._types.add(job.function)
            facts = {name: getattr(job, name) for name in ("retries", "retry_delay", "retry_backoff", "timeout")}
            queue: Any = job.get_queue()
            if _ours(queue) and queue.policy_of(job) != queue.policies.get(job.function):
                del facts["retries"]  # the job's own, not its type's
            self.journal.add(("t", job.function, facts), at)
        what = error.strip().rsplit("\n", 1)[-1].split(":", 1)[0][:200] if error else ""
        ended = (execution.taken_at, execution.started_at, execution.ended_at, at, outcome, int(execution.cpu_s * 1e6),
                 what, delay_s)  # fmt: skip
        self.journal.add(known + ended, at)

    def _begun(self) -> list[Row]:
        """Rows of attempts that are under way and were not told before: if the process dies, they are lost."""
        rows = []
        for execution, job in self._running.items():
            if not execution.told:
                execution.told = True
                known = (job.get_queue().name, job.key, job.queued, job.function, job.attempts, job.worker_id or "")
                rows.append(("b", *known, execution.taken_at, execution.started_at))
        return rows

    # --- functions and hooks ---------------------------------------------------------------------------------------

    def named(self, function: Any) -> Any:
        """A function, or one with its name, as SAQ takes both."""
        if isinstance(function, tuple):
            return (function[0], self.timed(function[1]))
        return self.timed(function)

    def timed(self, function: Any) -> Any:
        """The function, with its begin, end and CPU taken down; the same one each time, as SAQ knows it by identity."""
        if function not in self._timed:
            self._timed[function] = _timed(function)
        return self._timed[function]

    async def startup(self, ctx: Mapping[str, Any]) -> None:
        """The worker starts: say who it is, and look at the clock."""
        try:
            worker = ctx["worker"]
            self.watch(worker.queue)
            facts = {"worker": worker.id, "queue": worker.queue.name, "kind": type(worker.queue).__name__,
                     "concurrency": worker.concurrency, "timers": worker.timers}  # fmt: skip
            for name in ("tick_s", "lease_s", "sweep_s"):
                if hasattr(worker.queue, name):
                    facts[name] = getattr(worker.queue, name)
            at = now_us()
            self.journal.add(("w", at, time.process_time(), facts), at)
            await self._measure_clock()
            self.journal.flush()
        except Exception:
            logger.exception("recording: the worker's start is not recorded")

    async def shutdown(self, ctx: Mapping[str, Any]) -> None:
        """The worker stops: write what is left."""
        self.journal.close()

    def _look_at_clock(self, at: int) -> None:
        if self._queue is None or at < self._clock_at + CLOCK_US:
            return
        try:
            self._clock_task = asyncio.get_running_loop().create_task(self._measure_clock())
            self._clock_at = at
        except RuntimeError:
            pass  # at the end of a process no loop runs

    async def _measure_clock(self) -> None:
        self._clock_at = now_us()
        if (found := await clock_offset(self._queue)) is not None:
            self.journal.add(("c", now_us(), *found), now_us())


_OUTCOMES = {Status.COMPLETE: "done", Status.FAILED: "dead", Status.ABORTED: "cancelled"}


async def _said(queue: Any, job: Job, saying: Awaitable[Any], tell: Callable[[], None]) -> Any:
    """Say the end of an attempt, and `tell` of it once the broker knows.

    A worker may be told to stop while it waits for the reply. Our queue then goes on saying it by itself; of SAQ's,
    what is stored shows whether it was heard.
    """
    claim = job.__dict__.get("claim")
    try:
        result = await saying
    except asyncio.CancelledError:
        if claim is not None and claim.said is not None:
            claim.said.add_done_callback(lambda said: tell() if _was_heard(said) else None)
        elif await _is_stored(queue, job):
            tell()
        raise
    tell()
    return result


def _was_heard(said: asyncio.Future[int]) -> bool:
    return not said.cancelled() and said.exception() is None and bool(said.result())


async def _is_stored(queue: Any, job: Job) -> bool:
    try:
        async with asyncio.timeout(ASKING_S):
            stored = await queue.job(job.key)
    except Exception:
        return False
    # After a retry without a delay another worker may have it already.
    return stored is None or stored.status == job.status or stored.attempts > job.attempts


def _usual_priority(queue: Any) -> int:
    """What no priority means: on our queue it is normal."""
    return 3 if _ours(queue) else 0


def _ours(queue: Any) -> bool:
    return hasattr(queue, "policy_of")


def _timed(function: Any) -> Any:
    if inspect.iscoroutinefunction(function):
        pace = Pace()

        @functools.wraps(function)
        async def run(ctx: Any, *args: Any, **kwargs: Any) -> Any:
            execution = _begin(ctx)
            try:
                return await stepwise(execution, function(ctx, *args, **kwargs), pace)
            finally:
                execution.ended_at = time.time_ns() // 1000

        return run

    @functools.wraps(function)
    def run_in_thread(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        execution, since = _begin(ctx), time.thread_time()
        try:
            return function(ctx, *args, **kwargs)
        finally:
            execution.cpu_s += time.thread_time() - since
            execution.ended_at = now_us()

    return run_in_thread


def _begin(ctx: Any) -> Execution:
    job = ctx["job"]
    execution: Execution = job.__dict__.get(OURS) or Execution()
    execution.started_at = time.time_ns() // 1000
    _PARENT.set((job.key, job.queued))
    return execution


def _delay_s(queue: Any, job: Job) -> float | None:
    """The delay before the next attempt, None where SAQ draws it at random."""
    if _ours(queue) and queue.policy_of(job) is not None:
        return float(queue.delay_s(job))
    return None if job.retry_backoff is not False else job.retry_delay


def _process_facts() -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    import psutil

    return {
        "format": FORMAT,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "created": psutil.Process().create_time(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "saq": version("saq"),
    }
