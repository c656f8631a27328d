"""The scripts of a queue on a real server, behind the methods of `model_of_a_queue.Model`, and all that is stored."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import redis
from model_of_a_queue import Job, Model, New, Taken

from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import digest, source
from saqkit.spec.lifecycle import POISON_CRASHES, Action, State

LEASE_S = 3600.0  # nothing expires by itself, however slow the machine
FAR_S = 3000
TICK_S = 0.2
CLOCK = 100

SHOW = """
local jobs, places = {}, {}
for i, key in ipairs(ARGV) do
  jobs[i] = redis.call('HMGET', J .. key, 'state', 'body', 'prio', 'att', 'crash', 'tok', 'until')
  jobs[i][8] = redis.call('TTL', J .. key)
end
local names = {'queued:1', 'queued:2', 'queued:3', 'queued:4', 'incomplete', 'leases', 'dead', 'outgoing', 'window'}
for i, name in ipairs(names) do
  places[i] = redis.call('ZRANGE', Q .. name, 0, -1)
end
return {jobs, places, redis.call('HGETALL', Q .. 'counts'), redis.call('GET', Q .. 'weight') or '0'}
"""
SCRIPTS = ("enqueue", "promote", "take", "finish", "retry", "bury", "release", "renew", "update", "recover", "cancel")
SCRIPTS += ("replay", "forget", "move", "deliver", "audit", "hasten", "prioritise")


class OnServer:
    """Claims have the numbers of the model: the n-th token that `take` gave is claim n."""

    def __init__(self, client: redis.Redis, keys: Sequence[str], limit: int, unit: str, cap: int) -> None:
        self.client, self.keys, self.rate, self.cap = client, keys, (limit, 1e6, unit), cap
        queue = Queue.from_url("redis://nowhere", name="q")
        self.names, self.place, self.key_of, self.id_of = queue.keys, queue.namespace, queue.key_of, queue.job_id
        self.tokens: list[bytes] = [b"0"]
        self.seen: list[Any] = []
        self.show = (source("promote").split("-- promote:")[0]) + SHOW
        client.flushdb()
        for text in (self.show, *map(source, SCRIPTS)):
            client.script_load(text)

    def run(self, name: str, *args: Any) -> Any:
        """Run a script, and look at what is stored then, in one round trip."""
        pipe = self.client.pipeline(transaction=False)
        pipe.evalsha(digest(name), 2, *self.names, *args)
        said, *self.seen = self._look(pipe)
        return said

    def _look(self, pipe: Any) -> list[Any]:
        pipe.evalsha(hashlib.sha1(self.show.encode()).hexdigest(), 2, *self.names, *self.keys)
        pipe.evalsha(digest("audit"), 2, *self.names)
        found: list[Any] = pipe.execute()
        return found

    def token(self, claim: int | None) -> bytes:
        return b"" if claim is None else self.tokens[claim]

    # --- the scripts -------------------------------------------------------------------------------------------------

    def enqueue(self, call: str, jobs: Sequence[New]) -> Any:
        due = CLOCK + FAR_S
        args = [(n.key, n.body, n.priority, due * n.delayed, n.users, FAR_S * n.keep) for n in jobs]
        return self.run("enqueue", TICK_S, call, CLOCK, *(part for job in args for part in job))

    def promote(self) -> list[str]:
        return [key.decode() for key in self.run("promote", TICK_S)]

    def hasten(self, keys: Sequence[str]) -> Any:
        return self.run("hasten", *(part for key in keys for part in (key, "")))

    def prioritise(self, key: str, level: int) -> Any:
        return self.run("prioritise", key, level)[0]

    def take(self, who: str, request: int, free: int, key: str = "") -> list[Taken]:
        _, _, _, *rows = self.run("take", free, who, LEASE_S, *self.rate, who, request, key, TICK_S)
        return [self._taken(*row) for row in rows]

    def take_this(self, who: str, key: str) -> list[Taken]:
        return self.take(who, 0, 1, key)

    def _taken(self, key: bytes, token: bytes, attempt: int, crashes: int, priority: int, *rest: Any) -> Taken:
        if token not in self.tokens:
            self.tokens.append(token)
        return Taken(key.decode(), self.tokens.index(token), attempt, crashes, priority, rest[2].decode())

    def renew(self, claims: Sequence[tuple[str, int]]) -> Any:
        return self.run("renew", LEASE_S, *(part for key, claim in claims for part in (key, self.token(claim))))

    def end(
        self, action: Action, claims: Sequence[tuple[str, int]], body: str, *, kept: bool = True, again: bool = False
    ) -> Any:
        name, head, facts = {
            Action.FINISH: ("finish", (), (body, 600 if kept else -1, "{}")),
            Action.RETRY: ("retry", (TICK_S,), (body, FAR_S, "{}")),
            Action.RETRY_NOW: ("retry", (TICK_S,), (body, 0, "{}")),
            Action.BURY: ("bury", (self.cap,), (body, "", "{}")),
            Action.RELEASE: ("release", (), (body, "{}")),
        }[action]
        tokens = [self.token(claim) + b"?" * again for _, claim in claims]
        told = [(key, token, *facts) for (key, _), token in zip(claims, tokens, strict=True)]
        return self.run(name, *head, *(part for job in told for part in job))

    def update(self, key: str, claim: int | None, body: str) -> Any:
        return self.run("update", key, self.token(claim), body)

    def recover(self) -> list[str]:
        return [key.decode() for key in self.run("recover", POISON_CRASHES, LEASE_S, self.cap)]

    def cancel(self, key: str, claim: int | None, *, kept: bool, grace: bool, waiting: bool = False) -> Any:
        grace_s = -1 if waiting else FAR_S * grace
        return self.run("cancel", key, "no", 600 if kept else -1, self.token(claim), "{}", grace_s)[0]

    def replay(self, keys: Sequence[str], *, same_death: bool, body: str, users: int) -> Any:
        return self.run("replay", *(p for key in keys for p in (key, self._death(key, same_death), body, users)))

    def forget(self, keys: Sequence[str], *, same_death: bool) -> Any:
        return self.run("forget", -1, *(part for key in keys for part in (key, self._death(key, same_death))))

    def move(self, keys: Sequence[str], name: str, *, same_death: bool) -> Any:
        return self.run("move", "other", *(p for k in keys for p in (k, self._death(k, same_death), "{}", 0, name)))

    def deliver(self, key: str, name: str, *, accepted: bool) -> Any:
        return self.run("deliver", key, name, int(accepted))[0]

    def _death(self, key: str, same: bool) -> str:
        """When the letter died that is meant: this one, or one that is there no more."""
        died: Any = self.client.zscore(self.place("dead"), key)
        return "1" if not same else "" if died is None else repr(died)

    def pause(self, paused: bool) -> None:
        self.client.set(self.place("paused"), 1) if paused else self.client.delete(self.place("paused"))

    # --- what time does, without waiting for it ----------------------------------------------------------------------

    def come_due(self, keys: Sequence[str]) -> None:
        for rank, key in enumerate(keys):
            self.client.zadd(self.place("incomplete"), {self.id_of(key): rank}, xx=True)

    def expire(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.client.zadd(self.place("leases"), {key: 1}, xx=True)

    def window_passes(self, entries: int) -> None:
        found: Any = self.client.zrange(self.place("window"), 0, -1)
        for member in sorted(found, key=_admitted)[:entries]:
            self.client.zadd(self.place("window"), {member: 1})

    def key_freed(self, key: str) -> None:
        self.client.hset(self.key_of(key), "until", "1")

    def vanish(self, key: str) -> None:
        self.client.delete(self.key_of(key))

    # --- what is stored ----------------------------------------------------------------------------------------------

    def shown(self) -> dict[str, Any]:
        """All that `shown` tells of the model, read in one step, and what the audit finds."""
        (jobs, places, counts, weight), audit = self.seen or self._look(self.client.pipeline(transaction=False))
        self.seen = []
        *lines, scheduled, active, dead, outgoing, window = ([key.decode() for key in place] for place in places)
        prefix = self.id_of("")
        assert all(member.startswith(prefix) for member in scheduled)
        return {
            "jobs": {key: self._job(*fields) for key, fields in zip(self.keys, jobs, strict=True)},
            "lines": lines,
            "scheduled": {member.removeprefix(prefix) for member in scheduled},
            "active": set(active),
            "dead": dead,
            "outgoing": set(outgoing),
            "counts": {name.decode(): int(n) for name, n in zip(counts[::2], counts[1::2], strict=True)},
            "window": [int(member.split(":")[1]) for member in sorted(window, key=_admitted)],
            "weight": int(weight),
            "audit": audit,
        }

    def _job(self, state: bytes | None, body: bytes, priority: bytes, *numbers: Any) -> tuple[Any, ...] | None:
        attempts, crashes, token, until, ttl = numbers
        if state is None:
            return None
        claim = self.tokens.index(token) if token else 0
        stays_taken = float(until or 0) > time.time() + FAR_S / 2
        counts = int(attempts or 0), int(crashes or 0)
        return State(int(state)), body.decode(), int(priority), *counts, claim, stays_taken, ttl > 0


def shown(model: Model) -> dict[str, Any]:
    """What the server has to hold. What ended well, and only that, expires by itself."""

    def job(known: Job) -> tuple[Any, ...] | None:
        if known.state == State.ABSENT:
            return None
        expires = known.state in (State.DONE, State.CANCELLED)
        counts = known.attempts, known.crashes
        return known.state, known.body, known.priority, *counts, known.claim, known.taken_key, expires

    where = {state: set(model.where(state)) for state in State}
    sizes = [len(where[state]) for state in (State.QUEUED, State.SCHEDULED, State.ACTIVE, State.DEAD, State.OUTGOING)]
    return {
        "jobs": {key: job(known) for key, known in model.jobs.items()},
        "lines": [model.line(priority) for priority in range(1, 5)],
        "scheduled": where[State.SCHEDULED],
        "active": where[State.ACTIVE],
        "dead": sorted(where[State.DEAD], key=lambda key: (model.jobs[key].died, key)),
        "outgoing": where[State.OUTGOING],
        "counts": {what: n for what, n in model.counts.items() if n},
        "window": model.window,
        "weight": sum(model.window),
        "audit": sizes,
    }


def _admitted(member: Any) -> int:
    return int(member.split(b":" if isinstance(member, bytes) else ":")[0])
