"""What a bus keeps in its queue's broker: names of keys, and the scripts that write several of them in one step.

| key                   | holds                                                                                     |
|-----------------------|-------------------------------------------------------------------------------------------|
| `bus:subscriptions`   | hash by subscriber: its subscription, JSON                                                 |
| `bus:history`         | stream: past events, field `event`                                                         |
| `bus:known:T\\|ID`     | mark: the event is in the history                                                          |
| `bus:handled:KEY`     | mark: the handler of the delivery of this key has ended well                               |
| `bus:counts`          | hash: `SUBSCRIBER\\|TOPIC\\|TENANT` deliveries handled; with no subscriber events recorded   |
| `bus:deaths:QUEUE`    | until when the dead letters of a queue have been told                                      |
| `bus:live`            | channel of the live views                                                                  |

All stand behind the queue's own prefix, in its slot of a cluster.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from saqkit.bus.envelope import Event
from saqkit.bus.subscriptions import Subscription, read
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import refusals


class Kept:
    """The keys and scripts of the bus of a queue."""

    def __init__(self, queue: Queue, remember_s: float, history_events: int, history_s: float) -> None:
        self._queue, self._remember_s = queue, max(1, round(remember_s))
        self._most, self._oldest_s = history_events, round(history_s)
        self._scripts = {name: queue.redis.register_script(_source(name)) for name in ("record", "handled")}
        self.subscriptions_key, self.history_key, self.counts_key, self.channel = (
            queue.namespace(f"bus:{name}") for name in ("subscriptions", "history", "counts", "live")
        )

    def mark(self, kind: str, of: str) -> str:
        """The key of something that is kept of one event, delivery or queue."""
        return self._queue.namespace(f"bus:{kind}:{of}")

    async def record(self, event: Event) -> list[Subscription]:
        """Put an event into the history and before the live views, once; who is subscribed to anything now."""
        keys = [self.history_key, self.mark("known", f"{event.tenant}|{event.id}"), self.counts_key,
                self.subscriptions_key]  # fmt: skip
        args = [event.to_json(), self.channel, self._remember_s, self._most, self._oldest_s,
                f"|{event.type}|{event.tenant}"]  # fmt: skip
        return [read(stored) for stored in await self._run("record", keys, args)]

    async def handled(self, delivery: str, subscriber: str, event: Event) -> None:
        """Count a delivery whose handler has ended well."""
        field = f"{subscriber}|{event.type}|{event.tenant}"
        await self._run("handled", [self.mark("handled", delivery), self.counts_key], [self._remember_s, field])

    async def was_handled(self, delivery: str) -> bool:
        """Whether that was said before."""
        return bool(await self._queue.redis.exists(self.mark("handled", delivery)))

    async def subscriptions(self) -> dict[str, Subscription]:
        """All subscriptions by name."""
        found: Any = await self._queue.redis.hgetall(self.subscriptions_key)  # type: ignore[misc]  # both clients
        return {name.decode(): read(stored) for name, stored in found.items()}

    async def _run(self, name: str, keys: list[str], args: list[Any]) -> Any:
        with refusals():
            return await self._scripts[name](keys=keys, args=args)


@cache
def _source(name: str) -> str:
    return (Path(__file__).parent / "scripts" / f"{name}.lua").read_text(encoding="utf-8")
