"""The Lua scripts of the queue, calling them, and waiting while the broker is away."""

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

from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)

from saqkit.errors import BrokerError
from saqkit.queue import fault_sites
from saqkit.queue.cancelling import heed_cancellation
from saqkit.queue.line import Line

logger = logging.getLogger("saqkit")
FOLDER = Path(__file__).parent / "scripts"
SHARED = ("keys", "lines")
"""What stands in front of every script."""
_ENDING = ("enqueue", "finish", "bury", "cancel", "recover", "replay", "forget", "deliver", "batch")
_BEFORE = {"take": ("choosing",), **dict.fromkeys(_ENDING, ("following",))}
AWAY = (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, MasterDownError, OutOfMemoryError, OSError)
"""What a broker that is away, starting, failing over or full answers."""

_LONGEST_PAUSE_S = 0.5
_REFUSAL = re.compile(r"(^|-)(MISCONF|NOREPLICAS|BUSY|OOM|READONLY|UNBLOCKED) ")  # in a script Redis 6 says "-OOM …"


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
        if isinstance(error, NoPermissionError) or "user executing the script can't" in str(error):
            right = f"the broker's user lacks a right that a queue needs ({error}; docs/where_it_runs.md lists them)"
            raise BrokerError(right) from error
        raise


TOGETHER = frozenset({"bury", "cancel", "finish", "release", "retry", "take"})
"""What goes out together: how jobs have ended, and the question for the next. Over a new connection they are loaded
first, because one that the server does not know would be sent again, and run behind those that stood after it."""


@cache
def source(name: str) -> str:
    """The text of a script, with the key schema and what it shares with others in front."""
    parts = [*SHARED, *_BEFORE.get(name, ()), name]
    return "".join((FOLDER / f"{part}.lua").read_text(encoding="utf-8") for part in parts)


@cache
def digest(name: str) -> str:
    """The SHA-1 by which the server knows a script."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()


def names() -> list[str]:
    """The names of all scripts."""
    return sorted(path.stem for path in FOLDER.glob("*.lua") if path.stem not in (*SHARED, "choosing", "following"))


class Backoff:
    """Pauses between tries while the broker is away: 0.05 s doubling to 0.5 s; one log line per outage."""

    def __init__(self, what: str) -> None:
        self._what, self._pause_s = what, 0.0

    async def wait(self, error: BaseException) -> None:
        """Log the first of a series of errors, then sleep."""
        heed_cancellation()
        if not self._pause_s:
            logger.warning("%s: broker away (%s), trying again", self._what, error)
        self._pause_s = min(max(0.05, self._pause_s * 2), _LONGEST_PAUSE_S)
        await asyncio.sleep(self._pause_s)

    def over(self) -> None:
        """The broker answered."""
        if self._pause_s:
            logger.warning("%s: broker is back", self._what)
        self._pause_s = 0.0


async def call(line: Line, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
    """Run a script once; it is loaded if the server does not know it (a new or restarted server)."""
    (said,) = await call_all(line, keys, [(name, args)])
    if isinstance(said, Exception):
        with refusals():
            raise said
    return said


async def _load(line: Line, names: Sequence[str]) -> None:
    for name, answer in zip(names, await line.run(*[("SCRIPT", "LOAD", source(n)) for n in names]), strict=True):
        if isinstance(answer, AWAY):
            raise answer
        if not isinstance(answer, Exception):  # who may not load scripts sends each whole, the first time
            line.knows.add(name)


async def call_all(
    line: Line, keys: Sequence[str], calls: Sequence[tuple[str, Sequence[Any]]], wait: tuple[str, float] | None = None
) -> list[Any]:
    """Run several scripts in one round trip, in their order; returns for each what it said, or its error.

    `wait`: (key, seconds), first wait until something is in that list, and take it out, but no longer than that.
    Raises what a broker that is away raises: then nobody knows which of them it has run.
    """
    if fault_sites.armed:
        if wait:
            fault_sites.armed.at("wake.before")
        for name, _ in calls:
            fault_sites.armed.at(f"{name}.before")
    if wait is None and (new := TOGETHER - line.knows) and (len(calls) > 1 or calls[0][0] == "take"):
        await _load(line, sorted(new))
    commands: list[Sequence[Any]] = [("BLPOP", *wait)] if wait else []
    commands += [("EVALSHA", digest(name), len(keys), *keys, *args) for name, args in calls]
    said = await line.run(*commands)
    waited = said.pop(0) if wait else None
    for n, (name, args) in enumerate(calls):
        if isinstance(said[n], NoScriptError):
            (said[n],) = await line.run(("EVAL", source(name), len(keys), *keys, *args))
    for answer in (waited, *said):
        if isinstance(answer, Exception):
            with refusals():
                if isinstance(answer, AWAY) or _REFUSAL.search(str(answer)) or answer is waited:
                    raise answer
    if fault_sites.armed:
        if wait:
            fault_sites.armed.at("wake.after")
        for name, _ in calls:
            fault_sites.armed.at(f"{name}.after")
    return said
