"""The queues of a topology."""

from __future__ import annotations

from typing import Any

from redis import asyncio as aioredis

from saqkit.queue.queue import Queue
from saqkit.spec.topology import Taking, Topology


class SharedPool(aioredis.ConnectionPool):
    """Connections that several queues to one server share: each disconnects, and the last one closes them.

    Scripts of all queues go over the same few connections; only a blocking wait keeps one to itself.
    """

    def __init__(self, connection_class: type, users: int, **settings: Any) -> None:
        super().__init__(connection_class, **settings)
        self._users = users

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Count one queue less; with the last one, close every connection."""
        self._users -= 1
        if self._users <= 0:
            await super().disconnect(inuse_connections)


def build_queues(topology: Topology, url: str, *, seed: int = 0, prefix: str = "") -> dict[str, Queue]:
    """A queue per name of the topology, all with one pool of connections to the broker at `url`.

    Every queue has to be disconnected; the connections are closed with the last one. Through sentinels or in a cluster
    a queue may live on a server of its own, so there each has its own connections. `prefix` is put before the queues'
    names in the broker, so that a run on a shared server meets nobody else's keys.
    """
    own = Queue.from_url(url).redis.connection_pool
    shared = None
    if "place" not in own.connection_kwargs:
        shared = SharedPool(own.connection_class, len(topology.queues), **own.connection_kwargs)
    queues = {}
    for name, spec in topology.queues.items():
        settings: dict[str, Any] = {
            "name": f"{prefix}{name}",
            **{field: getattr(spec, field) for field in Taking.model_fields},
            "providers": {job: j.per_user.provider for job, j in topology.job_types.items() if j.per_user.provider},
            "policies": {job: j.retry for job, j in topology.job_types.items() if j.queue == name},
            "lease_s": spec.lease_s,
            "sweep_s": spec.sweep_s,
            "tick_s": spec.tick_s,
            "dead_retention_s": spec.dead_retention_s,
            "dead_cap": spec.dead_cap,
            "seed": seed,
        }
        if shared is None:
            queues[name] = Queue.from_url(url, **settings)
        else:
            queues[name] = Queue(aioredis.Redis(connection_pool=shared), **settings)
    return queues
