"""What a subscriber of the reference application does with an event: it sends emails, or starts a job."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Literal, Protocol

from saqkit.app.audience import Audience
from saqkit.app.emails.catalogue import EMAIL_TYPES, Value, checked_data
from saqkit.app.emails.queueing import EmailQueue
from saqkit.app.store import Store
from saqkit.bus.envelope import Event
from saqkit.bus.handling import trace_now
from saqkit.errors import UsageError
from saqkit.spec.topology import Entry

__all__ = ["Starts", "Subscriber", "Tells"]

logger = logging.getLogger("saqkit")

PAGE = 1000
"""So many people are looked up, and get their emails queued, at a time."""
PATIENCE_S = 5.0
"""How long queueing a job that an event starts may take; what is left then, the relay does."""


class Subscriber(Protocol):
    """Does what the `job_type` is for that a topic of the topology starts, as a delivery of the bus."""

    @property
    def job_type(self) -> str:
        """The job type of the topology whose place it takes, and whose attempts, priority and timeout it has."""

    def check(self, event: Event) -> None:
        """Raise `UsageError` if an event does not say what this subscriber needs."""

    async def handle(self, application: Any, event: Event) -> None:
        """Do it; what was done before for the same event is not done again."""


@dataclass(frozen=True)
class Tells:
    """Queues an email of type `email` for each of those whom an event is told to.

    `whom`: the event's `user`; everybody with one of `roles` of the event's tenant, and of its institution if it names
    one; or the user if the event names one, else everybody. What the email is told are the event's data of the names
    that it takes, or `sentences`: by topic the one line of news, with the data's names in braces.
    """

    job_type: str
    email: str
    whom: Literal["user", "everybody", "user or everybody"] = "user"
    roles: tuple[str, ...] = ()
    sentences: Mapping[str, str] = field(default_factory=dict)

    def check(self, event: Event) -> None:
        """Raise `UsageError` if the email cannot be made of an event, or nobody is named whom it is for."""
        self._told(event)
        if self.whom == "user" or (self.whom != "everybody" and event.user != ""):
            user_of(event)

    async def handle(self, application: Any, event: Event) -> None:
        """Queue the emails, a page of people at a time: each has a key of event and person, so nobody gets two."""
        emails, count = EmailQueue(application.topology, application.queues), 0
        told, key = self._told(event), f"{event.id}:{self.job_type}"
        async for page in self._people(application.store, event):
            answers = await emails.queue_bulk_emails(self.email, page, told, key=key, tenant=event.tenant,
                                                     trace=trace_now())  # fmt: skip
            count += sum(map(bool, answers))
        logger.info("event %s: email %s queued for %d users", event.type, self.email, count)

    def _told(self, event: Event) -> dict[str, Value]:
        sentence = self.sentences.get(event.type)
        names = EMAIL_TYPES[self.email].fields if sentence is None else _names(sentence)
        if missing := [name for name in names if name not in event.data]:
            raise UsageError(f"event {event.type}: {' and '.join(missing)} missing in its data (email {self.email} "
                             f"takes {', '.join(names)})")  # fmt: skip
        said: dict[str, Any] = {name: event.data[name] for name in names}
        for name, value in said.items():
            if not isinstance(value, str | int | float):
                raise UsageError(f"event {event.type}: {name} is no small value, and email {self.email} tells it "
                                 "(pass a text, a number, an id)")  # fmt: skip
        if sentence is not None:
            said = {"news": _one_line(sentence.format_map(said))}
        return checked_data(EMAIL_TYPES[self.email], said)

    async def _people(self, store: Store, event: Event) -> AsyncIterator[list[int]]:
        if self.whom == "user" or (self.whom != "everybody" and event.user != ""):
            yield [user_of(event)]
            return
        audience, after = Audience(roles=self.roles, tenant=event.tenant, institution=event.institution), 0
        while page := await store.audience_page(audience, after, PAGE):
            yield page
            after = page[-1]


@dataclass(frozen=True)
class Starts:
    """Starts its job type in the topology's own queue, for the event's `user`; without one, one job of no users.

    It is announced in the database under a key made of the event's id, so that it starts once.
    """

    job_type: str

    def check(self, event: Event) -> None:
        """Raise `UsageError` if the event's user is no id."""
        if event.user != "":
            user_of(event)

    async def handle(self, application: Any, event: Event) -> None:
        """Announce it."""
        audience = Audience(users=(user_of(event),)) if event.user != "" else Audience(nobody=True)
        started = await application.announcer.announce(
            title=event.type, entry=Entry(job_type=self.job_type), audience=audience, tenant=event.tenant,
            key=f"{event.id}:{self.job_type}", patience_s=PATIENCE_S,
        )  # fmt: skip
        logger.info("event %s: starts %s as event %d", event.type, self.job_type, started.event)


def user_of(event: Event) -> int:
    """The id of the event's user; `UsageError` if it names none."""
    if event.user == "":
        raise UsageError(f"event {event.type}: names no user (it is told to one: give the id)")
    if not isinstance(event.user, int) or event.user < 1:
        raise UsageError(f'event {event.type}: user "{event.user}" is nobody (give the id of a user)')
    return event.user


def _names(sentence: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(sentence) if name))


def _one_line(text: str) -> str:
    """What a worker's own error says may have more lines than one."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
