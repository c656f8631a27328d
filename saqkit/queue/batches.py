"""Batches: jobs of a queue that belong together. What is to happen when they have ended happens once.

A batch is counted, and calls back, in the script call that ends its member (`scripts/following.lua`), so no process
that dies can leave it out of step, or make it call back twice.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, cast

from saq.job import Job

from saqkit.errors import UsageError
from saqkit.queue.enqueueing import CHUNK
from saqkit.queue.following import POSTED, Courier, started_by_the_server
from saqkit.queue.job import new_job
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.queue.stored import StoredJobs
from saqkit.queue.submitting import NewJob

if TYPE_CHECKING:
    from saqkit.queue.queue import Queue

Callback = str | Job | NewJob
"""Who is called back: a function without arguments, or a job. A `Job` whose `queue` is set goes there."""

EVENTS = ("complete", "success", "death")
KEEP_S = 86_400.0
_KEEP_CALLBACK_S = 86_400.0
"""For so long a callback's key stays taken after it is done, so that one that is delivered twice runs once."""
_PAUSES_S = (0.02, 0.2)
_STATES = ("pending", "done", "dead", "cancelled", "gone")
_COUNTS = ("jobs", *_STATES, "users", *(f"{state}_users" for state in _STATES))
_TIMES = {"at": "opened_at", **{event: f"{event}_at" for event in EVENTS}}
_FIELDS = ["open", *_TIMES, *_COUNTS, *(f"on_{event}" for event in EVENTS)]


@dataclass(frozen=True)
class Batch:
    """What has become of the members of a batch, at one moment.

    `jobs` = `pending` + `done` + `dead` + `cancelled` + `gone` (dead letters that were purged, have expired, or were
    moved into another queue). `users` are the members' weight, 1 for one that has none, and add up in the same way.
    `opened_at`, `complete_at` (all have ended once), `success_at` (all are done) and `death_at` (the first death) are
    epoch seconds of the broker's clock, NaN while it is not so. `refused`: keys that `submit_batch` could not add,
    because a job of that key lives that is no member. `callbacks`: of each event that calls back ("complete",
    "success", "death") the key of the job that it enqueues.
    """

    id: str
    queue: str
    open: bool
    jobs: int
    pending: int
    done: int
    dead: int
    cancelled: int
    gone: int
    users: int
    pending_users: int
    done_users: int
    dead_users: int
    cancelled_users: int
    gone_users: int
    opened_at: float
    complete_at: float = nan
    success_at: float = nan
    death_at: float = nan
    refused: tuple[str, ...] = ()
    callbacks: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def called_back(self) -> tuple[str, ...]:
        """The events that have enqueued their callback, or put it on its way into another queue."""
        return tuple(event for event in self.callbacks if isfinite(getattr(self, f"{event}_at")))

    @property
    def percent(self) -> float:
        """How much has ended, however, in percent of users; of an open batch: of those added so far (0: none yet)."""
        return 100.0 * (self.users - self.pending_users) / self.users if self.users else 0.0 if self.open else 100.0

    @property
    def percent_done(self) -> float:
        """How much is done, in percent of users."""
        return 100.0 * self.done_users / self.users if self.users else 0.0 if self.open else 100.0

    @property
    def complete(self) -> bool:
        """Whether every member has ended at least once."""
        return isfinite(self.complete_at)

    @property
    def success(self) -> bool:
        """Whether every member is done."""
        return isfinite(self.success_at)


class BatchedJobs(StoredJobs):
    """The half of a queue that knows batches; see `Queue`."""

    courier: Courier

    async def submit_batch(
        self, jobs: Iterable[Job | NewJob], *, on_complete: Callback | None = None, on_success: Callback | None = None,
        on_death: Callback | None = None, id: str | None = None, keep_s: float = KEEP_S, chunk: int = CHUNK,
    ) -> Batch:  # fmt: skip
        """Enqueue jobs as a batch, and close it.

        Of each callback one job is enqueued, with the batch's id in its `meta["batch"]`: `on_complete` when every
        member has ended once, however; `on_success` when all are done, be it after some were dead and replayed;
        `on_death` when the first becomes a dead letter. A cancelled member has ended, and there is no success any more.
        `keep_s`: how long the batch is known after its last member has ended; while some are dead, as long as they.
        Called again with the same `id` it adds what is missing, and when the batch is closed nothing.
        """
        members = iter(jobs)
        first = next(members, None)
        if first is None:
            raise UsageError(f"queue {self.name}: a batch without jobs would never call back (give one job at least)")
        name = id or secrets.token_hex(8)
        opened = await self.open_batch(name, on_complete=on_complete, on_success=on_success, on_death=on_death,
                                       keep_s=keep_s)  # fmt: skip
        if not opened.open:
            return opened
        refused: list[str] = []

        def named(given: Iterable[Job | NewJob]) -> Iterator[Job]:
            for job in (one.job() if isinstance(one, NewJob) else one for one in given):
                refused.append(job.key)
                yield job

        try:
            said = await self.add_to_batch(name, named(chain([first], members)), chunk=chunk)
        except UsageError as error:
            if await self._change_batch("drop", name):
                raise
            raise UsageError(f"{error} (batch {name} has members already: add the others, or close it)") from error
        refused = [key for key, accepted in zip(refused, said, strict=True) if not accepted]
        if len(refused) == len(said) and await self._change_batch("drop", name):
            raise UsageError(f"queue {self.name}: no job of batch {name} was accepted (jobs of these keys live)")
        return replace(await self.close_batch(name), refused=tuple(refused))

    async def open_batch(
        self, id: str | None = None, *, on_complete: Callback | None = None, on_success: Callback | None = None,
        on_death: Callback | None = None, keep_s: float = KEEP_S,
    ) -> Batch:  # fmt: skip
        """Open a batch whose members are added bit by bit; until it is closed, only a death calls back.

        Where there is a batch of that `id`, it is left as it is, and returned: ask `open` whether it is.
        """
        name = id or secrets.token_hex(8)
        if not name.isprintable() or " " in name:
            raise UsageError(f"queue {self.name}: a batch cannot be called {name!r} (a text without blanks)")
        if not isfinite(keep_s) or keep_s <= 0:
            raise UsageError(f"batch {name}: keep_s {keep_s} (give seconds, more than 0)")
        words: list[Any] = []
        for event, callback in zip(EVENTS, (on_complete, on_success, on_death), strict=True):
            if callback is not None:
                words += await self._callback(name, event, callback)
        retention_s = max(keep_s, cast("Queue", self).dead_retention_s)
        await self._change_batch("open", name, f"{keep_s:.3f}", f"{retention_s:.3f}", *words)
        return await self._known(name)

    async def add_to_batch(self, id: str, jobs: Iterable[Job | NewJob], *, chunk: int = CHUNK) -> list[bool]:
        """Enqueue jobs as members of an open batch; for each whether it is one (now, or was before).

        One that is not: a job of its key lives that is no member. `UsageError` if the batch is closed, or not known.
        """
        made = (job.job() if isinstance(job, NewJob) else job for job in jobs)
        return await cast("Queue", self).enqueuer.many(self._here(id, made), chunk, id)

    async def close_batch(self, id: str) -> Batch:
        """Nothing is added any more: when the members have ended, it calls back; without members it does so at once.

        To close it again changes nothing. `UsageError` if there is no such batch.
        """
        if not await self._change_batch("close", id):
            raise self._unknown(id)
        return await self._known(id)

    async def get_batch(self, id: str) -> Batch | None:
        """What has become of the members of a batch by now; None if it is not known (any more)."""
        return (await self._batches([id]))[0]

    async def batches(self) -> list[Batch]:
        """The batches that are known, those that have ended first."""
        ids = await self.redis.zrange(self.namespace("batches"), 0, -1)
        return [batch for batch in await self._batches([id.decode() for id in ids]) if batch is not None]

    async def _batches(self, ids: Sequence[str]) -> list[Batch | None]:
        async with self.redis.pipeline(transaction=False) as pipe:
            for id in ids:
                pipe.hmget(self.namespace(f"batch:{id}"), _FIELDS)
            found = await pipe.execute()
        return [self._batch(id, dict(zip(_FIELDS, fields, strict=True))) for id, fields in zip(ids, found, strict=True)]

    def _batch(self, id: str, told: Mapping[str, bytes | None]) -> Batch | None:
        if told["open"] is None:
            return None
        known: dict[str, Any] = {name: int(told[name] or 0) for name in _COUNTS}
        known |= {name_of: float(at) for name, name_of in _TIMES.items() if (at := told[name])}
        known["callbacks"] = {event: json.loads(facts)[1] for event in EVENTS if (facts := told[f"on_{event}"])}
        return Batch(id, self.name, told["open"] == b"1", **known)

    def _here(self, id: str, jobs: Iterable[Job]) -> Iterator[Job]:
        for job in jobs:
            if job.queue is not None and job.queue.name != self.name:
                raise UsageError(f"job {job.key}: is of queue {job.queue.name}, batch {id} of queue {self.name} (a "
                                 "batch is counted where its jobs end; its callbacks may be elsewhere)")  # fmt: skip
            yield job

    async def _callback(self, id: str, event: str, callback: Callback) -> list[Any]:
        about = f"the on_{event} of batch {id}"
        if isinstance(callback, str):
            job: Job = new_job(callback, {"key": f"{callback}:{id}:{event}"})
        elif isinstance(callback, Job | NewJob):
            job = callback.job() if isinstance(callback, NewJob) else callback
        else:
            raise UsageError(f"{about} is a {type(callback).__name__} (give the name of a function, or a job)")
        job.meta = {"keep_key_s": _KEEP_CALLBACK_S, **job.meta, "batch": id}
        queue = cast("Queue", self) if job.queue is None else cast("Queue", job.queue)
        to, key, body, *numbers = await started_by_the_server(queue, job, self.name, about)
        return [event, json.dumps([to, key, *map(str, numbers)]), body]

    async def _change_batch(self, *words: Any) -> int:
        """Repeating it changes nothing, so a lost answer is asked for again."""
        said = None
        for pause_s in _PAUSES_S:
            try:
                said = int(await self.run_script("batch", *words))
                break
            except AWAY:
                await asyncio.sleep(pause_s)
        if said is None:
            said = int(await self.run_script("batch", *words))
        if said == POSTED:
            self.courier.go()
        return said

    async def _known(self, id: str) -> Batch:
        if (batch := await self.get_batch(id)) is None:
            raise self._unknown(id)
        return batch

    def _unknown(self, id: str) -> UsageError:
        return UsageError(f"queue {self.name} knows no batch {id} (one that has ended is forgotten after its keep_s)")
