"""Four workers that are killed all the time, with faults at every site: no job is lost, every promise is kept.

The phases of a run are those of `storm.py`; when it has drained the books are judged.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from a_worker_of_chaos import Order
from accounting import Account, Promise, Tell, account, actions, hits, sound
from crowd import Crowd, Nursery
from saq.job import Job
from seeds import seeds
from storm import LEASE_S, SLOTS, SWEEP_S, WORKERS, Plan, calm, produce, storm

from saqkit.broker import PrivateBroker
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.spec.lifecycle import POISON_CRASHES

WORKER_KINDS = pytest.mark.parametrize("kind", ["saqkit", "saq"])
FAST = Plan(jobs=1_500, safety_s=6.0, kill_every_s=1.0, rate=0.003, drain_s=30.0)
NO_RULES: Mapping[str, Any] = {}
EVERY_RULE: Mapping[str, Any] = {
    "weights": {"critical": 8, "high": 4, "normal": 2, "low": 1},
    "fairness": "tenants",
    "rate_limit": {"limit": 1_000},
    "tenant_rate_limit": {"limit": 150},
    "running_limits": [{"key": "tenant", "limit": 6}, {"key": "job_type", "limit": 25}],
}
# Kills meet the same job three times by chance. What a worker held comes back together, to the head of the line, and is
# taken together, so they come in groups of up to SLOTS: of 20,000 none or a few have been seen, once 9.
MOST_POISON = 2 * SLOTS
LONG = Plan(jobs=20_000, safety_s=60.0, kill_every_s=2.0, rate=0.0005, drain_s=90.0)


def mixture(plan: Plan, random: Random) -> tuple[list[Job], dict[str, Promise]]:
    """Jobs of 20 ms, of which some fail once, wait, die, are unknown, or run until they are cancelled."""
    jobs, promises = [], {}
    for n in range(plan.jobs):
        key, promise, scheduled = str(n), Promise(), 0.0
        function, kwargs = "work", {"ms": 20}
        kind = random.choices(["plain", "once", "late", "dies", "unknown", "held"], [86, 5, 5, 2, 1.7, 0.3])[0]
        if kind == "once":
            kwargs["fails"] = 1
        elif kind == "late":
            scheduled = random.uniform(0.2, 2.0)
        elif kind == "dies":
            kwargs["fails"], promise.dies = 99, True
        elif kind == "unknown":
            function, kwargs, promise.dies = "nobody_has_this", {}, True
        elif kind == "held":
            function, kwargs, promise.cancelled = "hold", {}, True
        promise.cancelled |= random.random() < 0.02
        timeout = 0 if kind == "held" else 30
        jobs.append(Job(function, key=key, kwargs=kwargs, retries=3, retry_delay=0.1, timeout=timeout, ttl=0,
                        priority=random.randint(0, 4), scheduled=scheduled,
                        meta={"keep_key_s": 3600, "tenant": f"t{n % 5}"}))  # fmt: skip
        promises[key] = promise
    random.shuffle(jobs)
    return jobs, promises


async def cancel(queue: Queue, promises: dict[str, Promise], within: asyncio.Event) -> None:
    """Cancel what is to be cancelled, again and again, whether it waits, runs or has ended."""
    wanted = [key for key, promise in promises.items() if promise.cancelled]
    while not within.is_set():
        for key in wanted:
            with contextlib.suppress(*AWAY):
                await queue.abort(Job("any", key=key, ttl=0, queue=queue), "not wanted", ttl=1)
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.2)


@dataclass(frozen=True)
class Outcome:
    """The books of a run, how many workers the test killed, what the fault sites did, and how long the rest took."""

    account: Account
    kills: int
    actions: Counter[str]
    hits: dict[str, int]
    drain_s: float


async def chaos(
    plan: Plan, kind: str, seed: int, nursery: Nursery, server: PrivateBroker, tmp_path: Path, rules: Mapping[str, Any]
) -> Outcome:
    url = (await asyncio.to_thread(server.start)).url
    effects, log = tmp_path / "effects", tmp_path / "faults"
    # Longer than a lease: whoever stands still for so long has lost its jobs, and is refused.
    faults = f"seed={seed},rate={plan.rate},sleep_s={1.5 * LEASE_S},log={log}"
    order = Order(kind, url, str(effects), slots=SLOTS, lease_s=LEASE_S, sweep_s=SWEEP_S, faults=faults)
    crowd, random = Crowd(nursery, order, workers=WORKERS, seed=seed), Random(seed)
    queue = Queue.from_url(url, name="q", lease_s=LEASE_S, sweep_s=SWEEP_S)
    jobs, promises = mixture(plan, random)
    drained = asyncio.Event()
    await queue.configure(rules)
    try:
        crowd.tend()
        producing = asyncio.create_task(produce(queue, jobs, plan.safety_s))
        cancelling = asyncio.create_task(cancel(queue, promises, drained))
        await storm(plan, crowd, server, [queue], [producing])
        recovered = await producing
        drain_s = await calm(plan, crowd, lambda: queue.count("incomplete"))
        drained.set()
        await cancelling
        await asyncio.to_thread(crowd.stop)
        await sound(queue)
        judged = await account(queue, promises, effects, recovered)
        return Outcome(judged, crowd.kills, actions(log), hits(log), drain_s)
    finally:
        drained.set()
        crowd.kill(all_of_them=True)
        await queue.disconnect()


async def check(
    plan: Plan, kind: str, seed: int, nursery: Nursery, server: PrivateBroker, path: Path, tell: Tell,
    rules: Mapping[str, Any] = NO_RULES,
) -> None:  # fmt: skip
    run = await chaos(plan, kind, seed, nursery, server, path, rules)
    judged, kills, faults = run.account, run.kills, run.actions
    seen = {"kills": kills, "faults": faults.total(), "poison": judged.poison, "drained s": round(run.drain_s, 1)}
    tell(judged.row(**seen), run.hits)
    assert judged.lost == []
    assert judged.unexpected == []
    assert judged.accepted == plan.jobs == judged.done + judged.dead + judged.cancelled
    assert judged.doubled <= judged.counts["lost"], "a job ran twice although its lease had not expired"
    assert judged.counts["lost"] <= SLOTS * (kills + faults["exit"] + faults["kill"] + faults["sleep"])
    assert judged.poison <= min(MOST_POISON, judged.counts["lost"] // POISON_CRASHES), "jobs die of crashes of others"
    assert faults.total() >= 1, "a run without faults shows nothing"
    assert kills >= plan.safety_s / plan.kill_every_s / 2


@seeds(1)
@WORKER_KINDS
async def test_four_workers_that_are_killed_lose_no_job(
    kind: str, seed: int, nursery: Nursery, server: PrivateBroker, tmp_path: Path, tell: Tell
) -> None:
    await check(FAST, kind, seed, nursery, server, tmp_path, tell)


@seeds(1)
@WORKER_KINDS
async def test_with_weights_turns_and_every_limit_no_job_is_lost_either(
    kind: str, seed: int, nursery: Nursery, server: PrivateBroker, tmp_path: Path, tell: Tell
) -> None:
    await check(FAST, kind, seed, nursery, server, tmp_path, tell, EVERY_RULE)


@pytest.mark.chaos
@pytest.mark.timeout(400)
@seeds(1, 2, 3, 4, 5)
@WORKER_KINDS
async def test_twenty_thousand_jobs_survive_a_minute_of_kills(
    kind: str, seed: int, nursery: Nursery, server: PrivateBroker, tmp_path: Path, tell: Tell
) -> None:
    await check(LONG, kind, seed, nursery, server, tmp_path, tell)
