"""An event of its own for what has failed for good: deliveries that became dead letters, and jobs of chosen types.

The dead letters themselves are read, so that none is missed, whatever it died of: its process may be the one that is
gone. Every process of the bus looks; each death has one id, so that it is told once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING, Any

from saqkit.bus.envelope import Event
from saqkit.bus.handling import AFTER_ERROR
from saqkit.bus.kept import Kept
from saqkit.bus.topics import EventTopic
from saqkit.errors import DescriptionError, UsageError
from saqkit.queue.cancelling import heed_cancellation
from saqkit.queue.dead_letters import dead_letters
from saqkit.queue.letter import DeadLetter, Filter
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY

if TYPE_CHECKING:
    from saqkit.bus.bus import Bus

logger = logging.getLogger("saqkit")

LOOK_EVERY_S = 2.0
MOST_AT_ONCE = 100
"""So many deaths are told per look at most: a storm of them is told bit by bit."""
_MAY_LACK = ("institution", "user", "correlation_id", "causation_id")
"""What an error event can do without, where a job's own is none for an envelope."""


class Deaths:
    """Tells of the dead letters of a bus, and of other queues' that are watched."""

    def __init__(self, bus: Bus, kept: Kept) -> None:
        self._bus, self._kept = bus, kept
        self._watched: dict[str, tuple[Queue, set[str]]] = {bus.queue.name: (bus.queue, set())}
        self._told: dict[str, set[str]] = {}

    def watch(self, queue: Queue, job_types: tuple[str, ...]) -> None:
        """Tell of the deaths of these job types of a queue too."""
        self._watched.setdefault(queue.name, (queue, set()))[1].update(job_types)

    async def run(self) -> None:
        """Look for ever; while the broker is away, wait."""
        away = False
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            heed_cancellation()
            try:
                await self._bus.register()  # also again, where the broker has forgotten
                await self.look()
                away = False
            except AWAY as error:
                if not away:
                    logger.warning("bus of queue %s: broker away (%s)", self._bus.queue.name, error)
                away = True
            except Exception:
                logger.exception("bus of queue %s: cannot tell of what has died", self._bus.queue.name)

    async def look(self) -> int:
        """Publish an event for each death since the last look, by whatever process; returns how many are new."""
        told, errors = 0, list[Exception]()
        for queue, job_types in self._watched.values():
            try:
                told += await self._look_into(queue, job_types)
            except Exception as error:  # another queue may be on a broker that is there
                errors.append(error)
        if errors:
            raise errors[0]
        return told

    async def _look_into(self, queue: Queue, job_types: set[str]) -> int:
        cursor = self._kept.mark("deaths", queue.name)
        stored = await self._bus.queue.redis.get(cursor)
        if stored is None:  # what died before there was a bus is not told
            seconds, micros = await queue.redis.time()
            await self._bus.queue.redis.set(cursor, f"{seconds}.{micros:06d}", nx=True)
            return 0
        return await self._look_at(queue, job_types, cursor, float(stored))

    async def _look_at(self, queue: Queue, job_types: set[str], cursor: str, since: float) -> int:
        """Letters that died at the very moment of the cursor may be met again; they are known by their keys."""
        seen = self._told.setdefault(queue.name, set())
        new, last, here = 0, since, set(seen)
        async for letter in dead_letters(queue, MOST_AT_ONCE + len(seen), where=Filter(since=since)):
            if letter.died_at != last:
                last, here = letter.died_at, set()
            here.add(letter.key)
            if letter.key not in seen or letter.died_at != since:
                try:
                    new += await self._tell(letter, job_types)
                except AWAY:
                    raise
                except (DescriptionError, UsageError, AttributeError, TypeError, ValueError) as error:
                    # A tenant with blanks, a body too long, a `meta` that is none: those behind it are to be told.
                    logger.warning("dead letter %s of queue %s is not told (%s)", letter.key, letter.queue, error)
        self._told[queue.name] = here
        if last != since:
            await self._bus.queue.redis.set(cursor, f"{last:.6f}")
        return new

    async def _tell(self, letter: DeadLetter, job_types: set[str]) -> bool:
        ours = letter.queue == self._bus.queue.name and letter.function.split(":", 1)[0] == "events"
        if letter.meta.get(AFTER_ERROR) or not (ours or letter.function in job_types):
            return False
        death = hashlib.sha256(f"{letter.queue}|{letter.key}|{letter.died_at:.6f}".encode()).hexdigest()[:32]
        data: dict[str, Any] = {
            "queue": letter.queue, "job_type": letter.function, "job": letter.key, "attempts": letter.attempts,
            "crashes": letter.crashes, "error": _printable(letter.reason)[:500],
            "topic": str(letter.meta.get("topic", "")), "subscriber": str(letter.meta.get("subscriber", "")),
        }  # fmt: skip
        envelope = letter.kwargs.get("envelope")
        told = envelope if ours and isinstance(envelope, dict) else {}  # it may be hidden, or none of ours
        whose = {name: told[name] for name in ("institution", "user") if name in told}
        event = _fitting({
            **whose, "type": EventTopic.SYSTEM_ERROR_OCCURRED, "data": data, "id": f"dead:{death}",
            "tenant": letter.tenant, "correlation_id": str(letter.meta.get("correlation_id", "")),
            "causation_id": str(letter.meta.get("event_id", "")),
        })  # fmt: skip
        return (await self._bus.publish(event, priority="high")).new


def _fitting(said: dict[str, Any]) -> Event:
    """The event of an envelope, without those fields that cannot be and need not."""
    try:
        return Event.parse(said)
    except DescriptionError as error:
        if error.key not in _MAY_LACK or error.key not in said:
            raise
        return _fitting({name: value for name, value in said.items() if name != error.key})


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
