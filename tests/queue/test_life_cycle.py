"""Random operations on a real server and on the pure life-cycle, compared after each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saqkit.queue.audit import audit
from saqkit.queue.queue import Queue
from saqkit.spec.lifecycle import NEXT, POISON_CRASHES, Action, State, crashed

KEYS = ("a", "b", "c")
ACTIONS = [action for action in Action if action != Action.POISON]  # it is what RECOVER becomes


class Twin:
    """The same jobs on the server and as numbers of the life-cycle."""

    def __init__(self, queue: Queue) -> None:
        self.queue, self.calls = queue, 0
        self.states = dict.fromkeys(KEYS, State.ABSENT)
        self.tokens = dict.fromkeys(KEYS, "0")
        self.crashes = dict.fromkeys(KEYS, 0)

    async def step(self, key: str, action: Action, stale: bool) -> None:
        queue, run, self.calls = self.queue, self.queue.run_script, self.calls + 1
        token = "0" if stale else self.tokens[key]
        fenced = stale and action in (Action.FINISH, Action.RETRY, Action.RETRY_NOW, Action.BURY, Action.RELEASE)
        if action in (Action.ENQUEUE, Action.DELAY):
            due = 3_000 if action == Action.DELAY else 0
            await run("enqueue", 0.2, str(self.calls), 0, key, "{}", 3, due, 0, 0)
        elif action == Action.PROMOTE:
            await queue.redis.zadd(queue.namespace("scheduled"), {key: 1}, xx=True)
            await run("promote")
        elif action == Action.TAKE:
            if self.states[key] == State.SCHEDULED:  # taken by its key, it is promoted on the way
                self.follow(key, Action.PROMOTE)
            _, _, _, *rows = await run("take", 1, "w", 60, 0, 1, "jobs", "me", self.calls, key)
            self.tokens.update({row[0].decode(): row[1].decode() for row in rows})
        elif action == Action.FORGET:
            if self.states[key] in (State.DONE, State.CANCELLED):  # these expire by themselves
                await queue.redis.delete(queue.key_of(key))
            await run("forget", -1, key)
        elif action == Action.RECOVER:
            await queue.redis.zadd(queue.namespace("leases"), {key: 1}, xx=True)
            await run("recover", POISON_CRASHES, 60)
        else:
            words: dict[Action, tuple[Any, ...]] = {
                Action.FINISH: ("finish", key, token, "{}", 600, "{}"),
                Action.RETRY: ("retry", 0.2, key, token, "{}", 600, "{}"),
                Action.RETRY_NOW: ("retry", 0.2, key, token, "{}", 0, "{}"),
                Action.BURY: ("bury", key, token, "{}", "", "{}"),
                Action.RELEASE: ("release", key, token, "", "{}"),
                Action.CANCEL: ("cancel", key, "no", 600, "", "{}", 0),
                Action.REPLAY: ("replay", key),
            }
            await run(*words[action])
        if not fenced:
            self.follow(key, action)

    def follow(self, key: str, action: Action) -> None:
        if action == Action.RECOVER and self.states[key] == State.ACTIVE:
            self.crashes[key] += 1
            action = crashed(self.crashes[key])
        if (target := NEXT[self.states[key]][action]) >= 0:
            if action in (Action.ENQUEUE, Action.DELAY, Action.REPLAY):
                self.crashes[key] = 0
            self.states[key] = State(target)

    async def compare(self) -> None:
        for key in KEYS:
            stored = await self.queue.redis.hget(self.queue.key_of(key), "state")  # type: ignore[misc]
            assert State(int(stored or 0)) == self.states[key]
        found = await audit(self.queue)
        live = list(self.states.values())
        assert (found.queued, found.scheduled, found.active, found.dead) == tuple(
            live.count(state) for state in (State.QUEUED, State.SCHEDULED, State.ACTIVE, State.DEAD)
        )
        assert found.problems == ()


@given(steps=st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(ACTIONS), st.booleans()), max_size=60))
@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_the_server_follows_the_life_cycle(
    make_queue: Callable[..., Queue], steps: list[tuple[str, Action, bool]]
) -> None:
    queue = make_queue()
    try:
        await queue.redis.flushall()
        twin = Twin(queue)
        for key, action, stale in steps:
            await twin.step(key, action, stale)
            await twin.compare()
    finally:
        await queue.disconnect()
