"""The Lua scripts of the queue, and calling them so that a lost connection or reply does no harm."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)

logger = logging.getLogger("saqkit")
FOLDER = Path(__file__).parent / "scripts"
AWAY = (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, MasterDownError, OutOfMemoryError, OSError)
"""What a broker that is away, starting, failing over or full answers."""

_LONGEST_PAUSE_S = 0.5
_REFUSAL = re.compile(r"(^|-)(MISCONF|NOREPLICAS|BUSY|OOM|READONLY) ")  # within a script Redis 6 puts them behind "-"


class Refused(ConnectionError):
    """The server is there but writes nothing for now: its disk fails, a replica is missing, a script holds it up."""


@contextmanager
def refusals() -> Iterator[None]:
    """Make `Refused`, which is waited out like an outage, of the replies that redis-py knows only as an error."""
    try:
        yield
    except ResponseError as error:
        if _REFUSAL.search(str(error)):
            raise Refused(str(error)) from error
        raise


@cache
def source(name: str) -> str:
    """The text of a script, with the key schema in front."""
    return (FOLDER / "keys.lua").read_text(encoding="utf-8") + (FOLDER / f"{name}.lua").read_text(encoding="utf-8")


@cache
def digest(name: str) -> str:
    """The SHA-1 by which the server knows a script."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()


def names() -> list[str]:
    """The names of all scripts."""
    return sorted(path.stem for path in FOLDER.glob("*.lua") if path.stem != "keys")


class Backoff:
    """Pauses between tries while the broker is away: 0.05 s doubling to 0.5 s; one log line per outage."""

    def __init__(self, what: str) -> None:
        self._what, self._pause_s = what, 0.0

    async def wait(self, error: BaseException) -> None:
        """Log the first of a series of errors, then sleep."""
        if not self._pause_s:
            logger.warning("%s: broker away (%s), trying again", self._what, error)
        self._pause_s = min(max(0.05, self._pause_s * 2), _LONGEST_PAUSE_S)
        await asyncio.sleep(self._pause_s)

    def over(self) -> None:
        """The broker answered."""
        if self._pause_s:
            logger.warning("%s: broker is back", self._what)
        self._pause_s = 0.0


async def call(client: Redis, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
    """Run a script once; it is loaded if the server does not know it (a new or restarted server)."""
    with refusals():
        try:
            return await client.evalsha(digest(name), len(keys), *keys, *args)  # type: ignore[misc]
        except NoScriptError:
            return await client.eval(source(name), len(keys), *keys, *args)  # type: ignore[misc]


Said = asyncio.Future[int]


class Flusher:
    """Gathers what the slots of a process want to say in one turn of the loop, and says it in one call per kind.

    While one call is under way the next gathers. A call whose reply is lost is sent again: every transition compares
    the claim's token, so the second time changes nothing and reports success.
    """

    def __init__(self, client: Redis, keys: Sequence[str]) -> None:
        self._client, self._keys = client, keys
        self._waiting: dict[tuple[str, tuple[Any, ...]], list[tuple[tuple[Any, ...], Said]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._backoff = Backoff("saqkit queue")

    def say(self, name: str, head: tuple[Any, ...], job: tuple[Any, ...]) -> Said:
        """Queue one job's transition; the future gets what the script said of it."""
        future: Said = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((name, head), []).append((job, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="saqkit-flush")
        return future

    async def drained(self) -> None:
        """Wait until all that was said has been answered."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Give up what could not be said."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for jobs in self._waiting.values():
            for _, future in jobs:
                future.cancel()
        self._waiting = {}

    async def _run(self) -> None:
        while self._waiting:
            (name, head), jobs = next(iter(self._waiting.items()))
            del self._waiting[name, head]
            try:
                await self._send(name, head, jobs)
            except asyncio.CancelledError:
                for _, future in jobs:
                    future.cancel()
                raise

    async def _send(self, name: str, head: tuple[Any, ...], jobs: list[tuple[tuple[Any, ...], Said]]) -> None:
        args = [*head, *(part for job, _ in jobs for part in job)]
        while True:
            try:
                said = await call(self._client, name, self._keys, args)
                break
            except AWAY as error:
                await self._backoff.wait(error)
            except Exception as error:
                logger.exception("saqkit queue: %s of %d jobs failed, their leases will expire", name, len(jobs))
                for _, future in jobs:
                    if not future.done():
                        future.set_exception(error)
                return
        self._backoff.over()
        for (_, future), answer in zip(jobs, said, strict=True):
            if not future.done():
                future.set_result(answer)
