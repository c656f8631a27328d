"""Past events: read from the stream, and delivered again to one subscriber."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from secrets import token_hex

from saq.job import Job

from saqkit.bus.envelope import Event
from saqkit.bus.subscriptions import Filter, Subscription
from saqkit.errors import UsageError
from saqkit.queue.queue import Queue
from saqkit.queue.submitting import moment
from saqkit.spec.topology import Priority

Moment = float | datetime

PAGE = 500
SKEW_S = 120.0
"""How far a publisher's clock may be ahead of the server's: an event may be recorded so long before its own time."""


@dataclass(frozen=True)
class Replayed:
    """A replay: how many events were `found` that the subscriber wants, and how many are `enqueued` for it.

    Those that are not: a replay of the same `name` had them before. `more`: the limit was reached before the end.
    """

    name: str
    found: int
    enqueued: int
    more: bool


class History:
    """The past events of a bus."""

    def __init__(self, queue: Queue, key: str) -> None:
        self._queue, self._key = queue, key

    def read(self, where: Filter, since: Moment | None, until: Moment | None) -> AsyncIterator[Event]:
        """The events that `where` means, whose time is from `since` to before `until`."""
        first = 0.0 if since is None else _seconds(since, "since")
        last = float("inf") if until is None else _seconds(until, "until")
        if first >= last:
            raise UsageError(f"history: since {since} is not before until {until}")
        return self._read(where, first, last)

    async def _read(self, where: Filter, first: float, last: float) -> AsyncIterator[Event]:
        begin = f"{max(0.0, first - SKEW_S) * 1000:.0f}"
        while True:
            page = await self._queue.redis.xrange(self._key, min=begin, count=PAGE)
            for _, fields in page:
                event = Event.from_json(fields[b"event"])
                if first <= event.time < last and where.admits(event):
                    yield event
            if len(page) < PAGE:
                return
            begin = f"({page[-1][0].decode()}"

    async def replay(
        self,
        to: Subscription,
        where: Filter,
        since: Moment | None,
        until: Moment | None,
        limit: int,
        name: str,
        job: Callable[[Subscription, Event, int, bool, str], Job],
    ) -> Replayed:
        """Enqueue deliveries of the events that `where` and the subscription mean, at most `limit`."""
        if type(limit) is not int or limit < 1:
            raise UsageError(f"replay to {to.name}: limit {limit} (give 1 or more)")
        name = name or token_hex(8)
        if not name.isalnum() or len(name) > 64:
            raise UsageError(f'replay "{name}" to {to.name}: no name (letters and digits, at most 64)')
        found = enqueued = 0
        jobs: list[Job] = []
        async for event in self.read(where, since, until):
            if not to.admits(event):
                continue
            if found == limit:
                return Replayed(name, found, enqueued + await self._enqueue(jobs), True)
            found += 1
            jobs.append(job(to, event, int(Priority.LOW), False, name))
            if len(jobs) == PAGE:
                enqueued += await self._enqueue(jobs)
                jobs = []
        return Replayed(name, found, enqueued + await self._enqueue(jobs), False)

    async def _enqueue(self, jobs: list[Job]) -> int:
        return sum(await self._queue.enqueue_many(jobs)) if jobs else 0


def _seconds(at: Moment, what: str) -> float:
    if isinstance(at, datetime):
        return moment(at, f"history: {what}")
    if isinstance(at, bool) or not isinstance(at, int | float) or not isfinite(at) or at < 0:
        raise UsageError(f"history: {what} {at!r} (give epoch seconds, or a datetime with its time zone)")
    return float(at)
