"""Who is subscribed: written down in the broker for all processes, and again where it has forgotten.

A broker that restarts empty, or fails over to a copy that lags behind, has lost what was written. So every process of
the bus says again and again whom it subscribes, where nothing is written of them. Who was unsubscribed stays in the
hash with an empty value: nobody writes over that but a process that starts.
"""

from __future__ import annotations

from saqkit.bus.kept import Kept
from saqkit.bus.subscriptions import Subscription, read
from saqkit.errors import UsageError
from saqkit.queue.queue import Queue
from saqkit.spec.base import did_you_mean


class Registry:
    """The subscriptions of this process, and those of all."""

    def __init__(self, queue: Queue, kept: Kept) -> None:
        self._queue, self._kept = queue, kept
        self._ours: dict[str, str] = {}
        self._new: set[str] = set()
        self._left: set[str] = set()

    def add(self, subscription: Subscription) -> None:
        """Subscribe from the next writing on."""
        self._ours[subscription.name] = subscription.model_dump_json()
        self._new.add(subscription.name)

    def begin(self) -> None:
        """A process starts: who was unsubscribed, and is in its program, is subscribed by the next writing."""
        self._new.update(self._ours)

    async def write(self) -> None:
        """Write down who is new here."""
        if new := {name: self._ours[name] for name in self._new}:
            await self._queue.redis.hset(self._kept.subscriptions_key, mapping=dict(new))  # type: ignore[misc]  # both
            self._new -= new.keys()
            self._left -= new.keys()

    async def reassert(self) -> None:
        """Write down who is new here, and whom the broker has forgotten."""
        await self.write()
        if self._ours:
            self.learn(await self._kept.reassert(self.pairs()))

    def pairs(self) -> list[str]:
        """What is to be written where nothing is: name, subscription, name, subscription, …"""
        return [word for name, text in self._ours.items() for word in (name, "" if name in self._left else text)]

    def learn(self, stored: dict[str, bytes]) -> dict[str, Subscription]:
        """Who is subscribed, of all that is written down; this process will not write down again who has left."""
        left = dict.fromkeys(self._left, b"")  # also where the broker has forgotten that
        self._left = {name for name in self._ours if {**left, **stored}.get(name) == b""}
        found = {name: read(text) for name, text in stored.items() if text}
        return {name: subscription for name, subscription in found.items() if subscription is not None}

    async def everybody(self) -> dict[str, Subscription]:
        """Who is subscribed, in whatever process, by name."""
        return self.learn(await self._kept.stored_subscriptions())

    async def known(self, name: str) -> Subscription:
        """The subscription of a name; `UsageError` if there is none."""
        found = await self.everybody()
        if name not in found:
            raise self._nobody(name, list(found))
        return found[name]

    async def leave(self, name: str) -> None:
        """Write down that somebody has left, also one whose subscription cannot be read; `UsageError` if unknown."""
        stored = await self._kept.stored_subscriptions()
        if name not in stored:
            raise self._nobody(name, [name for name, text in stored.items() if text])
        await self._queue.redis.hset(self._kept.subscriptions_key, name, "")  # type: ignore[misc]  # both clients
        self._new.discard(name)
        self._left |= {name} & self._ours.keys()

    def _nobody(self, name: str, known: list[str]) -> UsageError:
        return UsageError(
            f'bus of queue {self._queue.name}: there is no subscriber "{name}" ({did_you_mean(str(name), known)})'
        )
