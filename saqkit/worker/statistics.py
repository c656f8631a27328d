"""The statistics block of `saqkit worker`: what waits, runs and has ended in each queue, and how the workers are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import RedisError

from saqkit.app.store import Store
from saqkit.errors import StoreError
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY

logger = logging.getLogger("saqkit")

PATIENCE_S = 5.0
"""How long a broker or database may take to answer before the block is left out."""


async def statistics(
    queues: Mapping[str, Queue], store: Store, topics: Iterable[str], *, alive: int, restarted: int
) -> dict[str, Any]:
    """The counts of now.

    `at`: Unix seconds. `queues`: by name `waiting`, `active`, `delayed` (now), `completed` and `failed` (since the
    queue exists; failed jobs became dead letters). `dead_letters`: by queue, those there are now. `events`: by topic of
    the topology `announced`, and `waiting` of them for the broker to take. `workers`: processes `alive` here and
    `restarted` here, `serving` (of all launchers and hosts), and the longest `loop_lag_s` of those in the last 20 s.
    """
    found: dict[str, dict[str, int]] = {}
    dead: dict[str, int] = {}
    workers: dict[str, dict[str, Any]] = {}
    for name, queue in queues.items():
        counted: Any = await queue.redis.hgetall(queue.namespace("counts"))  # type: ignore[misc]  # either client
        info = await queue.info()
        found[name] = {
            "waiting": info["queued"],
            "active": info["active"],
            "delayed": info["scheduled"],
            "completed": int(counted.get(b"complete", 0)),
            "failed": int(counted.get(b"failed", 0)),
        }
        dead[name] = await queue.count("dead")
        workers |= {one: said.get("metadata") or {} for one, said in info["workers"].items()}
    events = {topic: {"announced": 0, "waiting": 0} for topic in topics}
    for target, (announced, late) in (await store.topics()).items():
        if (topic := target.partition("@")[0]) in events:  # the rest is the priority that an entry gave it
            events[topic]["announced"] += announced
            events[topic]["waiting"] += late
    return {
        "at": round(time.time(), 3),
        "queues": found,
        "dead_letters": dead,
        "events": events,
        "workers": {
            "alive": alive,
            "restarted": restarted,
            "serving": len(workers),
            "loop_lag_s": max((float(said.get("loop_lag_s", 0.0)) for said in workers.values()), default=0.0),
        },
    }


def block(counts: Mapping[str, Any]) -> str:
    """The counts as lines of text."""
    at = datetime.fromtimestamp(counts["at"], UTC).isoformat(" ", "seconds")[:19]
    lines = [f"statistics {at} UTC"]
    for name, of in counts["queues"].items():
        lines.append(f"  {name}: " + ", ".join(f"{kind} {number}" for kind, number in of.items()))
    lines.append("  dead letters: " + ", ".join(f"{name} {number}" for name, number in counts["dead_letters"].items()))
    for topic, of in counts["events"].items():
        lines.append(f"  events {topic}: announced {of['announced']}, waiting {of['waiting']}")
    of = counts["workers"]
    lines.append(f"  workers: alive {of['alive']}, restarted {of['restarted']}, serving {of['serving']}, "
                 f"loop lag {of['loop_lag_s']:.3f} s")  # fmt: skip
    return "\n".join(lines)


async def report_every(
    seconds: float, read: Callable[[], Awaitable[dict[str, Any]]], tell: Callable[[dict[str, Any]], None]
) -> None:
    """Tell the counts every so many seconds, for ever; while broker or database are away, say so instead, once."""
    away = False
    while True:
        await asyncio.sleep(seconds)
        try:
            async with asyncio.timeout(PATIENCE_S):
                counts = await read()
        except (*AWAY, RedisError, StoreError, TimeoutError) as error:
            if not away:
                logger.warning("no statistics for now: %s", " ".join(str(error).split()) or "no answer")
            away = True
            continue
        away = False
        with suppress(BrokenPipeError):
            tell(counts)
