"""C13: one hostile job harms one slot; its neighbours in the same process run once and in time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit.errors import UsageError
from saqkit.queue.dead_letters import dead_letters
from saqkit.queue.queue import Queue

Counts = Callable[[Queue], Awaitable[dict[str, int]]]
Eventually = Callable[..., Awaitable[float]]
Sound = Callable[[Queue], Awaitable[None]]
LEASE_S = 1.0

HOSTILE: dict[str, tuple[dict[str, Any], Status, int]] = {
    "unserialisable": ({}, Status.COMPLETE, 1),
    "nobody_has_it": ({"retries": 3}, Status.FAILED, 0),
    "stubborn": ({"kwargs": {"seconds": 4}, "timeout": 1, "retries": 1}, Status.FAILED, 1),
    "block": ({"kwargs": {"seconds": 2.5 * LEASE_S}, "timeout": 10}, Status.COMPLETE, 1),
}
"""What each is given, how it has to end, and how often it may run."""


@pytest.mark.parametrize(
    ("kind", "hostile"),
    [
        *(
            (kind, hostile)
            for kind in ("saq", "saqkit")
            for hostile in HOSTILE
            if (kind, hostile) != ("saq", "stubborn")
        ),
        pytest.param("saq", "stubborn", marks=pytest.mark.chaos),  # ten seconds
    ],
)
async def test_a_hostile_job_harms_no_neighbour(
    make_queue: Callable[..., Queue], workers: Any, runs: Counts, counts: Counts, until: Eventually, sound: Sound,
    kind: str, hostile: str,
) -> None:  # fmt: skip
    given, status, times = HOSTILE[hostile]
    # SAQ's worker waits for a function that swallows its cancellation: past its timeout the job is recovered.
    given_up = (kind, hostile) == ("saq", "stubborn")
    queue = make_queue(lease_s=LEASE_S, sweep_s=0.1)  # another process, which would sweep what it may
    await queue.enqueue_many(
        [
            Job("brief", key="beside", kwargs={"seconds": 1.0}),
            Job(hostile, key="hostile", **given),
            *(Job("brief", key=str(n), kwargs={"seconds": 0.02}) for n in range(40)),
        ]
    )
    process = workers.start(worker=kind, slots=5 if given_up else 3, lease_s=LEASE_S, sweep_s=0.3)

    async def over() -> bool:
        swept = await queue.sweep()
        assert swept == [] or (given_up and swept == ["saq:job:q:hostile"])
        return await queue.count("incomplete") == 0

    await until(over, 25)
    ran = await runs(queue)
    again = ran.pop("hostile", 0)
    assert ran == {"beside": 1, **{str(n): 1 for n in range(40)}}
    assert again == times or (given_up and 1 <= again <= 3)
    stored = await queue.job("hostile")
    assert stored is not None
    assert stored.status == status
    found = await counts(queue)
    found.pop("lost" if given_up else "", 0)
    found.pop("fenced" if given_up else "", 0)
    assert found == ({"complete": 42} if status == Status.COMPLETE else {"complete": 41, "failed": 1})
    letters = [letter.key async for letter in dead_letters(queue)]
    assert letters == ([] if status == Status.COMPLETE else ["hostile"])
    if hostile == "unserialisable":
        assert "<object object at" in stored.result
    await sound(queue)
    assert await workers.end(process) == 0


async def test_a_body_of_five_megabytes_is_refused_when_it_is_enqueued_and_nothing_is_stored(
    make_queue: Callable[..., Queue], sound: Sound
) -> None:
    queue = make_queue()
    with pytest.raises(UsageError, match="max_body_bytes") as refused:
        await queue.enqueue("f", key="big", text="x" * 5_000_000)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
    with pytest.raises(UsageError, match="big"):
        await queue.enqueue_many([Job("f", key="big", kwargs={"text": "x" * 5_000_000})])
    assert await queue.job("big") is None
    assert await queue.enqueue("f", key="small", text="x" * 60_000) is not None
    assert await queue.count("queued") == 1
    narrow = make_queue("narrow", max_body_bytes=1_000)
    with pytest.raises(UsageError, match="1,000"):
        await narrow.enqueue("f", text="x" * 2_000)
    await sound(queue)
