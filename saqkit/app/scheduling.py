"""The schedules of a topology: at each firing an event is announced, once, whoever of the workers lives.

The clock, and what becomes of missed firings, are those of `saqkit.queue.timetable`. But a firing is an event in the
database before it is a job: its key is the schedule's name and the time, so that of several workers who announce it one
does, and one who dies before it has enqueued anything leaves an outbox row for the relay.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from saqkit.app.announcing import Announcer
from saqkit.app.audience import Audience
from saqkit.queue.timetable import Schedule, Timetable, stamp
from saqkit.spec.topology import ScheduledEntry

logger = logging.getLogger("saqkit")

PATIENCE_S = 5.0
"""How long enqueueing what a firing starts may take; what is left then, the relay does."""


class EventTimetable(Timetable):
    """Announces the firings of a topology's schedules, from the first `start` to `stop`.

    When somebody last looked is noted beside the keys of the topology's first queue.
    """

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self._entries = {entry.name: entry for entry in announcer.topology.schedules}
        queue = next(iter(announcer.queues.values()))
        super().__init__(queue, [_schedule(entry) for entry in self._entries.values()])

    async def fired(self, schedule: Schedule, firings: Sequence[int], mark: int, latest: int) -> None:
        """Announce the events of some firings that nobody has announced, and then note the latest."""
        entry = self._entries[schedule.name]
        for at in firings:
            announced = await self._announcer.announce(
                title=entry.title or entry.name, body=entry.body, entry=entry.entry(), audience=_audience(entry),
                key=event_key(entry.name, at), patience_s=PATIENCE_S,
            )  # fmt: skip
            if announced.new:
                logger.info("schedule %s fires: event %d", entry.name, announced.event,
                            extra={"event": announced.event})  # fmt: skip
        await super().fired(schedule, [], mark, latest)


def event_key(name: str, fires_at: int) -> str:
    """The idempotency key of a firing's event."""
    return f"schedule {name}@{stamp(fires_at)}"


def _schedule(entry: ScheduledEntry) -> Schedule:
    target = str(entry.topic or entry.job_type)
    return Schedule(entry.name, target, entry.cron, entry.zone, missed=entry.missed, late_s=entry.late_s,
                    most_missed=entry.most_missed)  # fmt: skip


def _audience(entry: ScheduledEntry) -> Audience:
    return Audience(nobody=True) if entry.audience is None else Audience.of(entry.audience, entry.tenant)
