"""A provider's rate over all processes of all hosts: each send reserves its turn on the broker, and waits for it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError

from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY, Backoff, refusals
from saqkit.spec.topology import SendRate
from saqkit.spec.turns import MOST_AT_ONCE, Slack

__all__ = ["Turns"]


@cache
def _script() -> tuple[str, str]:
    """The text of the script, and the digest by which a server knows it."""
    text = Path(__file__).with_name("turns.lua").read_text(encoding="utf-8")
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Turn(NamedTuple):
    """Turn `number` comes `wait_s` after the server's answer to a call that was sent and received at these times."""

    number: int
    wait_s: float
    sent_at: float
    received_at: float
    slack_s: float


class Turns:
    """The turns of one process at one provider; the window lies beside the keys of `queue`, for everybody.

    Sends that wait while a call is under way share the next one, which also gives back the turns that nobody took.
    Nothing is reserved ahead of a send. `clock`: monotonic seconds.
    """

    def __init__(
        self, rate: SendRate, queue: Queue, provider: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._queue, self._clock = rate, queue, clock
        self._keys = [queue.namespace(f"provider:{provider}:{what}") for what in ("turns", "number")]
        self._slack = Slack(rate.period_s)
        self._waiting: list[asyncio.Future[Turn]] = []
        self._unused: list[int] = []
        self._asking: asyncio.Task[None] | None = None
        self._backoff = Backoff(f"rate of provider {provider}")

    async def wait(self) -> int:
        """Return when one send may begin, which it must without awaiting anything else, or be `unused`.

        What is returned is the number of its turn. Turns come in the order of asking, over all processes. While the
        broker is away nobody has any.
        """
        while True:
            asked: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
            self._waiting.append(asked)
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask(), name="saqkit-turns")
            number, wait_s, sent_at, received_at, slack_s = await asked
            # The server's clock stood between the two when it answered: counted from the later one no send begins
            # before its turn, and from the earlier one none later after it than its slack.
            if (left_s := received_at + wait_s - self._clock()) > 0:
                try:
                    await asyncio.sleep(left_s)
                except asyncio.CancelledError:
                    self.unused(number)
                    raise
            if (late_s := self._clock() - sent_at - wait_s) <= slack_s:
                self._slack.kept()
                return number
            self._slack.missed(late_s)
            self.unused(number)

    def unused(self, number: int) -> None:
        """No send begins at this turn: it is given back with the next call."""
        self._unused.append(number)

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> None:
        asking: list[asyncio.Future[Turn]] = []
        try:
            while self._waiting:
                asking = [one for one in self._waiting if not one.done()][:MOST_AT_ONCE]
                self._waiting = [one for one in self._waiting if not one.done()][MOST_AT_ONCE:]
                if not asking:
                    return
                slack_s, sent_at = self._slack.seconds, self._clock()
                before, *waits = await self._reserve(len(asking), slack_s)
                received_at = self._clock()
                for number, (one, wait_s) in enumerate(zip(asking, waits, strict=True), start=int(before) + 1):
                    if one.done():
                        self.unused(number)
                    else:
                        one.set_result(Turn(number, float(wait_s), sent_at, received_at, slack_s))
        except BaseException as error:
            for one in [*asking, *self._waiting]:
                if isinstance(error, asyncio.CancelledError):
                    one.cancel()
                elif not one.done():
                    one.set_exception(error)
            self._waiting.clear()
            if not isinstance(error, Exception):
                raise
        finally:
            self._asking = None

    async def _reserve(self, many: int, slack_s: float) -> list[Any]:
        text, digest = _script()
        unused, self._unused = self._unused, []
        rest = (len(self._keys), *self._keys, self._rate.limit, self._rate.period_s, slack_s, many, *unused)
        while True:
            try:
                with refusals():
                    try:
                        said = await self._queue.line.call("EVALSHA", digest, *rest)
                    except NoScriptError:
                        said = await self._queue.line.call("EVAL", text, *rest)
            except AWAY as error:
                await self._backoff.wait(error)
                continue
            self._backoff.over()
            return list(said)
