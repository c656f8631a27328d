"""Replaying dead letters, here or in another queue, and removing them. `saqkit.queue.dead_letters` chooses which.

Two queues may lie on two nodes of a cluster, so that no script can change both. A letter that is replayed elsewhere is
first `outgoing` here, with what it will be there; `relay` then enqueues it there, under a name that it keeps, and
settles it here. If that is cut short, the upkeep of any process of its old queue does it again: the other queue
recognises the name.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from saqkit.errors import UsageError
from saqkit.queue import fault_sites
from saqkit.queue.connecting import neighbour
from saqkit.queue.letter import DeadLetter
from saqkit.queue.scripts_of_queue import digest, refusals, source

T = TypeVar("T")

if TYPE_CHECKING:
    from saqkit.queue.queue import Queue

PAGE = 500
"""So many dead letters are read, replayed or removed in one round trip."""

_UNTRIED = ("status", "attempts", "error", "result", "progress", "started", "completed", "touched", "worker_id")
"""What an attempt has left in a job."""


async def replay(
    queue: Queue,
    letters: Iterable[str | DeadLetter],
    *,
    kwargs: Mapping[str, Any] | None = None,
    to: Queue | str | None = None,
) -> list[bool]:
    """Queue dead letters (or the keys of some) again with all their attempts before them; for each whether it was done.

    It happens once: of several calls one gets True. Of a `DeadLetter` this is so for its death: if it was replayed and
    has died again since, it is left alone. `kwargs` are merged into the arguments of each, and win. `to` is another
    queue of the same broker, or its name; where a job of that key lives there, the letter stays dead here, and False
    is said. A letter whose body nobody can read can only be replayed as it is.
    """
    target = to if to is None or isinstance(to, str) else to.name
    target = None if target == queue.name else target
    said: list[bool] = []
    for chunk in chunks(letters):
        names = [_named(letter) for letter in chunk]
        bodies: list[tuple[Any, int] | None] = [("", 0)] * len(chunk)
        if kwargs or target is not None:
            bodies = await _rewritten(queue, [key for key, _ in names], kwargs or {})
        ours = [(*name, *body) for name, body in zip(names, bodies, strict=True) if body is not None]
        if target is None:
            done = await queue.run_script("replay", *(part for one in ours for part in one))
        else:
            done = await _move(queue, target, ours)
        answers = iter(done)
        said += [body is not None and bool(next(answers)) for body in bodies]
    return said


async def purge(queue: Queue, letters: Iterable[str | DeadLetter]) -> int:
    """Remove dead letters (or those of some keys) for good; returns how many there were."""
    gone = 0
    for chunk in chunks(letters):
        gone += await queue.run_script("forget", -1, *(part for letter in chunk for part in _named(letter)))
    return gone


async def relay(queue: Queue) -> int:
    """Deliver what is on its way out of `queue`; returns how many jobs other queues have accepted."""
    delivered = 0
    while keys := [key.decode() for key in await queue.redis.zrange(queue.namespace("outgoing"), 0, PAGE - 1)]:
        async with queue.redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hmget(queue.key_of(key), ["to", "to_key", "to_body", "prio", "to_users", "keep", "move"])
            found = await pipe.execute()
        entries = {key: fields for key, fields in zip(keys, found, strict=True) if fields[0] is not None}
        answers: list[Any] = [part for key in keys if key not in entries for part in (key, "", 1)]  # deleted by hand
        for target in {fields[0].decode() for fields in entries.values()}:
            there = {key: fields[1:] for key, fields in entries.items() if fields[0].decode() == target}
            said = await _enqueue_there(queue, target, there)
            answers += [part for (key, f), yes in zip(there.items(), said, strict=True) for part in (key, f[-1], yes)]
        delivered += (await queue.run_script("deliver", *answers)).count(1)
    return delivered


def chunks(things: Iterable[T], size: int = PAGE) -> Iterator[list[T]]:
    """Lists of at most `size`."""
    rest = iter(things)
    while chunk := list(islice(rest, size)):
        yield chunk


def _named(letter: str | DeadLetter) -> tuple[str, Any]:
    return (letter, "") if isinstance(letter, str) else (letter.key, repr(letter.died_at))


async def _rewritten(queue: Queue, keys: Sequence[str], kwargs: Mapping[str, Any]) -> list[tuple[Any, int] | None]:
    """Bodies with other arguments or for another queue, each with its number of users; None for what is no job."""
    async with queue.redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hget(queue.key_of(key), "body")
        found = await pipe.execute()
    bodies: list[tuple[Any, int] | None] = []
    for body in found:
        try:
            job: dict[str, Any] = queue._load(body)
            given = kwargs
            if queue.payload is not None:
                given = queue.payload.close(job["key"], job["function"], kwargs, {})
            job["kwargs"] = {**(job.get("kwargs") or {}), **given}
            users = job["kwargs"].get("users")
            left = {name: value for name, value in job.items() if name not in _UNTRIED}
            bodies.append((queue._dump(left), len(users) if isinstance(users, list | tuple) else 0))
        except UsageError:  # of what was given
            raise
        except Exception:  # whatever the codec says of a body that it cannot read
            bodies.append(None)
    return bodies


async def _move(queue: Queue, target: str, letters: Sequence[tuple[Any, ...]]) -> list[bool]:
    call = secrets.token_hex(6)
    args = [part for number, letter in enumerate(letters) for part in (*letter, f"{call}.{number}")]
    moved = await queue.run_script("move", target, *args)
    await relay(queue)
    async with queue.redis.pipeline(transaction=False) as pipe:
        for key, *_ in letters:
            pipe.zscore(queue.namespace("dead"), key)
        return [bool(left) and back is None for left, back in zip(moved, await pipe.execute(), strict=True)]


async def _enqueue_there(queue: Queue, target: str, entries: Mapping[str, Sequence[Any]]) -> list[int]:
    """What the other queue says of each: 1 accepted (now or before), 0 refused."""
    names = [f"saq:{{{target}}}:", f"saq:job:{{{target}}}:"]
    client = neighbour(queue.redis, names[0])
    try:
        await client.script_load(source("enqueue"))
        async with client.pipeline(transaction=False) as pipe:
            for key, (other, body, priority, users, keep, name) in entries.items():
                args = [queue.tick_s, name, time.time(), other or key, body, priority, 0, users, keep or 0]
                pipe.evalsha(digest("enqueue"), len(names), *names, *args)
            if fault_sites.armed:
                fault_sites.armed.at("enqueue.before")
            with refusals():
                said = [accepted for (accepted,) in await pipe.execute()]
            if fault_sites.armed:
                fault_sites.armed.at("enqueue.after")
    finally:
        if client is not queue.redis:
            await client.aclose()
    return said
