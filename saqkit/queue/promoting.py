"""Delayed jobs that come due in a crowd join their lines also while no slot is free to ask for more."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from saqkit.errors import BrokerError
from saqkit.queue.one_task import OneTask
from saqkit.queue.scripts_of_queue import AWAY

if TYPE_CHECKING:
    from saqkit.queue.queue import Queue

logger = logging.getLogger("saqkit")

PAUSE_S = 0.005
"""Between two calls, so that others are served meanwhile: a fifth of the server's time, about 20,000 jobs a second."""


class Promoter(OneTask):
    """Promotes what is due, a call's worth at a time, until nothing is.

    Each `take` promotes so many that its slots have jobs. Without this a due job of a high level could stand behind a
    crowd of others that came due before it, for as long as the slots are busy with those.
    """

    def __init__(self, queue: Queue) -> None:
        super().__init__("saqkit-promote")
        self._queue = queue

    async def _run(self) -> None:
        try:
            while await self._queue.run_script("promote", self._queue.tick_s):
                await asyncio.sleep(PAUSE_S)
        except (*AWAY, BrokerError) as error:  # the next `take` promotes, or says so
            logger.debug("queue %s: promoting: %s", self._queue.name, error)
