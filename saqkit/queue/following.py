"""Jobs that follow others: they are queued in the very step that makes their parent done, or not at all.

What a function asks for while it runs is kept with its claim and said with its end (`scripts/finish.lua`). A job for
another queue cannot be queued in that step, because the two may lie on two nodes of a cluster: it is written down as
outgoing, and the `Courier` of that process delivers it at once; if that is cut short, the upkeep of any process does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from saq.job import Job

from saqkit.errors import UsageError
from saqkit.queue.job import change, new_job
from saqkit.queue.leases import Claim
from saqkit.queue.one_task import OneTask
from saqkit.queue.replaying import relay
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.queue.stored import StoredJobs

if TYPE_CHECKING:
    from saqkit.queue.queue import Queue

logger = logging.getLogger("saqkit")

POSTED = 3
"""What a script says where it has done what it was asked, and something is on its way into another queue."""

Words = tuple[str, str, str | bytes, int, int, float]
"""Of a job that the server is to queue by itself: its queue (empty: the same), key, body, priority, users, keep."""


async def follow_up(queue: Queue, parent: Job, job_or_func: str | Job, given: dict[str, Any]) -> Job:
    """See `Queue.follow_up`."""
    holder = parent.queue
    claim = holder.claim_of(parent) if isinstance(holder, StoredJobs) else None
    if holder is None or claim is None or claim.said is not None:
        raise UsageError(f"job {parent.key}: does not run in this process (its function says what is to follow it)")
    if isinstance(job_or_func, str):
        key = given.get("key") or f"{job_or_func}:{parent.key}"
        to = "" if queue.name == holder.name else queue.name
        taken = sum(1 for words in claim.followers if words[0] == to and f"{words[1]}:".startswith(f"{key}:"))
        job: Job = new_job(job_or_func, {**given, "key": f"{key}:{taken}" if taken and not given.get("key") else key})
    else:
        job = job_or_func
        change(job, given)
    job.meta.setdefault("parent", parent.key)
    words = await started_by_the_server(queue, job, holder.name, f"what follows job {parent.key}")
    if words[:2] == ("", parent.key):
        raise UsageError(f"job {parent.key}: cannot be followed by a job of its own key (give another, or none)")
    _same_broker(queue, holder, job)
    claim.followers.append(words)
    return job


async def started_by_the_server(queue: Queue, job: Job, here: str, about: str) -> Words:
    """What a script of queue `here` needs to put `job` into `queue`, to start at once. `UsageError` if it cannot be."""
    await queue.prepare(job)
    key, body, level, due, users, keep = queue.enqueuer.words(job)
    if due or "unique" in job.__dict__:
        what = "has a time" if due else "is unique"
        raise UsageError(f"job {key} ({job.function}): {about} {what} (it starts at once; its key makes it one)")
    return "" if queue.name == here else queue.name, key, body, level, users, keep


def told(claim: Claim, ttl: int) -> tuple[Any, list[Any]]:
    """What `finish.lua` is told of the jobs that follow: in the place of `ttl`, and behind all else."""
    if not claim.followers:
        return ttl, []
    return f"{ttl} {len(claim.followers)}", [part for words in claim.followers for part in words]


def _same_broker(queue: Queue, other: Any, job: Job) -> None:
    ours, theirs = (getattr(getattr(one.redis, "connection_pool", None), "connection_kwargs", {})
                    for one in (queue, other))  # fmt: skip
    if any(ours.get(name) != theirs.get(name) for name in ("host", "port", "path", "db")) and "place" not in ours:
        raise UsageError(f"job {job.key}: queue {queue.name} lies on another server than {other.name} "
                         "(what follows a job is written down where that job is)")  # fmt: skip


class Courier(OneTask):
    """Delivers what the ends of jobs have put on its way into other queues, without keeping anybody waiting.

    What it could not deliver before it is stopped is left to the upkeep of others.
    """

    def __init__(self, queue: Queue) -> None:
        super().__init__("saqkit-courier")
        self._queue = queue
        self._more = False

    def go(self) -> None:
        """Something is, or may be, outgoing."""
        self._more = True
        self.begin()

    async def _run(self) -> None:
        while self._more:
            self._more = False
            try:
                await relay(self._queue)
            except AWAY as error:
                logger.debug("what is outgoing of queue %s: broker away (%s)", self._queue.name, error)
            except Exception:
                logger.exception("what is outgoing of queue %s", self._queue.name)
