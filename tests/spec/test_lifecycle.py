"""The life of a job: one table, complete and consistent, which scripts and drawing follow."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from saqkit.spec.lifecycle import (
    NEXT,
    OUTCOMES,
    POISON_CRASHES,
    TRANSITIONS,
    Action,
    State,
    after,
    crashed,
    failed,
    on_tick,
    retried,
)

ROOT = Path(__file__).parent.parent.parent
LIVE = {State.QUEUED, State.SCHEDULED, State.ACTIVE}


def test_the_integer_table_is_the_list_of_transitions() -> None:
    listed = {(t.source, t.action): t.target for t in TRANSITIONS}
    assert len(listed) == len(TRANSITIONS), "two transitions leave one state by one action"
    for state in State:
        for action in Action:
            assert NEXT[state][action] == listed.get((state, action), -1)
            if (state, action) in listed:
                assert after(state, action) is listed[state, action]
            else:
                with pytest.raises(ValueError, match=f"{state.name.lower()} cannot {action.name.lower()}"):
                    after(state, action)


def test_every_state_is_reached_from_nothing_and_every_job_can_end() -> None:
    def reached(start: State) -> set[State]:
        seen, queue = {start}, [start]
        while queue:
            state = queue.pop()
            new = {t.target for t in TRANSITIONS if t.source == state} - seen
            seen |= new
            queue += new
        return seen

    assert reached(State.ABSENT) == set(State)
    for state in State:
        assert State.ABSENT in reached(state), f"a job that is {state.name} stays for ever"


def test_every_action_is_used() -> None:
    assert {t.action for t in TRANSITIONS} == set(Action)


def test_only_a_producer_makes_a_job() -> None:
    births = [t for t in TRANSITIONS if t.source == State.ABSENT]
    assert {(t.action, t.target) for t in births} == {
        (Action.ENQUEUE, State.QUEUED),
        (Action.DELAY, State.SCHEDULED),
    }
    assert {t.actor for t in births} == {"producer"}


def test_only_what_ends_an_attempt_has_an_outcome_and_every_outcome_occurs() -> None:
    for t in TRANSITIONS:
        assert bool(t.outcome) == (t.source == State.ACTIVE)
    assert {t.outcome for t in TRANSITIONS} - {""} == set(OUTCOMES)


def test_a_live_job_is_forgotten_only_after_it_ended() -> None:
    assert {t.source for t in TRANSITIONS if t.target == State.ABSENT} == set(State) - LIVE - {State.ABSENT}


@pytest.mark.parametrize("script", sorted({t.script for t in TRANSITIONS}))
def test_every_script_that_is_named_exists(script: str) -> None:
    assert (ROOT / "saqkit" / "queue" / "scripts" / script).is_file()


@given(st.integers(1, 100), st.integers(1, 100))
def test_a_failed_job_is_tried_again_until_its_last_attempt(attempt: int, most: int) -> None:
    assert failed(attempt, most) == (Action.RETRY if attempt < most else Action.BURY)
    assert after(State.ACTIVE, failed(attempt, most)) in (State.SCHEDULED, State.DEAD)


def test_a_retry_waits_for_its_delay_and_without_one_for_nothing() -> None:
    assert after(State.ACTIVE, retried(0.001)) is State.SCHEDULED
    assert after(State.ACTIVE, retried(0)) is State.QUEUED
    outcomes = {t.outcome for t in TRANSITIONS if t.action in (Action.RETRY, Action.RETRY_NOW)}
    assert outcomes == {"retry"}


def test_a_job_that_crashes_its_worker_too_often_is_poison() -> None:
    fates = [crashed(n) for n in range(1, POISON_CRASHES + 2)]
    assert fates == [Action.RECOVER] * (POISON_CRASHES - 1) + [Action.POISON] * 2


@given(st.floats(0, 1e6), st.floats(0.01, 10))
@example(262144.7734375, 0.01)  # whose tick, divided by 0.01 again, is a little more than a whole number
def test_a_delayed_job_wakes_at_the_next_tick_and_never_before_it_is_due(due: float, tick: float) -> None:
    wakes = on_tick(due, tick)
    assert due - 2e-9 * tick - 1e-9 <= wakes <= due + tick
    assert math.isclose(wakes / tick, round(wakes / tick), abs_tol=1e-6)
    assert on_tick(wakes, tick) == pytest.approx(wakes, abs=1e-9)


def test_the_drawing_has_every_transition_and_who_makes_it_and_no_other() -> None:
    page = (ROOT / "docs" / "life_of_a_job.md").read_text(encoding="utf-8")
    drawing = re.search(r"```mermaid\nstateDiagram-v2\n(.*?)```", page, re.DOTALL)
    assert drawing
    drawn = set()
    for line in drawing[1].splitlines():
        if "-->" in line:
            match = re.fullmatch(r"\s*(\[\*\]|\w+) --> (\[\*\]|\w+) : (\w+) \((\w+)\)", line)
            assert match, line
            source, target, action, actor = match.groups()
            drawn.add((source.replace("[*]", "absent"), action, target.replace("[*]", "absent"), actor))
    assert drawn == {
        (t.source.name.lower(), t.action.name.lower(), t.target.name.lower(), t.actor) for t in TRANSITIONS
    }


def test_the_table_beside_the_drawing_names_every_script_and_outcome() -> None:
    page = (ROOT / "docs" / "life_of_a_job.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| (\w+) \| (\w+) \| (\w+) \| (\w+) \| `([\w.]+)` \| (\w*) ?\|", page, re.MULTILINE))
    assert rows == {
        (t.source.name.lower(), t.action.name.lower(), t.target.name.lower(), t.actor, t.script, t.outcome)
        for t in TRANSITIONS
    }
