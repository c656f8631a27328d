"""The bus of a topology: on which of its queues it lives, and how an event that goes over it is stored."""

from __future__ import annotations

from collections.abc import Mapping

from saqkit.app.store import EventRow
from saqkit.bus.bus import Bus
from saqkit.bus.envelope import Event
from saqkit.queue.queue import Queue
from saqkit.spec.topology import Topology

__all__ = ["bus_of", "event_queue", "is_published", "row_topic", "send_saved"]

_BUS = "bus:"


def event_queue(topology: Topology) -> str:
    """The queue of a topology's events: `events` if it has one, else that of the first job type that a topic starts."""
    started = (name for topic in topology.topics.values() for name in topic.starts)
    first = next((topology.job_types[name].queue for name in started), topology.entry_queue)
    return "events" if "events" in topology.queues else first


def bus_of(topology: Topology, queues: Mapping[str, Queue]) -> Bus:
    """The bus, without subscribers: enough to publish, and to ask for statistics and past events."""
    return Bus(queues[event_queue(topology)], topics=topology.topics)


def row_topic(topic: str) -> str:
    """What stands as the topic in the row of an event that goes over the bus; its body is the envelope."""
    return f"{_BUS}{topic}"


def is_published(row: EventRow) -> bool:
    """Whether a stored event goes over the bus."""
    return row.topic.startswith(_BUS)


async def send_saved(row: EventRow, topology: Topology, queues: Mapping[str, Queue]) -> None:
    """Publish a stored event; one that was published already is not published again."""
    await bus_of(topology, queues).publish(Event.from_json(row.body))
