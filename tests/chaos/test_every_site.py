"""At each fault site a reply is lost, a process dies or stands still: a tour of the queue ends as it should.

A site that the tour does not visit fails here, also one of a script that is new.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from a_worker_of_chaos import TOUR, Order
from accounting import Account, Promise, Tell, account, hits, sound
from crowd import Crowd, Nursery, lives

from saqkit.queue.fault_sites import sites
from saqkit.queue.queue import Queue
from saqkit.spec.lifecycle import State

AT_ONCE = 8
TOUR_S = 40.0
"""Generous: eight tours share two slow cores with other tests."""

EXPECTED = Account(accepted=len(TOUR) + 1, done=len(TOUR) - 1, dead=1, cancelled=1)


@dataclass
class Guided:
    """A tour that has ended."""

    site: str
    account: Account
    hits: dict[str, int]
    deaths: int


Take = Callable[..., Awaitable[Guided]]


@pytest.fixture
def guided(nursery: Nursery, redis_url: str, tmp_path: Path) -> Take:
    """Take the tour with faults at a site; a worker that dies there is followed by one without faults."""

    async def take(site: str, action: str) -> Guided:
        name = site.replace("*", "all")
        log, effects = tmp_path / f"{name}.log", tmp_path / f"{name}.effects"
        order = Order("tour", redis_url, str(effects), queue=name,
                      faults=f"actions={action},rate=1,most=1,only={site},log={log}")  # fmt: skip
        crowd = Crowd(nursery, order, workers=1)
        crowd.tend()
        crowd.armed = False
        queue = Queue.from_url(redis_url, name=name, lease_s=1.0)
        try:
            until, over = time.monotonic() + TOUR_S, Path(f"{effects}.over")
            while True:
                dead = not lives(crowd.pids[0])
                if over.exists():  # looked for after that: who has ended well says so before
                    break
                if dead:
                    crowd.tend()
                await queue.sweep()  # somebody else is there all the time
                await asyncio.sleep(0.1)
                assert time.monotonic() < until, f"{site}: the tour is not over within {TOUR_S} s"
            await sound(queue)
            held = await queue.redis.hmget(queue.key_of("held"), ["state", "att"])  # type: ignore[misc]
            assert held == [b"%d" % State.QUEUED, b"0"], f"{site}: to stop a worker spends an attempt"
            assert await queue.job("unknown") is None, site
            promises = {key: Promise(dies=key == "always") for key in TOUR} | {"cancelled": Promise(cancelled=True)}
            judged = await account(queue, promises, effects)
            return Guided(site, judged, hits(log), crowd.started - 1)
        finally:
            crowd.kill(all_of_them=True)
            await queue.disconnect()

    return take


def _same(found: Account) -> Account:
    return replace(found, doubled=0, counts={})


async def test_a_reply_is_lost_at_every_site_of_one_tour(guided: Take, tell: Tell) -> None:
    tour = await guided("*", "lose")
    missed = {site for site in sites() if site not in tour.hits} - {"job.claimed", "job.effect", "listen.heard"}
    tell(tour.account.row(), tour.hits)
    assert missed == set(), "sites that the tour does not visit"
    assert _same(tour.account) == EXPECTED
    assert tour.account.doubled == 0
    assert tour.deaths == 0


@pytest.mark.parametrize("action", ["exit|kill", pytest.param("sleep", marks=pytest.mark.chaos)])
async def test_a_process_ends_at_each_site(guided: Take, action: str, tell: Tell) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(site: str) -> Guided:
        async with gate:
            return await guided(site, action)

    tours = await asyncio.gather(*(one(site) for site in sites()))
    total = Account(**{name: sum(getattr(tour.account, name) for tour in tours)
                       for name in ("accepted", "done", "dead", "cancelled", "doubled")})  # fmt: skip
    total.lost = [key for tour in tours for key in tour.account.lost]
    total.unexpected = [key for tour in tours for key in tour.account.unexpected]
    total.counts = {name: sum(tour.account.counts.get(name, 0) for tour in tours) for name in ("lost", "fenced")}
    tell(total.row(), {site: n for tour in tours for site, n in tour.hits.items()})
    assert [tour.site for tour in tours if tour.site not in tour.hits] == [], "sites that the tour does not visit"
    assert {tour.site: _same(tour.account) for tour in tours if _same(tour.account) != EXPECTED} == {}
    assert [tour.site for tour in tours if tour.account.doubled > 10] == []
    assert total.counts["fenced"] > 0 or action != "sleep", "who has stood still is refused"
