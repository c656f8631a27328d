"""Publishing an event of the reference application: it is saved, and goes over the bus at once or when that is back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saqkit.app.announcing import Announcer
from saqkit.app.event_bus import as_row, bus_of
from saqkit.app.subscribers.subscribing import subscribers_of
from saqkit.bus.envelope import Event
from saqkit.errors import UsageError
from saqkit.queue.scripts_of_queue import AWAY

__all__ = ["Publisher", "Sent"]


@dataclass(frozen=True)
class Sent:
    """A published event: `row` is its number in the database, `elapsed_ms` what the caller waited.

    `new`: no event of its id and tenant was published before; `enqueued`: it is on the queue already.
    """

    event: Event
    row: int
    new: bool
    enqueued: bool
    elapsed_ms: float


class Publisher:
    """Publishes events on the topics of a topology. A handler of an event uses the bus itself instead."""

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self._bus = bus_of(announcer.topology, announcer.queues)

    def made(self, topic: str, data: Mapping[str, Any] | None = None, **envelope: Any) -> Event:
        """The event of a topic; fields of `envelope`: see `Event`.

        Raises `UsageError` for a topic that the topology does not have, and where a subscriber of the application would
        miss something; `DescriptionError` for an envelope that cannot be.
        """
        topology = self._announcer.topology
        if topic not in topology.topics:
            if not topology.topics:
                raise UsageError(f"topology {topology.name} has no topics, so nothing can be published on one")
            self._bus.topics.require(topic)
            raise UsageError(f"topic {topic} is published by the bus alone where topology {topology.name} is served")
        event = Event.parse({**envelope, "type": topic, "data": dict(data or {})}, f"event {topic}")
        for subscriber, _ in subscribers_of(topology, topic):
            subscriber.check(event)
        return event

    async def publish(
        self, topic: str, data: Mapping[str, Any] | None = None, *, patience_s: float = 0.05, **envelope: Any
    ) -> Sent:
        """Save an event with its outbox row, and publish it if the broker takes it within `patience_s`.

        With the broker away it is saved all the same, and the workers' relay publishes it later. An `id` that the
        tenant used before changes nothing. Raises what `made` raises, and `UsageError` for a tenant or an institution
        that is unknown, or where nobody subscribes to any topic of the topology.
        """
        started, event = time.perf_counter(), self.made(topic, data, **envelope)
        await self._check_somebody_is_there(event)
        store = self._announcer.store
        saved = await store.announce(**as_row(event))
        enqueued = saved.new and await self._announcer.deliver_soon(saved.event_id, patience_s)
        return Sent(event, saved.event_id, saved.new, enqueued, (time.perf_counter() - started) * 1000)

    async def subscribers(self, topic: str) -> list[str]:
        """Who has subscribed to a topic, in whatever process of a worker; the broker says so."""
        found = await self._bus.subscriptions()
        return sorted(name for name, one in found.items() if topic in one.topics)

    async def _check_somebody_is_there(self, event: Event) -> None:
        topology = self._announcer.topology
        tenants = self._announcer.store.tenants
        if event.tenant and await tenants.get(event.tenant) is None:
            raise UsageError(f'event {event.type}: there is no tenant "{event.tenant}" in this database')
        if event.institution:
            await tenants.check_institution(event.tenant, event.institution)
        if any(subscribers_of(topology)):
            return
        try:
            known = await self._bus.subscriptions()
        except AWAY:
            return
        if not known:
            raise UsageError(f"nobody subscribes to the topics of topology {topology.name} (SAQKIT_SUBSCRIBERS names "
                             f"who does; start `saqkit worker {topology.name}` with it first)")  # fmt: skip
