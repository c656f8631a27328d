"""What becomes of deliveries, by topic and subscriber."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saqkit.bus.kept import Kept
from saqkit.bus.subscriptions import Subscription
from saqkit.queue.dead_letters import dead_letters
from saqkit.queue.letter import Filter
from saqkit.queue.live_jobs import ALL, Which, live_jobs
from saqkit.queue.queue import Queue

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "topic": "str",
    "subscriber": "str",
    "waiting": "int64",
    "delayed": "int64",
    "active": "int64",
    "completed": "int64",
    "failed": "int64",
}
"""`waiting`, `delayed` (for another attempt) and `active` deliveries; `completed`: those whose handler has ended well,
since the bus exists or the subscriber was unsubscribed, each counted once; `failed`: dead letters of now. A row without
a subscriber is of the events themselves: not routed yet, being routed, `completed`: recorded."""


async def counted(
    queue: Queue, kept: Kept, subscriptions: Mapping[str, Subscription], tenant: str | None
) -> pd.DataFrame:
    """A row for each topic and subscriber, also where there is nothing yet; see `COLUMNS`."""
    from saqkit.queue.tables import typed_frame

    found: dict[tuple[str, str], Counter[str]] = {}
    for name, subscription in subscriptions.items():
        found |= {(topic, name): Counter() for topic in subscription.topics}
    stored: Any = await queue.redis.hgetall(kept.counts_key)  # type: ignore[misc]  # typed for both clients
    for field, number in stored.items():
        subscriber, topic, of = field.decode().split("|")
        if tenant in (None, of):
            found.setdefault((topic, subscriber), Counter())["completed"] += int(number)
    async for job in live_jobs(queue, ALL if tenant is None else Which(tenant=tenant)):
        _count(found, job.function, job.meta, job.state)
    async for letter in dead_letters(queue, None, where=Filter(tenant=tenant)):
        _count(found, letter.function, letter.meta, "failed")
    rows = [{"topic": topic, "subscriber": name} | {column: counts[column] for column in list(COLUMNS)[2:]}
            for (topic, name), counts in sorted(found.items())]  # fmt: skip
    return typed_frame(rows, COLUMNS)


def _count(found: dict[tuple[str, str], Counter[str]], function: str, meta: dict[str, Any], column: str) -> None:
    if function.split(":", 1)[0] == "events":
        place = str(meta.get("topic", "")), str(meta.get("subscriber", ""))
        found.setdefault(place, Counter())[column] += 1
