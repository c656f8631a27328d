"""What every process that takes jobs does beside: recover what dead workers held, deliver what is outgoing, forget."""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import count
from typing import TYPE_CHECKING

from saqkit.queue.cancelling import heed_cancellation
from saqkit.queue.one_task import OneTask
from saqkit.queue.replaying import relay
from saqkit.queue.scripts_of_queue import AWAY

if TYPE_CHECKING:
    from saqkit.queue.queue import Queue

logger = logging.getLogger("saqkit")

FORGET_EVERY_S = 60
RELAY_EVERY = 6
"""Letters that were left on their way to another queue are looked for every so many sweeps; seldom is there one."""


class Upkeep(OneTask):
    """A task that sweeps every `sweep_s` of its queue, from the first `start` to `stop`."""

    def __init__(self, queue: Queue) -> None:
        super().__init__("saqkit-upkeep")
        self._queue = queue

    def start(self) -> None:
        """Begin, unless it runs already."""
        self._queue.timetable.start()
        self.begin()

    async def stop(self) -> None:
        """End it, and wait until it has."""
        await self._queue.timetable.stop()
        await super().stop()

    async def _run(self) -> None:
        queue, forgotten = self._queue, float("-inf")
        for sweep in count():
            try:
                await queue.sweep()
                if time.monotonic() - forgotten > FORGET_EVERY_S:
                    while await queue.run_script("forget", queue.dead_retention_s) == 1000:
                        pass
                    forgotten = time.monotonic()
                if sweep % RELAY_EVERY == RELAY_EVERY - 1:
                    await relay(queue)
            except AWAY as error:
                logger.debug("upkeep of queue %s: broker away (%s)", queue.name, error)
            except Exception:
                logger.exception("upkeep of queue %s", queue.name)
            heed_cancellation()
            await asyncio.sleep(queue.sweep_s)
