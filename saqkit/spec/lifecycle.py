"""The life of a job: its states, its transitions, and who makes them.

This is the one place that says what may happen to a job. The queue's Lua scripts carry these transitions out (one file
each, named in `Transition.script`), the model in `sim` steps through the same table, and the diagram in the
documentation is checked against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class State(IntEnum):
    """Where a job is; a live job is in exactly one of QUEUED, SCHEDULED and ACTIVE."""

    ABSENT = 0
    QUEUED = 1
    SCHEDULED = 2
    ACTIVE = 3
    DONE = 4
    DEAD = 5
    CANCELLED = 6
    OUTGOING = 7


class Action(IntEnum):
    """What can happen to a job."""

    ENQUEUE = 0
    DELAY = 1
    PROMOTE = 2
    TAKE = 3
    FINISH = 4
    RETRY = 5
    BURY = 6
    RELEASE = 7
    RECOVER = 8
    POISON = 9
    CANCEL = 10
    REPLAY = 11
    FORGET = 12
    RETRY_NOW = 13
    MOVE = 14
    DELIVER = 15
    REFUSE = 16
    HASTEN = 17
    PRIORITISE = 18


@dataclass(frozen=True)
class Transition:
    """`actor` takes a job from `source` to `target`; `outcome` is what the attempts table then says of its attempt."""

    source: State
    action: Action
    target: State
    actor: str
    script: str
    outcome: str = ""


_S, _A = State, Action
TRANSITIONS: tuple[Transition, ...] = (
    *(
        Transition(source, action, target, "producer", "enqueue.lua")
        for source in (_S.ABSENT, _S.DONE, _S.CANCELLED, _S.DEAD)
        for action, target in ((_A.ENQUEUE, _S.QUEUED), (_A.DELAY, _S.SCHEDULED))
    ),
    Transition(_S.SCHEDULED, _A.PROMOTE, _S.QUEUED, "ticker", "take.lua"),
    Transition(_S.SCHEDULED, _A.HASTEN, _S.QUEUED, "operator", "hasten.lua"),
    Transition(_S.QUEUED, _A.TAKE, _S.ACTIVE, "worker", "take.lua"),
    Transition(_S.ACTIVE, _A.FINISH, _S.DONE, "worker", "finish.lua", "done"),
    Transition(_S.ACTIVE, _A.RETRY, _S.SCHEDULED, "worker", "retry.lua", "retry"),
    Transition(_S.ACTIVE, _A.RETRY_NOW, _S.QUEUED, "worker", "retry.lua", "retry"),
    Transition(_S.ACTIVE, _A.BURY, _S.DEAD, "worker", "bury.lua", "dead"),
    Transition(_S.ACTIVE, _A.RELEASE, _S.QUEUED, "worker", "release.lua", "released"),
    Transition(_S.ACTIVE, _A.RECOVER, _S.QUEUED, "recoverer", "recover.lua", "lost"),
    Transition(_S.ACTIVE, _A.POISON, _S.DEAD, "recoverer", "recover.lua", "lost"),
    Transition(_S.ACTIVE, _A.CANCEL, _S.CANCELLED, "operator", "cancel.lua", "cancelled"),
    Transition(_S.QUEUED, _A.CANCEL, _S.CANCELLED, "operator", "cancel.lua"),
    Transition(_S.SCHEDULED, _A.CANCEL, _S.CANCELLED, "operator", "cancel.lua"),
    Transition(_S.QUEUED, _A.PRIORITISE, _S.QUEUED, "operator", "prioritise.lua"),
    Transition(_S.SCHEDULED, _A.PRIORITISE, _S.SCHEDULED, "operator", "prioritise.lua"),
    Transition(_S.DEAD, _A.REPLAY, _S.QUEUED, "operator", "replay.lua"),
    Transition(_S.DEAD, _A.MOVE, _S.OUTGOING, "operator", "move.lua"),
    Transition(_S.OUTGOING, _A.DELIVER, _S.ABSENT, "relay", "deliver.lua"),
    Transition(_S.OUTGOING, _A.REFUSE, _S.DEAD, "relay", "deliver.lua"),
    *(
        Transition(source, _A.FORGET, _S.ABSENT, "retention", "forget.lua")
        for source in (_S.DONE, _S.DEAD, _S.CANCELLED)
    ),
)

NEXT: tuple[tuple[int, ...], ...] = tuple(
    tuple(
        next((int(t.target) for t in TRANSITIONS if t.source == state and t.action == action), -1) for action in Action
    )
    for state in State
)
"""`NEXT[state][action]` is the state that follows, or -1 where the action is not allowed."""

OUTCOMES = ("done", "retry", "dead", "cancelled", "released", "lost")
"""How an attempt can end, in the order of the attempts table's category."""

POISON_CRASHES = 3
"""A job whose worker died this often is poison: it goes to the dead letters."""


def after(state: State, action: Action) -> State:
    """The state that follows; `ValueError` if the action is not allowed in `state`."""
    if (target := NEXT[state][action]) < 0:
        raise ValueError(f"a job that is {state.name.lower()} cannot {action.name.lower()}")
    return State(target)


def failed(attempt: int, max_attempts: int) -> Action:
    """What follows a failed execution number `attempt` (from 1): another try, or the dead letters.

    `retried` tells which kind of try it is.
    """
    return Action.RETRY if attempt < max_attempts else Action.BURY


def retried(delay_s: float) -> Action:
    """How a failed job gets its next try: after its delay, on the tick, or, without one, at once."""
    return Action.RETRY if delay_s > 0 else Action.RETRY_NOW


def crashed(crashes: int) -> Action:
    """What follows crash number `crashes` of a job's worker: back to the queue, or the dead letters as poison."""
    return Action.RECOVER if crashes < POISON_CRASHES else Action.POISON


def on_tick(due_s: float, tick_s: float) -> float:
    """When a job that is due at `due_s` wakes: the next point of the grid of `tick_s`, never before it is due."""
    from math import ceil

    turns = due_s / tick_s
    # What stands on the grid stays there, although the division may not be exact.
    return ceil(turns - 1e-9 - 1e-15 * turns) * tick_s
