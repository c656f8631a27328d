"""`saqkit.settings`: what `saq saqkit.settings` runs."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from saqkit import broker
from saqkit.app.event_bus import event_queue
from saqkit.app.handlers import Application, after_process, handlers
from saqkit.app.location import database_url, replica_url
from saqkit.app.mail import build_providers
from saqkit.app.store import Store
from saqkit.app.subscribers.subscribing import subscribed
from saqkit.errors import DescriptionError
from saqkit.log_lines import chosen_style, dress
from saqkit.queue.building import build_queues
from saqkit.spec.base import did_you_mean
from saqkit.spec.topology import load
from saqkit.topology_environment import with_environment
from saqkit.worker.connections import check_room
from saqkit.worker.loop_lag import LoopLag

logger = logging.getLogger("saqkit")


def settings() -> dict[str, Any]:
    """Settings of a SAQ worker for one queue, made anew at each call.

    From the environment: `SAQKIT_TOPOLOGY` (a shipped name or a file; default school-events), `SAQKIT_QUEUE` (default:
    where arriving users go first), `REDIS_URL` or `REDIS_HOST` (default: the embedded broker, started if need be),
    `SAQKIT_DATABASE_URL` (default: SQLite in the state folder), `SAQKIT_REPLICA_URL`,
    `SAQKIT_SMTP_URL`, `SAQKIT_SUBSCRIBERS`, `SAQKIT_LOG`, and what `with_environment` reads.
    """
    chosen_style()  # a wrong one is told before any process starts
    topology = with_environment(load(os.environ.get("SAQKIT_TOPOLOGY", "school-events")))
    name = os.environ.get("SAQKIT_QUEUE", topology.entry_queue)
    if name not in topology.queues:
        raise DescriptionError(f'topology {topology.name} has no queue "{name}"', source="SAQKIT_QUEUE", value=name,
                               hint=did_you_mean(name, topology.queues))  # fmt: skip
    url = broker.resolve()
    queues = build_queues(topology, url)
    bus = subscribed(topology, queues) if name == event_queue(topology) else None
    metadata: dict[str, Any] = {}

    async def startup(ctx: dict[str, Any]) -> None:
        dress()
        if warning := await asyncio.to_thread(check_room, url, 1):
            logger.warning(warning)
        store = await Store.open(database_url(), replica_url=replica_url())
        application = Application(topology, store, queues, build_providers(topology, 0))
        ctx["application"] = application
        lag = LoopLag(lambda: [job.function for job in list(ctx["worker"].job_task_contexts)], metadata)
        ctx["tasks"] = [
            asyncio.create_task(application.relay.run(), name="relay"),
            asyncio.create_task(lag.run(), name="lag"),
        ]
        application.timetable.start()
        if bus is not None:
            await bus.start()

    async def shutdown(ctx: dict[str, Any]) -> None:
        if "application" in ctx:
            for task in ctx["tasks"]:
                task.cancel()
            await asyncio.wait(ctx["tasks"])
            await ctx["application"].timetable.stop()
            if bus is not None:
                await bus.stop()
            await ctx["application"].close()
        for other, queue in queues.items():
            if other != name:
                await queue.disconnect()

    return {
        "queue": queues[name],
        "functions": [*handlers(topology, name), *(bus.functions() if bus else ())],
        "concurrency": topology.queues[name].concurrency,
        "startup": startup,
        "shutdown": shutdown,
        "after_process": after_process,
        "metadata": metadata,
    }
