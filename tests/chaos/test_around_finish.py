"""A process dies right before and after it says how an attempt ended: the end is there once, or the job runs again.

C8: a dead letter is written in the step that fails the job. C6: only who dies between effect and commit runs again.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from a_worker_of_chaos import Order
from accounting import Account, Promise, Tell, account, hits, sound
from crowd import Crowd, Nursery
from saq.job import Job

from saqkit.queue.dead_letters import dead_letters
from saqkit.queue.queue import Queue

AT_ONCE = 20
ROUND_S = 30.0

# Who dies there leaves: how often the effect happens in all, how many claims expire.
SITES = {
    "job.claimed": (1, 1),
    "job.effect": (2, 1),
    "finish.before": (2, 1),
    "finish.after": (1, 0),
    "bury.before": (0, 1),
    "bury.after": (0, 0),
    "retry.before": (1, 1),
    "retry.after": (1, 0),
}
KINDS = ("saqkit", "saq")


async def die(site: str, kind: str, number: int, nursery: Nursery, url: str, folder: Path) -> Account:
    """Run one job with a worker of one slot that dies at `site`, and with another afterwards."""
    name = f"{kind}-{site}-{number}"
    log, effects = folder / f"{name}.log", folder / f"{name}.effects"
    fails = {"bury": 9, "retry": 1}.get(site.split(".")[0], 0)
    order = Order(kind, url, str(effects), queue=name, slots=1,
                  faults=f"seed={number},rate=1,most=1,actions=exit|kill,only={site},log={log}")  # fmt: skip
    queue = Queue.from_url(url, name=name, lease_s=1.0)
    crowd = Crowd(nursery, order, workers=1)
    try:
        retries = 1 if fails == 9 else 2
        await queue.enqueue(
            Job("work", key="k", kwargs={"fails": fails}, retries=retries, retry_delay=0.3, timeout=30, ttl=0)
        )
        crowd.tend()
        crowd.armed = False
        until = time.monotonic() + ROUND_S
        while await queue.count("incomplete") or not hits(log):  # the server knows before the worker comes to a site
            await queue.sweep()
            crowd.tend()
            await asyncio.sleep(0.1)
            assert time.monotonic() < until, f"{name}: not over within {ROUND_S} s"
        await sound(queue)
        judged = await account(queue, {"k": Promise(dies=fails == 9)}, effects)
        letters = [letter.key async for letter in dead_letters(queue)]
        assert letters == (["k"] if fails == 9 else []), name
        assert hits(log) == {site: 1}, name
        return judged
    finally:
        crowd.kill(all_of_them=True)
        await queue.disconnect()


async def check(site: str, times: int, nursery: Nursery, url: str, folder: Path, tell: Tell) -> None:
    gate, rounds = asyncio.Semaphore(AT_ONCE), times * len(KINDS)

    async def one(kind: str, number: int) -> Account:
        async with gate:
            return await die(site, kind, number, nursery, url, folder)

    found = await asyncio.gather(*(one(kind, number) for number in range(times) for kind in KINDS))
    runs, expired = SITES[site]
    total = Account(
        accepted=rounds, counts={name: sum(a.counts.get(name, 0) for a in found) for name in ("lost", "fenced")}
    )
    for name in ("done", "dead", "doubled"):
        setattr(total, name, sum(getattr(judged, name) for judged in found))
    total.lost = [key for judged in found for key in judged.lost]
    total.unexpected = [key for judged in found for key in judged.unexpected]
    tell(total.row(kills=rounds), {site: rounds})
    assert (total.lost, total.unexpected) == ([], [])
    assert (total.done, total.dead) == ((0, rounds) if not runs else (rounds, 0))
    assert total.doubled == (rounds if runs == 2 else 0)
    assert total.counts == {"lost": expired * rounds, "fenced": 0}


@pytest.mark.parametrize("site", SITES)
async def test_either_worker_dies_ten_times_at(
    site: str, nursery: Nursery, redis_url: str, tmp_path: Path, tell: Tell
) -> None:
    await check(site, 5, nursery, redis_url, tmp_path, tell)


@pytest.mark.chaos
@pytest.mark.timeout(400)
@pytest.mark.parametrize("site", SITES)
async def test_either_worker_dies_a_hundred_times_at(
    site: str, nursery: Nursery, redis_url: str, tmp_path: Path, tell: Tell
) -> None:
    await check(site, 100, nursery, redis_url, tmp_path, tell)
