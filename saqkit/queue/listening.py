"""Hearing of changes of jobs, over one connection whatever the number of listeners."""

from __future__ import annotations

from typing import Any

from saq.queue.redis import PubSubMultiplexer

from saqkit.queue import fault_sites
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
                    if fault_sites.armed:
                        fault_sites.armed.at("listen.heard")
                    channel = message["channel"].decode()
                    self.publish(channel, {**message, "channel": channel})
            except AWAY as error:
                self._heard = False
                await self._backoff.wait(error)
            except Exception as error:  # such as no right to listen: nobody must wait for what will never be heard
                for queue in list(self._queues):
                    queue.put_nowait({"type": "failed", "error": error})
                return

    async def listen(self, *channels: str, timeout: float | None = None) -> Any:
        async for message in super().listen(*channels, timeout=timeout):
            if message["type"] == "failed":
                raise message["error"]
            yield message

    async def _close(self) -> None:
        self._heard = False
        await self.pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py has no types here
