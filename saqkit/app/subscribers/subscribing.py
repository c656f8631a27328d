"""The subscribers of a topology: what its topics start, as far as the application knows how to do it on the bus."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from saqkit.app.event_bus import bus_of
from saqkit.app.subscribers import school_erp, voting
from saqkit.app.subscribers.subscriber import Subscriber
from saqkit.bus.bus import Bus, Handler
from saqkit.bus.envelope import Event
from saqkit.bus.topics import EventTopic
from saqkit.errors import DescriptionError
from saqkit.queue.queue import Queue
from saqkit.spec.topology import Priority, Topology

__all__ = ["subscribed", "subscribers_of"]

VARIABLE = "SAQKIT_SUBSCRIBERS"
KNOWN: dict[str, Subscriber] = {one.job_type: one for one in (*voting.SUBSCRIBERS, *school_erp.SUBSCRIBERS)}


def subscribers_of(topology: Topology, topic: str | None = None) -> Iterator[tuple[Subscriber, list[str]]]:
    """The subscribers that a topology has, each with the topics that start it; or those of one topic."""
    for job_type, subscriber in KNOWN.items():
        topics = [name for name, one in topology.topics.items() if job_type in one.starts and topic in (None, name)]
        if topics:
            yield subscriber, topics


def subscribed(topology: Topology, queues: Mapping[str, Queue], environ: Mapping[str, str] = os.environ) -> Bus | None:
    """The bus with the subscribers of a worker; None if there are none, so that nothing is asked of the broker.

    What `SAQKIT_SUBSCRIBERS` names, `MODULE:FUNCTION`, is called with the bus and subscribes whom it likes. Jobs of
    high and critical priority that die are told as `system:error_occurred`, where that is a topic of the topology.
    """
    bus, more = bus_of(topology, queues), environ.get(VARIABLE)
    ours = list(subscribers_of(topology))
    if not ours and not more:
        return None
    for subscriber, topics in ours:
        spec = topology.job_types[subscriber.job_type]
        bus.subscribe(topics, name=subscriber.job_type.replace("-", "_"), priority=int(spec.priority),
                      timeout_s=spec.timeout_s, retry=spec.retry)(_handler(subscriber))  # fmt: skip
    if more:
        _named(more)(bus)
    if EventTopic.SYSTEM_ERROR_OCCURRED in topology.topics:
        for name, queue in queues.items():
            urgent = [job for job, spec in topology.job_types.items()
                      if spec.queue == name and spec.priority <= Priority.HIGH]  # fmt: skip
            if urgent:
                bus.watch(queue, *urgent)
    return bus


def _handler(subscriber: Subscriber) -> Handler:
    async def handle(ctx: dict[str, Any], event: Event) -> None:
        await subscriber.handle(ctx["application"], event)

    return handle


def _named(place: str) -> Callable[[Bus], object]:
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DescriptionError(f'"{place}" cannot be found: {error}', key=VARIABLE, value=place,
                               hint="MODULE:FUNCTION, such as school.events:subscribe") from error  # fmt: skip
    if not callable(found):
        raise DescriptionError(f'"{place}" is no function', key=VARIABLE, value=place,
                               hint="it is called with the bus")  # fmt: skip
    return found  # type: ignore[no-any-return]  # what it is, its author knows
