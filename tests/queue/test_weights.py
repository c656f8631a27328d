"""Weighted priorities: shares, the bound on how long a level waits, and nothing saved up while there is nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from saq.job import Job

from saqkit.errors import DescriptionError
from saqkit.queue.audit import audit
from saqkit.queue.queue import Queue
from saqkit.spec.choosing import LEVELS, Chooser, Waiting, longest_wait
from saqkit.spec.showing import bounds, describe
from saqkit.spec.topology import Priority, Taking, Topology

WEIGHTS = {"critical": 8.0, "high": 4.0, "normal": 2.0, "low": 1.0}
MakeQueue = Callable[..., Queue]


async def taken(queue: Queue, free: int, request: int) -> list[int]:
    """The levels of the jobs that one call of `take.lua` gives."""
    words = (free, "w", queue.lease_s, 0, 1, "jobs", "me", request, "", queue.tick_s, queue.rules)
    _, _, _, *rows = await queue.run_script("take", *words)
    return [row[4] for row in rows]


async def test_shares_are_those_of_the_weights_within_a_tenth(make_queue: MakeQueue) -> None:
    queue = make_queue(weights=WEIGHTS)
    for level in LEVELS:
        await queue.enqueue_each("f", [{}] * 900, priority=level)
    picks: Counter[int] = Counter()
    for request in range(60):
        picks.update(await taken(queue, 25, request))
    assert sum(picks.values()) == 1500
    for level, weight in zip(LEVELS, WEIGHTS.values(), strict=True):
        expected = 1500 * weight / sum(WEIGHTS.values())
        assert abs(picks[level] - expected) <= 0.1 * expected, picks
    assert (await audit(queue)).problems == ()


async def test_a_level_that_had_nothing_saves_up_no_claim(make_queue: MakeQueue) -> None:
    queue = make_queue(weights=WEIGHTS)
    await queue.enqueue_each("f", [{}] * 100, priority=4)
    assert await taken(queue, 60, 0) == [4] * 60
    await queue.enqueue_each("f", [{}] * 100, priority=1)
    picks = Counter(await taken(queue, 18, 1))
    assert picks == {1: 17, 4: 1}


async def test_inside_a_level_it_is_first_in_first_out_and_one_alone_waits_for_nobody(make_queue: MakeQueue) -> None:
    queue = make_queue(weights=WEIGHTS)
    await queue.enqueue_many(Job("f", key=str(n), priority=4) for n in range(30))
    keys = []
    for _ in range(30):
        job = await queue.dequeue(timeout=5)
        assert job is not None
        keys.append(job.key)
    assert keys == [str(n) for n in range(30)]


def test_the_bound_on_the_wait_of_low_is_reached() -> None:
    chooser, places = Chooser(Taking(weights=WEIGHTS)), count(1)

    def come(level: int, many: int) -> None:
        for _ in range(many):
            place = next(places)
            chooser.join(Waiting(f"{level}:{place}", place, level))

    come(4, 2)
    assert str(chooser.next(0.0)).startswith("4:")
    for level in (1, 2, 3):
        come(level, 50)
    passed = 0
    while not str(chooser.next(0.0)).startswith("4:"):
        passed += 1
    assert passed == longest_wait(WEIGHTS, Priority.LOW) == 9 + 5 + 3


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), max_size=120),
    st.lists(st.integers(1, 12), min_size=4, max_size=4),
)
def test_no_level_waits_longer_than_its_bound(steps: list[tuple[int, int]], weights: list[int]) -> None:
    named = dict(zip(WEIGHTS, map(float, weights), strict=True))
    chooser, places, waiting = Chooser(Taking(weights=named)), count(1), Counter[int]()
    passed: Counter[int] = Counter()
    for level, picks in [*steps, (4, 200)]:
        place = next(places)
        chooser.join(Waiting(f"{level}:{place}", place, level))
        waiting[level] += 1
        for _ in range(picks):
            key = chooser.next(0.0)
            if key is None:
                break
            got = int(key[0])
            waiting[got] -= 1
            passed[got] = 0
            for other in LEVELS:
                passed[other] = passed[other] + 1 if other != got and waiting[other] else 0
                assert passed[other] <= longest_wait(named, Priority(other))


TOPOLOGY: dict[str, Any] = {
    "name": "t", "entry": [{"job_type": "f"}], "job_types": {"f": {"queue": "q"}},
    "queues": {"q": {"weights": WEIGHTS}},
}  # fmt: skip


def test_show_tells_shares_and_bounds() -> None:
    topology = Topology.parse(TOPOLOGY)
    text = describe(topology)
    assert "levels by weight, while all wait: critical 53.3%, high 26.7%, normal 13.3%, low 6.7%" in text
    told = {bound["at"]: bound["text"] for bound in bounds(topology)}
    assert "at most 17 jobs are taken while the first of level low waits" in told["queues.q.weights.low"]
    assert "at most 3 jobs are taken while the first of level critical" in told["queues.q.weights.critical"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({**WEIGHTS, "low": 0}, r"queues\.q\.weights\.low: .*greater than 0"),
        ({**WEIGHTS, "low": -1}, r"queues\.q\.weights\.low: .*greater than 0"),
        ({"critical": 8, "high": 4, "normal": 2}, r"weights: the weight of low is missing"),
        ({**WEIGHTS, "lowest": 1}, r'weights: there is no priority "lowest" \(did you mean "low"\?\)'),
        (3, r"queues\.q\.weights: "),
    ],
)
def test_wrong_weights_are_refused(weights: Any, message: str, make_queue: MakeQueue) -> None:
    with pytest.raises(DescriptionError, match=message) as caught:
        Topology.parse({**TOPOLOGY, "queues": {"q": {"weights": weights}}})
    assert "\n" not in str(caught.value)
    with pytest.raises(DescriptionError, match="queue q: weights"):
        make_queue(weights=weights)
