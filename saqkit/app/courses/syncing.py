"""The jobs that ask another system: courses page by page, people one by one as the providers of their batches."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from saqkit.app.courses.source import Source
from saqkit.app.courses.synchronised import Synchronised
from saqkit.app.mail import Email, Provider
from saqkit.app.store import Store
from saqkit.app.work import burn
from saqkit.errors import TemporaryFailure
from saqkit.spec.topology import Topology

if TYPE_CHECKING:
    from saqkit.app.handlers import Application
    from saqkit.app.works import Task

logger = logging.getLogger("saqkit")

TIMEOUT_S = 10.0
"""For a page of courses; people are asked for with the timeout of their provider."""


async def pull_courses(application: Application, task: Task) -> list[int]:
    """The job that brings the courses of its event's tenant up to date, from where the last one stopped.

    Each page is stored together with the cursor behind it, so whoever is killed loses one page of work.
    """
    burn(task.spec.cpu_us)
    source, tenant, event = application.source, task.event.tenant, task.event.id
    if source is None:
        logger.info("job %s: SAQKIT_SYNC_URL names no source, no courses are synchronised", task.job.key)
        return task.users
    kept, attempt, pages = Synchronised(application.store.database), task.attempt, 0
    with attempt.database():
        cursor = await kept.begin(tenant, "courses", event)
    while cursor is not None:
        began = time.perf_counter()
        try:
            rows, following = await source.courses(cursor, TIMEOUT_S)
        finally:
            attempt.provider_s += time.perf_counter() - began
        with attempt.database():
            await kept.store_courses(tenant, event, cursor, rows, following, time.time())
        cursor, pages = following, pages + 1
    logger.info("job %s: courses are synchronised, %d pages", task.job.key, pages)
    return task.users


class Profiles:
    """A provider whose "message" to a user is that their profile is fetched and stored."""

    def __init__(self, asked: Provider, source: Source, store: Store, timeout_s: float) -> None:
        self.name, self.sender = asked.name, asked.sender
        self._source, self._timeout_s, self._kept = source, timeout_s, Synchronised(store.database)

    async def send(self, email: Email) -> None:
        """See `Provider`."""
        profile = await self._source.profile(email.to, self._timeout_s)
        await self._kept.store_profile(email.user, profile, time.time())

    async def close(self) -> None:
        """The source is closed by whoever opened it."""


class Places(Profiles):
    """The same for the courses in which a user has a place."""

    async def send(self, email: Email) -> None:
        """See `Provider`. `TemporaryFailure` where a course is not known here yet: its synchronisation brings it."""
        there = await self._source.enrolments(email.to, self._timeout_s)
        if unknown := await self._kept.store_enrolments(email.user, there, time.time()):
            raise TemporaryFailure(
                f"{self.name}: course {unknown[0]} is not known here, nor are {len(unknown) - 1} more"
            )


PEOPLE = {"sync-profiles": Profiles, "sync-enrolments": Places}


def people_of(
    topology: Topology, source: Source | None, store: Store, providers: dict[str, Provider]
) -> dict[str, Provider]:
    """By job type: who asks the source, in place of the provider that it names; none without a source."""
    found: dict[str, Provider] = {}
    for name, spec in topology.job_types.items():
        if source is not None and spec.work in PEOPLE and (asked := spec.per_user.provider) is not None:
            timeout_s = topology.providers[asked].timeout_s
            found[name] = PEOPLE[spec.work](providers[asked], source, store, timeout_s)
    return found
