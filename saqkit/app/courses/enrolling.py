"""The job that completes enrolments, the call that enrols for nothing, and what the letters about a course say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from saqkit.app.announcing import Announced, Announcer, topic_of
from saqkit.app.courses.enrolments import Enrolments
from saqkit.app.emails.catalogue import EMAIL_TYPES, Value
from saqkit.app.serving import channel_of
from saqkit.app.store import EventRow, Recipient, SendResult
from saqkit.app.work import burn
from saqkit.errors import DescriptionError
from saqkit.spec.topology import Entry

if TYPE_CHECKING:
    from saqkit.app.emails.rendering import Rendered
    from saqkit.app.handlers import Application
    from saqkit.app.works import Task

LETTERS = ("welcome", "payment-receipt")


async def complete(application: Application, task: Task) -> list[int]:
    """Complete the places of a job's users, once each; returns who has one now, also if an execution that died has
    seen to it, so that what follows is not lost with it."""
    spec, attempt, event, store = task.spec, task.attempt, task.event, application.store
    channel = channel_of(application.topology, spec)
    burn(spec.cpu_us)
    with attempt.database():
        pending, gone = await store.begin_batch(event.id, task.users, channel)
    attempt.facts["users"] = len(pending) + gone
    attempt.served(failed=gone)
    for _ in pending:
        burn(spec.per_user.cpu_us)
    at = time.time()
    with attempt.database():
        enrolled = await Enrolments(store.database).complete(event, task.users, at)
    have, results = set(enrolled), list[SendResult]()
    for one in pending:
        reason = "" if one.user in have else f"user {one.user} has no place by event {event.id} that is paid for"
        results.append(SendResult(event.id, one.user, channel, "failed" if reason else "sent", "", reason, at))
    with attempt.database():
        await store.record_results(results)
    done = sum(result.status == "sent" for result in results)
    attempt.served(done=done, failed=len(results) - done)
    return enrolled


async def enrol(announcer: Announcer, user: int, course: int, *, patience_s: float = 0.05) -> Announced:
    """Enrol a user in a course that costs nothing: the place is kept, and its job queued as `announce` does.

    `UsageError` for no such user or course, and for a course whose place is being paid for.
    """
    started = time.perf_counter()
    job_type = next((name for name, spec in announcer.topology.job_types.items() if spec.work == "enrolment"), None)
    if job_type is None:
        raise DescriptionError(f'no job type of topology {announcer.topology.name} has work = "enrolment"',
                               key="job_types", hint='say work = "enrolment" where places are given')  # fmt: skip
    topic = topic_of(Entry(job_type=job_type))
    saved = await Enrolments(announcer.store.database).enrol(user, course, topic=topic, title="Your place in a course")
    enqueued = saved.new and await announcer.deliver_soon(saved.event_id, patience_s)
    return Announced(saved.event_id, saved.new, enqueued, (time.perf_counter() - started) * 1000)


async def letters(
    application: Application, job_type: str, event: EventRow, whose: Sequence[Recipient]
) -> dict[int, Rendered]:
    """The welcomes or receipts of an event's users, by id: of those who have a place in a course by it."""
    if job_type not in LETTERS or event.audience.first_n is not None or not whose:
        return {}
    names = {one.user: one.name.partition(" ")[0] for one in whose}
    written: dict[int, Rendered] = {}
    for place in await Enrolments(application.store.database).of_event(event.id, list(names)):
        known = {"course": place.course, "payment": place.order, "first_name": names[place.user]}
        kind = EMAIL_TYPES[job_type]
        data: dict[str, Value] = {name: value for name, value in known.items() if value is not None}
        if all(field in data for field in kind.fields):
            written[place.user] = application.emails.render(kind, data)
    return written
