"""Live views: events as they happen, for whoever listens at that moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from redis import asyncio as aioredis

from saqkit.bus.envelope import Event
from saqkit.bus.subscriptions import Filter
from saqkit.queue.scripts_of_queue import AWAY, Backoff


class Live:
    """Listens to the events that a filter means, over a connection of its own.

    While the broker is away it waits; what happens then it does not see. A view that reads more slowly than events
    come is disconnected by the server when its buffer is full, and misses some too.
    """

    def __init__(self, redis: aioredis.Redis, channel: str, where: Filter) -> None:
        self._redis, self._channel, self._where = redis, channel, where
        self._pubsub: Any = None

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def __aiter__(self) -> AsyncIterator[Event]:
        backoff = Backoff(f"live view of {self._channel}")
        try:
            while True:
                try:
                    await self._listen()
                    message = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=5.0)
                    backoff.over()
                except AWAY as error:
                    await self._close()
                    await backoff.wait(error)
                    continue
                if message is not None:
                    event = Event.from_json(message["data"])
                    if self._where.admits(event):
                        yield event
        finally:
            await self._close()

    async def _listen(self) -> None:
        """Subscribe, and wait until the server has said so."""
        if self._pubsub is None:
            self._pubsub = self._redis.pubsub()
            try:
                await self._pubsub.subscribe(self._channel)
                await self._pubsub.get_message(timeout=5.0)
            except BaseException:  # also where who waits is cancelled: nobody else would close it
                await self._close()
                raise

    async def _close(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            await pubsub.aclose()
