"""What a bus keeps in its queue's broker: names of keys, and the scripts that write several of them in one step.

| key                   | holds                                                                                     |
|-----------------------|-------------------------------------------------------------------------------------------|
| `bus:subscriptions`   | hash by subscriber: its subscription, JSON; empty: it was unsubscribed                     |
| `bus:history`         | stream: past events, field `event`                                                         |
| `bus:known:T\\|ID`     | mark: the event is in the history                                                          |
| `bus:handled:KEY`     | mark: the handler of the delivery of this key has ended well                               |
| `bus:counts`          | hash: `SUBSCRIBER\\|TOPIC\\|TENANT` deliveries handled; with no subscriber events recorded   |
| `bus:deaths:QUEUE`    | until when the dead letters of a queue have been told                                      |
| `bus:live`            | channel of the live views                                                                  |

All stand behind the queue's own prefix, in its slot of a cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from saqkit.bus.envelope import Event
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import refusals

logger = logging.getLogger("saqkit")


class Kept:
    """The keys and scripts of the bus of a queue."""

    def __init__(self, queue: Queue, remember_s: float, history_events: int, history_s: float) -> None:
        self._queue, self._remember_s = queue, max(1, round(remember_s))
        self._most, self._oldest_s = history_events, round(history_s)
        self._scripts = {name: queue.redis.register_script(_source(name)) for name in ("record", "handled", "reassert")}
        self._unseen = b""
        self.subscriptions_key, self.history_key, self.counts_key, self.channel = (
            queue.namespace(f"bus:{name}") for name in ("subscriptions", "history", "counts", "live")
        )

    def mark(self, kind: str, of: str) -> str:
        """The key of something that is kept of one event, delivery or queue."""
        return self._queue.namespace(f"bus:{kind}:{of}")

    async def record(self, event: Event, ours: Iterable[str]) -> dict[str, bytes]:
        """Put an event into the history and before the live views, once; what is written down of subscribers now.

        `ours`: name, subscription, … that are to be written down where nothing is written of them.
        """
        keys = [self.history_key, self.mark("known", f"{event.tenant}|{event.id}"), self.counts_key,
                self.subscriptions_key]  # fmt: skip
        args = [event.to_json(), self.channel, self._remember_s, self._most, self._oldest_s,
                f"|{event.type}|{event.tenant}", *ours]  # fmt: skip
        unseen, stored = await self._run("record", keys, args)
        if unseen and unseen != self._unseen:
            logger.warning("bus of queue %s: live views cannot be told (%s)", self._queue.name, unseen.decode())
        self._unseen = unseen
        return _by_name(stored)

    async def reassert(self, ours: Iterable[str]) -> dict[str, bytes]:
        """The same of the subscribers alone."""
        return _by_name(await self._run("reassert", [self.subscriptions_key], list(ours)))

    async def handled(self, delivery: str, subscriber: str, event: Event) -> None:
        """Count a delivery whose handler has ended well."""
        field = f"{subscriber}|{event.type}|{event.tenant}"
        keys = [self.mark("handled", delivery), self.counts_key, self.subscriptions_key]
        await self._run("handled", keys, [self._remember_s, field, subscriber])

    async def is_over(self, delivery: str, subscriber: str) -> bool:
        """Whether that was said before, or the subscriber has left."""
        answers = await self._queue.line.run(
            ("EXISTS", self.mark("handled", delivery)), ("HGET", self.subscriptions_key, subscriber)
        )
        for answer in answers:
            if isinstance(answer, Exception):
                with refusals():
                    raise answer
        return bool(answers[0]) or answers[1] == b""

    async def forget_counts(self, subscriber: str) -> None:
        """Count the deliveries of a subscriber from 0 again."""
        fields = [field async for field, _ in self._queue.redis.hscan_iter(self.counts_key, f"{subscriber}|*", 1000)]
        for n in range(0, len(fields), 1000):
            await self._queue.redis.hdel(self.counts_key, *fields[n : n + 1000])  # type: ignore[misc]  # both clients

    async def stored_subscriptions(self) -> dict[str, bytes]:
        """What is written down of subscribers, by name."""
        found: Any = await self._queue.redis.hgetall(self.subscriptions_key)  # type: ignore[misc]  # both clients
        return {name.decode(): stored for name, stored in found.items()}

    async def _run(self, name: str, keys: list[str], args: list[Any]) -> Any:
        with refusals():
            return await self._scripts[name](keys=keys, args=args)


def _by_name(stored: list[bytes]) -> dict[str, bytes]:
    return {name.decode(): text for name, text in zip(stored[::2], stored[1::2], strict=True)}


@cache
def _source(name: str) -> str:
    return (Path(__file__).parent / "scripts" / f"{name}.lua").read_text(encoding="utf-8")
