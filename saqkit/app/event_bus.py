"""The bus of a topology: on which of its queues it lives, and how an event that goes over it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from saqkit.app.audience import Audience
from saqkit.app.store import EventRow, Store
from saqkit.app.store.events import save_event
from saqkit.bus.bus import Bus
from saqkit.bus.envelope import Event
from saqkit.queue.queue import Queue
from saqkit.spec.topology import Topology

__all__ = ["as_row", "bus_of", "event_queue", "is_published", "save_published", "send_many_saved", "send_saved"]

_BUS = "bus:"


def event_queue(topology: Topology) -> str:
    """The queue of a topology's events: `events` if it has one, else that of the first job type that a topic starts."""
    started = (name for topic in topology.topics.values() for name in topic.starts)
    first = next((topology.job_types[name].queue for name in started), topology.entry_queue)
    return "events" if "events" in topology.queues else first


def bus_of(topology: Topology, queues: Mapping[str, Queue]) -> Bus:
    """The bus, without subscribers: enough to publish, and to ask for statistics and past events."""
    return Bus(queues[event_queue(topology)], topics=topology.topics)


def as_row(event: Event) -> dict[str, Any]:
    """What `Store.announce` saves of an event that goes over the bus: its body is the envelope."""
    return {"title": event.type, "body": event.to_json(), "topic": f"{_BUS}{event.type}", "tenant": event.tenant,
            "audience": Audience(nobody=True), "created_at": event.time, "key": f"event {event.id}"}  # fmt: skip


def save_published(connection: Connection, event: Event) -> int | None:
    """Save an event in the transaction of what it tells; whoever commits that sends it, or else the relay does.

    Returns the number of its row; None if one of its id and tenant is there.
    """
    row = as_row(event)
    return save_event(connection, {**row, "audience": row["audience"].to_json()})


def is_published(row: EventRow) -> bool:
    """Whether a stored event goes over the bus."""
    return row.topic.startswith(_BUS)


async def send_saved(row: EventRow, topology: Topology, queues: Mapping[str, Queue]) -> None:
    """Publish a stored event; one that was published already is not published again."""
    await bus_of(topology, queues).publish(Event.from_json(row.body))


async def send_many_saved(
    saved: Mapping[int, Event], topology: Topology, store: Store, queues: Mapping[str, Queue]
) -> None:
    """Publish saved events, by the numbers of their rows, in one round trip, and note that the broker has them."""
    await bus_of(topology, queues).publish_many(saved.values())
    await store.mark_delivered(list(saved))
