"""What the slots of a process say of their jobs, gathered into few round trips, and repeated until it is heard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import DataError

from saqkit.queue.line import Line
from saqkit.queue.one_task import OneTask
from saqkit.queue.scripts_of_queue import AWAY, Backoff, call_all

logger = logging.getLogger("saqkit")

TOKEN = {"finish": 1, "retry": 1, "bury": 1, "release": 1, "cancel": 3}
"""Where among the words of a job each of these scripts is told the claim's token."""

Said = asyncio.Future[int]
Asked = tuple[str, Sequence[Any], asyncio.Future[Any]]


class Flusher(OneTask):
    """Gathers what the slots of a process want to say in one turn of the loop, and says it in one round trip.

    While one round trip is under way the next gathers. One whose reply is lost is sent again: every transition compares
    the claim's token, so the second time changes nothing and reports success. The token then bears a mark (`holds` in
    scripts/keys.lua): of a job that is kept for no time nothing else tells a second time from a late one.
    """

    def __init__(self, line: Line, keys: Sequence[str]) -> None:
        super().__init__("saqkit-flush")
        self._line, self._keys = line, keys
        self._waiting: dict[tuple[str, tuple[Any, ...]], list[tuple[tuple[Any, ...], Said]]] = {}
        self._asked: Asked | None = None
        self.more: Callable[[], Asked | None] = lambda: None
        """What to ask with what is about to be said, if nothing is asked yet."""
        self._backoff = Backoff("saqkit queue")

    def say(self, name: str, head: tuple[Any, ...], job: tuple[Any, ...]) -> Said:
        """Queue one job's transition; the future gets what the script said of it."""
        future: Said = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((name, head), []).append((job, future))
        self.begin()
        return future

    def ask(self, name: str, args: Sequence[Any], answer: asyncio.Future[Any]) -> None:
        """Run a script after what is said in the same turn of the loop; one question at a time.

        Unlike what is said, a question is not repeated: its future gets the error of a broker that is away.
        """
        self._asked = (name, args, answer)
        self.begin()

    async def stop(self) -> None:
        """Give up what could not be said."""
        await super().stop()
        for jobs in self._waiting.values():
            for _, future in jobs:
                future.cancel()
        self._waiting = {}
        if self._asked is not None:
            self._asked[2].cancel()
            self._asked = None

    async def _run(self) -> None:
        while self._waiting or self._asked:
            await asyncio.sleep(0)  # what ends in this turn of the loop is said together
            groups, self._waiting = self._waiting, {}
            asked, self._asked = self._asked or self.more(), None
            try:
                await self._send(groups, asked)
            except asyncio.CancelledError:
                for jobs in groups.values():
                    for _, future in jobs:
                        future.cancel()
                if asked:
                    asked[2].cancel()
                raise

    async def _send(
        self,
        groups: dict[tuple[str, tuple[Any, ...]], list[tuple[tuple[Any, ...], Said]]],
        asked: Asked | None,
    ) -> None:
        calls = _calls(groups)
        while True:
            if asked:
                calls.append(asked[:2])
            try:
                said = await call_all(self._line, self._keys, calls)
                break
            except AWAY as error:
                if asked:
                    calls.pop()
                    _settle(asked[2], error)
                    asked = None
                if not calls:
                    return
                await self._backoff.wait(error)
                calls = _calls(groups, again=b"?")
            except (DataError, UnicodeError) as error:  # something cannot be written: what it is fails alone
                if len(calls) == 1 and sum(map(len, groups.values())) <= 1:
                    said = [error]
                    break
                for what, jobs in groups.items():
                    for one in jobs:
                        await self._send({what: [one]}, None)
                if asked:
                    await self._send({}, asked)
                return
        self._backoff.over()
        if asked:
            _settle(asked[2], said.pop())
        for ((name, _), jobs), answers in zip(groups.items(), said, strict=True):
            if isinstance(answers, Exception):
                logger.error("queue: %s of %d jobs failed (%s), their leases will expire", name, len(jobs), answers)
                answers = [answers] * len(jobs)
            for (_, future), answer in zip(jobs, answers, strict=True):
                _settle(future, answer)


def _calls(
    groups: dict[tuple[str, tuple[Any, ...]], list[tuple[tuple[Any, ...], Said]]], again: bytes = b""
) -> list[tuple[str, Sequence[Any]]]:
    calls: list[tuple[str, Sequence[Any]]] = []
    for (name, head), jobs in groups.items():
        args = list(head)
        for job, _ in jobs:
            at = TOKEN.get(name, 0)
            args += (*job[:at], job[at] + again, *job[at + 1 :]) if at and again else job
        calls.append((name, args))
    return calls


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
