"""What the job types of a topology do: find an event's users and cut them into batches, or serve a batch.

One application per worker process; its functions are given to the worker, SAQ's or ours.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from saq.job import Job

from saqkit.app.announcing import Announcer, Relay, new_job
from saqkit.app.attempt import Attempt, Stopwatch
from saqkit.app.ledger import Ledger
from saqkit.app.mail import Email, Provider, Simulated, message_id
from saqkit.app.store import EventRow, Recipient, SendResult, Store
from saqkit.app.work import burn
from saqkit.errors import PermanentFailure, SaqkitError, TemporaryFailure
from saqkit.queue.queue import Queue
from saqkit.spec.topology import JobType, Topology

logger = logging.getLogger("saqkit")
HOST = socket.gethostname()
Handler = Callable[..., Awaitable[Any]]


class Application:
    """The store, the ledger, the providers and the queues of one worker process.

    `sample_every`: the steps of every n-th user are written to `steps_file` (0: none).
    """

    def __init__(
        self,
        topology: Topology,
        store: Store,
        queues: Mapping[str, Queue],
        providers: Mapping[str, Provider],
        *,
        sample_every: int = 0,
        steps_file: Path | None = None,
    ) -> None:
        self.topology, self.store, self.queues, self.providers = topology, store, queues, providers
        self.announcer = Announcer(topology, store, queues)
        self.relay = Relay(self.announcer)
        self.ledger = Ledger(store)
        self._sample_every, self._steps_file = sample_every, steps_file
        self._events: dict[int, EventRow] = {}

    def functions(self) -> list[tuple[str, Handler]]:
        """(name, function) of every job type."""
        return handlers(self.topology)

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
        for provider in self.providers.values():
            await provider.close()
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
            else:
                work = self._serve(spec, job, row, users or [], attempt)
            return await Stopwatch(attempt, work)
        finally:
            attempt.close()
            self._write_steps(job, attempt)

    async def _event(self, event: int) -> EventRow:
        if event not in self._events:
            row = await self.store.event(event)
            if row is None:
                raise SaqkitError(f"event {event} is not in this database: worker and announcer must use the same one")
            self._events = {**dict(list(self._events.items())[-99:]), event: row}
        return self._events[event]

    # --- fan out -----------------------------------------------------------------------------------------------------

    async def _fan_out(self, name: str, spec: JobType, job: Job, event: EventRow, attempt: Attempt) -> dict[str, Any]:
        """Page through the audience and enqueue its batches; the cursor is stored after each page.

        A batch's key is the event and the user id before it, so a page that is repeated after a crash is enqueued once.
        """
        edge = spec.fan_out
        assert edge is not None
        queue = self.queues[self.topology.job_types[edge.to].queue]
        size = max(1, edge.page_size // edge.batch_size) * edge.batch_size  # whole batches, but for the last
        burn(spec.cpu_us)
        with attempt.database():
            cursor = await self.store.fan_out_cursor(event.id, name)
        found = batches = 0
        logger.info("processing job %s for event %d", job.key, event.id)
        while True:
            with attempt.database():
                page = await self.store.audience_page(event.id, cursor, size)
            jobs = []
            for start in range(0, len(page), edge.batch_size):
                before = page[start - 1] if start else cursor
                users = page[start : start + edge.batch_size]
                priority = job.priority if self._inherits(job, spec) else None
                jobs.append(new_job(self.topology, edge.to, f"{edge.to}:{event.id}:{before}", event, users, priority,
                                    parent=job.key))  # fmt: skip
            if jobs:
                await queue.enqueue_many(jobs)
                cursor = page[-1]
            found, batches, finished = found + len(page), batches + len(jobs), len(page) < size
            with attempt.database():
                await self.store.advance_fan_out(event.id, name, cursor, len(jobs), len(page), finished)
            if finished:
                logger.info("event %d: found %d users, %d batches of %d", event.id, found, batches, edge.batch_size)
                return {"users": found, "batches": batches}

    @staticmethod
    def _inherits(job: Job, spec: JobType) -> bool:
        """Whether an entry raised or lowered this job: then its batches follow."""
        return job.priority != int(spec.priority)

    # --- serve a batch -------------------------------------------------------------------------------------------------

    async def _serve(
        self, spec: JobType, job: Job, event: EventRow, users: list[int], attempt: Attempt
    ) -> dict[str, Any]:
        """Serve those of `users` who are not served yet. One failing user never stops the others."""
        burn(spec.cpu_us)
        provider = self.providers[spec.per_user.provider] if spec.per_user.provider else None
        channel = self.topology.providers[spec.per_user.provider].channel if spec.per_user.provider else "none"
        if spec.per_user.database == "ledger":
            with attempt.database():
                recipients = await self.store.begin_batch(event.id, users, channel)
            attempt.facts["users"] = len(recipients)
        else:
            done = set(job.meta.get("served", ()))
            recipients = [Recipient(user, f"user{user}@users.example", "") for user in users if user not in done]
            attempt.facts["users"] = len(recipients)
        logger.debug("processing batch %s (%d users)", job.key, len(recipients))

        number, undelivered, served = job.attempts, [], []
        remaining = iter(recipients)

        async def serve_some(watch: Callable[[], float]) -> None:
            for recipient in remaining:
                result = await self._serve_user(spec, event, recipient, number, provider, attempt, watch)
                if isinstance(result, TemporaryFailure):
                    undelivered.append((recipient.user, str(result)))
                    continue
                status: Any = "failed" if isinstance(result, PermanentFailure) else "sent"
                attempt.served(done=status == "sent", failed=status == "failed")
                served.append(recipient.user)
                if spec.per_user.database == "ledger":
                    sender = provider.sender if provider else "no-reply@saqkit.example"
                    self.ledger.add(
                        SendResult(
                            event.id,
                            recipient.user,
                            channel,
                            status,
                            message_id(event.id, recipient.user, channel, sender=sender),
                            str(result or ""),
                            time.time(),
                        )  # fmt: skip
                    )

        await self._at_once(min(spec.send_concurrency, len(recipients)), serve_some, attempt)
        if spec.per_user.database == "ledger":
            with attempt.database():
                await self.ledger.flush()
        else:
            job.meta["served"] = [*job.meta.get("served", ()), *served] if undelivered else []
        if undelivered:
            reason = f"{len(undelivered)} of {len(recipients)} users failed for now; the first: {undelivered[0][1]}"
            if number >= spec.retry.max_attempts:
                attempt.served(failed=len(undelivered))
                if spec.per_user.database == "ledger":
                    await self.store.abandon(event.id, [user for user, _ in undelivered], channel, undelivered[0][1])
            raise TemporaryFailure(reason)
        await self._follow_up(spec, job, event, users)
        logger.info("job %s: %d of %d users served", job.key, attempt.facts["users_done"], len(recipients))
        return {"done": attempt.facts["users_done"], "failed": attempt.facts["users_failed"]}

    async def _at_once(
        self, lanes: int, serve_some: Callable[[Callable[[], float]], Awaitable[None]], attempt: Attempt
    ) -> None:
        """Run `lanes` lanes through the same users; a single lane runs in the job's own task."""
        if lanes <= 1:
            await serve_some(time.thread_time)
            return

        async def lane() -> None:
            watch: Stopwatch[None] = Stopwatch(attempt, _later(lambda: serve_some(watch.cpu_s)))
            await watch

        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(lane())

    async def _serve_user(
        self,
        spec: JobType,
        event: EventRow,
        recipient: Recipient,
        number: int,
        provider: Provider | None,
        attempt: Attempt,
        cpu_s: Callable[[], float],
    ) -> TemporaryFailure | PermanentFailure | None:
        sampled = attempt.samples(recipient.user)
        began = cpu_s()
        burn(spec.per_user.cpu_us)
        if provider is None:
            if sampled:
                attempt.step(recipient.user, "cpu", cpu_s() - began)
            return None
        email = Email(
            event=event.id,
            user=recipient.user,
            attempt=number,
            to=recipient.email,
            name=recipient.name,
            subject=event.title,
            text=f"{event.body or event.title}\n",
            html=None,
            message_id=message_id(event.id, recipient.user, sender=provider.sender),
            sender=provider.sender,
        )
        if sampled:
            attempt.step(recipient.user, "cpu", cpu_s() - began)
        start = time.perf_counter()
        try:
            await provider.send(email)
        except (TemporaryFailure, PermanentFailure) as failure:
            return failure
        finally:
            took = time.perf_counter() - start
            attempt.provider_s += took
            if sampled:
                attempt.step(recipient.user, "provider", took)
        return None

    async def _follow_up(self, spec: JobType, job: Job, event: EventRow, users: list[int]) -> None:
        for edge in spec.follow_up:
            follower = new_job(self.topology, edge.to, f"{edge.to}:{job.key}", event, users, parent=job.key)
            await self.queues[self.topology.job_types[edge.to].queue].enqueue_many([follower])

    def _write_steps(self, job: Job, attempt: Attempt) -> None:
        if self._steps_file is None or not attempt.steps:
            return
        lines = [json.dumps([job.key, job.attempts, *step]) for step in attempt.steps]
        with self._steps_file.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


def handlers(topology: Topology, queue: str | None = None) -> list[tuple[str, Handler]]:
    """(name, function) of every job type of `queue` (default: of all); they find their `Application` in the context."""

    def handler(name: str) -> Handler:
        async def handle(ctx: dict[str, Any], *, event: int, users: list[int] | None = None) -> dict[str, Any]:
            application: Application = ctx["application"]
            return await application.handle(name, ctx["job"], event, users)

        handle.__qualname__ = handle.__name__ = name
        return handle

    return [(name, handler(name)) for name, spec in topology.job_types.items() if queue in (None, spec.queue)]


class _later:
    """Something awaitable that begins only when it is awaited."""

    def __init__(self, begin: Callable[[], Awaitable[None]]) -> None:
        self._begin = begin

    def __await__(self) -> Any:
        return self._begin().__await__()
