"""Hearing of changes of jobs, over one connection whatever the number of listeners."""

from __future__ import annotations

from typing import Any

from saq.queue.redis import PubSubMultiplexer

from saqkit.queue.scripts_of_queue import AWAY, Backoff

CAUGHT_UP = {"type": "caught-up"}
"""From here on nothing is missed; what happened before (or while the broker was away) has to be looked up."""


class Listener(PubSubMultiplexer):
    """SAQ's multiplexer, made to wait while the broker is away (SAQ's tries again without a pause)."""

    def __init__(self, pubsub: Any, prefix: str) -> None:
        super().__init__(pubsub, prefix)
        self._backoff = Backoff(f"listening to {prefix}")
        self._heard = False

    async def subscribe(self, *channels: str) -> Any:
        queue = await super().subscribe(*channels)
        if self._heard:
            queue.put_nowait(CAUGHT_UP)
        return queue

    async def _start(self) -> None:
        asked = False
        while True:
            try:
                if not asked:
                    await self.pubsub.psubscribe(f"{self.prefix}*")
                    asked = True
                message: Any = await self.pubsub.get_message(timeout=5.0)
                self._backoff.over()
                if message and message["type"] == "psubscribe":
                    self._heard = True
                    for queue in list(self._queues):
                        queue.put_nowait(CAUGHT_UP)
                elif message and message["type"] == "pmessage":
                    channel = message["channel"].decode()
                    self.publish(channel, {**message, "channel": channel})
            except AWAY as error:
                self._heard = False
                await self._backoff.wait(error)

    async def _close(self) -> None:
        self._heard = False
        await self.pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py has no types here
