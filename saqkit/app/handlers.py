"""What the job types of a topology do: find an event's users and cut them into batches, or serve a batch.

One application per worker process; its functions are given to the worker, SAQ's or ours.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from saq.job import Job, Status

from saqkit.app.announcing import Announcer, Relay, new_job
from saqkit.app.attempt import Attempt, Stopwatch
from saqkit.app.courses.enrolling import letters
from saqkit.app.courses.enrolments import due
from saqkit.app.courses.source import Source
from saqkit.app.courses.syncing import PEOPLE, people_of
from saqkit.app.emails.catalogue import EMAIL_TYPES
from saqkit.app.emails.sending import Sender
from saqkit.app.ledger import Ledger
from saqkit.app.mail import Provider, Simulated
from saqkit.app.mail.gate import build_gates
from saqkit.app.scheduling import EventTimetable
from saqkit.app.school.calls import SCHOOL_TYPES
from saqkit.app.school.working import Worker
from saqkit.app.serving import Serving, channel_of
from saqkit.app.shop.orders import Orders
from saqkit.app.shop.payment_provider import build_payments
from saqkit.app.store import EventRow, Recipient, Store
from saqkit.app.work import burn
from saqkit.app.works import WORKS, Task
from saqkit.errors import SaqkitError, StoreError, TemporaryFailure
from saqkit.log_lines import bound
from saqkit.queue.batches import Batch
from saqkit.queue.letter import ids_of
from saqkit.queue.queue import Queue
from saqkit.spec.topology import CALLBACKS, JobType, Topology

logger = logging.getLogger("saqkit")
HOST = socket.gethostname()
BURYING_S = 30.0
"""For so long a dead job keeps its slot until the ledger knows of it."""
Handler = Callable[..., Awaitable[Any]]


class Application:
    """The store, the ledger, the providers with their gates, and the queues of one worker process.

    `environ` is heeded by emails, payments, reports and synchronisations. `sample_every`: the steps of every n-th user
    are written to `steps_file` (0: none).
    """

    def __init__(
        self,
        topology: Topology,
        store: Store,
        queues: Mapping[str, Queue],
        providers: Mapping[str, Provider],
        *,
        environ: Mapping[str, str] = os.environ,
        sample_every: int = 0,
        steps_file: Path | None = None,
    ) -> None:
        self.topology, self.store, self.queues, self.providers = topology, store, queues, providers
        self.gates = build_gates(topology, queues)
        self.announcer = Announcer(topology, store, queues)
        self.relay = Relay(self.announcer)
        self.timetable = EventTimetable(self.announcer)
        self.ledger = Ledger(store)
        self.emails = Sender(topology, store, queues, providers, self.gates, environ)
        self.school = Worker(self, environ)
        self.orders = Orders(store.database)
        self.payments = build_payments(topology, store.database, providers, environ)
        self.environ, self.source = environ, Source.from_environment(environ)
        self._people = people_of(topology, self.source, store, dict(providers))
        self._sample_every, self._steps_file = sample_every, steps_file
        self._steps: TextIO | None = None

    def functions(self) -> list[tuple[str, Handler]]:
        """(name, function) of every job type."""
        return handlers(self.topology)

    def service(self, job_type: str) -> Sender | Worker | None:
        """Who does those jobs of a type that are of no event; None: there are none."""
        if job_type in SCHOOL_TYPES:
            return self.school
        return self.emails if job_type in EMAIL_TYPES else None

    async def follow_outages(self, path: Path) -> None:
        """Let simulated providers fail in the times that are written to `path`, pairs of Unix seconds by provider."""
        while not path.exists():
            await asyncio.sleep(0.1)
        for name, times in json.loads(path.read_text(encoding="utf-8")).items():
            provider = self.providers[name]
            if isinstance(provider, Simulated):
                provider.outages[:] = [(start, end) for start, end in times]

    async def close(self) -> None:
        """Write what is unwritten, and close the connections."""
        with suppress(SaqkitError):
            await self.ledger.close()
        for gate in self.gates.values():
            await gate.close()
        for provider in self.providers.values():
            await provider.close()
        if self.source is not None:
            await self.source.close()
        for payments in self.payments.values():
            await payments.close()
        if self._steps is not None:
            self._steps.close()
        await self.store.close()

    async def handle(self, name: str, job: Job, event: int, users: list[int] | None) -> dict[str, Any]:
        """Do what a job of type `name` is for, and keep the attempt's books."""
        spec = self.topology.job_types[name]
        queue = self.queues[spec.queue]
        claim = queue.claim_of(job)
        attempt = Attempt(claim.facts if claim else {}, self._sample_every)
        attempt.begin(len(users or ()), time.time() + queue.clock_offset_s)
        attempt.facts["host"] = HOST
        try:
            row = await self._event(event)
            if spec.fan_out is not None:
                work = self._fan_out(name, spec, job, row, attempt)
            elif spec.work != "messages" and spec.work not in PEOPLE:
                work = self._do(Task(name, spec, job, row, users or [], attempt))
            else:
                work = self._serve(spec, job, row, users or [], attempt)
            return await Stopwatch(attempt, work)
        finally:
            attempt.close()
            self._write_steps(job, attempt)

    async def _event(self, event: int) -> EventRow:
        if (row := await self.store.event(event)) is None:
            raise SaqkitError(f"event {event} is not in this database: worker and announcer must use the same one")
        return row

    # --- fan out -----------------------------------------------------------------------------------------------------

    async def _fan_out(self, name: str, spec: JobType, job: Job, event: EventRow, attempt: Attempt) -> dict[str, Any]:
        """Enqueue the batches of an event, again if the server was started anew meanwhile: it may have lost some."""
        redis = self.queues[spec.queue].redis
        run = (await redis.info("server"))["run_id"]
        while True:
            said = await self._pages(name, spec, job, event, attempt)
            before, run = run, (await redis.info("server"))["run_id"]
            if run == before:
                return said

    async def _pages(self, name: str, spec: JobType, job: Job, event: EventRow, attempt: Attempt) -> dict[str, Any]:
        """Page through the audience and enqueue its batches; the cursor is stored after each page.

        A batch's key is the event and the user id before it, and a page's batches are enqueued in one step. Whoever
        resumes after a crash goes from page to page of those that are enqueued already, and then on where the last one
        ended: the audience may have changed meanwhile, and batches that are cut anew would overlap the old ones.
        """
        edge = spec.fan_out
        assert edge is not None
        queue = self.queues[self.topology.job_types[edge.to].queue]
        batch = await self._batch(queue, spec, job, event) if edge.calls_back else None
        # A measured run's users are all of them, whatever it is about.
        only = [due(event)] if spec.work == "reminders" and event.audience.first_n is None else []
        size = max(1, edge.page_size // edge.batch_size) * edge.batch_size  # whole batches, but for the last
        burn(spec.cpu_us)
        with attempt.database():
            stored = await self.store.fan_out_cursor(event.id, name)
        cursor = found = batches = 0
        # The broker knows what is enqueued; the cursor may be a page behind it or, after a power cut, a second ahead.
        while (known := await queue.job(f"{edge.to}:{event.id}:{cursor}")) and (enqueued := known.meta.get("page")):
            cursor, count, reached = enqueued
            batches, found = batches + count, found + reached
            if cursor > stored:
                with attempt.database():
                    await self.store.advance_fan_out(event.id, name, cursor, count, reached, False)
        logger.info("processing job %s for event %d", job.key, event.id)
        if batch and not batch.open:  # an execution before this one had enqueued them all
            return {"users": found, "batches": batches}
        while True:
            with attempt.database():
                page = await self.store.audience_page(event.audience, cursor, size, *only)
            jobs = []
            for start in range(0, len(page), edge.batch_size):
                before = page[start - 1] if start else cursor
                users = page[start : start + edge.batch_size]
                priority = job.priority if self._inherits(job, spec) else None
                jobs.append(new_job(self.topology, edge.to, f"{edge.to}:{event.id}:{before}", event, users, priority,
                                    parent=job.key))  # fmt: skip
            if jobs:
                for n, one in enumerate(jobs, batches + 1):
                    one.meta["batch"] = n
                jobs[0].meta["page"] = (page[-1], len(jobs), len(page))
                if batch:
                    await queue.add_to_batch(batch.id, jobs, chunk=len(jobs))
                else:
                    await queue.enqueue_many(jobs, chunk=len(jobs))
                cursor = page[-1]
            found, batches, finished = found + len(page), batches + len(jobs), len(page) < size
            with attempt.database():
                await self.store.advance_fan_out(event.id, name, cursor, len(jobs), len(page), finished)
            if finished:
                if batch:
                    await queue.close_batch(batch.id)
                logger.info("event %d: found %d users, %d batches of %d; job %s completed", event.id, found, batches,
                            edge.batch_size, job.key)  # fmt: skip
                return {"users": found, "batches": batches}

    async def _batch(self, queue: Queue, spec: JobType, job: Job, event: EventRow) -> Batch:
        """The batch of a fan-out, which has its key; opened by its first execution."""
        callbacks: dict[str, Any] = {}
        for name in CALLBACKS:
            if target := getattr(spec.fan_out, name):
                priority = job.priority if self._inherits(job, spec) else None
                key = f"{target}:{job.key}:{name}"
                callbacks[name] = new_job(self.topology, target, key, event, priority=priority, parent=job.key)
                callbacks[name].queue = self.queues[self.topology.job_types[target].queue]
        return await queue.open_batch(job.key, **callbacks)

    @staticmethod
    def _inherits(job: Job, spec: JobType) -> bool:
        """Whether an entry raised or lowered this job: then its batches follow."""
        return job.priority != int(spec.priority)

    # --- serve a batch -----------------------------------------------------------------------------------------------

    async def _serve(
        self, spec: JobType, job: Job, event: EventRow, users: list[int], attempt: Attempt
    ) -> dict[str, Any]:
        """Serve those of `users` who are not served yet. One failing user never stops the others."""
        burn(spec.cpu_us)
        if spec.per_user.database == "ledger":
            with attempt.database():
                pending, gone = await self.store.begin_batch(event.id, users, channel_of(self.topology, spec))
        else:
            before = set(job.meta.get("served", ()))
            pending, gone = [Recipient(u, f"user{u}@users.example", "") for u in users if u not in before], 0
        attempt.facts["users"] = len(pending) + gone
        attempt.served(failed=gone)
        logger.info("processing job %s for event %d: batch %s (%d users)", job.key, event.id,
                    job.meta.get("batch", "of its own"), len(pending))  # fmt: skip
        serving = Serving(
            spec,
            event,
            job.attempts,
            channel_of(self.topology, spec),
            self._people.get(job.function) or self.providers.get(spec.per_user.provider or ""),
            self.ledger if spec.per_user.database == "ledger" else None,
            attempt,
            self.gates.get(spec.per_user.provider or ""),
            written=await letters(self, job.function, event, pending),
        )
        try:
            await serving.serve(pending)
        finally:  # also when the attempt is cancelled: the next one, perhaps at once, must know whom to leave out
            if spec.per_user.database == "ledger":
                with attempt.database():
                    await self.ledger.flush()
            elif len(serving.served) < len(pending):
                job.meta["served"] = [*job.meta.get("served", ()), *serving.served]
        if serving.put_off:
            count, reason = len(serving.put_off), serving.put_off[0]
            raise TemporaryFailure(f"{count} of {len(pending)} users failed for now; the first: {reason}")
        await self._follow_up(spec, job, event, users)
        logger.info("processed %d of %d users, %d failed; job %s completed", attempt.facts["users_done"], len(pending),
                    attempt.facts["users_failed"], job.key)  # fmt: skip
        return {"done": attempt.facts["users_done"], "failed": attempt.facts["users_failed"]}

    async def _do(self, task: Task) -> dict[str, Any]:
        """Do a job's work that is not messages; what follows it is for those of its users whom it says."""
        users = await WORKS[task.spec.work](self, task)
        if users or not task.users:
            await self._follow_up(task.spec, task.job, task.event, users)
        return {"done": task.attempt.facts["users_done"], "failed": task.attempt.facts["users_failed"]}

    async def bury(self, job: Job) -> None:
        """A job has died: those of its users whom it left unserved have failed, and the ledger says why.

        It may have died because the database is away: this waits for it, `BURYING_S` at most, or raises `StoreError`.
        """
        spec, kwargs = self.topology.job_types.get(job.function), job.kwargs or {}
        if spec is None or not kwargs.get("users") or spec.per_user.database == "none":
            return
        reason = (job.error or "the job died").strip().rsplit("\n", 1)[-1]
        began, pause_s, channel = time.monotonic(), 0.05, channel_of(self.topology, spec)
        while True:
            try:
                await self.store.abandon(int(kwargs["event"]), kwargs["users"], channel, reason)
                return
            except StoreError:
                if time.monotonic() - began > BURYING_S:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2.0, 2 * pause_s)

    async def _follow_up(self, spec: JobType, job: Job, event: EventRow, users: list[int]) -> None:
        """Say which jobs follow; they are enqueued in the step that makes this one done."""
        for edge in spec.follow_up:
            follower = new_job(self.topology, edge.to, f"{edge.to}:{job.key}", event, users, parent=job.key)
            await self.queues[self.topology.job_types[edge.to].queue].follow_up(job, follower)

    def _write_steps(self, job: Job, attempt: Attempt) -> None:
        if self._steps_file is None or not attempt.steps:
            return
        if self._steps is None:
            self._steps = self._steps_file.open("a", encoding="utf-8")
        self._steps.write(json.dumps([job.key, job.attempts, attempt.steps]) + "\n")
        self._steps.flush()


def handlers(topology: Topology, queue: str | None = None) -> list[tuple[str, Handler]]:
    """(name, function) of every job type of `queue` (default: of all); they find their `Application` in the context.

    Jobs that are of no event, a single email or a school's operation, are done by the service that enqueued them.
    """

    def handler(name: str) -> Handler:
        async def of_event(ctx: dict[str, Any], *, event: int, users: list[int] | None = None) -> dict[str, Any]:
            application: Application = ctx["application"]
            job: Job = ctx["job"]
            with bound(event=event, job=job.key, attempt=job.attempts, queue=application.topology.job_types[name].queue,
                       tenant=job.meta.get("tenant"), **ids_of(job.meta)):  # fmt: skip
                return await application.handle(name, job, event, users)

        async def handle(ctx: dict[str, Any], **given: Any) -> Any:
            if "event" in given or (service := ctx["application"].service(name)) is None:
                return await of_event(ctx, **given)
            return await service.handle(name, ctx["job"], given)

        handle.__qualname__ = handle.__name__ = name
        return handle

    return [(name, handler(name)) for name, spec in topology.job_types.items() if queue in (None, spec.queue)]


async def after_process(ctx: dict[str, Any]) -> None:
    """What a worker, SAQ's or ours, calls when an attempt has ended."""
    if "job" in ctx and ctx["job"].status == Status.FAILED:
        await ctx["application"].bury(ctx["job"])
